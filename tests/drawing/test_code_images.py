"""Grids, windows, conditions and likelihoods of models over codes, with a tiny real tokenizer and prior."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.orders import code_order
from rasterformer.conditioning.carry_on import carry_on
from rasterformer.conditioning.edges import canny_edges
from rasterformer.conditioning.resize import enlarge
from rasterformer.drawing import code_images
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.tasks import Edges, SuperResolution
from rasterformer.tokenizer import Tokenizer

PRIOR = Config(tokenizer="run", width=16, depth=1, num_heads=2, mlp_width=16, num_coordinates=9)


def make_tokenizer(vocab_size: int = 8, seed: int = 0, levels: int = 2, size: int = 16) -> Tokenizer:
    config = TokenizerConfig(
        base_width=8, multipliers=(1,) * levels, res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=vocab_size, dim=4, perceptual="none", discriminator="none"
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=size), TrainingConfig(seed=seed)))
    with torch.no_grad():
        tokenizer.autoencoder.before.weight.mul_(5)
        tokenizer.autoencoder.quantiser.codebook.mul_(vocab_size)  # type: ignore[operator]
        tokenizer.autoencoder.decoder.conv_out.weight.mul_(5)
    tokenizer.autoencoder.eval()
    return tokenizer


def make(
    *, size: int = 16, task: Any = None, num_classes: int = 0, vocab_size: int = 8, condition: Tokenizer | None = None,
    **changes: Any
) -> System:  # fmt: skip
    recipe = Recipe(
        "vqgan_transformer", replace(PRIOR, **changes), DataConfig(image_size=size), TrainingConfig(), task=task
    )
    tokenizers = {"tokenizer": make_tokenizer(vocab_size, size=size)}
    if condition is not None:
        tokenizers["condition_tokenizer"] = condition
    system = System.create(recipe, num_classes=num_classes, tokenizers=tokenizers)
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    system.model.eval()
    return system


def random_images(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (batch, 3, height // 2, width // 2), dtype=torch.uint8, generator=rng)
    return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_grid_and_window_are_those_of_the_recipe() -> None:
    whole, part = make(), make(window=(4, 6))
    assert code_images.grid_of(whole, None) == code_images.window_of(whole) == (8, 8)
    assert code_images.grid_of(part, None) == (8, 8) and code_images.window_of(part) == (4, 6)
    assert code_images.grid_of(part, (8, 20)) == (4, 10)
    spiral = make(order="spiral_in")
    assert torch.equal(code_images.order_of(spiral), code_order("spiral_in", (8, 8)))
    assert code_images.grid_of(spiral, (16, 16)) == (8, 8)
    assert torch.equal(code_images.order_of(part), torch.arange(24))


@pytest.mark.parametrize(
    ("changes", "size", "error", "message"),
    [
        ({}, (17, 16), ShapeError, "size = 17x16 pixels is no multiple of the tokenizer's factor 2. Use 16x16"),
        ({}, (3, 31), ShapeError, "Use 16x"),
        ({}, (16, 14), ShapeError, "size = 16x14 pixels is smaller than the model's window of 16x16 pixels"),
        ({"window": (4, 4)}, (6, 16), ShapeError, "smaller than the model's window of 8x8"),
        ({"order": "morton"}, (16, 32), ConfigError, "model.order = 'morton'"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(changes: Any, size: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        code_images.grid_of(make(**changes), size)


def test_sources_of_super_resolution_are_enlarged_and_tokenized_like_images() -> None:
    system, source = make(task=SuperResolution(2)), random_images(2, 8, 12)
    found = code_images.condition_codes(system, source, (16, 24))
    tokenizer = system.tokenizer
    assert tokenizer is not None
    assert torch.equal(found, tokenizer.encode(enlarge(source, (16, 24), "bicubic"))) and found.shape == (2, 8, 12)
    assert len(found.unique()) > 1


def test_other_sources_are_tokenized_by_their_own_tokenizer() -> None:
    condition = make_tokenizer(vocab_size=11, seed=3, levels=3)
    system = make(task=Edges(), condition=condition)
    source = canny_edges(random_images(), sigma=2.0, low=0.1, high=0.2)
    found = code_images.condition_codes(system, source, (16, 16))
    assert found.shape == (2, 4, 4) and torch.equal(found, condition.encode(source.expand(-1, 3, -1, -1)))


def test_codes_are_known_where_all_of_their_pixels_are() -> None:
    system, images = make(), random_images()
    known = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(3)) < 0.9
    codes, where = code_images.known_codes(system, images, known)
    for b in range(2):
        for row in range(8):
            for col in range(8):
                cell = [known[b, 2 * row + dy, 2 * col + dx] for dy in (0, 1) for dx in (0, 1)]
                assert bool(where[b, row, col]) == all(cell)
    assert system.tokenizer is not None
    assert torch.equal(codes, system.tokenizer.encode(carry_on(images, known)))


def test_unknown_pixels_cannot_be_seen_in_known_codes() -> None:
    system, images, known = make(), random_images(), torch.zeros(2, 16, 16, dtype=torch.bool)
    known[:, :8] = True
    other = torch.where(known[:, None], images, 255 - images)
    assert torch.equal(
        code_images.known_codes(system, images, known)[0], code_images.known_codes(system, other, known)[0]
    )
    nothing = torch.zeros_like(known)
    assert not code_images.known_codes(system, images, nothing)[1].any()


CASES: list[dict[str, Any]] = [
    {},
    {"order": "spiral_in"},
    {"coordinates": True},
    {"num_classes": 3},
    {"task": SuperResolution(2), "aligned_condition": True},
]


@torch.no_grad()
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_codes_nats_sum_to_those_of_the_models_loss(changes: dict[str, Any]) -> None:
    system, images = make(**changes), random_images()
    cond = Cond(label=torch.tensor([2, 0])) if system.model.num_classes else Cond()
    if system.recipe.task is not None:
        cond = replace(cond, source=random_images(2, 8, 8))
    nats = system.code_nats(images, cond)
    assert nats.shape == (2, 8, 8) and bool((nats > 0).all())
    of_model = replace(cond, source=None)
    if system.recipe.task is not None:
        assert system.tokenizer is not None and cond.source is not None
        of_model = Cond(codes=system.tokenizer.encode(enlarge(cond.source, (16, 16), "bicubic")).flatten(1))
    if system.recipe.model.coordinates:  # the mean raster index of a cell's pixels, in 9 steps
        places = [((2 * i + 0.5) * 16 + 2 * j + 0.5) / 256 * 9 for i in range(8) for j in range(8)]
        of_model = Cond(codes=torch.tensor([[min(round(place), 8) for place in places]] * 2))
    loss = system.model.loss(system.codec.encode(images), of_model, rng=None)
    torch.testing.assert_close(nats.sum((1, 2)), loss.nats, rtol=1e-5, atol=1e-4)
    order = code_images.order_of(system)  # and each lies where its code lies
    logits = system.model(system.codec.encode(images), of_model)
    for position in (0, 5, 63):
        row, col = divmod(int(order[position]), 8)
        log_probs = logits[:, position].log_softmax(-1)
        code = system.codec.encode(images)[:, position, 0]
        torch.testing.assert_close(nats[:, row, col], -log_probs[[0, 1], code], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (4, 11), (9, 7)])
def test_windows_count_every_code_once(grid: tuple[int, int]) -> None:
    """A model that says nothing: each code costs log K, wherever it lies."""
    system = make(window=(4, 4), coordinates=True)
    with torch.no_grad():
        system.model.head.weight.zero_()  # type: ignore[union-attr, operator]
    codes = torch.randint(0, 8, (2, *grid))
    nats = code_images.grid_nats(system, system.model, codes, Cond(), None)
    torch.testing.assert_close(nats, torch.full((2, *grid), math.log(8)))


def test_windows_that_tile_are_scored_by_themselves() -> None:
    system, codes = make(window=(4, 4)), torch.randint(0, 8, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    found = code_images.grid_nats(system, system.model, codes, Cond(), None)
    for top in (0, 4):
        for left in (0, 4, 8):
            part = codes[:, top : top + 4, left : left + 4]
            with torch.no_grad():
                log_probs = system.model(part.flatten(1)[..., None], Cond()).log_softmax(-1)
            nats = -log_probs.gather(2, part.flatten(1)[..., None])[..., 0].view(2, 4, 4)
            torch.testing.assert_close(found[:, top : top + 4, left : left + 4], nats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coordinates", [False, True])
def test_probabilities_of_all_grids_sum_to_one(coordinates: bool) -> None:
    """2x3 codes of 2, windows of 2x2 that overlap: still a distribution."""
    system = make(size=4, vocab_size=2, window=(2, 2), coordinates=coordinates)
    grids = torch.tensor(list(itertools.product(range(2), repeat=6))).view(-1, 2, 3)
    nats = code_images.grid_nats(system, system.model, grids, Cond(), None)
    assert float((-nats.double().sum((1, 2))).exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_windows_of_a_condition_lie_where_their_codes_lie(scale: int) -> None:
    """A condition of half the resolution is cut in the same places; without attention to codes only it is seen."""
    condition = make_tokenizer(seed=3, levels=3 if scale == 2 else 2)
    system = make(task=Edges(), condition=condition, window=(4, 4))
    codes = torch.zeros(1, 8, 8, dtype=torch.int64)
    maps = torch.arange(64 // scale**2).view(1, 8 // scale, 8 // scale) % 8
    found = code_images.grid_nats(system, system.model, codes, Cond(), maps)
    side = 4 // scale
    for i in (0, 1):
        for j in (0, 1):
            part = maps[:, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten(1)
            with torch.no_grad():
                log_probs = system.model(torch.zeros(1, 16, 1, dtype=torch.int64), Cond(codes=part)).log_softmax(-1)
            window = found[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            torch.testing.assert_close(window.flatten(1), -log_probs[..., 0], rtol=1e-4, atol=1e-5)
