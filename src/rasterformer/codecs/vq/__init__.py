"""Images as codes of a learned codebook: VQ-VAE and VQGAN (van den Oord et al. 2017; Esser et al. 2021)."""
