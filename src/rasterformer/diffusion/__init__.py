"""Diffusion, of codes and of pixels: processes, bounds, drawing and filling in. No system is known here.

Discrete diffusion over codes (VQ-Diffusion): `discrete` the process, `importance` which levels a training step looks at,
`denoiser` what a network is, `bound` the likelihood's bound, `options` and `draw` the reverse chain, `reveal` orders that
reveal masked codes, `fill` what is missing of a grid of codes.

Gaussian diffusion of pixels (Imagen): `gaussian` the process, `edm` that of Karras et al. and its preconditioning, `samplers`
from noise to images, `thresholding` guidance and what keeps images in range, `paste` in-painting, `image_denoiser` what a network
is, `image_options` how to draw, `gaussian_bound` the likelihood's bound.
"""
