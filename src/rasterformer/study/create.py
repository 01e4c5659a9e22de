"""Folders of real and generated images -> a study: pairs that differ in nothing but where their pixels come from.

Both images of a pair go the same way: the largest centred square, reduced to the generated image's size by the mean
over areas (Pillow's BOX; nothing where it has that size), enlarged to 128x128 bilinearly, written as an uncompressed PNG
without any metadata. All files of a study then have the same number of bytes.
"""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from rasterformer.data.decode import decode_file
from rasterformer.data.folder import folder_source
from rasterformer.data.png import read_png_metadata
from rasterformer.errors import ConfigError, DataError
from rasterformer.study.store import Condition, Pair, Store

SIDE = 128  # of what a worker sees, pixels
SHEET = "grid.png"  # a contact sheet of `rasterformer sample`, no sample


@dataclass
class Creation:
    """What `create_study` did.

    Args:
        sides: condition -> side in pixels to which both images of its pairs were brought before they were enlarged.
        reduced: number of real images that were larger.
        skipped: (file, reason) of what was passed over.
    """

    sides: dict[Condition, int] = field(default_factory=dict)
    reduced: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def create_study(
    real: Path,
    generated: Sequence[Path],
    out: Path,
    *,
    pairs: int = 50,
    checks: int = 5,
    seed: int = 0,
    seconds: float = 1.5,
    name: str | None = None,
    temperature: float | None = None,
) -> Creation:
    """Draws pairs without replacement and writes the study's file. No image of a study is in two pairs.

    A real image is paired with any generated one, not with the one that was made from it.

    Args:
        real: folder of real images.
        generated: folders of generated images. Model and temperature are read from the record in each PNG file; where
            there is none, the folder that the file lies in names the model.
        out: the file to make.
        pairs: of each condition, that is of each model and temperature.
        checks: pairs for the whole study in which noise stands in for the generated image.
        seed: another seed, other pairs.
        seconds: how long a pair is shown; 1 to 2 in the paper.
        name: of the model, for images without a record. None: their folder's name.
        temperature: for images without a record. None: not stated.

    Raises:
        ConfigError: pairs is below 1, checks is negative, seconds is not above 0 and at most 60, temperature is not
            positive, no generated folder is given, or a name or temperature is given that no image needs.
        DataError: a folder is missing, or one of real and generated images lies in the other; too few images can be
            used; images of one condition differ in size; the file exists or cannot be written.

    Source: Parmar et al. 2018, section 5.2: 50 pairs, both enlarged to 128x128 bilinearly, shown for 1 to 2 seconds.
    """
    _check_options(generated, pairs=pairs, checks=checks, seconds=seconds, temperature=temperature)
    if out.exists():
        raise DataError(f"{out} exists already and is left as it is; give another file name.")
    _check_folders(real, generated)
    rng = random.Random(seed)
    done = Creation()
    drawn: dict[Condition, list[Image.Image]] = {}
    for condition, files in _conditions(generated, name, temperature, done).items():
        drawn[condition] = _draw_generated(condition, files, pairs, rng, done)
        done.sides[condition] = min(drawn[condition][0].size)
    largest = max(done.sides.values())
    reals = _draw_real(real, pairs * len(drawn) + checks, largest, rng, done)

    made = []
    for condition, images in drawn.items():
        side = done.sides[condition]
        for image in images:
            partner = next(reals)
            done.reduced += min(partner.size) > side
            made.append(Pair(study_png(partner, side), study_png(image, side), condition))
    for _ in range(checks):
        partner = next(reals)
        done.reduced += min(partner.size) > largest
        noise = Image.frombytes("RGB", (largest, largest), rng.randbytes(largest * largest * 3))
        made.append(Pair(study_png(partner, largest), study_png(noise, largest), None))
    Store.create(out, made, seconds=seconds).close()
    return done


def study_png(image: Image.Image, side: int) -> bytes:
    """Returns what a worker sees of an RGB image, as a PNG file of 128x128 pixels with nothing else in it.

    Args:
        image: mode RGB, both sides at least `side`.
        side: pixels to which the largest centred square is reduced before it is enlarged.
    """
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    pixels = image.crop((left, top, left + square, top + square))
    pixels = pixels.resize((side, side), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    bare = Image.frombytes("RGB", (SIDE, SIDE), pixels.tobytes())  # Pillow would copy a colour profile, for one
    stream = io.BytesIO()
    bare.save(stream, format="PNG", compress_level=0)
    return stream.getvalue()


def _check_options(
    generated: Sequence[Path], *, pairs: int, checks: int, seconds: float, temperature: float | None
) -> None:
    if not generated:
        raise ConfigError("no folder of generated images was given. Give at least one after the folder of real images.")
    if pairs < 1:
        raise ConfigError(f"pairs = {pairs} must be at least 1.")
    if checks < 0:
        raise ConfigError(f"checks = {checks} must not be negative.")
    if not 0 < seconds <= 60:
        raise ConfigError(f"seconds = {seconds} must be above 0 and at most 60; the paper shows a pair for 1 to 2.")
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"temperature = {temperature} must be a positive number.")
    if not 1 <= seconds <= 2:
        warnings.warn(f"seconds = {seconds}: the paper shows a pair for 1 to 2 seconds.", stacklevel=3)


def _check_folders(real: Path, generated: Sequence[Path]) -> None:
    for folder in (real, *generated):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Give a folder of images.")
    for folder in generated:
        one, other = real.resolve(), folder.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise DataError(
                f"{real} and {folder}: one of them lies in the other, so that generated images would count as real. "
                "Give two separate folders."
            )


def _conditions(
    folders: Sequence[Path], name: str | None, temperature: float | None, done: Creation
) -> dict[Condition, list[Path]]:
    """Condition -> its files."""
    files = dict.fromkeys(path for folder in folders for path in _files(folder, done))  # a folder may be given twice
    names = {path.parent: path.resolve().parent.name for path in files}
    twice = {folder for folder in names if list(names.values()).count(names[folder]) > 1}
    found: dict[Condition, list[Path]] = {}
    asked = False  # whether `name` and `temperature` were of any use
    for path in files:
        if path.name == SHEET:
            done.skipped.append((str(path), "a contact sheet, no sample"))
            continue
        try:
            record = read_png_metadata(path) if path.suffix.lower() == ".png" else None
        except DataError as error:
            done.skipped.append((str(path), str(error)))
            continue
        if record is None or "model" not in record:
            asked = True
            folder = str(path.parent) if path.parent in twice else names[path.parent]
            condition = Condition(name or folder, temperature)
        else:
            stated = record.get("temperature")
            condition = Condition(str(record["model"]), float(stated) if isinstance(stated, int | float) else None)
        found.setdefault(condition, []).append(path)
    if not found:
        raise DataError(
            f"{', '.join(map(str, folders))}: no generated image can be used{_why(done.skipped)} "
            "PNG, JPEG, WebP, TIFF, BMP and GIF files are read."
        )
    if not asked and (name is not None or temperature is not None):
        raise ConfigError(
            f"name = {name}, temperature = {temperature}: every generated image has its own record of both. "
            "Leave the options out."
        )
    return found


def _files(folder: Path, done: Creation) -> list[Path]:
    source = folder_source(folder)
    done.skipped += [(str(folder / file), reason) for file, reason in source.skipped]
    return [folder / item.name for item in source.items]


def _draw_generated(
    condition: Condition, files: list[Path], pairs: int, rng: random.Random, done: Creation
) -> list[Image.Image]:
    before = len(done.skipped)
    images: list[Image.Image] = []
    for path in rng.sample(files, len(files)):
        try:
            image = decode_file(path).image
        except DataError as error:
            done.skipped.append((str(path), str(error)))
            continue
        images.append(image)
        if min(image.size) != min(images[0].size):
            raise DataError(
                f"{path} is {image.width}x{image.height}, another image of {described(condition)} "
                f"{images[0].width}x{images[0].height}: one condition needs one size. Put them into separate folders."
            )
        if len(images) == pairs:
            return images
    raise DataError(
        f"{described(condition)}: {len(images)} of {len(files)} generated images can be used, {pairs} are needed"
        f"{_why(done.skipped[before:])} Give more images or fewer --pairs."
    )


def _draw_real(folder: Path, needed: int, side: int, rng: random.Random, done: Creation) -> Iterator[Image.Image]:
    before = len(done.skipped)
    files = _files(folder, done)
    usable = 0
    for path in rng.sample(files, len(files)):
        try:
            image = decode_file(path).image
            if min(image.size) < side:
                raise DataError(f"{image.width}x{image.height} pixels, the generated images have {side}x{side}")
        except DataError as error:
            done.skipped.append((str(path), str(error)))
            continue
        usable += 1
        yield image
    raise DataError(
        f"{folder}: {usable} of {len(files)} real images can be used, {needed} are needed (one for each pair of "
        f"each condition and for each check){_why(done.skipped[before:])} Give more images or fewer --pairs."
    )


def described(condition: Condition) -> str:
    """Returns the condition in words."""
    stated = "not stated" if condition.temperature is None else f"{condition.temperature:g}"
    return f"{condition.model}, temperature {stated}"


def _why(skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return "."
    file, reason = skipped[0]
    return f"; {len(skipped)} passed over, the first one {file} ({reason.rstrip('.')})."
