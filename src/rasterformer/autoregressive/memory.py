"""How much memory drawing takes, known before it begins, and how many images at a time fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rasterformer.autoregressive.noise import NUMBERS_AT_A_TIME
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive

AT_A_STEP = (
    8  # float32 numbers that a diffusion model's step holds for each code: two distributions, clocks (measured: 6 to 8)
)
SHARE = 0.5  # of the memory that is free; the rest is for what else the machine does
CGROUP = Path("/sys/fs/cgroup")


def drawing_bytes(model: Autoregressive | CodeDenoiser, batch_size: int, *, rows_per_image: int = 1) -> int:
    """Bytes that drawing takes besides the weights: the state of `begin`, the images, and their noise.

    Of a diffusion model it is what a pass of the network holds, or what is drawn from it, whichever is larger.

    Args:
        model: in the precision that it will draw in.
        batch_size: B.
        rows_per_image: that the network sees; guidance has two.
    """
    length, symbols = model.x_shape
    if isinstance(model, Autoregressive):
        noise = 3 * 8 * max(NUMBERS_AT_A_TIME, model.distribution.noise_per_position)  # float64 while it is made
        return model.state_bytes(rows_per_image * batch_size) + batch_size * (8 * length * symbols + noise)
    step = AT_A_STEP * 4 * batch_size * length * (model.process.num_codes + 1)
    return max(model.state_bytes(rows_per_image * batch_size), step) + batch_size * 8 * length * symbols


@dataclass(frozen=True)
class DrawingPlan:
    """What drawing will take.

    Args:
        num_images: in all.
        batch_size: drawn at a time.
        positions: steps of each image, in units of `unit`.
        bytes_per_image: of a batch: caches, symbols and noise.
        shared_bytes: weights, and what else is there once for a batch.
        available_bytes: free now.
        unit: what a step is: a position, or a pass of the network.
    """

    num_images: int
    batch_size: int
    positions: int
    bytes_per_image: int
    shared_bytes: int
    available_bytes: int
    unit: str = "positions"

    def __str__(self) -> str:
        batches = -(-self.num_images // self.batch_size)
        return (
            f"{self.num_images:,} image{'s' if self.num_images > 1 else ''} of {self.positions:,} {self.unit}, "
            f"{self.batch_size:,} at a time in {batches:,} batch{'es' if batches > 1 else ''}\n"
            f"memory: {_mebibytes(self.batch_size * self.bytes_per_image)} for a batch "
            f"({_mebibytes(self.bytes_per_image)} an image), {_mebibytes(self.shared_bytes)} of weights, "
            f"{_mebibytes(self.available_bytes)} free"
        )


def plan_drawing(
    model: Autoregressive | CodeDenoiser,
    num_images: int,
    *,
    batch_size: int | None,
    most: int,
    available: int,
    rows_per_image: int = 1,
) -> DrawingPlan:
    """Chooses the batch size, or checks the one that is wished for.

    Args:
        model: in the precision that it will draw in.
        num_images: in all.
        batch_size: wished for. None: as many as take half of the available memory, and at most `most`.
        most: see batch_size.
        available: free bytes.
        rows_per_image: see `drawing_bytes`.

    Raises:
        ConfigError: not even one image fits into half of the available memory, or the wished batch not into all of it.
    """
    of_one = drawing_bytes(model, 1, rows_per_image=rows_per_image)
    one = drawing_bytes(model, 2, rows_per_image=rows_per_image) - of_one
    batch_size = choose_batch(num_images, one, batch_size=batch_size, most=most, available=available)
    shared = of_one - one + sum(p.numel() * p.element_size() for p in model.parameters())
    return DrawingPlan(num_images, batch_size, model.x_shape[0], one, shared, available)


def choose_batch(num_images: int, one: int, *, batch_size: int | None, most: int, available: int) -> int:
    """Chooses how many images are drawn at a time, or checks the number that is wished for.

    Args:
        num_images: in all.
        one: bytes that an image takes.
        batch_size, most, available: as in `plan_drawing`.

    Raises:
        ConfigError: as `plan_drawing`.
    """
    if batch_size is None:
        batch_size = min(most, num_images, int(SHARE * available) // one)
        if batch_size < 1:
            raise ConfigError(
                f"drawing one image takes {_mebibytes(one)}, but of {_mebibytes(available)} free memory only half is used. "
                "Close other programs, or set the batch size to 1 to try nevertheless."
            )
    elif (size := min(batch_size, num_images)) * one > available and size > 1:
        raise ConfigError(
            f"batch_size = {batch_size} takes {_mebibytes(size * one)}, but {_mebibytes(available)} are free. "
            f"Use {max(1, int(SHARE * available) // one)}, or leave it out."
        )
    return min(batch_size, num_images)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def available_bytes(device: torch.device) -> int:
    """Free memory of the device; of the processor, what the machine and the control group of this process leave."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # free, but held by the allocator
        return torch.cuda.mem_get_info(device)[0] + kept
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else []
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limit, used, parts = (CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if limit.exists() and used.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        lines = parts.read_text(encoding="ascii").splitlines() if parts.exists() else []
        file_cache = sum(
            int(line.split()[1]) for line in lines if line.startswith("inactive_file ")
        )  # given back on demand
        free.append(max(0, int(most) - int(used.read_text(encoding="ascii")) + file_cache))
    return min(free) if free else 4 * 2**30  # not Linux: a modest guess
