"""Stage 1: a tokenizer learns, goes on bit by bit after a stop, ships no discriminator, and a bad step leaves no trace."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rasterformer
from rasterformer.checkpoint import load_checkpoint, load_model_folder
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, RasterformerError
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer, load_tokenizer
from rasterformer.training.averages import ExponentialMovingAverage
from rasterformer.training.log import read_metrics
from rasterformer.training.loop import Run, train
from rasterformer.training.tokenizer import TokenizerLearner

PLAIN = {"perceptual": "none", "discriminator": "none"}
VQGAN = {"perceptual": "none", "discriminator_width": 4, "discriminator_layers": 1, "discriminator_norm": "batch"} | {
    "discriminator_start": 1, "adversarial_start": 2, "adversarial_ramp": 2,
}  # fmt: skip
FSQ = {"quantiser": "fsq", "fsq_levels": (3, 3), "vocab_size": 9, "dim": 2}
EMA = {"quantiser": "ema", "restart_after": 2, "codebook_init": "kmeans", "beta_on": "commitment"}


def image_set(num_images: int = 24, *, seed: int = 0) -> ImageSet:
    """Pictures of 8x8 pixels whose four quarters each have one of four colours: a few codes say all of it."""
    palette = torch.tensor([[0, 0, 0], [255, 255, 255], [230, 40, 20], [20, 60, 220]], dtype=torch.uint8)
    which = torch.randint(0, 4, (num_images, 2, 2), generator=torch.Generator().manual_seed(seed))
    pixels = palette[which].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return ImageSet(
        name="toys", split="train", split_origin="all", preprocessing="none", image_size=8, class_names=(), labels=None,
        captions=None, fingerprint=f"{seed:064x}", lossless=True, skipped=(), num_images=num_images, pixels=pixels,
        names=tuple(f"{k}.png" for k in range(num_images)),
    )  # fmt: skip


def recipe_of(model: dict[str, Any], **training: Any) -> Recipe:
    config = Config(
        **{"base_width": 8, "multipliers": (1, 1), "res_blocks": 1, "attention_levels": (), "middle_attention": False}
        | {"z_channels": 8, "norm_groups": 2, "vocab_size": 8, "dim": 4}
        | model
    )
    assert config.problems() == []
    fields = {"steps": 5, "batch_size": 4, "warmup_steps": 0, "eval_images": 4, "precision": "float32", "log_every": 1}
    fields |= {"schedule": "constant", "save_every": 1, "learning_rate": 0.003}
    return Recipe("vqgan", config, DataConfig(image_size=8), TrainingConfig(**fields | training))


def learner_of(model: dict[str, Any], **training: Any) -> TokenizerLearner:
    return TokenizerLearner(Tokenizer.create(recipe_of(model, **training)), image_set(), image_set(6, seed=1))


def quiet(text: str) -> None:
    """Says nothing."""


def trained(folder: Path, model: dict[str, Any], *step_counts: int, **training: Any) -> TokenizerLearner:
    """One run into the folder, which goes on as often as there are more numbers of steps."""
    folder.mkdir(exist_ok=True)
    for number, steps in enumerate(step_counts):
        learner = learner_of(model, steps=steps, **training)
        assert train(Run(learner, folder), resume=number > 0, say=quiet) is True
    return learner


@pytest.mark.parametrize(
    ("model", "share"),
    [(PLAIN, 0.65), ({**PLAIN, **EMA}, 0.5), (VQGAN, 0.85), ({**PLAIN, **FSQ}, 0.5)],
    ids=["vq-vae", "ema", "vqgan", "fsq"],
)
def test_training_lowers_the_held_out_pixel_loss(model: dict[str, Any], share: float, tmp_path: Path) -> None:
    """To less than that share of what it was; a discriminator that counts from step 2 on holds it up."""
    fresh = learner_of(model)
    fresh.prepare()
    before = fresh.measure(fresh.tokenizer.autoencoder.eval(), None)
    learner = trained(tmp_path, model, 60, batch_size=8, save_every=60)
    after = learner.measure(learner.tokenizer.autoencoder, None)
    assert after["held_out_pixel_loss"] < share * before["held_out_pixel_loss"]
    assert after["held_out_psnr_db"] > before["held_out_psnr_db"] + 0.5
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_reconstruction_loss" in line]
    assert len(lines) == 60 and lines[-1]["train_reconstruction_loss"] < lines[0]["train_reconstruction_loss"]


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (VQGAN, {}),
        ({**VQGAN, **EMA, "dropout_prob": 0.2}, {"ema_decay": 0.9}),
        ({**VQGAN, "discriminator_norm": "spectral", "normalise": True, "restart_after": 2}, {"accumulation_steps": 2}),
        ({**PLAIN, **EMA}, {"average_checkpoints": 2, "optimizer": "muon"}),
    ],
    ids=["vqgan", "ema-dropout", "spectral-restart", "vq-vae-averaged-muon"],
)
def test_a_resumed_run_ends_with_the_tensors_of_an_uninterrupted_one(
    model: dict[str, Any], training: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit: networks, averages, optimisers, moving averages of the codebook, and what counts towards a restart."""
    trained(tmp_path / "whole", model, 6, **training)
    trained(tmp_path / "parts", model, 3, 6, **training)
    one, other = (load_checkpoint(tmp_path / part / "checkpoints" / "step-6") for part in ("whole", "parts"))
    assert list(one.tensors) == list(other.tensors)
    assert ("discriminator" in one.tensors) is (model.get("discriminator") != "none")
    if "restart_after" in model:
        assert "quantiser.unused_updates" in one.tensors["model"]
    if model.get("quantiser") == "ema":
        assert {"quantiser.cluster_sizes", "quantiser.cluster_sums"} <= one.tensors["model"].keys()
    for group, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[group][name]), f"{group}: {name}"
    shipped = [load_model_folder(tmp_path / part / "model")[1] for part in ("whole", "parts")]
    assert all(torch.equal(tensor, shipped[1][name]) for name, tensor in shipped[0].items())
    before = load_checkpoint(tmp_path / "parts" / "checkpoints" / "step-5").tensors["model"]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in one.tensors["model"].items())


def test_a_checkpoint_carries_the_discriminator_and_the_model_folder_does_not(tmp_path: Path) -> None:
    learner = trained(tmp_path, VQGAN, 3)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-3")
    networks = learner.networks
    assert checkpoint.tensors["discriminator"].keys() == networks["discriminator"].state_dict().keys()
    assert checkpoint.tensors["model"].keys() == networks["model"].state_dict().keys()
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md", "manifest.json"}
    assert load_model_folder(tmp_path / "model")[1].keys() == networks["model"].state_dict().keys()


def test_a_run_and_a_checkpoint_of_it_are_loaded_as_a_tokenizer_and_refused_as_a_model(tmp_path: Path) -> None:
    learner = trained(tmp_path, {**VQGAN, **EMA}, 3, ema_decay=0.5)
    images = image_set(3, seed=5).images(slice(None))
    found = load_tokenizer(tmp_path)
    assert found.steps == 3 and not found.autoencoder.training and found.fingerprint == learner.tokenizer.fingerprint
    assert torch.equal(found.reconstruct(images), learner.tokenizer.reconstruct(images))
    averaged = load_checkpoint(tmp_path / "checkpoints" / "step-2").tensors["ema"]
    state = rasterformer.load_tokenizer(tmp_path / "checkpoints" / "step-2").autoencoder.state_dict()
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in state.items())
    with pytest.raises(ConfigError, match="is a tokenizer, which turns images into codes"):
        rasterformer.load(tmp_path)


def test_a_run_is_not_resumed_on_other_images(tmp_path: Path) -> None:
    trained(tmp_path, PLAIN, 1)
    learner = TokenizerLearner(Tokenizer.create(recipe_of(PLAIN, steps=2)), image_set(seed=7), image_set(6, seed=1))
    with pytest.raises(CheckpointError, match="was trained on other images than 'toys' holds now"):
        train(Run(learner, tmp_path), resume=True, say=quiet)


def tensors_of(learner: TokenizerLearner) -> dict[str, Tensor]:
    """Copies of all weights and buffers that make up the state of a run, but for statistics that training never reads."""
    return {
        f"{network}: {name}": tensor.clone()
        for network, part in learner.networks.items()
        for name, tensor in part.state_dict().items()
        if "running" not in name and "num_batches" not in name
    }


@pytest.mark.parametrize("quantiser", [{}, EMA], ids=["gradient", "ema"])
def test_steps_that_are_not_finite_move_neither_weights_nor_the_codebook(
    quantiser: dict[str, Any], tmp_path: Path
) -> None:
    """The loss of the discriminator alone is poisoned: the autoencoder's gradients are finite, and are not applied either."""
    learner = learner_of({**VQGAN, **quantiser, "adversarial_start": 100}, steps=10)
    learner.prepare()
    with torch.no_grad():
        next(learner.networks["discriminator"].parameters()).fill_(math.nan)
    learner.loss.config = dataclasses.replace(learner.loss.config, discriminator_start=0)
    before = tensors_of(learner)
    with pytest.raises(RasterformerError, match="not finite in 3 steps in a row, the last at step 2"):
        train(Run(learner, tmp_path), resume=False, say=quiet)
    for name, tensor in tensors_of(learner).items():
        assert torch.equal(tensor.nan_to_num(-1.0), before[name].nan_to_num(-1.0)), name
    assert int(learner.usage.counts.sum()) == 0, "codes of steps that were given up are not counted"


def test_a_good_step_moves_weights_and_codebook(tmp_path: Path) -> None:
    """The test above can fail."""
    learner = learner_of({**VQGAN, **EMA, "discriminator_start": 0, "adversarial_start": 0}, steps=1)
    learner.prepare()
    before = tensors_of(learner)
    train(Run(learner, tmp_path), resume=False, say=quiet)
    moved = {name for name, tensor in tensors_of(learner).items() if not torch.equal(tensor, before[name])}
    assert {"model: quantiser.codebook", "model: decoder.conv_out.weight", "model: encoder.conv_in.weight"} <= moved
    assert any(name.startswith("discriminator: ") for name in moved)
    assert int(learner.usage.counts.sum()) == 4 * 16


@pytest.mark.parametrize("model", [PLAIN, {**PLAIN, **EMA}], ids=["gradient", "ema"])
def test_gradients_of_parts_add_up_to_those_of_the_batch(model: dict[str, Any]) -> None:
    """Losses are means over images of one size; float32 sums in another order: 1e-5 of the largest gradient."""
    found = []
    for parts in (1, 2, 4):
        learner = learner_of(model, batch_size=8, accumulation_steps=parts)
        learner.prepare()
        learner.networks["model"].train()
        figures = learner.accumulate_gradients(next(learner.batches(0)), 0)
        found.append(
            (figures, {n: w.grad for n, w in learner.networks["model"].named_parameters() if w.grad is not None})
        )
    figures, whole = found[0]
    largest = max(float(grad.abs().max()) for grad in whole.values())
    assert largest > 0
    for other_figures, others in found[1:]:
        assert other_figures == pytest.approx(figures, rel=1e-4)
        assert others.keys() == whole.keys()
        for name, grad in whole.items():
            assert float((others[name] - grad).abs().max()) <= 1e-5 * largest, name


def test_discriminator_gradients_of_parts_add_up_where_no_norm_looks_at_the_batch() -> None:
    found = []
    for parts in (1, 2):
        learner = learner_of(
            {**VQGAN, "discriminator_norm": "group", "discriminator_width": 32, "discriminator_start": 0,
             "adversarial_start": 100}, batch_size=8, accumulation_steps=parts,
        )  # fmt: skip
        learner.networks["discriminator"].train()
        learner.accumulate_gradients(next(learner.batches(0)), 0)
        grads = [weight.grad for weight in learner.networks["discriminator"].parameters()]
        assert all(grad is not None for grad in grads)
        found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert float((found[0] - found[1]).abs().max()) <= 1e-5 * float(found[0].abs().max()) > 0


def test_the_average_of_weights_has_the_codebook_that_the_model_has() -> None:
    """An EMA codebook is a buffer, and an average already; weights lag behind."""
    learner = learner_of({**PLAIN, **EMA})
    model = learner.tokenizer.autoencoder
    ema = ExponentialMovingAverage(model, 0.9)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 1.0
        for name in ("codebook", "cluster_sizes", "cluster_sums", "unused_updates"):
            model.quantiser.get_buffer(name).add_(1)
        model.quantiser.get_buffer("is_initialised").fill_(True)
    ema.update_(model, 1000)
    own, averaged = model.state_dict(), ema.model.state_dict()
    weights = {name for name, _ in model.named_parameters()}
    assert "quantiser.codebook" not in weights
    for name, tensor in averaged.items():
        if name in weights:
            torch.testing.assert_close(tensor, own[name] - 0.9)
        else:
            assert torch.equal(tensor, own[name]), name
    assert averaged["quantiser.codebook"].data_ptr() != own["quantiser.codebook"].data_ptr()


def test_a_codebook_of_kmeans_is_a_function_of_the_recipe() -> None:
    """Also with dropout, and whatever the global random state; the vectors are those of training images."""
    codebooks = []
    for disturb in (1, 2):
        learner = learner_of({**PLAIN, **EMA, "dropout_prob": 0.5})
        assert learner.tokenizer.autoencoder.quantiser.needs_initialising
        torch.manual_seed(disturb)
        learner.prepare()
        assert not learner.tokenizer.autoencoder.quantiser.needs_initialising
        codebooks.append(learner.tokenizer.autoencoder.quantiser.codebook.clone())
    assert torch.equal(*codebooks)


def test_the_usage_of_an_epoch_counts_every_code_of_every_image_once(tmp_path: Path) -> None:
    """24 images of 16 codes, 4 at a time: an epoch ends with step 6."""
    learner = trained(tmp_path, PLAIN, 7, eval_every=1)
    assert learner.epoch_counts is not None and int(learner.epoch_counts.sum()) == 24 * 16
    assert int(learner.usage.counts.sum()) == 4 * 16
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "images" in line]
    assert ["epoch_share_used" in line for line in lines] == [False] * 5 + [True] * 2
    probs = learner.epoch_counts.double() / learner.epoch_counts.sum()
    entropy = -(probs[probs > 0] * probs[probs > 0].log()).sum()
    assert lines[-1]["epoch_perplexity"] == pytest.approx(float(entropy.exp()), abs=1e-4)
    assert lines[-1]["epoch_share_used"] == pytest.approx(float((learner.epoch_counts > 0).double().mean()), abs=1e-5)


def test_held_out_psnr_is_that_of_the_reconstructions(tmp_path: Path) -> None:
    learner = trained(tmp_path, PLAIN, 3)
    images = learner.held_out.images(slice(None))
    errors = (learner.tokenizer.reconstruct(images).double() - images.double()).square().mean((1, 2, 3))
    expected = float((10 * (255**2 / errors).log10()).mean())
    assert learner.measure(learner.tokenizer.autoencoder, None)["held_out_psnr_db"] == pytest.approx(expected, rel=1e-6)
