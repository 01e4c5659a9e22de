"""Images of the user: found, decoded safely, reduced to one size, and put into an order. Read `opening.py` first."""

from rasterformer.data.decode import Decoded, decode_file, decode_image
from rasterformer.data.fit import fit_square
from rasterformer.data.imageset import ImageSet
from rasterformer.data.locate import EMBEDDED_SETS
from rasterformer.data.opening import open_images
from rasterformer.data.order import training_batches
from rasterformer.data.scan import ScanReport

__all__ = [
    "EMBEDDED_SETS",
    "Decoded",
    "ImageSet",
    "ScanReport",
    "decode_file",
    "decode_image",
    "fit_square",
    "open_images",
    "training_batches",
]
