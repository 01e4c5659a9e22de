"""Runs of the smallest recipe with each task: they end, can be resumed, draw from sources, and say how to go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Batch
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.tasks import Inpaint, Task
from rasterformer.training.likelihood import LikelihoodLearner, accumulate_gradients, held_out_bits_per_dim
from rasterformer.training.log import read_metrics
from rasterformer.training.loop import Run, train
from rasterformer.training.run import train_recipe
from rasterformer.training.system_learner import draw_more

COMMANDS = {
    "super_resolution": "upscale {} IMAGE.png -n 4",
    "inpaint": "restore {} IMAGE.png --mask MASK.png -n 4",
    "colourise": "colourise {} IMAGE.png -n 4",
    "denoise": "denoise {} IMAGE.png -n 4",
    "paired": "transform {} IMAGE.png -n 4",
}


def recipe_with(name: str, folder: Path) -> Recipe:
    """The recipe `tiny` with a task and an encoder, on the ten images; three steps, measured and drawn at the end."""
    changes = {"task.name": name, "model.encoder_depth": "1", "model.encoder_cell": "pixel"}
    changes |= {"model.depth": "1", "training.steps": "3", "training.eval_images": "2", "data.image_size": "4"}
    changes["data.path"] = str(folder / "targets")
    if name == "super_resolution":
        changes["task.factor"] = "2"
    if name == "paired":
        changes |= {"task.source_path": str(folder / "sources"), "task.source_size": "2"}
    return load_recipe("tiny", list(changes.items()))


def paired_folders(folder: Path) -> None:
    """Ten targets of 4x4 pixels, and sources of the same names that are their corners, inverted."""
    rng = np.random.default_rng(0)
    for part in ("targets", "sources"):
        (folder / part).mkdir()
    for k in range(10):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "targets" / f"{k}.png")
        Image.fromarray(255 - pixels[:2, :2]).save(folder / "sources" / f"{k}.webp", lossless=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_of_each_task_ends_with_a_model_samples_a_report_and_the_next_command(name: str, tmp_path: Path) -> None:
    paired_folders(tmp_path)
    recipe, folder, said = recipe_with(name, tmp_path), tmp_path / "run", []
    assert train_recipe(recipe, folder, say=said.append) is True
    command = COMMANDS[name].format(folder)
    assert said[-1] == f"now:  rasterformer {command}"
    with Image.open(folder / "samples" / "step-0000003.png") as sheet:
        assert sheet.size == (5 * 12 + 4, 3 * 12 + 2)  # source, three samples, original of 3 images; a gap of a pixel
        original = np.asarray(sheet)[:12, -12:][1::3, 1::3]
    held_out = open_recipe_images(recipe, "test")
    assert len(held_out) == 3
    assert np.array_equal(original, held_out.images(slice(0, 1))[0].permute(1, 2, 0).numpy())
    system = rasterformer.load(folder)
    assert system.recipe == recipe and system.steps == 3
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert f"Exact likelihood of images given their sources ({name}): " in report
    assert ("the unknown of 48 dimensions" in report) is (name == "inpaint")
    measured = [line for line in read_metrics(folder / "metrics.jsonl") if "held_out_bits_per_dim" in line]
    expected = held_out_bits_per_dim(system, held_out, 2)
    assert measured[-1]["held_out_bits_per_dim"] == pytest.approx(expected, abs=1e-5)


def test_the_command_of_a_recipe_without_a_task_is_sample(tmp_path: Path) -> None:
    assert draw_more(load_recipe("tiny"), tmp_path) == f"rasterformer sample {tmp_path} -n 16 --seed 1"


@pytest.mark.parametrize("name", ["inpaint", "denoise"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit: masks and noise are functions of the seed and of the number of the sample."""
    paired_folders(tmp_path)
    recipe = recipe_with(name, tmp_path)
    shorter = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=1))
    train_recipe(recipe, tmp_path / "whole", say=lambda text: None)
    train_recipe(shorter, tmp_path / "parts", say=lambda text: None)
    files = [tmp_path / part / "model" / "model.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() != files[1].read_bytes()
    train_recipe(recipe, tmp_path / "parts", resume=True, say=lambda text: None)
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(ConfigError, match="task.name was .*, is colourise"):
        train_recipe(recipe_with("colourise", tmp_path), tmp_path / "parts", resume=True)


def test_a_paired_run_takes_the_partner_of_each_image(tmp_path: Path) -> None:
    paired_folders(tmp_path)
    recipe = recipe_with("paired", tmp_path)
    train_set, held_out = open_recipe_images(recipe, "train"), open_recipe_images(recipe, "test")
    assert (len(train_set), len(held_out)) == (7, 3)
    for images in (train_set, held_out):
        batch = images.batch(torch.arange(len(images)), use_labels=False)
        assert batch.cond.known is None
        assert torch.equal(batch.cond.source, 255 - batch.images[:, :, :2, :2])
    plain = dataclasses.replace(recipe, task=None)
    assert open_recipe_images(plain, "train").sources is None
    assert open_recipe_images(plain, "train").fingerprint != train_set.fingerprint


def image_set(count: int, seed: int) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return ImageSet(
        name="toys", split="train", split_origin="all", preprocessing="none", image_size=4, class_names=(), labels=None,
        captions=None, fingerprint=f"{seed:064x}", lossless=True, skipped=(), num_images=count, pixels=pixels,
        names=tuple(f"{k}.png" for k in range(count)),
    )  # fmt: skip


def small_system(task: Task, **training: int | str | float) -> System:
    config = Config(
        width=8, depth=1, num_heads=2, mlp_width=8, block_length=16, memory_length=16, dropout_prob=0.0,
        distribution="dmol", num_mixtures=2, encoder_depth=0, encoder_cell="pixel",
    )  # fmt: skip
    fields = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "eval_images": 2, "precision": "float32"} | training
    return System.create(
        Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig(**fields), task=task)
    )


def test_each_step_has_masks_of_its_own(tmp_path: Path) -> None:
    """The numbers of samples go on from step to step: no image of two steps has the same stream."""
    system, seen = small_system(Inpaint(), steps=3), []
    loss = system.model.loss

    def remembered(x, cond, *, rng):
        seen.append(cond.known)
        return loss(x, cond, rng=rng)

    system.model.loss = remembered
    train(
        Run(LikelihoodLearner(system, image_set(4, 0), image_set(2, 1)), tmp_path), resume=False, say=lambda text: None
    )
    batch = Batch(image_set(12, 0).pixels)
    expected = system.with_source(batch, first=0, purpose="training source", seed=0).cond.known
    assert torch.equal(torch.cat(seen), expected)
    assert len({mask.numpy().tobytes() for mask in expected}) > 8


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_of_inpainting_equal_those_of_the_whole_batch(parts: int) -> None:
    """float32 sums in another order: 1e-5 of the largest gradient."""
    images = image_set(4, 0).pixels
    found: list[tuple[float, list[Tensor]]] = []
    for number in (1, parts):
        system = small_system(Inpaint(), accumulation_steps=number)
        batch = system.with_source(Batch(images), first=0, purpose="training source", seed=0)
        assert len(set((~batch.cond.known).sum((1, 2)).tolist())) > 1, "masks of several sizes"
        bits = accumulate_gradients(system, batch)
        found.append((bits, [weight.grad for weight in system.model.parameters() if weight.grad is not None]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in found[0][1])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * largest
