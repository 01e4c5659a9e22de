"""`rasterformer tokenize`: images as codes, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def tokenize(
    model: Path,
    *,
    out: Path,
    data: str | None = None,
    split: Literal["train", "test", "all"] = "train",
    mirror: Annotated[bool, Parameter(negative="")] = False,
    labels: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn a set of images into a codes file. `detokenize` makes images of it again.

    The file knows its tokenizer. Names of the images are kept, and their captions where there are any.

    Args:
        model: run, model folder or checkpoint of a tokenizer.
        out: the .safetensors file to write.
        data: images. Default: the data of the tokenizer's recipe.
        split: which part of them.
        mirror: also the codes of each image mirrored left to right.
        labels: keep the classes of the images.

    Raises:
        ConfigError, DataError, ShapeError: what was typed cannot be done; the message says why.
        CheckpointError: the model cannot be loaded.
    """
    from rasterformer.cli.progress import step_progress
    from rasterformer.code_sets import make_code_set
    from rasterformer.data.codes import save_codes
    from rasterformer.recipe_images import open_recipe_images
    from rasterformer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    images = open_recipe_images(tokenizer.recipe, split, path=data)
    with step_progress(f"{len(images)} images") as on_progress:
        code_set = make_code_set(tokenizer, images, mirror=mirror, use_labels=labels, on_progress=on_progress)
    save_codes(out, code_set)
    rows, cols = code_set.codes.shape[2:]
    kept = ["names", *["classes"] * (code_set.labels is not None), *["captions"] * (code_set.captions is not None)]
    print(
        f"{out} written, {out.stat().st_size:,} bytes: {len(code_set):,} images{', and each mirrored' if mirror else ''}, of "
        f"{rows}x{cols} codes with {tokenizer.vocab_size:,} values; with {', '.join(kept)}"
    )
