"""`rasterformer reconstruct`: what remains of pictures when they have been codes; measured, or to look at."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from rasterformer.cli.from_images import find_pictures
from rasterformer.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from rasterformer.tokenizer import Tokenizer


def reconstruct(
    model: Path,
    *images: str,
    data: str | None = None,
    split: Literal["train", "test", "all"] = "test",
    limit: int | None = None,
    batch_size: int = 32,
    perceptual: Literal["efficientnet", "lpips", "gradient", "none"] = "efficientnet",
    perceptual_weights: Path | None = None,
    frechet: bool = True,
    json: Path | None = None,
    html: Path | None = None,
    out: Path = Path("reconstructions"),
    crop: Annotated[bool, Parameter(negative="")] = False,
    scale: int = 1,
) -> None:
    """Turn pictures into codes and back, or measure what a tokenizer loses.

    With pictures, each is written as it comes back, and a sheet of original | reconstruction. Without, held-out images are
    measured: PSNR, SSIM, L1, a perceptual and a Fréchet distance (extra `eval`); of label maps the share of labels that are
    right; and how much of the codebook they use.

    Args:
        model: run, model folder or checkpoint of a tokenizer.
        images: files, folders or patterns; any size that is a multiple of the tokenizer's factor.
        data: measure on these images. Default: the data of the tokenizer's recipe.
        split: measured: the data's own test split, or the share held out from training.
        limit: measured: only the first so many images.
        batch_size: measured: images at a time.
        perceptual: measured: which distance in a network's features; none for label maps.
        perceptual_weights: file of weights for lpips.
        frechet: measured: also a Fréchet distance on features of a network (FD-EffLite0); not of label maps.
        json: measured: write the report into this file.
        html: measured: write a page with figures and pictures into this file.
        out: with pictures: folder for the reconstructions and the sheet.
        crop: with pictures: cut each at its borders to the next smaller size that is a multiple of the factor.
        scale: with pictures: magnification in the sheet.
    """
    from rasterformer.tokenizer import load_tokenizer

    if scale < 1:
        raise ConfigError(f"--scale {scale} must be at least 1.")
    if images and (data is not None or json is not None or html is not None):
        raise ConfigError(
            "--data, --json and --html belong to measuring, where no pictures are named. Leave the pictures out, or the options."
        )
    if crop and not images:
        raise ConfigError("--crop cuts pictures, but none was named. Images of a set are fitted as in training.")
    if perceptual_weights is not None and perceptual != "lpips":
        raise ConfigError(
            f"--perceptual-weights {perceptual_weights} belongs to --perceptual lpips, not to {perceptual}."
        )
    tokenizer = load_tokenizer(model)
    if images:
        _write_reconstructions(tokenizer, find_pictures(images), out=out, crop=crop, scale=scale)
        return
    _measure(
        tokenizer,
        data=data,
        split=split,
        limit=limit,
        batch_size=batch_size,
        perceptual=perceptual,
        perceptual_weights=perceptual_weights,
        frechet=frechet,
        json=json,
        html=html,
    )


def _measure(
    tokenizer: Tokenizer,
    *,
    data: str | None,
    split: Literal["train", "test", "all"],
    limit: int | None,
    batch_size: int,
    perceptual: Literal["efficientnet", "lpips", "gradient", "none"],
    perceptual_weights: Path | None,
    frechet: bool,
    json: Path | None,
    html: Path | None,
) -> None:
    from rich.console import Console

    from rasterformer.cli.progress import step_progress
    from rasterformer.codecs.perceptual import SMALLEST_SIDE, make_perceptual
    from rasterformer.evaluation.reconstruction import evaluate_reconstruction
    from rasterformer.evaluation.report import write_page
    from rasterformer.evaluation.similarity import require_torchmetrics
    from rasterformer.nn.efficientnet_lite import load_efficientnet_lite0
    from rasterformer.recipe_images import open_recipe_images

    distance = None
    if tokenizer.recipe.model.pictures != "labels":  # what is missing is to be said now, not after an hour
        require_torchmetrics()
        if frechet:
            load_efficientnet_lite0()
        if perceptual != "none":
            if tokenizer.image_size < SMALLEST_SIDE:
                raise ConfigError(
                    f"--perceptual {perceptual} needs images of at least {SMALLEST_SIDE} pixels; {tokenizer.origin} has "
                    f"{tokenizer.image_size}. Give --perceptual none."
                )
            weights = None if perceptual_weights is None else str(perceptual_weights)
            distance = make_perceptual(perceptual, weights=weights).to(tokenizer.autoencoder.last_layer.device)
    held_out = open_recipe_images(tokenizer.recipe, split, path=data)
    with step_progress("reconstructing") as on_progress:
        report = evaluate_reconstruction(
            tokenizer,
            held_out,
            limit=limit,
            batch_size=batch_size,
            perceptual=distance,
            with_frechet=frechet and tokenizer.recipe.model.pictures != "labels",
            on_progress=on_progress,
        )
    Console().print(report.table())
    if html is not None:
        summary = f"{tokenizer.origin} on {held_out.name}, {split}"
        write_page(html, "What a tokenizer keeps", report.html_sections(), summary=summary)
        print(f"{html} written")
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(json_format.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"{json} written")


def _write_reconstructions(tokenizer: Tokenizer, files: Sequence[Path], *, out: Path, crop: bool, scale: int) -> None:
    import torch

    from rasterformer.cli.progress import step_progress
    from rasterformer.codecs.vq.tiles import decode_in_tiles
    from rasterformer.data.palette import label_colours
    from rasterformer.data.png import image_grid, write_png

    kind = tokenizer.recipe.model.pictures
    pictures = [_read(path, is_labels=kind == "labels", factor=tokenizer.factor, crop=crop) for path in files]
    stems = [path.stem for path in files]
    if len(set(stems)) < len(stems):  # files of the same name from several folders
        stems = [f"{number:03d}-{stem}" for number, stem in enumerate(stems)]
    places = [out / f"{stem}-reconstruction.png" for stem in stems]
    _refuse_overwriting([*places, *out.glob("sheet*.png")], files)
    about = {"kind": "reconstruction", "model": tokenizer.origin, "tokenizer": tokenizer.fingerprint}
    pairs: dict[tuple[int, int], list[Tensor]] = {}
    with step_progress(f"{len(files)} pictures") as on_step:
        for number, (path, picture, place) in enumerate(zip(files, pictures, places, strict=True), start=1):
            original = tokenizer.seen(picture[None])
            remade = decode_in_tiles(tokenizer.autoencoder, tokenizer.encode(original), pictures=kind)
            write_png(place, remade[0], metadata={**about, "image": path.name})
            pair = torch.cat([original, remade])
            size = (picture.shape[1], picture.shape[2])
            pairs.setdefault(size, []).append(label_colours(pair) if kind == "labels" else pair)
            on_step(number, len(files))
    print(f"{len(files)} reconstructions are in {out}")
    for (height, width), shown in pairs.items():
        sheet = out / ("sheet.png" if len(pairs) == 1 else f"sheet-{width}x{height}.png")
        columns = 2 * max(1, round((len(shown) * height / width / 2) ** 0.5))
        write_png(sheet, image_grid(torch.cat(shown), columns=columns, scale=scale, gap=2), metadata=about)
        print(f"{sheet} shows original | reconstruction")


def _read(path: Path, *, is_labels: bool, factor: int, crop: bool) -> Tensor:
    """uint8 [3, h, w], both multiples of the factor."""
    import numpy as np
    import torch

    from rasterformer.data.decode import decode_file

    try:
        decoded = decode_file(path, "labels" if is_labels else "colours")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if decoded.repairs:
        print(f"{path}: {', '.join(decoded.repairs)}")
    picture = torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1).contiguous()
    height, width = picture.shape[1:]
    rows, cols = height // factor * factor, width // factor * factor
    if (rows, cols) == (height, width):
        return picture
    problem = f"{path} is {width}x{height} pixels, but the tokenizer takes multiples of {factor}"
    if not rows or not cols:
        raise ShapeError(f"{problem}: it is too small. Give a picture of at least {factor}x{factor} pixels.")
    if not crop:
        raise ShapeError(
            f"{problem}: such as {cols}x{rows}, to which --crop cuts it, or {cols + factor * (width > cols)}x"
            f"{rows + factor * (height > rows)}, to which you may enlarge it."
        )
    top, left = (height - rows) // 2, (width - cols) // 2
    return picture[:, top : top + rows, left : left + cols]


def _refuse_overwriting(places: Sequence[Path], files: Sequence[Path]) -> None:
    pictures = {path.resolve() for path in files}
    for place in places:
        if place.resolve() in pictures:
            raise ConfigError(
                f"{place} would be overwritten, and is one of the pictures. Give another --out, or fewer pictures."
            )
