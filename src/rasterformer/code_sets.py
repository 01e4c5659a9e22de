"""From images to the codes that a prior learns from: what `rasterformer tokenize` writes, and training keeps in memory.

A prior may number only the codes that occur: `count_codes` says which, `compacted` numbers them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.codecs.vq.used import UsedCodes
from rasterformer.data.codes import CodeSet
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError, DataError
from rasterformer.interfaces import Batch, OnStep
from rasterformer.tokenizer import IMAGES_AT_A_TIME, Tokenizer

MakeCondition = Callable[
    [Batch, Tensor, bool], Tensor
]  # (images, their numbers, whether mirrored) -> int64 [B, hc, wc]


@torch.no_grad()
def make_code_set(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    mirror: bool,
    condition: MakeCondition | None = None,
    condition_vocab_size: int | None = None,
    condition_tokenizer: str | None = None,
    use_labels: bool,
    on_progress: OnStep | None = None,
) -> CodeSet:
    """Returns a set of images as codes, with their names, and captions where there are any.

    Args:
        tokenizer: makes the codes.
        images: of a size that is a multiple of its factor.
        mirror: also of each image mirrored left to right; sources are mirrored with their images.
        condition: makes the codes of the conditions, int64 [B, hc, wc], of some images (with their sources, where the set has
            them), their numbers int64 [B], and whether images and sources are mirrored. None: there are no conditions.
        condition_vocab_size: codes that `condition` may return. None: no conditions.
        condition_tokenizer: fingerprint of what makes them. None: no conditions.
        use_labels: keep the classes.
        on_progress: told (images done, images in all).

    Returns:
        CodeSet with int32 codes on the CPU, V = 2 if `mirror` and else 1.

    Raises:
        ConfigError: one of the three arguments about conditions is given without the others.
        DataError: there are no images, labels are asked for where there are none, or an image cannot be read any more.
        ShapeError: the images do not fit the tokenizer.
    """
    given = (condition is not None, condition_vocab_size is not None, condition_tokenizer is not None)
    if any(given) != all(given):
        raise ConfigError(
            f"condition is {'given' if condition else 'None'}, condition_vocab_size = {condition_vocab_size} and "
            f"condition_tokenizer = {condition_tokenizer!r}: give all three, or none."
        )
    if use_labels:
        images.require_labels()
    if len(images) == 0:
        raise DataError(f"{images.name}, {images.split}: there are no images to tokenize.")
    codes, conditions = [], []
    for index in torch.arange(len(images)).split(IMAGES_AT_A_TIME):
        batch = images.batch(index, use_labels=use_labels)
        variants = [batch, _mirrored(batch)] if mirror else [batch]
        codes.append(torch.stack([tokenizer.encode(tokenizer.seen(variant.images)) for variant in variants], 1).int())
        if condition is not None:
            made = [
                condition(variant, index, mirrored) for variant, mirrored in zip(variants, (False, True), strict=False)
            ]
            conditions.append(torch.stack(made, 1).int().cpu())
        if on_progress is not None:
            on_progress(int(index[-1]) + 1, len(images))
    return CodeSet(
        codes=torch.cat(codes),  # [N, V, h, w]
        condition=torch.cat(conditions) if conditions else None,
        labels=images.labels if use_labels else None,
        class_names=images.class_names if use_labels else (),
        names=images.names,
        captions=images.captions,
        vocab_size=tokenizer.vocab_size,
        condition_vocab_size=condition_vocab_size,
        tokenizer=tokenizer.fingerprint,
        condition_tokenizer=condition_tokenizer,
        images=images.fingerprint,
        preprocessing=images.preprocessing,
    )


def count_codes(code_set: CodeSet) -> Tensor:
    """Returns how often each code occurs in all variants of all images, int64 [K].

    Raises:
        DataError: a code is not in 0..K-1.
    """
    usage = CodeUsage(code_set.vocab_size)
    for part in code_set.codes.split(IMAGES_AT_A_TIME):
        usage.add(part.long())
    return usage.counts


def compacted(code_set: CodeSet, used: UsedCodes) -> CodeSet:
    """Returns the set with its codes numbered 0..K'-1; condition and all else stay. For training, not for a file.

    The tokenizer's fingerprint stays too, which promises readers of a codes file the tokenizer's numbers.

    Args:
        code_set: by the tokenizer's numbers.
        used: of the same tokenizer.

    Returns:
        CodeSet with int32 codes and the vocabulary K'.

    Raises:
        DataError: `used` is of a codebook of another size.
    """
    if len(used.to_compact) != code_set.vocab_size:
        raise DataError(
            f"the codes are of {code_set.vocab_size}, but used codes of {len(used.to_compact)} are given: of another tokenizer."
        )
    codes = torch.cat([used.compact(part).int() for part in code_set.codes.split(IMAGES_AT_A_TIME)])
    return replace(code_set, codes=codes, vocab_size=len(used))


def _mirrored(batch: Batch) -> Batch:
    source = batch.cond.source
    cond = batch.cond if source is None else replace(batch.cond, source=source.flip(-1))
    return Batch(batch.images.flip(-1), cond)
