"""Published weights: `pickle_reader` opens torch's files, `layouts` and `net2net` rename, `export` writes for diffusers."""
