"""Stage 2: codes are made once and kept, runs go on bit by bit, models carry their tokenizers, and figures are what they say."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rasterformer
from rasterformer.checkpoint import load_checkpoint
from rasterformer.data.codes import load_codes
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.tasks import SuperResolution, Task
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.codes import CodesLearner
from rasterformer.training.log import read_metrics
from rasterformer.training.loop import Run, train


def image_set(num_images: int = 12, *, seed: int = 0) -> ImageSet:
    """Noise of 8x8 pixels, in two classes."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_images, 3, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageSet(
        name="toys", split="train", split_origin="all", preprocessing="none", image_size=8, class_names=("cat", "dog"),
        labels=torch.arange(num_images) % 2, captions=None, fingerprint=f"{seed:064x}", lossless=True, skipped=(),
        num_images=num_images, pixels=pixels, names=tuple(f"{k}.png" for k in range(num_images)),
    )  # fmt: skip


def tokenizer_of(seed: int = 0, *, vocab_size: int = 5) -> Tokenizer:
    """Untrained, f = 2: images of 8x8 pixels have 4x4 codes."""
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=vocab_size, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=8), TrainingConfig(seed=seed)))
    with torch.no_grad():  # spread over the encoder's output, so that all codes occur
        z = tokenizer.autoencoder.encode(image_set(4, seed=99).images(slice(None)).float() / 127.5 - 1)
        picked = z.permute(0, 2, 3, 1).reshape(-1, 4)[:: 64 // vocab_size][:vocab_size]
        tokenizer.autoencoder.quantiser.codebook.copy_(picked)
    tokenizer.autoencoder.eval().requires_grad_(False)
    return tokenizer


def system_of(
    model: dict[str, Any] | None = None,
    *,
    tokenizers: dict[str, Tokenizer] | None = None,
    task: Task | None = None,
    use_labels: bool = False,
    **training: Any,
) -> System:
    config = Config(**{"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8} | (model or {}))
    assert config.problems() == []
    fields = {"steps": 4, "batch_size": 4, "warmup_steps": 0, "eval_images": 6, "precision": "float32", "log_every": 1}
    fields |= {"schedule": "constant", "save_every": 1, "learning_rate": 0.01}
    recipe = Recipe(
        "vqgan_transformer",
        config,
        DataConfig(image_size=8, flip_prob=0.5, use_labels=use_labels),
        TrainingConfig(**fields | training),
        task=task,
    )
    parts = tokenizers or {"tokenizer": tokenizer_of()}
    return System.create(recipe, class_names=("cat", "dog") if use_labels else (), tokenizers=parts)


def learner_in(folder: Path | None, system: System, *, seed: int = 0, said: list[str] | None = None) -> CodesLearner:
    """On the images of that seed; keeps its codes in the folder."""
    cache = None if folder is None else folder / "codes.safetensors"
    say = (lambda text: None) if said is None else said.append
    return CodesLearner(system, image_set(seed=seed), image_set(6, seed=1), cache=cache, say=say)


def quiet(text: str) -> None:
    """Says nothing."""


def weights_of(system: System) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in system.model.parameters()])


def test_training_lowers_the_nats_per_code(tmp_path: Path) -> None:
    system = system_of(steps=40, batch_size=12, learning_rate=0.02, save_every=40)
    assert train(Run(learner_in(tmp_path, system), tmp_path), resume=False, say=quiet) is True
    nats = [
        line["train_nats_per_code"]
        for line in read_metrics(tmp_path / "metrics.jsonl")
        if "train_nats_per_code" in line
    ]
    assert len(nats) == 40 and nats[-1] < nats[0] - 0.1
    assert nats[0] == pytest.approx(math.log(5), abs=0.1)  # nothing is known at first


# name -> (fields of the model, of system_of)
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "noisy": (
        {"dropout_prob": 0.2, "keep_prob": 0.8, "drop_condition_prob": 0.3, "order": "morton"},
        {"use_labels": True, "ema_decay": 0.9, "accumulation_steps": 2, "optimizer": "muon"},
    ),
    "condition": ({"keep_prob": 0.9}, {"task": SuperResolution(factor=2), "average_checkpoints": 2}),
    "window": ({"window": (2, 3), "coordinates": True, "aligned_condition": True, "num_coordinates": 8}, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_tensors_of_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit, whatever is random: the order, mirrors, windows, hidden codes and conditions, dropout."""
    model, more = RUNS[name]

    def trained(folder: Path, *step_counts: int) -> Tensor:
        folder.mkdir()
        for number, steps in enumerate(step_counts):
            torch.manual_seed(steps)
            system = system_of(model, steps=steps, **more)
            assert train(Run(learner_in(folder, system), folder), resume=number > 0, say=quiet) is True
        return weights_of(system)

    whole, parts, shorter = (
        trained(tmp_path / "whole", 5),
        trained(tmp_path / "parts", 2, 5),
        trained(tmp_path / "short", 4),
    )
    assert torch.equal(whole, parts) and not torch.equal(whole, shorter)
    one, other = (load_checkpoint(tmp_path / part / "checkpoints" / "step-5").tensors for part in ("whole", "parts"))
    assert list(one) == list(other)
    for group, tensors in one.items():
        assert all(torch.equal(tensor, other[group][key]) for key, tensor in tensors.items()), group


def test_codes_are_made_once_and_kept(tmp_path: Path) -> None:
    """The kept file holds the codes of each image and of its mirror image; a second learner reads it."""
    said: list[str] = []
    first = learner_in(tmp_path, system_of(), said=said)
    batch = next(first.batches(0))
    assert said == ["tokenizing 12 images once"]
    kept, tokenizer = load_codes(tmp_path / "codes.safetensors"), tokenizer_of()
    images = image_set().images(slice(None))
    assert torch.equal(kept.codes[:, 0].long(), tokenizer.encode(images))
    assert torch.equal(kept.codes[:, 1].long(), tokenizer.encode(images.flip(-1)))
    assert len(kept.codes.unique()) == 5, "a set of equal codes would show nothing"
    written = (tmp_path / "codes.safetensors").stat().st_mtime_ns
    again = next(learner_in(tmp_path, system_of(), said=said).batches(0))
    assert torch.equal(again[0], batch[0])
    assert len(said) == 1 and (tmp_path / "codes.safetensors").stat().st_mtime_ns == written


def test_codes_of_another_tokenizer_are_made_again_and_that_is_said(tmp_path: Path) -> None:
    next(learner_in(tmp_path, system_of()).batches(0))
    said: list[str] = []
    other = tokenizer_of(7)
    assert other.fingerprint != tokenizer_of().fingerprint
    next(learner_in(tmp_path, system_of(tokenizers={"tokenizer": other}), said=said).batches(0))
    assert "codes.safetensors are made again" in said[0] and said[1] == "tokenizing 12 images once" and len(said) == 2
    kept = load_codes(tmp_path / "codes.safetensors", tokenizer=other.fingerprint)
    assert torch.equal(kept.codes[:, 0].long(), other.encode(image_set().images(slice(None))))


def test_codes_of_other_images_are_made_again_and_that_is_said(tmp_path: Path) -> None:
    next(learner_in(tmp_path, system_of()).batches(0))
    said: list[str] = []
    next(learner_in(tmp_path, system_of(), seed=3, said=said).batches(0))
    assert "are made again: they are of other images" in said[0] and said[1] == "tokenizing 12 images once"
    kept = load_codes(tmp_path / "codes.safetensors").codes[:, 0].long()
    assert torch.equal(kept, tokenizer_of().encode(image_set(seed=3).images(slice(None))))


def test_a_damaged_file_of_codes_is_made_again_and_that_is_said(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, system_of())
    batch = next(learner.batches(0))
    path = tmp_path / "codes.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    said: list[str] = []
    assert torch.equal(next(learner_in(tmp_path, system_of(), said=said).batches(0))[0], batch[0])
    assert "are made again" in said[0]
    assert len(load_codes(path)) == 12


@pytest.mark.parametrize("changed", ["tokenizer", "images"])
def test_a_run_is_not_resumed_with_another_tokenizer_or_other_images(changed: str, tmp_path: Path) -> None:
    train(Run(learner_in(tmp_path, system_of(steps=1)), tmp_path), resume=False, say=quiet)
    tokenizers = {"tokenizer": tokenizer_of(7 if changed == "tokenizer" else 0)}
    learner = learner_in(tmp_path, system_of(steps=2, tokenizers=tokenizers), seed=3 if changed == "images" else 0)
    kept = (tmp_path / "codes.safetensors").read_bytes()
    with pytest.raises(
        CheckpointError, match="was trained on other images than 'toys' .* or the tokenizer or captions do"
    ):
        train(Run(learner, tmp_path), resume=True, say=quiet)
    assert (tmp_path / "codes.safetensors").read_bytes() == kept, "its codes are still those of the run"


def test_a_run_is_not_resumed_by_a_model_that_numbers_other_codes(tmp_path: Path) -> None:
    """As many of them, so that every weight has its shape."""

    def learner_of(used: list[int] | None) -> CodesLearner:
        recipe, parts = system_of(steps=1).recipe, {"tokenizer": tokenizer_of()}
        numbers = None if used is None else torch.tensor(used)
        return learner_in(tmp_path, System.create(recipe, tokenizers=parts, used_codes=numbers))

    train(Run(learner_of([0, 1, 3]), tmp_path), resume=False, say=quiet)
    train(Run(learner_of([0, 1, 3]), tmp_path), resume=True, say=quiet)
    for used, count in (([0, 2, 3], "3 codes"), (None, "all codes")):
        with pytest.raises(CheckpointError, match=f"its model numbers 3 codes of its tokenizer, and this one {count}"):
            train(Run(learner_of(used), tmp_path), resume=True, say=quiet)


@pytest.mark.parametrize("name", ["plain", "condition"])
def test_a_model_needs_no_tokenizer_folder_once_it_is_trained(name: str, tmp_path: Path) -> None:
    """The tokenizers that the recipe names by path are inside the model folder, and inside each checkpoint."""
    tokenizer_of().save(tmp_path / "tokenizer")
    model, more = RUNS[name]
    fields = {"tokenizer": str(tmp_path / "tokenizer")}
    recipe = system_of({**model, **fields}, steps=2, **more).recipe
    system = System.create(recipe)  # loads what the recipe names
    folder = tmp_path / "run"
    folder.mkdir()
    train(Run(learner_in(folder, system), folder), resume=False, say=quiet)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        System.create(recipe)
    for place in (folder, folder / "model", folder / "checkpoints" / "step-1"):
        loaded = rasterformer.load(place)
        assert loaded.recipe == recipe and not loaded.model.training
        assert loaded.tokenizers["tokenizer"].fingerprint == tokenizer_of().fingerprint
        assert loaded.steps == (1 if place.name == "step-1" else 2)
    finished = rasterformer.load(folder)
    assert torch.equal(weights_of(finished), weights_of(system))
    images = image_set(2, seed=4).images(slice(None))
    cond = None if recipe.task is None else Cond(source=images[:, :, ::2, ::2])
    assert torch.equal(finished.code_nats(images, cond), system.code_nats(images, cond))
    finished.save(tmp_path / "copy")
    assert torch.equal(rasterformer.load(tmp_path / "copy").code_nats(images, cond), finished.code_nats(images, cond))


def test_a_model_folder_whose_tokenizer_is_missing_or_another_ones_is_refused(tmp_path: Path) -> None:
    system_of().save(tmp_path / "model")
    system_of(tokenizers={"tokenizer": tokenizer_of(vocab_size=6)}).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.safetensors", tmp_path / "model" / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors"):
        rasterformer.load(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors"):
        rasterformer.load(tmp_path / "model")


def nats_by_hand(system: System, images: Tensor, cond: Cond) -> Tensor:
    """Code by code, from the logits that follow the codes before it: float64 [B], sums over an image."""
    codes = system.tokenizers["tokenizer"].encode(images).flatten(1)[:, system.codec.order]
    total = torch.zeros(len(images), dtype=torch.float64)
    with torch.no_grad():
        for position in range(codes.shape[1]):
            seen = torch.zeros_like(codes)
            seen[:, :position] = codes[:, :position]
            logits = system.model(seen[..., None], cond)[:, position].double()
            probs = logits.exp() / logits.exp().sum(1, keepdim=True)
            total -= probs[torch.arange(len(codes)), codes[:, position]].log()
    return total


@pytest.mark.parametrize(("order", "use_labels"), [("raster", False), ("spiral_in", True)])
def test_held_out_nats_per_code_are_those_of_a_direct_computation(order: str, use_labels: bool, tmp_path: Path) -> None:
    system = system_of({"order": order, "dropout_prob": 0.1}, steps=3, use_labels=use_labels, eval_images=None)
    learner = learner_in(tmp_path, system)
    train(Run(learner, tmp_path), resume=False, say=quiet)
    held_out = learner.held_out
    cond = Cond(label=held_out.labels if use_labels else None)
    expected = float(nats_by_hand(system, held_out.images(slice(None)), cond).sum()) / (6 * 16)
    assert learner.measure(system.model, None)["held_out_nats_per_code"] == pytest.approx(expected, rel=1e-5)
    last = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "images" in line][-1]
    assert last["held_out_nats_per_code"] == pytest.approx(expected, abs=1e-5) and last["images"] == 6


def test_held_out_nats_of_a_condition_are_those_of_its_codes(tmp_path: Path) -> None:
    """Super-resolution: the source is enlarged to the size of the images and tokenized like them (paper, section 4.3)."""
    system = system_of(task=SuperResolution(factor=2), steps=2, eval_images=None)
    learner = learner_in(tmp_path, system)
    train(Run(learner, tmp_path), resume=False, say=quiet)
    images = learner.held_out.images(slice(None))
    batch = system.with_source(
        learner.held_out.batch(torch.arange(6), use_labels=False), first=0, purpose="held-out source", seed=0
    )
    codes = system.condition_of(batch.cond)
    assert codes is not None and codes.shape == (6, 4, 4)
    given = float(nats_by_hand(system, images, Cond(codes=codes.flatten(1))).sum()) / (6 * 16)
    assert learner.measure(system.model, None)["held_out_nats_per_code"] == pytest.approx(given, rel=1e-5)
    wrong = float(nats_by_hand(system, images, Cond(codes=codes.roll(1, 0).flatten(1))).sum()) / (6 * 16)
    assert wrong != pytest.approx(given, rel=1e-5), "the condition is not looked at"


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts: int) -> None:
    """float32 sums in another order: 1e-5 of the largest gradient. Labels and conditions stay with their images."""
    found = []
    for number in (1, parts):
        system = system_of(task=SuperResolution(factor=2), use_labels=True, batch_size=8, accumulation_steps=number)
        learner = learner_in(None, system)
        figures = learner.accumulate_gradients(next(learner.batches(0)), 0)
        found.append((figures["nats_per_code"], [w.grad for w in system.model.parameters() if w.grad is not None]))
    (whole_nats, whole), (nats, accumulated) = found
    assert nats == pytest.approx(whole_nats, rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in whole)
    assert len(whole) == len(accumulated) and largest > 0
    for one, other in zip(whole, accumulated, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * largest


def test_batches_are_the_codes_of_their_images_with_their_classes(tmp_path: Path) -> None:
    learner = learner_in(tmp_path, system_of(use_labels=True))
    images, tokenizer = image_set(), tokenizer_of()
    plain, mirrored = (tokenizer.encode(x) for x in (images.images(slice(None)), images.images(slice(None)).flip(-1)))
    seen: list[int] = []
    batches = learner.batches(0)
    for _ in range(3):
        codes, cond = next(batches)
        assert cond.codes is None and cond.label is not None
        for row, label in zip(codes, cond.label.tolist(), strict=True):
            image = [k for k in range(12) if torch.equal(row, plain[k]) or torch.equal(row, mirrored[k])]
            assert len(image) == 1 and label == image[0] % 2
            seen += image
    assert sorted(seen) == list(range(12)), "an epoch has every image once"


def test_the_tokenizer_is_not_trained(tmp_path: Path) -> None:
    system = system_of(steps=3)
    before = system.tokenizers["tokenizer"].fingerprint
    weights = weights_of(system)
    train(Run(learner_in(tmp_path, system), tmp_path), resume=False, say=quiet)
    assert system.tokenizers["tokenizer"].fingerprint == before and not torch.equal(weights_of(system), weights)


def test_a_task_without_a_tokenizer_for_its_sources_is_refused() -> None:
    recipe = dataclasses.replace(system_of().recipe, task=rasterformer.load_recipe("vqgan-conditional").task)
    with pytest.raises(ConfigError, match="model.condition_tokenizer is missing"):
        System.create(recipe, tokenizers={"tokenizer": tokenizer_of()})
