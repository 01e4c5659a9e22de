"""Codecs: images <-> the symbols a model works on."""

from rasterformer.codecs.pixels import PixelCodec

__all__ = ["PixelCodec"]
