"""Pictures much larger than those of the training, from a photograph, by the sliding window: time and memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rasterformer.conditioning.resize import enlarge, reduce_area
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import ConfigError
from rasterformer.system import System
from rasterformer.tasks import SuperResolution

SHOWN_BESIDE = 256  # up to this side the source and the original stand beside the picture


def measure_large(system: System, photo: Path, side: int, stride: int, pictures: Path) -> dict[str, Any]:
    """Draws one picture of side x side pixels from the photograph, reduced, and returns what the JSON says of it.

    Args:
        system: a model of super-resolution over codes.
        photo: the middle square of it is used, reduced by areas to the source.
        side: of the picture, pixels; a multiple of the task's factor.
        stride: of the window, codes.
        pictures: folder for the picture.

    Raises:
        ConfigError: side is no multiple of the factor.
    """
    tokenizer, task = system.tokenizer, system.recipe.task
    assert tokenizer is not None and isinstance(task, SuperResolution), "the run is one of super-resolution over codes"
    if side % task.factor:
        raise ConfigError(f"--large {side}:{stride}: the side must be a multiple of {task.factor}.")
    source = _square(photo, side // task.factor)
    codes, told = (side // tokenizer.factor) ** 2, 0

    def on_step(done: int, every: int) -> None:
        nonlocal told
        if 10 * done // every > told:
            told = 10 * done // every
            print(f"{side}x{side}, stride {stride}: {10 * told} %, {time.perf_counter() - began:.0f} s", flush=True)

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory begins anew
    before, began = _memory("VmRSS"), time.perf_counter()
    drawn = system.transform(
        source, n=1, window_stride=stride, seed=0, precision="bfloat16", as_tensor=True, on_step=on_step
    )[0]
    seconds, peak = time.perf_counter() - began, _memory("VmHWM")
    shown = drawn
    if side <= SHOWN_BESIDE:
        shown = torch.cat([enlarge(source, (side, side), "nearest"), drawn, _square(photo, side)])
    name = f"vqgan-{side}-stride-{stride}.png"
    write_png(pictures / name, image_grid(shown, columns=len(shown)), metadata={"stride": stride, "seed": 0})
    difference = (reduce_area(drawn, task.factor).double() - source.double()).abs().mean()
    return {
        "photo": photo.name,
        "side": side,
        "source_side": side // task.factor,
        "stride": stride,
        "precision": "bfloat16",
        "codes": codes,
        "seconds": seconds,
        "codes_per_second": codes / seconds,
        "bytes_before": before,
        "bytes_peak": peak,
        "difference_grey_levels": float(difference),
        "picture": name,
        "has_original": len(shown) > 1,
    }


def _square(photo: Path, side: int) -> Tensor:
    """The middle of a photograph at one size: uint8 [1, 3, side, side]."""
    with Image.open(photo) as opened:
        square = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].contiguous()


def _memory(field: str) -> int:
    """A field of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024
