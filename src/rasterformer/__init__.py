"""rasterformer: transformer-based image generation on your own images.

The public names are loaded when they are first used, so that importing the package costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rasterformer.errors import RasterformerError
    from rasterformer.loading import load
    from rasterformer.recipe import Recipe
    from rasterformer.recipe_file import load_recipe
    from rasterformer.system import System
    from rasterformer.tokenizer import Tokenizer, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "RasterformerError",
    "System",
    "Tokenizer",
    "__version__",
    "load",
    "load_recipe",
    "load_tokenizer",
]

_HOME = {
    "Recipe": "rasterformer.recipe",
    "RasterformerError": "rasterformer.errors",
    "System": "rasterformer.system",
    "Tokenizer": "rasterformer.tokenizer",
    "load": "rasterformer.loading",
    "load_recipe": "rasterformer.recipe_file",
    "load_tokenizer": "rasterformer.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rasterformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
