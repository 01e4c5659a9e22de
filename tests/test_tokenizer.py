"""A tokenizer's promises: codes and images of any size, a fingerprint that notices every change, files that give it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config as PixelConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer, load_tokenizer

TINY = Config(base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
              norm_groups=4, vocab_size=12, dim=4, perceptual="none", discriminator="none")  # fmt: skip
QUANTISERS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "ema": {"quantiser": "ema", "beta_on": "commitment", "restart_after": 5, "codebook_init": "kmeans"},
    "sim": {"quantiser": "sim"},
    "fsq": {"quantiser": "fsq", "fsq_levels": (4, 3), "dim": 2},
}


def make(seed: int = 0, **changes: Any) -> Tokenizer:
    recipe = Recipe("vqgan", replace(TINY, **changes), DataConfig(image_size=16), TrainingConfig(seed=seed))
    tokenizer = Tokenizer.create(recipe)
    with torch.no_grad():
        for name in ("weight", "bias"):  # spread, so that several codes are used
            getattr(tokenizer.autoencoder.before, name).mul_(5)
    tokenizer.autoencoder.eval()
    return tokenizer


def random_images(batch: int = 3, height: int = 16, width: int = 16, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, high, (batch, 3, height, width), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (2, 2), (6, 20), (32, 4)])
def test_any_multiple_of_the_factor_is_encoded_and_decoded(height: int, width: int) -> None:
    tokenizer = make()
    codes = tokenizer.encode(random_images(3, height, width))
    assert codes.shape == (3, height // 2, width // 2) and codes.dtype == torch.int64
    assert 0 <= int(codes.min()) and int(codes.max()) < tokenizer.vocab_size == 12
    images = tokenizer.decode(codes)
    assert images.shape == (3, 3, height, width) and images.dtype == torch.uint8
    assert torch.equal(tokenizer.reconstruct(random_images(3, height, width)), images)


def test_images_do_not_depend_on_the_others_that_are_encoded_with_them() -> None:
    tokenizer, images = make(), random_images(70)
    codes = tokenizer.encode(images)
    assert len(codes) == 70 and len(codes.unique()) > 2
    assert float((tokenizer.encode(images[65:66]) == codes[65:66]).double().mean()) > 0.95  # up to rounding
    assert torch.equal(tokenizer.decode(codes)[:32], tokenizer.decode(codes[:32]))


def test_its_weights_are_drawn_by_its_seed_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make(seed=1).autoencoder.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = make(seed=1).autoencoder.state_dict(), make(seed=2).autoencoder.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.conv_in.weight"], other["decoder.conv_in.weight"])


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_fingerprint_notices_every_tensor(kind: str) -> None:
    tokenizer = make(**QUANTISERS[kind])
    seen = {tokenizer.fingerprint}
    assert tokenizer.fingerprint == make(**QUANTISERS[kind]).fingerprint and len(tokenizer.fingerprint) == 16
    int(tokenizer.fingerprint, 16)
    state = tokenizer.autoencoder.state_dict()
    for tensor in state.values():
        last = tensor.view(-1)[-1:]
        before = last.clone()
        last.copy_(
            ~before if before.dtype == torch.bool else before + 1e-3 if before.is_floating_point() else before + 1
        )
        seen.add(tokenizer.fingerprint)
        last.copy_(before)
    assert len(seen) == 1 + len(state)


def test_the_fingerprint_notices_what_the_network_is_and_not_how_it_was_trained() -> None:
    tokenizer = make()
    recipe = tokenizer.recipe
    model = replace(recipe.model, normalise=True)  # the same weights mean other codes
    assert Tokenizer(replace(recipe, model=model), tokenizer.autoencoder).fingerprint != tokenizer.fingerprint
    trained = replace(recipe, training=replace(recipe.training, learning_rate=0.5), data=DataConfig(path="elsewhere"))
    assert Tokenizer(trained, tokenizer.autoencoder, steps=7, origin="x").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", QUANTISERS)
def test_loading_gives_back_what_was_saved(kind: str, tmp_path: Path) -> None:
    tokenizer, images = make(**QUANTISERS[kind]), random_images()
    tokenizer.steps = 17
    tokenizer.save(tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model", device="cpu")
    assert loaded.recipe == tokenizer.recipe and loaded.steps == 17 and loaded.fingerprint == tokenizer.fingerprint
    assert loaded.origin == str(tmp_path / "model")
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.reconstruct(images), tokenizer.reconstruct(images))
    assert not loaded.autoencoder.training and not any(w.requires_grad for w in loaded.autoencoder.parameters())
    card = (tmp_path / "model" / "README.md").read_text()
    assert tokenizer.fingerprint in card and "12 codes, one for 2x2 pixels" in card and "17 optimiser steps" in card


def test_its_codec_has_the_size_and_order_asked_for() -> None:
    tokenizer, order = make(), torch.arange(9).flip(0)
    assert tokenizer.codec().grid == (8, 8) and tokenizer.image_size == 16 and tokenizer.factor == 2
    codec = tokenizer.codec(6, order=order)
    images = random_images(2, 6, 6)
    assert torch.equal(codec.encode(images)[..., 0].flip(1).view(2, 3, 3), tokenizer.encode(images))
    with pytest.raises(ShapeError, match="images of 7 pixels are no multiple of the tokenizer's factor 2"):
        tokenizer.codec(7)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_images(1, 16, 17), "images are 16x17 pixels.*multiples of 2"),
        (random_images().float(), r"images are torch.float32 \[3, 3, 16, 16\]"),
        (random_images()[0], r"images are torch.uint8 \[3, 16, 16\]"),
        (random_images()[:, :2], r"images are torch.uint8 \[3, 2, 16, 16\]"),
    ],
)
def test_images_that_cannot_be_encoded_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make().encode(images)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_codes_that_there_are_not_are_refused(kind: str) -> None:
    tokenizer, codes = make(**QUANTISERS[kind]), torch.zeros(1, 2, 2, dtype=torch.int64)
    for wrong, message in ((12, "codes go from 0 to 12; this tokenizer has 0 to 11"), (-1, "codes go from -1 to 0")):
        codes[0, 1, 1] = wrong
        with pytest.raises(DataError, match=message):
            tokenizer.decode(codes)
    with pytest.raises(ShapeError, match=r"codes are torch.int64 \[2, 2\]"):
        tokenizer.decode(codes[0].clamp(min=0))


def test_label_maps_are_kept_in_their_range() -> None:
    tokenizer = make(pictures="labels", num_labels=5)
    maps = random_images(2, high=5)[:, :1].expand(-1, 3, -1, -1).clone()
    assert int(tokenizer.reconstruct(maps).max()) < 5
    maps[1, :, 3, 4] = 9
    with pytest.raises(ShapeError, match=r"holds the label 9, but the model knows 5: 0\.\.4"):
        tokenizer.encode(maps)


def test_a_generative_model_is_refused(tmp_path: Path) -> None:
    config = PixelConfig(
        width=8, depth=1, num_heads=2, mlp_width=8, dropout_prob=0.0, block_length=16, memory_length=16
    )
    recipe = Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig())
    System.create(recipe).save(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is a generative model \(image_transformer\), no tokenizer"):
        load_tokenizer(tmp_path / "model")
    with pytest.raises(ConfigError, match="system = 'image_transformer' is no tokenizer.*Allowed: vqgan"):
        Tokenizer.create(recipe)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_tokenizer(tmp_path / "nothing")


def test_weights_that_do_not_fit_the_recipe_are_refused() -> None:
    tokenizer = make()
    state = dict(tokenizer.autoencoder.state_dict())
    state["before.bias"] = torch.zeros(9)
    del state["quantiser.codebook"]
    with pytest.raises(
        CheckpointError, match=r"here: .*quantiser.codebook is missing; before.bias is \[9\].*makes it \[4\]"
    ):
        Tokenizer.from_parts(tokenizer.config(), state, where="here")
