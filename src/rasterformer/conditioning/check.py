"""Whether a condition is what a network was trained with: the checks of classes and texts that all systems share."""

from __future__ import annotations

from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond


def check_label(label: Tensor | None, *, num_classes: int, batch_size: int) -> None:
    """Checks the classes of a batch.

    Args:
        label: int64 [B], 0..num_classes - 1. None: none was given.
        num_classes: of the network; 0: it has none.
        batch_size: B.

    Raises:
        ConfigError: a label is missing, was given to a network without classes, or is out of range; or there is not one for each
            image.
    """
    if label is None:
        if num_classes:
            raise ConfigError(f"label is missing: this model was trained with {num_classes} classes.")
        return
    if not num_classes:
        raise ConfigError("label was given, but this model was trained without classes. Leave it out.")
    if label.shape != (batch_size,) or bool(((label < 0) | (label >= num_classes)).any()):
        raise ConfigError(
            f"label = {label.tolist()} must have one class index in 0..{num_classes - 1} for each of {batch_size} images."
        )


def check_text(cond: Cond, *, takes_text: bool, batch_size: int) -> None:
    """Checks that texts are given to none but a network of texts, one for each image; the rest is `TextInput`'s.

    Raises:
        ConfigError: a text was given to a network without texts, or there is not one for each image.
    """
    for text in (cond.text, cond.text_tokens):
        if text is not None and not takes_text:
            raise ConfigError("text was given, but this model was trained without texts. Leave it out.")
        if text is not None and len(text) != batch_size:
            raise ConfigError(f"text has {len(text)} entries for {batch_size} images. Give one for each.")
