"""Which precision a training step computes in."""

from __future__ import annotations

import contextlib

import torch

from rasterformer.recipe import TrainingConfig


def autocast(training: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the recipe wants it and, with `auto`, where the hardware has matrix units for it."""
    wanted = training.precision == "bfloat16" or (training.precision == "auto" and has_bfloat16_units(device))
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware: AMX or AVX-512 BF16 on a processor, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
