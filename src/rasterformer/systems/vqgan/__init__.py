"""VQ-VAE and VQGAN: images to codes of a learned codebook and back (van den Oord et al. 2017, Esser et al. 2021)."""
