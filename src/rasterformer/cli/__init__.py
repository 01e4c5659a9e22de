"""The command line: `main.py` and one file per command. Commands call the same functions as the Python interface."""
