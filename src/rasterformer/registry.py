"""Which systems there are: two dicts, name -> package.

A system's package holds `config.py` (a frozen dataclass `Config`, no torch) and `model.py`. A new system is one folder and one
line here. `build` of a generative system makes its codec and its network:
`build(config, *, image_size, num_classes, source) -> (Codec, ImageModel)`, with `tokenizers` besides where it is trained on
their codes, and `text` (a `TextConfig`, or None) where it reads captions, which its `Config` says by `takes_text = True`. A
tokenizer turns images into codes; its `build(config)` makes a VQAutoencoder, and its `TokenizerLoss` trains it.
"""

import importlib
from types import ModuleType
from typing import Any

from rasterformer.errors import ConfigError, did_you_mean

SYSTEMS: dict[str, str] = {
    "image_transformer": "rasterformer.systems.image_transformer",
    "vqgan_transformer": "rasterformer.systems.vqgan_transformer",
    "vq_diffusion": "rasterformer.systems.vq_diffusion",
    "imagen": "rasterformer.systems.imagen",
}
TOKENIZERS: dict[str, str] = {
    "vqgan": "rasterformer.systems.vqgan",
}


def _package(system: str) -> str:
    packages = SYSTEMS | TOKENIZERS
    if system not in packages:
        raise ConfigError(f"system = {system!r} is not known.{did_you_mean(system, packages)}")
    return packages[system]


def config_class(system: str) -> type[Any]:
    """Returns the system's `Config` dataclass, without importing torch.

    Raises:
        ConfigError: no system has that name.
    """
    config: type[Any] = importlib.import_module(f"{_package(system)}.config").Config
    return config


def model_module(system: str) -> ModuleType:
    """Returns the system's `model` module, which has `build`. Imports torch.

    Raises:
        ConfigError: no system has that name.
    """
    return importlib.import_module(f"{_package(system)}.model")
