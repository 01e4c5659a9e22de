"""`rasterformer detokenize`: images from a codes file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

from cyclopts import Parameter

from rasterformer.errors import ConfigError, DataError


def detokenize(
    model: Path,
    codes: Path,
    *,
    out: Path = Path("images"),
    n: Annotated[int | None, Parameter(name=["-n", "--n"])] = None,
) -> None:
    """Make images of a codes file, each as PNG under its name.

    Args:
        model: run, model folder or checkpoint of the tokenizer that made the codes.
        codes: the file.
        out: folder for the images.
        n: only the first so many images. Default: all.

    Raises:
        ConfigError: -n is below 1.
        DataError: the file is damaged, was made by another tokenizer, or names an image outside of the folder.
        CheckpointError: the model cannot be loaded.
    """
    from rasterformer.cli.progress import step_progress
    from rasterformer.codecs.vq.tiles import decode_in_tiles
    from rasterformer.data.codes import load_codes
    from rasterformer.data.png import write_png
    from rasterformer.tokenizer import IMAGES_AT_A_TIME, load_tokenizer

    if n is not None and n < 1:
        raise ConfigError(f"-n {n} must be at least 1.")
    tokenizer = load_tokenizer(model)
    fingerprint = tokenizer.fingerprint
    code_set = load_codes(codes, tokenizer=fingerprint)
    count = len(code_set) if n is None else min(n, len(code_set))
    places = [out / name for name in file_names(code_set.names)[:count]]
    about = {"kind": "reconstruction", "model": str(model), "tokenizer": fingerprint, "codes": codes.name}
    with step_progress(f"{count} images") as on_step:
        for start in range(0, count, IMAGES_AT_A_TIME):
            part = slice(start, min(start + IMAGES_AT_A_TIME, count))
            images = decode_in_tiles(
                tokenizer.autoencoder, code_set.codes[part, 0].long(), pictures=tokenizer.recipe.model.pictures
            )
            for place, name, image in zip(places[part], code_set.names[part], images, strict=True):
                write_png(place, image, metadata={**about, "image": name})
            on_step(part.stop, count)
    print(f"{count} images in {out}")


def file_names(names: Sequence[str]) -> list[str]:
    """Names of images, such as `cats/1.jpg`, as names of PNG files; where two would be the same, all get numbers.

    Raises:
        DataError: a name leads out of the folder.
    """
    from rasterformer.data.decode import SUFFIXES

    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name:
            raise DataError(
                f"the codes file has an image named {name!r}, which leads out of --out. Tokenize the images again."
            )
    stems = [name[: name.rfind(".")] if name.lower().endswith(SUFFIXES) else name for name in names]
    if len(set(stems)) == len(stems):
        return [f"{stem}.png" for stem in stems]
    return [
        str(PurePosixPath(stem).with_name(f"{k:05d}-{PurePosixPath(stem).name}.png")) for k, stem in enumerate(stems)
    ]
