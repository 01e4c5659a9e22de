"""Sources: how the image that another one is conditioned on is made from it. Read `sources.py` first."""
