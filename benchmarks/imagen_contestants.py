"""Finished runs of all systems side by side: what each is called, how it draws, what it took to train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.runs import run_record
from benchmarks.vq_diffusion import weights_of
from rasterformer.cascade import join
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.options import Precision
from rasterformer.drawing.stages import stages_of
from rasterformer.loading import load
from rasterformer.recipe_file import recipe_to_dict
from rasterformer.system import System

Record = dict[str, Any]
TITLES = {  # role -> what tables call it
    "pixels": "Image Transformer",
    "prior": "VQGAN, transformer over codes",
    "vq_diffusion": "VQ-Diffusion",
    "unet": "Imagen, U-Net",
    "dit": "Imagen, transformer",
    "pooled": "Imagen, U-Net, pooled text",
}
CASCADES = ("unet", "dit", "pooled")  # roles
STEPS = 25  # of every diffusion model where nothing else is said
BATCH = 32  # images drawn at a time


@dataclass(frozen=True)
class Contestant:
    """A run, or a cascade of two, that is measured.

    Args:
        role: of TITLES.
        system: loaded; of Imagen with its upscaler.
        weights: hash of all of them.
    """

    role: str
    system: System
    weights: str

    @property
    def is_cascade(self) -> bool:
        """Or another kind of model."""
        return isinstance(self.system.model, ImageDenoiser)

    @property
    def can_be_guided(self) -> bool:
        """Whether it takes texts and has seen images without theirs."""
        return self.system.takes_text and self.system.has_null

    def settings(self, guidance_scale: float = 1.0, **more: Any) -> Record:
        """How it draws at some guidance: diffusion in `STEPS` steps."""
        steps = {"steps": STEPS} if self.system.is_diffusion else {}
        guidance = {"guidance_scale": guidance_scale} if guidance_scale != 1.0 else {}
        return {**steps, **guidance, **more}

    def text_of(self, texts: Sequence[str]) -> list[str] | None:
        """What `System` takes as texts. None: the model has none."""
        return list(texts) if self.system.takes_text else None

    def sample(self, texts: Sequence[str], *, precision: Precision, **settings: Any) -> Tensor:
        """One image for each text, uint8 [N, 3, H, W]; a model without texts draws as many."""
        drawn: Tensor = self.system.sample(
            len(texts),
            text=self.text_of(texts),
            seed=0,
            as_tensor=True,
            precision=precision,
            batch_size=BATCH,
            **settings,
        )
        return drawn

    def record(self) -> Record:
        """What it is and what it took, stage by stage: for tables."""
        parts = [("tokenizer", self.system.tokenizer)] if self.system.tokenizer is not None else []
        stages = [
            {
                "name": name,
                "image_size": tokenizer.recipe.data.image_size,
                "parameters": sum(weight.numel() for weight in tokenizer.autoencoder.parameters()),
                "minutes": tokenizer.recipe.training.minutes,
                "steps": tokenizer.steps,
                "recipe": recipe_to_dict(tokenizer.recipe),
            }
            for name, tokenizer in parts
        ]
        for number, stage in enumerate(stages_of(self.system)):
            name = f"upscaler {number}" if number else "base" if self.is_cascade else "model"
            stages.append({"name": name, "image_size": stage.recipe.data.image_size, **run_record(stage)})
        return {"title": TITLES[self.role], "takes_text": self.system.takes_text, "stages": stages}


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Options that name the runs."""
    parser.add_argument("--unet", type=Path, metavar="RUN", help="base model with a U-Net: most parts are about it")
    parser.add_argument("--upscaler", type=Path, metavar="RUN", help="that follows every base model")
    parser.add_argument("--pooled", type=Path, metavar="RUN", help="base model like --unet that sees pooled text only")
    parser.add_argument("--dit", type=Path, metavar="RUN", help="base model with a transformer")
    parser.add_argument("--pixels", type=Path, metavar="RUN", help="Image Transformer")
    parser.add_argument("--prior", type=Path, metavar="RUN", help="transformer over the codes of a tokenizer")
    parser.add_argument("--vq-diffusion", type=Path, metavar="RUN", help="VQ-Diffusion over the codes of a tokenizer")


def load_contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """Role -> what was given and is finished; the others are named on the screen."""
    found: dict[str, Contestant] = {}
    upscaler = load(options.upscaler) if _is_finished("upscaler", options.upscaler) else None
    for role in TITLES:
        folder: Path | None = getattr(options, role)
        if folder is None or not _is_finished(role, folder):
            continue
        system, weights = load(folder), weights_of(folder)
        if role in CASCADES and not system.upscalers:
            if upscaler is None:
                sys.exit(f"--{role} {folder} draws small images only: --upscaler is missing.")
            system, weights = join(system, [upscaler]), f"{weights}+{weights_of(options.upscaler)}"
        found[role] = Contestant(role, system, weights)
    if not found:
        sys.exit("No finished run was given: name some, such as --unet RUN --upscaler RUN.")
    sizes = {TITLES[role]: one.system.image_size for role, one in found.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {side}" for name, side in sizes.items())
        sys.exit(f"All runs must draw images of one size, and these draw {listed} pixels. Leave some out.")
    return found


def _is_finished(role: str, folder: Path | None) -> bool:
    if folder is None:
        return False
    if (folder / "model").is_dir():
        return True
    print(f"{role} is left out: no finished run", flush=True)
    return False
