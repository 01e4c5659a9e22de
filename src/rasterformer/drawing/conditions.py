"""What images are drawn by, from what a user says: class names, indices and texts -> `Cond`; nothing -> the learned null."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.batches import batches_of
from rasterformer.conditioning.text import load_text_encoder
from rasterformer.conditioning.text_encoder import TextEncoder, check_dim
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.code_images import is_told_places
from rasterformer.errors import CheckpointError, ConfigError, did_you_mean
from rasterformer.interfaces import Cond

if TYPE_CHECKING:
    from rasterformer.system import System

TEXTS_AT_A_TIME = 64

Label = str | int | None
Text = str | None


def cond_of(
    system: System,
    label: Label | Sequence[Label],
    count: int,
    seed: int,
    *,
    first: int = 0,
    text: Text | Sequence[Text] = None,
    guidance_scale: float = 1.0,
    draws_class: bool = False,
) -> Cond:
    """What images are drawn by; those of which nothing is said, by the learned null.

    Args:
        system: the model; its text encoder is loaded where it has one.
        label, text: for all, or one for each.
        count: number of images.
        seed: of the classes that are drawn at random.
        first: number of the first image.
        guidance_scale: above 1 every image needs a condition.
        draws_class: where the class is all that can be said, one is drawn at random instead of the null.

    Raises:
        ConfigError: an unknown label, a text that is none, another number of them, classes or texts for a model without, or
            guidance by nothing.
        MissingExtraError, DataError, CheckpointError: as `with_text`.
    """
    labels, texts = _one_for_each("label", label, count), _texts(text, count)
    if any(entry is not None for entry in labels) and not system.model.num_classes:
        raise ConfigError(f"label = {label!r} was given, but this model has no classes. Leave it out.")
    nothing = [of_class is None and words is None for of_class, words in zip(labels, texts, strict=True)]
    cond = Cond()
    if system.model.num_classes:
        classes = [
            _random_class(system, seed, first + k) if entry is None else _class_index(system, entry)
            for k, entry in enumerate(labels)
        ]
        cond = Cond(label=torch.tensor(classes, device=system.device))
    cond = _with_states(system, cond, texts)
    if not draws_class or system.takes_text:
        cond = _hidden(system, cond, nothing)
    if guidance_scale != 1.0 and any(nothing) and (cond.dropped is not None or system.takes_text):
        kind = "text" if system.takes_text else "class"
        raise ConfigError(
            f"guidance_scale = {guidance_scale} needs a {kind} to be guided by, but image {nothing.index(True)} has none. "
            "Give one, or leave guidance_scale out."
        )
    return cond


def with_text(system: System, cond: Cond, text: Text | Sequence[Text], count: int) -> Cond:
    """`System.with_text`."""
    texts = _texts(text, count)
    cond = _with_states(system, cond, texts)
    if not system.takes_text:
        return cond
    return _hidden(system, cond, [entry is None and cond.label is None for entry in texts])


def _with_states(system: System, cond: Cond, texts: Sequence[Text]) -> Cond:
    """Adds what the model reads of texts, one for each image; None is read as an empty one."""
    config = system.recipe.text
    if config is None:
        if any(entry is not None for entry in texts):
            raise ConfigError("text was given, but this model was trained without captions. Leave it out.")
        return cond
    if system.text_encoder is None:
        system.text_encoder = load_text_encoder(config.encoder, config.folder)
    encoder, found = system.text_encoder, system.text_encoder.fingerprint
    check_dim(encoder, config.dim)
    if system.trained_on_text not in (None, found):
        place = "is installed" if config.folder is None else f"is in {config.folder}"
        raise CheckpointError(
            f"this model was trained with text encoder {system.trained_on_text}, but {found} {place}. Use the former."
        )
    system.trained_on_text = found
    given, known = (
        part.to(system.device) for part in _encoded(encoder, [entry or "" for entry in texts], config.length)
    )
    if encoder.dim is None:
        return replace(cond, text_tokens=given, text_known=known)
    return replace(cond, text=given, text_known=known)


def _hidden(system: System, cond: Cond, nothing: Sequence[bool]) -> Cond:
    """Hides the condition of the images of which nothing is said, by a model that has learned that.

    A null stands for all that attention sees of the condition, and so in place of nothing that is there: over codes a source, or
    where a window lies. A diffusion model of pixels sees its source beside the null, whether its text is hidden or not.
    """
    hides_source = system.recipe.task is not None and not isinstance(system.model, ImageDenoiser)
    if not any(nothing) or not system.has_null or hides_source or is_told_places(system):
        return cond
    return replace(cond, dropped=torch.tensor(nothing, device=system.device))


def _random_class(system: System, seed: int, number: int) -> int:
    stream = torch.Generator().manual_seed(stream_seed(seed, "label", number))  # apart from the image's own
    return int(torch.randint(system.model.num_classes, (), generator=stream))


def _class_index(system: System, label: Label) -> int:
    if isinstance(label, str) and label in system.class_names:
        return system.class_names.index(label)
    index = int(label) if label is not None and str(label).isdigit() else -1
    if 0 <= index < system.model.num_classes:
        return index
    hint = did_you_mean(str(label), system.class_names)
    raise ConfigError(
        f"label = {label!r} is not known to this model.{hint} An index in 0..{system.model.num_classes - 1} works too."
    )


def _texts(text: Text | Sequence[Text], count: int) -> list[Text]:
    texts = _one_for_each("text", text, count)
    for k, entry in enumerate(texts):
        if entry is not None and not isinstance(entry, str):
            raise ConfigError(f"text of image {k} is {entry!r}, a {type(entry).__name__}. Give a string, or None.")
    return texts


def _one_for_each(name: str, given: Any, count: int) -> list[Any]:
    """What was given for all or one for each, as one for each."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        return [given] * count
    each = list(given)
    if len(each) != count:
        raise ConfigError(f"{name} has {len(each)} entries for {count} images. Give one, or one for each.")
    return each


def _encoded(encoder: TextEncoder, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """As `TextEncoder.encode`, but every different text is read once, some at a time."""
    number = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    parts = [encoder.encode(list(number)[rows], length=length) for rows in batches_of(len(number), TEXTS_AT_A_TIME)]
    longest = max(known.shape[1] for _, known in parts)
    index = torch.tensor([number[text] for text in texts])
    given, known = (
        torch.cat(
            [torch.cat([part, part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])], 1) for part in kind]
        )
        for kind in zip(*parts, strict=True)
    )
    return given[index], known[index]
