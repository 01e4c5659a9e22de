"""What drawing keeps, for every autoregressive system: as much as `state_bytes` says, all of it from the beginning; bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasterformer.interfaces import Autoregressive, Cond

KEPT_FOR_EACH_IMAGE = ("x", "window", "history", "ring")


def tensors_of(thing: Any, path: str = "state", seen: set[int] | None = None) -> dict[str, Tensor]:
    """Every tensor that can be reached from a state, by its path; modules are the model's and not entered."""
    seen = set() if seen is None else seen
    if isinstance(thing, Tensor):
        return {path: thing}
    if id(thing) in seen or isinstance(thing, nn.Module):
        return {}
    seen.add(id(thing))
    parts: dict[str, Any] = {}
    if isinstance(thing, dict):
        parts = {str(name): value for name, value in thing.items()}
    elif isinstance(thing, list | tuple):
        parts = {str(number): value for number, value in enumerate(thing)}
    elif getattr(thing, "__closure__", None):
        parts = {
            name: cell.cell_contents for name, cell in zip(thing.__code__.co_freevars, thing.__closure__, strict=True)
        }
    elif hasattr(thing, "__dict__"):
        parts = vars(thing)
    found = {}
    for name, part in parts.items():
        found |= tensors_of(part, f"{path}.{name}", seen)
    return found


def kept_by(state: Any) -> dict[str, Tensor]:
    """Symbols, caches and rings of a state, by path."""
    return {path: t for path, t in tensors_of(state).items() if path.rpartition(".")[2] in KEPT_FOR_EACH_IMAGE}


def held_bytes(model: Autoregressive, state: Any) -> int:
    """Bytes of all storages that a state holds and the model does not."""
    patterns = [part.pattern.memory for part in model.modules() if hasattr(part, "pattern")]
    owned = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *patterns]}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(state).values()}
    return sum(size for address, size in storages.items() if address not in owned)


def random_x(model: Autoregressive, batch: int = 2) -> Tensor:
    return torch.randint(
        0, model.distribution.vocab_size, (batch, *model.x_shape), generator=torch.Generator().manual_seed(1)
    )


def stepped(model: Autoregressive, x: Tensor, cond: Cond, size: int = 1) -> Tensor:
    """params [B, L, P] by begin and steps of `size` positions."""
    params, state = model.begin(cond, len(x))
    parts = [params]
    for part in x.split(size, 1):
        params, state = model.step(part, state)
        parts.append(params)
    return torch.cat(parts, 1)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_state_bytes_are_those_that_begin_allocates_and_keeps(case, batch_size: int, dtype: torch.dtype) -> None:
    """Found by walking all of the state: a hidden cache would show."""
    _, model = case.build(dtype=dtype)
    _, state = model.begin(case.cond(batch_size), batch_size)
    kept = kept_by(state)
    assert held_bytes(model, state) == model.state_bytes(batch_size)
    attending = case.fields.get("attention_layers", (0, 1))
    assert sum(path.endswith(".window") for path in kept) == len(attending)
    wide = 2 * (case.fields.get("mlp_kernel", (1, 1)) != (1, 1)) + (case.fields.get("input") == "neighbourhood")
    assert sum(path.endswith(".ring") for path in kept) == wide


def test_state_bytes_grow_by_the_same_with_every_image(case) -> None:
    _, model = case.build()
    one, two, five = (model.state_bytes(size) for size in (1, 2, 5))
    assert five - two == 3 * (two - one) > 0
    assert one - (two - one) in (0, model.x_shape[0] * model.config.width * 8)  # learned positions are there once


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 5])
def test_steps_neither_add_nor_replace_a_tensor(case, size: int) -> None:
    """Through a whole image, with steps taken back on the way."""
    _, model = case.build(dtype=torch.float32)
    x = random_x(model)
    _, state = model.begin(case.cond(2), 2)
    at_first = {path: (t.data_ptr(), t.untyped_storage().nbytes(), t.shape) for path, t in tensors_of(state).items()}
    empty = {path: t.clone() for path, t in kept_by(state).items()}
    done, length = 0, model.x_shape[0]
    while done < length:
        count = min(size, model.lookahead(state))
        _, later = model.step(x[:, done : done + count], state)
        assert later is state
        now = {path: (t.data_ptr(), t.untyped_storage().nbytes(), t.shape) for path, t in tensors_of(state).items()}
        assert now == at_first, f"after {done + count} positions"
        done += max(1, count - 1)
        state = model.rewind(state, done)
    changed = [path for path, t in kept_by(state).items() if not torch.equal(t, empty[path])]
    unchanged = {path.rpartition(".")[2] for path in empty if path not in changed}
    assert unchanged == set(), "a tensor that no step wrote to is not needed"


@pytest.fixture
def rounded(case) -> tuple[Autoregressive, Autoregressive]:
    """A model with weights that matter, and its copy in bfloat16."""
    _, model = case.build(dtype=torch.float32, noise=0.1)
    return model, model.to_bfloat16()


@torch.no_grad()
def test_a_rounded_model_keeps_bfloat16_and_returns_float32(case, rounded) -> None:
    model, copy = rounded
    params, state = copy.begin(case.cond(2), 2)
    caches = [t for path, t in kept_by(state).items() if not path.endswith(".x")]
    assert caches and {t.dtype for t in caches} == {torch.bfloat16}
    x = random_x(copy)
    assert {t.dtype for t in (params, copy.step(x[:, :3], state)[0], copy(x, case.cond(2)))} == {torch.float32}
    assert {t.dtype for t in caches} == {torch.bfloat16}


def test_a_rounded_models_caches_take_half_the_bytes(case, rounded) -> None:
    model, copy = rounded
    caches = [
        sum(t.nbytes for path, t in kept_by(made.begin(case.cond(3), 3)[1]).items() if not path.endswith(".x"))
        for made in (model, copy)
    ]
    assert caches[0] == 2 * caches[1] > 0


@torch.no_grad()
def test_rounding_leaves_the_original_as_it_was(case) -> None:
    _, model = case.build(dtype=torch.float32, noise=0.1)
    x, cond = random_x(model), case.cond(2)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    params = model(x, cond)
    copy = model.to_bfloat16()
    for weight in copy.parameters():
        weight.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model(x, cond), params) and params.dtype == torch.float32
    assert not copy.training


@torch.no_grad()
def test_a_rounded_models_output_is_near_the_originals_and_not_the_same(case, rounded) -> None:
    """Within 2^-5 of the largest output: eight roundings to bfloat16, 2^-8 each; up to 0.011 was seen."""
    model, copy = rounded
    x, cond = random_x(model), case.cond(2)
    expected = model(x, cond)
    error = float((copy(x, cond) - expected).abs().max())
    assert 0 < error <= 2**-5 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 5])
def test_a_rounded_models_step_equals_its_forward(case, rounded, size: int) -> None:
    """Within 2^-5 of the largest output: both round, in a different order; up to 0.008 was seen."""
    _, copy = rounded
    x, cond = random_x(copy), case.cond(2)
    expected = copy(x, cond)
    scale = max(1.0, float(expected.abs().max()))
    assert float((stepped(copy, x, cond, size) - expected).abs().max()) <= 2**-5 * scale
