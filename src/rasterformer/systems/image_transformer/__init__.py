"""The Image Transformer (Parmar et al. 2018). Start with README.md, then model.py."""
