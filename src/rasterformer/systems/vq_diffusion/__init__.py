"""Discrete diffusion over the codes of a tokenizer (Gu et al. 2022, Tang et al. 2022)."""
