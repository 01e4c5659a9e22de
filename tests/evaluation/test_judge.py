"""From a system and its images to a report: which images, which sources, which samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError, DataError
from rasterformer.evaluation.image_to_image_report import ImageToImageReport
from rasterformer.evaluation.judge import judge_samples
from rasterformer.evaluation.likelihood import LikelihoodReport, likelihood_report
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config as ImagenConfig
from rasterformer.tasks import Inpaint, SuperResolution, Task

SIDE = 12  # pixels; SSIM's window has 11
TASKS = {
    "super_resolution": [("task.name", "super_resolution"), ("task.factor", "2")],
    "inpaint": [("task.name", "inpaint")],
    "colourise": [("task.name", "colourise")],
    "paired": [("task.name", "paired"), ("task.source_path", "elsewhere"), ("task.source_size", "6")],
}


def image_set(count: int, *, seed: int, side: int = SIDE) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    return ImageSet(
        name="toys",
        split="test",
        split_origin="made",
        preprocessing="none",
        image_size=side,
        class_names=(),
        labels=None,
        captions=None,
        fingerprint="0" * 64,
        lossless=True,
        skipped=(),
        num_images=count,
        pixels=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=rng),
        names=tuple(f"{k}.png" for k in range(count)),
    )


HELD_OUT, TRAINING = image_set(3, seed=0), image_set(4, seed=1)
PARTNERS = image_set(3, seed=2, side=6)


def make(task: str | None) -> System:
    words = [("data.image_size", str(SIDE)), ("model.depth", "1"), ("model.width", "8"), ("model.mlp_width", "8")]
    if task is not None:
        words += [("model.encoder_depth", "1"), ("model.encoder_cell", "pixel"), *TASKS[task]]
    system = System.create(load_recipe("tiny", words))
    system.model.eval()
    return system


def known_likelihood() -> LikelihoodReport:
    options: dict[str, Any] = {"num_dims": 3 * SIDE**2, "model": "runs/toy", "dtype": "float32", "seconds": 1.0}
    return likelihood_report(torch.tensor([900.0, 1000.0, 1100.0]), HELD_OUT, **options)


def judge(task: str | None, held_out: ImageSet = HELD_OUT, **options: Any) -> ImageToImageReport:
    words: dict[str, Any] = {"num_images": 2, "n": 2, "temperature": 0.9, "seed": 4, "with_frechet": False} | options
    return judge_samples(make(task), held_out, TRAINING, known_likelihood(), **words)


def psnr(images: Tensor, originals: Tensor) -> float:
    """10 log10(255^2 / mean square difference), mean over images."""
    square = (images.numpy().astype(float) - originals.numpy()) ** 2
    return float(np.mean([10 * np.log10(255**2 / one.mean()) for one in square]))


def means(images: Tensor) -> Tensor:
    """Of areas of 2x2 pixels, rounded down."""
    count = len(images)
    return images.long().view(count, 3, SIDE // 2, 2, SIDE // 2, 2).sum((3, 5)) // 4


def test_samples_are_drawn_from_the_sources_of_the_first_held_out_images() -> None:
    report, system = judge("super_resolution"), make("super_resolution")
    originals = HELD_OUT.images(slice(2))
    sources = means(originals)
    samples = system.draw_from(Cond(source=sources.to(torch.uint8)), n=2, temperature=0.9, seed=4)
    own = report.rows["model"]
    assert own["psnr_db"] == pytest.approx(psnr(samples[:, 0], originals))
    apart = torch.stack([means(samples[:, k]) - sources for k in range(2)]).double() / 255
    assert own["consistency_area"] == pytest.approx(apart.square().mean().item())
    assert report.rows["original"]["consistency_area"] == 0
    training = TRAINING.images(slice(None))
    distance = torch.cdist(sources.flatten(1).double(), means(training).flatten(1).double())
    nearest = training[distance.argmin(1)]
    assert report.rows["nearest training image"]["psnr_db"] == pytest.approx(psnr(nearest, originals))


def test_the_head_of_the_report_says_what_was_judged() -> None:
    report = judge("super_resolution")
    assert (report.task, report.model, report.dataset) == ("super_resolution", "runs/toy", "toys, test")
    assert (report.num_images, report.samples_per_image) == (2, 2)
    assert report.settings == {"temperature": 0.9, "seed": 4}
    likelihood = known_likelihood()
    assert (report.bits_per_dim, report.interval) == (likelihood.bits_per_dim, likelihood.interval)
    assert report.interval is not None and not any("fd_efflite0" in row for row in report.rows.values())


@pytest.mark.parametrize("change", [{"seed": 5}, {"temperature": 0.2}])
def test_seed_and_temperature_reach_the_samples(change: dict[str, Any]) -> None:
    assert judge("colourise").rows["model"] == judge("colourise").rows["model"]
    assert judge("colourise", **change).rows["model"] != judge("colourise").rows["model"]


def test_of_inpainting_known_pixels_stay_and_masks_are_those_of_held_out_images() -> None:
    report, system = judge("inpaint"), make("inpaint")
    batch = HELD_OUT.batch(torch.arange(2), use_labels=False)
    cond = system.with_source(batch, first=0, purpose="held-out source", seed=0).cond
    assert report.task == "inpaint" and report.rows["model"]["known_pixels_changed"] == 0
    assert cond.known is not None
    shown = torch.where(cond.known[:, None], batch.images, 128)
    assert report.rows["source"]["psnr_db"] == pytest.approx(psnr(shown, batch.images))


def test_of_paired_folders_the_partner_is_the_source() -> None:
    report = judge("paired", replace(HELD_OUT, sources=PARTNERS))
    shown = PARTNERS.images(slice(2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert report.rows["source"]["psnr_db"] == pytest.approx(psnr(shown, HELD_OUT.images(slice(2))))
    assert report.task == "paired" and "known_pixels_changed" not in report.rows["model"]


def test_more_images_than_there_are_are_as_many_as_there_are() -> None:
    assert judge("colourise", num_images=50, n=1).num_images == 3


def test_progress_ends_at_all_positions() -> None:
    told: list[tuple[int, int]] = []
    judge("colourise", on_step=lambda done, total: told.append((done, total)))
    assert told[-1] == (4 * SIDE**2, 4 * SIDE**2)


def test_a_model_without_a_task_and_a_single_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="this model has no task: there are no sources to draw samples from"):
        judge(None)
    with pytest.raises(DataError, match="There is 1 image; figures that compare images need at least 2"):
        judge("colourise", num_images=1)


CAPTIONS = ("a cat", "", "two dogs")


def diffusion(task: Task) -> System:
    """A diffusion model of pixels that reads bytes of captions; its weights are random, so that captions matter."""
    small: dict[str, Any] = {"width": 8, "multipliers": (1,), "res_blocks": (1,), "norm_groups": 4, "head_dim": 8}
    config = ImagenConfig(**small, text_width=8, attention_levels=(), source_noise=float(isinstance(task, SuperResolution)))
    data, text = DataConfig(image_size=SIDE), TextConfig(encoder="bytes", length=10, dim=8)
    system = System.create(Recipe("imagen", config, data, TrainingConfig(), task=task, text=text))
    system.model.eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return system


@pytest.mark.parametrize("task", [SuperResolution(2), Inpaint()], ids=["super_resolution", "inpaint"])
def test_a_diffusion_model_draws_by_source_and_held_out_caption(task: Task) -> None:
    system, held_out = diffusion(task), replace(HELD_OUT, captions=CAPTIONS)
    bound = replace(known_likelihood(), bound="upper")
    report = judge_samples(system, held_out, TRAINING, bound, num_images=2, n=2, steps=2, seed=4, with_frechet=False)
    assert report.settings == {"steps": 2, "sampler": "ancestral", "guidance_scale": 1.0, "seed": 4}
    assert report.bound == report.to_dict()["bound"] == "upper"
    batch = system.with_source(
        held_out.batch(torch.arange(2), use_labels=False), first=0, purpose="held-out source", seed=0
    )
    drawn = {
        texts: system.draw_from(system.with_captions(batch.cond, texts), n=2, steps=2, seed=4)
        for texts in (CAPTIONS[:2], ("something", "else"))
    }
    own, other = (psnr(images[:, 0], batch.images) for images in drawn.values())
    assert report.rows["model"]["psnr_db"] == pytest.approx(own) and own != pytest.approx(other)
    if isinstance(task, Inpaint):
        assert report.rows["model"]["known_pixels_changed"] == 0


def test_a_bound_is_called_one_wherever_the_report_states_it() -> None:
    exact = judge("colourise")
    upper = replace(exact, bound="upper")
    assert "bits/dim, upper bound (95 %" in str(upper.table().title) and "bound" not in str(exact.table().title)
    labels = [card.label for section in upper.html_sections() for card in getattr(section, "cards", ())]
    assert "bits/dim given the source, upper bound" in labels


def test_what_is_not_for_the_kind_of_model_is_refused_before_anything_is_drawn() -> None:
    held_out = replace(HELD_OUT, captions=CAPTIONS)
    words: dict[str, Any] = {"num_images": 2, "n": 1, "seed": 0, "with_frechet": False}
    with pytest.raises(
        ConfigError, match=r"temperature = 0.9 has no meaning here: this is a diffusion model of pixels"
    ):
        judge_samples(diffusion(Inpaint()), held_out, TRAINING, known_likelihood(), temperature=0.9, **words)
    with pytest.raises(ConfigError, match="steps = 5 has no meaning here: this is a model that draws pixel by pixel"):
        judge_samples(make("inpaint"), held_out, TRAINING, known_likelihood(), steps=5, **words)
    with pytest.raises(DataError, match="has no captions"):
        judge_samples(diffusion(Inpaint()), HELD_OUT, TRAINING, known_likelihood(), steps=1, **words)
