"""What every diffusion system over codes must hold: who sees what, a bound that is one, images of their own, files, bfloat16."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.autoregressive.noise import image_generators
from rasterformer.checkpoint import read_model, save_model_folder
from rasterformer.diffusion.bound import bound_nats
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.options import DiffusionOptions
from rasterformer.interfaces import Codec, Cond, SampleOptions
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.tokenizer import Tokenizer

SMALL = {"num_steps": 3, "width": 8, "depth": 2, "num_heads": 2, "mlp_width": 12, "dropout_prob": 0.0}
MODERN = {"activation": "swiglu", "bias": False, "qk_norm": True, "rotary": True, "width": 16}
BETWEEN = {"step_embedding": "sinusoidal", "schedule": "cosine"}
STATES, BYTES = TextConfig(dim=6, length=4), TextConfig("bytes", dim=6, length=4)
# system -> name -> (fields of its Config, number of classes, texts)
CONFIGS: dict[str, dict[str, tuple[dict[str, Any], int, TextConfig | None]]] = {
    "vq_diffusion": {
        "paper": ({}, 0, None),
        "release": ({"schedule": "release"}, 0, None),
        "linear": ({"schedule": "linear"}, 0, None),
        "cosine-modern": ({**MODERN, **BETWEEN}, 0, None),
        "paper-classes": ({"mlp": "convolution"}, 3, None),
        "release-text": ({"schedule": "release"}, 0, STATES),
        "linear-bytes": ({"schedule": "linear", "activation": "gelu"}, 0, BYTES),
        "cosine-continuous-pooled-classes": (
            {**MODERN, **BETWEEN, "bound": "continuous", "pooled_text": True},
            3,
            STATES,
        ),
        "linear-never-without": ({"schedule": "linear", "drop_condition_prob": 0.0}, 3, None),
    },
}
CASES = [(system, name) for system, named in CONFIGS.items() for name in named]


@pytest.fixture(params=CASES, ids=[f"{system}-{name}" for system, name in CASES])
def fields_of(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], int, TextConfig | None]:
    system, name = request.param
    return (system, *CONFIGS[system][name])


Fields = tuple[str, dict[str, Any], int, TextConfig | None]


def make(
    fields: Fields, *, side: int = 4, num_codes: int = 5, dtype: torch.dtype = torch.float64, noise: float = 0.3
) -> tuple[Codec, CodeDenoiser]:
    """Over side x side codes, with large random weights, in evaluation mode."""
    system, changes, num_classes, text = fields
    config = registry.config_class(system)(**{**SMALL, **changes})
    assert config.problems() == []
    tokenizer = registry.config_class("vqgan")(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=num_codes, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    made = Tokenizer.create(Recipe("vqgan", tokenizer, DataConfig(image_size=2 * side), TrainingConfig()))
    torch.manual_seed(0)
    codec, model = registry.model_module(system).build(
        config, image_size=2 * side, num_classes=num_classes, text=text, tokenizers={"tokenizer": made.codec(2 * side)}
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return codec, model.to(dtype).eval()


def cond_of(fields: Fields, batch: int, *, dtype: torch.dtype = torch.float64) -> Cond:
    """Classes 0, 1, 2, 0, ... and a text for each image, as far as the model takes them."""
    _, _, num_classes, text = fields
    label = torch.arange(batch) % num_classes if num_classes else None
    if text is None:
        return Cond(label=label)
    rng, known = torch.Generator().manual_seed(5), torch.tensor([[True, True, False]]).expand(batch, -1)
    if text.encoder == "bytes":
        tokens = torch.randint(0, 256, (9, 3), generator=rng)[torch.arange(batch) % 9]
        return Cond(label=label, text_tokens=tokens, text_known=known)
    states = torch.randn(9, 3, text.dim, generator=rng, dtype=dtype)[torch.arange(batch) % 9]
    return Cond(label=label, text=states, text_known=known)


def codes_of(model: CodeDenoiser, batch: int, *, symbols: int | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, symbols or model.process.num_codes, (batch, model.x_shape[0]), generator=rng)


def test_every_system_of_the_registry_has_small_models_in_exactly_one_list(
    small_configs: dict[str, Any], image_configs: dict[str, Any]
) -> None:
    assert sorted([*small_configs, *CONFIGS, *image_configs]) == sorted(registry.SYSTEMS)


@torch.no_grad()
def test_every_output_depends_on_every_code_and_on_the_level(fields_of: Fields) -> None:
    """One row for each position, changed there: all L outputs move (float64)."""
    _, model = make(fields_of)
    length, mask = model.x_shape[0], model.process.mask_index
    x = codes_of(model, 1, symbols=mask + 1)
    changed = x.repeat(length, 1)
    each = torch.arange(length)
    changed[each, each] = (changed[each, each] + 1) % (mask + 1)
    cond = cond_of(fields_of, 1).rows(torch.zeros(length, dtype=torch.int64))
    t = torch.full((length,), 2)
    before = model(x, t[:1], cond.rows(slice(1)))
    moved = (model(changed, t, cond) - before).abs().amax(-1)  # [L, L]
    assert before.shape == (1, length, mask) and float(moved.min()) > 1e-9
    assert float((model(x, t[:1] + 1, cond.rows(slice(1))) - before).abs().amax(-1).min()) > 1e-9


@torch.no_grad()
def test_the_bound_is_no_less_than_the_exact_negative_log_likelihood(fields_of: Fields) -> None:
    """2x2 codes of three: p(x_0) is the product of dense matrices over all 256 noisy states.

    The bound is the mean of estimates over all levels; within 4 standard errors of 256 of them.
    """
    _, model = make(fields_of, side=2, num_codes=3)
    process, length = model.process, model.x_shape[0]
    cond = cond_of(fields_of, 1)
    states = torch.tensor(list(product(range(4), repeat=length)))  # [S, L], mask included
    every = cond.rows(torch.zeros(len(states), dtype=torch.int64))
    prob = process.log_prior()[states].sum(1).exp()  # p(x_T), [S]
    for level in range(process.num_steps, 0, -1):
        t = torch.full((len(states),), level)
        log_x0 = model(states, t, every).log_softmax(-1)
        log_p = process.posterior(log_x0, states, t, t - 1)  # [S, L, K + 1]
        dense = torch.stack([log_p[:, k, states[:, k]] for k in range(length)]).sum(0).exp()  # [S before, S after]
        reachable = prob > 0
        prob = prob[reachable] @ dense[reachable]
    is_image = (states < 3).all(1)
    assert float(prob.sum()) == pytest.approx(1, abs=1e-9) and float(prob[is_image].sum()) == pytest.approx(1, abs=1e-9)
    for image in states[is_image][[0, 31, 77]]:
        exact = -math.log(prob[(states == image).all(1)].item())
        count = 256
        same = cond.rows(torch.zeros(count, dtype=torch.int64))
        x = image.expand(count, -1)[..., None]
        estimates = bound_nats(model, x, same, rng=image_generators(7, count), levels=process.num_steps).double().sum(1)
        bound, error = float(estimates.mean()), float(estimates.std()) / count**0.5
        assert bound + 4 * error >= exact, "less than the likelihood costs"


@torch.no_grad()
@pytest.mark.parametrize("options", [SampleOptions(), DiffusionOptions(steps=2, top_p=0.9)], ids=["plain", "steps"])
def test_an_image_does_not_depend_on_its_batch(fields_of: Fields, options: SampleOptions) -> None:
    _, model = make(fields_of)
    cond, x = cond_of(fields_of, 5), codes_of(model, 5)[..., None]
    drawn = model.sample(cond, 5, options=options, rng=image_generators(3, 5))
    nats = bound_nats(model, x, cond, rng=image_generators(4, 5), levels=2)
    assert drawn.shape == (5, *model.x_shape) and 0 <= int(drawn.min()) <= int(drawn.max()) < model.process.num_codes
    for k in range(5):
        alone = cond.rows(slice(k, k + 1))
        assert torch.equal(model.sample(alone, 1, options=options, rng=image_generators(3, 1, first=k))[0], drawn[k])
        one = bound_nats(model, x[k : k + 1], alone, rng=image_generators(4, 1, first=k), levels=2)[0]
        torch.testing.assert_close(one, nats[k], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_saved_model_draws_and_scores_the_same_bit_for_bit(fields_of: Fields, tmp_path: Path) -> None:
    _, model = make(fields_of, dtype=torch.float32)
    save_model_folder(
        tmp_path / "model", config={"recipe": {}, "num_classes": 0}, state=model.state_dict(), card="a test"
    )
    _, other = make(fields_of, dtype=torch.float32, noise=0.0)
    other.load_state_dict(read_model(tmp_path / "model").tensors["model"])
    cond, x = cond_of(fields_of, 2, dtype=torch.float32), codes_of(model, 2)[..., None]
    one, two = (
        (each.sample(cond, 2, options=SampleOptions(), rng=image_generators(0, 2)),
         bound_nats(each, x, cond, rng=image_generators(0, 2), levels=3))
        for each in (model, other)
    )  # fmt: skip
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@torch.no_grad()
def test_a_rounded_models_output_is_near_the_originals_and_leaves_it_alone(fields_of: Fields) -> None:
    """Within 2^-4 of the largest output: a few dozen roundings to bfloat16, 2^-8 each."""
    _, model = make(fields_of, dtype=torch.float32, noise=0.1)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    cond, x, t = cond_of(fields_of, 2, dtype=torch.float32), codes_of(model, 2), torch.tensor([1, 3])
    expected, copy = model(x, t, cond), model.to_bfloat16()
    rounded = copy(x, t, cond)
    assert rounded.dtype == expected.dtype == torch.float32 and not copy.training
    assert 0 < float((rounded - expected).abs().max()) <= 2**-4 * max(1.0, float(expected.abs().max()))
    assert {weight.dtype for weight in copy.parameters()} >= {torch.bfloat16} and copy.state_bytes(
        2
    ) <= model.state_bytes(2)
    for weight in copy.parameters():
        weight.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model(x, t, cond), expected)


@torch.no_grad()
def test_memory_is_counted_per_image(fields_of: Fields) -> None:
    _, model = make(fields_of)
    one = model.state_bytes(1)
    assert one >= 8 * model.x_shape[0] * model.process.num_codes and model.state_bytes(7) == 7 * one
