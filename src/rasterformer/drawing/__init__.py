"""How a loaded model draws: what a user asks for becomes batches of one of four kinds of models, and pictures again.

`System` is the way in. `options.py` has all that can be asked, `abilities.py` what a model refuses, `conditions.py` classes and
texts. Pixel by pixel: `symbols.py`, `pixel_pictures.py`, `canvas.py` (tiles). Over codes, too: `code_images.py`,
`code_pictures.py`, `code_filling.py`. Diffusion of pixels and cascades: `stages.py`, `diffusion_pictures.py`. How long it takes:
`timing.py`.
"""
