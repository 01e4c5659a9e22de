"""Sheets of `imagen.py`: captions by guidance and by system, thresholding, stages, fills, variations, wide pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.imagen_contestants import STEPS, TITLES, Contestant
from benchmarks.imagen_parts import RESAMPLINGS, Scenes, fill
from benchmarks.scene_captions import caption
from benchmarks.vq_diffusion_parts import middle_missing, wanted_scenes
from rasterformer.conditioning.resize import enlarge
from rasterformer.data.png import image_grid, write_png
from rasterformer.drawing.options import Precision
from rasterformer.drawing.stages import multiple_of

Record = dict[str, Any]
SCALES = (1.0, 2.0, 4.0, 8.0)
THRESHOLDS = ("dynamic", "static", "none")
GUIDED = 4.0  # where one guidance must do
STRENGTHS = (0.2, 0.4, 0.6, 0.8)
SIDE = 128  # pixels of a tile on a sheet, at least


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows.

    Args:
        tiles: uint8 [N, 3, H, W].
        columns: in a row.
        said: what rows and columns are.
    """

    tiles: Tensor
    columns: int
    said: str


@dataclass(frozen=True)
class Drawing:
    """What all sheets are drawn with.

    Args:
        scenes: the images.
        contestants: all that there are.
        main: the cascade that most sheets are about.
        rows: pictures of each kind.
        precision: of drawing.
    """

    scenes: Scenes
    contestants: Mapping[str, Contestant]
    main: Contestant
    rows: int
    precision: Precision

    @property
    def captions(self) -> list[str]:
        """Half with pairs of shape and colour that training images show, and half with others."""
        wanted = wanted_scenes(-(-self.rows // 2))
        texts = [caption(scene) for scenes in wanted.values() for scene in scenes]
        return texts[: self.rows]

    def sample(self, one: Contestant, texts: list[str], **more: Any) -> Tensor:
        """One image for each text."""
        return one.sample(texts, precision=self.precision, **one.settings(**more))


def sheets(drawing: Drawing) -> dict[str, Callable[[], Sheet]]:
    """Name -> what draws it."""
    made: dict[str, Callable[[Drawing], Sheet]] = {
        "guidance": _guidance,
        "thresholds": _thresholds,
        "systems": _systems,
        "stages": _stages,
        "inpainting": _inpainting,
        "variations": _variations,
        "wide": _wide,
    }
    if not drawing.main.can_be_guided:
        del made["guidance"], made["thresholds"]
    return {name: partial(draw, drawing) for name, draw in made.items()}


def write_sheet(sheet: Sheet, file: Path) -> Record:
    """Writes the picture; returns its name and what it shows."""
    grid = image_grid(sheet.tiles, columns=sheet.columns, scale=max(1, SIDE // sheet.tiles.shape[2]))
    write_png(file, grid, metadata={"kind": sheet.said, "seed": 0})
    return {"file": file.name, "said": sheet.said}


def _guidance(drawing: Drawing) -> Sheet:
    texts = drawing.captions
    columns = [drawing.sample(drawing.main, texts, guidance_scale=scale) for scale in SCALES]
    names = ", ".join(f"{scale:g}" for scale in SCALES)
    said = f"{_title(drawing.main)}, a row for each caption, guidance {names}, {STEPS} steps a stage. {_listed(texts)}"
    return Sheet(_in_columns(columns), len(columns), said)


def _thresholds(drawing: Drawing) -> Sheet:
    texts = drawing.captions
    columns = [
        drawing.sample(drawing.main, texts, guidance_scale=SCALES[-1], threshold=threshold) for threshold in THRESHOLDS
    ]
    said = (
        f"{_title(drawing.main)} at guidance {SCALES[-1]:g}: thresholding {', '.join(THRESHOLDS)}; a row for each caption, the "
        f"same noise in each column. {_listed(texts)}"
    )
    return Sheet(_in_columns(columns), len(columns), said)


def _systems(drawing: Drawing) -> Sheet:
    texts, columns, names = drawing.captions, [], []
    for one in drawing.contestants.values():
        scale = GUIDED if one.can_be_guided else 1.0
        columns.append(drawing.sample(one, texts, guidance_scale=scale))
        how = f"guidance {scale:g}" if one.can_be_guided else "plain" if one.system.takes_text else "takes no captions"
        names.append(f"{_title(one)} ({how})")
    said = f"A row for each caption. Columns: {', '.join(names)}; diffusion in {STEPS} steps. {_listed(texts)}"
    return Sheet(_in_columns(columns), len(columns), said)


def _stages(drawing: Drawing) -> Sheet:
    texts, main = drawing.captions, drawing.main
    base = replace(main, system=replace(main.system, upscalers=()))
    small = drawing.sample(base, texts, guidance_scale=GUIDED if main.can_be_guided else 1.0)
    large = drawing.sample(main, texts, guidance_scale=GUIDED if main.can_be_guided else 1.0)
    grown = enlarge(small, large.shape[2] // small.shape[2], "nearest")
    said = (
        f"{_title(main)}: what the base model draws, {small.shape[2]}x{small.shape[3]}, beside what the upscaler makes of it, "
        f"{large.shape[2]}x{large.shape[3]}, two captions a row. {_listed(texts)}"
    )
    return Sheet(_in_columns([grown, large]), 4, said)


def _inpainting(drawing: Drawing) -> Sheet:
    originals, texts = _originals(drawing)
    known = middle_missing(originals.shape[2], originals.shape[3])
    fills = [
        fill(drawing.main, originals, known, texts, resamplings=times, precision=drawing.precision)
        for times in RESAMPLINGS
    ]
    columns = [torch.where(known, originals, 128), *fills, originals]
    said = (
        f"{_title(drawing.main)}, held-out images, not chosen: what is given, with the caption | filled at "
        f"{' and '.join(f'{times} resampling' + 's' * (times > 1) for times in RESAMPLINGS)}, {STEPS} steps a stage | original."
    )
    return Sheet(_in_columns(columns), len(columns), said)


def _variations(drawing: Drawing) -> Sheet:
    originals, texts = _originals(drawing)
    columns = [originals]
    for strength in STRENGTHS:
        drawn = drawing.main.system.vary(
            originals,
            strength=strength,
            seed=0,
            as_tensor=True,
            precision=drawing.precision,
            steps=STEPS,
            text=drawing.main.text_of(texts),
        )
        columns.append(drawn[:, 0])
    names = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    said = (
        f"{_title(drawing.main)}, held-out images, not chosen: original | variations of strength {names}, with the caption of "
        "the original."
    )
    return Sheet(_in_columns(columns), len(columns), said)


def _wide(drawing: Drawing) -> Sheet:
    side, multiple = drawing.main.system.image_size, multiple_of(drawing.main.system)
    width = -(-side * 3 // (2 * multiple)) * multiple
    texts = drawing.captions
    scale = GUIDED if drawing.main.can_be_guided else 1.0
    tiles = drawing.sample(drawing.main, texts, guidance_scale=scale, size=(side, width))
    said = f"{_title(drawing.main)}, trained on {side}x{side}, asked for {side}x{width}. {_listed(texts)}"
    return Sheet(tiles, 4, said)


def _originals(drawing: Drawing) -> tuple[Tensor, list[str]]:
    """The first held-out images and their captions."""
    originals = drawing.scenes.held_out.images(slice(drawing.rows))
    return originals, drawing.scenes.subject(len(originals), drawing.precision).texts()


def _in_columns(columns: list[Tensor]) -> Tensor:
    return torch.stack(columns, 1).flatten(0, 1)


def _title(one: Contestant) -> str:
    return TITLES[one.role]


def _listed(texts: list[str]) -> str:
    return "; ".join(f"{k}. {text}" for k, text in enumerate(texts, start=1))
