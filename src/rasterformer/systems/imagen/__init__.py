"""Imagen (Saharia et al. 2022): text to image by diffusion of pixels, from small to large. See README.md."""
