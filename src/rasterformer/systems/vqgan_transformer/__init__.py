"""A transformer over the codes of a tokenizer (Esser et al. 2021, section 3.2 and 3.3)."""
