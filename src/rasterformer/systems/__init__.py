"""One folder per published system; none imports another."""
