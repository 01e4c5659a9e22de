"""Sizes of pictures as people type them."""

import re

from rasterformer.errors import ConfigError


def parse_size(text: str) -> tuple[int, int]:
    """Returns (height, width), pixels, of `512x1024`, or of `512` for a square.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if match is None or int(match[1]) < 1 or (match[2] is not None and int(match[2]) < 1):
        raise ConfigError(
            f"--size {text} is no size. Give HEIGHTxWIDTH in pixels, the height first, such as 512x1024, or one number for a "
            "square, such as 512."
        )
    return int(match[1]), int(match[2] or match[1])
