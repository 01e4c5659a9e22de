"""Sheets of `vq_diffusion.py`: samples by caption and guidance, strides, fills, variations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.released_sampler import exact_plan, released_plan
from benchmarks.scene_captions import caption
from benchmarks.vq_diffusion_parts import Model, Subject, draw_planned, fill, middle_missing, wanted_scenes
from rasterformer.data.png import image_grid, write_png
from rasterformer.diffusion.denoiser import CodeDenoiser

Record = dict[str, Any]
ROWS, STEPS = 8, 25
SCALES = (1.0, 2.0, 4.0)
STRENGTHS = (0.2, 0.4, 0.6, 0.8)
SKIPS = (3, 9)
FILLS = 3


def draw_pictures(subject: Subject, model: Model, prior: Model | None, masking: Model | None, folder: Path) -> Record:
    """Writes the sheets, and returns what each of them shows: file -> sentence."""
    found = {}
    stem = f"vq-diffusion-{subject.name}"
    for what, (tiles, columns, said) in {
        "samples": _samples(subject, model, prior),
        **({} if masking is None else {"strides": _strides(subject, masking)}),
        "inpainting": _inpainting(subject, model),
        "variations": _variations(subject, model),
    }.items():
        file = f"{stem}-{what}.png"
        scale = max(1, 128 // tiles.shape[3])
        write_png(folder / file, image_grid(tiles, columns=columns, scale=scale), metadata={"kind": said, "seed": 0})
        found[file] = said
    return {"sheets": found}


def _captions(subject: Subject) -> tuple[list[str], str]:
    """Of scenes: half seen and half held-out pairs, of other sets: those of the held-out images."""
    if subject.name.startswith("scenes"):
        kinds = wanted_scenes(ROWS // 2)
        said = f"the last {ROWS // 2} with a pair of shape and colour that no training image has"
        return [caption(scene) for scenes in kinds.values() for scene in scenes], said
    return subject.texts(ROWS), "captions of held-out images"


def _samples(subject: Subject, model: Model, prior: Model | None) -> tuple[Tensor, int, str]:
    texts, which = _captions(subject)
    columns, names = [], []
    for one in (prior, model):
        if one is None:
            continue
        settings: Record = {} if one.is_autoregressive else {"steps": STEPS}
        for scale in SCALES if one.can_be_guided else SCALES[:1]:
            columns.append(one.sample(texts, precision=subject.precision, guidance_scale=scale, **settings))
            names.append(f"{'autoregressive' if one.is_autoregressive else 'VQ-Diffusion'} at guidance {scale:g}")
    lines = "; ".join(f"{k + 1}. {text}" for k, text in enumerate(texts))
    said = f"A row for each caption, {which}. Columns: {', '.join(names)}; diffusion in {STEPS} steps. {lines}"
    return torch.stack(columns, 1).flatten(0, 1), len(columns), said


def _strides(subject: Subject, model: Model) -> tuple[Tensor, int, str]:
    denoiser = model.system.model
    assert isinstance(denoiser, CodeDenoiser), "a diffusion model"
    rows, names = [], []
    for skip in SKIPS:
        for kind, plan_of in (("exact stride", exact_plan), ("released sampler", released_plan)):
            plan = plan_of(denoiser.process.num_steps, skip)
            rows.append(draw_planned(model, denoiser, plan, subject.texts(ROWS))[0])
            names.append(f"{kind}, {len(plan)} passes")
    return torch.cat(rows), rows[0].shape[0], f"Rows: {'; '.join(names)}. The same captions and noise in each column."


def _inpainting(subject: Subject, model: Model) -> tuple[Tensor, int, str]:
    originals = subject.held_out.images(slice(ROWS))
    known = middle_missing(originals.shape[2], originals.shape[3])
    fills = fill(
        model, originals, known, subject.texts(len(originals)), steps=STEPS, precision=subject.precision, n=FILLS
    )
    shown = torch.where(known, originals, 128)
    tiles = torch.cat([shown[:, None], fills, originals[:, None]], 1)
    said = f"Held-out images, not chosen: what is given | {FILLS} fills in {STEPS} steps | original."
    return tiles.flatten(0, 1), FILLS + 2, said


def _variations(subject: Subject, model: Model) -> tuple[Tensor, int, str]:
    originals = subject.held_out.images(slice(ROWS))
    text = model.text_of(subject.texts(len(originals)))
    columns = [originals]
    for strength in STRENGTHS:
        drawn = model.system.vary(
            originals, strength=strength, n=1, seed=0, as_tensor=True, precision=subject.precision, text=text
        )
        columns.append(drawn[:, 0])
    names = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    said = f"Held-out images, not chosen: original | variations of strength {names}, with the caption of the original."
    return torch.stack(columns, 1).flatten(0, 1), len(columns), said
