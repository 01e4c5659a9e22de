"""Which systems there are: one dict, name -> package.

A system's package holds `config.py` (a frozen dataclass `Config`, no torch) and `model.py` with
`build(config, *, image_size, num_classes) -> (Codec, ImageModel)`. A new system is one folder and one line here.
"""

import importlib
from types import ModuleType
from typing import Any

from rasterformer.errors import ConfigError, did_you_mean

SYSTEMS: dict[str, str] = {
    "image_transformer": "rasterformer.systems.image_transformer",
}


def _package(system: str) -> str:
    if system not in SYSTEMS:
        raise ConfigError(f"system = {system!r} is not known.{did_you_mean(system, SYSTEMS)}")
    return SYSTEMS[system]


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
