"""One script per published number, with the JSON it wrote in `results/`. Run them by `python -m benchmarks`."""
