"""The errors a user can cause, and can mend.

Every message says where, what was received, what is allowed and, where we know it, what to do. The command line prints
the message and exits with 2; anything that is not a `RasterformerError` is our fault and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class RasterformerError(Exception):
    """Base of every error that the user's input can cause."""


class ConfigError(RasterformerError):
    """A recipe, an option or an argument is not what the program can work with."""


class DataError(RasterformerError):
    """A folder, file or array of images cannot be used."""


class ShapeError(RasterformerError):
    """A tensor at a public border has the wrong shape or dtype."""


class CheckpointError(RasterformerError):
    """A model folder or a checkpoint is missing, damaged or does not fit."""


class CodecError(RasterformerError):
    """Images and symbols cannot be converted into each other."""


class MissingExtraError(RasterformerError):
    """An optional package is needed; the message names the extra to install."""


def did_you_mean(received: str, allowed: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'? Allowed: a, b, c.`: the nearest name, if one is near, and then the list."""
    names = sorted(allowed)
    hint = nearest(received, names)
    return f"{hint} Allowed: {', '.join(names)}." if names else hint


def nearest(received: str, allowed: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?`: the nearest name, or "" where none is near. For a message that lists the names itself."""
    found = difflib.get_close_matches(received, sorted(allowed), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""
