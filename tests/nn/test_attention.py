"""Attention over every pattern against softmax attention written as loops over queries and heads, in float64."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.pixels import block_raster_order
from rasterformer.nn import block_kernel
from rasterformer.nn.attention import Attention, AttentionStep
from rasterformer.nn.block_kernel import attend_in_blocks
from rasterformer.nn.pattern import (
    AttentionPattern,
    full_pattern,
    local_1d_pattern,
    local_2d_pattern,
    surrounding_2d_pattern,
)
from rasterformer.nn.positions import rotary_angles

WIDTH = 6
PATTERNS = {
    "full": full_pattern(13),
    "1d, L no multiple of the block": local_1d_pattern(19, 4, 4),
    "1d, L shorter than the block": local_1d_pattern(5, 8, 8),
    "1d, L between one and two blocks": local_1d_pattern(7, 4, 4),
    "1d, L of two blocks": local_1d_pattern(8, 4, 4),
    "1d, no memory": local_1d_pattern(14, 4, 0),
    "1d, memory no multiple of the block": local_1d_pattern(18, 4, 7),
    "1d, memory of two blocks": local_1d_pattern(18, 4, 8),
    "1d, memory longer than the sequence": local_1d_pattern(10, 4, 40),
    "2d": local_2d_pattern(block_raster_order((4, 6), (2, 3)), (4, 6), (2, 3), (1, 2)),
    "2d, no flange": local_2d_pattern(block_raster_order((4, 4), (2, 2)), (4, 4), (2, 2), (0, 0)),
    "2d, memory of the last block only": local_2d_pattern(block_raster_order((4, 6), (1, 2)), (4, 6), (1, 2), (0, 2)),
    "2d, one block": local_2d_pattern(block_raster_order((3, 4), (3, 4)), (3, 4), (3, 4), (2, 2)),
    "2d, flange wider than the grid": local_2d_pattern(block_raster_order((6, 4), (2, 2)), (6, 4), (2, 2), (9, 9)),
}
TO_ALL_SIDES = {
    "all": full_pattern(7, is_causal=False),
    "frame": surrounding_2d_pattern(block_raster_order((4, 6), (2, 3)), (4, 6), (2, 3), (1, 2)),
    "no frame": surrounding_2d_pattern(block_raster_order((4, 4), (2, 2)), (4, 4), (2, 2), (0, 0)),
    "frame wider than the grid": surrounding_2d_pattern(block_raster_order((4, 4), (2, 2)), (4, 4), (2, 2), (9, 9)),
    "one block": surrounding_2d_pattern(block_raster_order((3, 4), (3, 4)), (3, 4), (3, 4), (2, 2)),
}
KINDS = {
    "plain": {},
    "grouped heads": {"num_kv_heads": 1},
    "normalised": {"qk_norm": True},
    "rotary": {"rotary": True},
    "all": {"num_kv_heads": 2, "qk_norm": True, "rotary": True},
}


def make(pattern: AttentionPattern, *, num_kv_heads: int = 4, qk_norm: bool = False, rotary: bool = False) -> Attention:
    torch.manual_seed(0)
    position = torch.arange(pattern.seq_len)
    angles = rotary_angles(position // 3, position % 3, 4) if rotary else None
    attention = Attention(
        WIDTH,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=4,
        pattern=pattern,
        qk_norm=qk_norm,
        angles=angles,
    ).double()
    for weight in attention.parameters():
        torch.nn.init.normal_(weight)
    return attention


def random_h(pattern: AttentionPattern, batch: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, pattern.seq_len, WIDTH, dtype=torch.float64, generator=rng)


def visible_keys(pattern: AttentionPattern, query: int) -> list[int]:
    """Memory of the query's block and the block so far; test_pattern.py holds this against the paper's rule."""
    first = query // pattern.block_size * pattern.block_size
    end = query + 1 if pattern.is_causal else min(first + pattern.block_size, pattern.seq_len)
    return [key for key in pattern.memory[query // pattern.block_size].tolist() if key >= 0] + list(range(first, end))


def head_vector(h: Tensor, weight: Tensor, head: int) -> Tensor:
    return weight[4 * head : 4 * head + 4] @ h


def normalised(vector: Tensor, scale: Tensor) -> Tensor:
    """Layer normalisation without bias."""
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * scale


def turned(vector: Tensor, angles: Tensor) -> Tensor:
    """Pairs (i, i + 2) as complex numbers, multiplied by e^(i angle)."""
    pairs = torch.complex(vector[:2], vector[2:]) * torch.polar(torch.ones(2, dtype=torch.float64), angles.double())
    return torch.cat([pairs.real, pairs.imag])


def reference(attention: Attention, h: Tensor) -> Tensor:
    """h [L, D] -> [L, D], one query, one head, one key at a time."""
    pattern, rows = attention.pattern, []
    group = attention.num_heads // attention.num_kv_heads
    sizes = [4 * count for count in (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)]
    of_query, of_key, of_value = attention.project.weight.split(sizes)
    for query in range(pattern.seq_len):
        mixed = []
        for head in range(attention.num_heads):
            vectors = []
            for weight, norm, number, position in [
                (of_query, attention.query_norm, head, query),
                *((of_key, attention.key_norm, head // group, key) for key in visible_keys(pattern, query)),
            ]:
                vector = head_vector(h[position], weight, number)
                if isinstance(norm, torch.nn.LayerNorm):
                    vector = normalised(vector, norm.weight)
                vectors.append(vector if attention.angles is None else turned(vector, attention.angles[position]))
            scores = [float(vectors[0] @ key) / math.sqrt(4) for key in vectors[1:]]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            values = [head_vector(h[k], of_value, head // group) for k in visible_keys(pattern, query)]
            mixed.append(sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True)))
        rows.append(attention.out.weight @ torch.cat(mixed))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATTERNS)
def test_forward_equals_a_loop_over_queries_heads_and_keys(name: str, kind: str) -> None:
    attention, h = make(PATTERNS[name], **KINDS[kind]), random_h(PATTERNS[name], batch=1)
    torch.testing.assert_close(attention(h)[0], reference(attention, h[0]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("name", TO_ALL_SIDES)
def test_an_encoders_attention_equals_a_loop_over_queries_heads_and_keys(name: str, kind: str) -> None:
    attention, h = make(TO_ALL_SIDES[name], **KINDS[kind]), random_h(TO_ALL_SIDES[name], batch=1)
    torch.testing.assert_close(attention(h)[0], reference(attention, h[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TO_ALL_SIDES)
def test_gradients_of_an_encoders_attention_equal_those_of_masked_softmax_over_all_keys(name: str) -> None:
    """The mask is made from the pattern's sets of keys; autograd of plain products, with heads that share keys."""
    pattern = TO_ALL_SIDES[name]
    attention, h = make(pattern, num_kv_heads=2), random_h(pattern)
    mask = torch.zeros(pattern.seq_len, pattern.seq_len, dtype=torch.bool)
    for query in range(pattern.seq_len):
        mask[query, visible_keys(pattern, query)] = True
    of_query, of_key, of_value = attention.project.weight.split([16, 8, 8])
    found = []
    for plain in (False, True):
        source = h.clone().requires_grad_()
        if plain:
            q, k, v = ((source @ w.T).unflatten(-1, (-1, 4)).transpose(1, 2) for w in (of_query, of_key, of_value))
            k, v = (t[:, [0, 0, 1, 1]] for t in (k, v))
            weights = (q @ k.mT / 2).masked_fill(~mask, -math.inf).softmax(-1)
            out = (weights @ v).transpose(1, 2).flatten(2) @ attention.out.weight.T
        else:
            out = attention(source)
        wanted = [source, attention.project.weight, attention.out.weight]
        found.append(torch.autograd.grad(out.square().sum(), wanted))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_step_equals_forward(name: str, kind: str, chunk: int) -> None:
    pattern = PATTERNS[name]
    attention, h = make(pattern, **KINDS[kind]), random_h(pattern)
    step = AttentionStep(attention, 2, h)
    steps, first = [], 0
    while first < pattern.seq_len:  # a step stays inside a query block
        end = min(first + chunk, (first // pattern.block_size + 1) * pattern.block_size, pattern.seq_len)
        steps.append(step(h[:, first:end], first))
        first = end
    torch.testing.assert_close(torch.cat(steps, 1), attention(h), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", PATTERNS)
def test_positions_may_be_given_again_while_their_block_lasts(name: str) -> None:
    """Each step is first given three positions of noise, then the one right position."""
    pattern = PATTERNS[name]
    attention, h = make(pattern, **KINDS["plain"]), random_h(pattern)
    step, steps = AttentionStep(attention, 2, h), []
    for first in range(pattern.seq_len):
        end = min(first + 3, (first // pattern.block_size + 1) * pattern.block_size, pattern.seq_len)
        step(torch.full_like(h[:, first:end], 5.0), first)
        steps.append(step(h[:, first : first + 1], first))
    torch.testing.assert_close(torch.cat(steps, 1), attention(h), rtol=1e-12, atol=1e-12)


def test_a_step_across_a_block_border_is_refused() -> None:
    attention, h = make(PATTERNS["1d, L of two blocks"]), random_h(PATTERNS["1d, L of two blocks"])
    with pytest.raises(AssertionError, match="inside one query block"):
        AttentionStep(attention, 2, h)(h[:, :5], 0)


def block_tensors(*, blocks: int = 2, rows: int = 3, size: int = 3, window: int = 5) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(blocks, rows, size, 2), (blocks, rows, window, 2), (blocks, rows, window, 2)]
    return [torch.randn(shape, dtype=torch.float64, generator=rng).requires_grad_() for shape in shapes]


def some_mask(blocks: int = 2, size: int = 3, window: int = 5) -> Tensor:
    visible = torch.rand(blocks, size, window, generator=torch.Generator().manual_seed(3)) < 0.5
    visible[:, :, -1] = True
    return visible


def test_block_kernel_equals_softmax_over_visible_keys() -> None:
    q, k, v = block_tensors()
    visible = some_mask()
    got = attend_in_blocks(q, k, v, visible, previous_blocks=0)
    for block in range(2):
        for row in range(3):
            for query in range(3):
                keys = [key for key in range(5) if visible[block, query, key]]
                weights = torch.softmax(torch.stack([q[block, row, query] @ k[block, row, key] for key in keys]), 0)
                expected = sum(w * v[block, row, key] for w, key in zip(weights, keys, strict=True))
                torch.testing.assert_close(got[block, row, query], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scores_at_a_time", [1, 30, 1 << 20])
def test_block_kernel_gradients_equal_finite_differences(
    scores_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_kernel, "SCORES_AT_A_TIME", scores_at_a_time)  # one row at a time, two, all
    visible = some_mask()
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_in_blocks(q, k, v, visible, previous_blocks=0), block_tensors()
    )


def test_gradients_of_a_masked_key_are_zero() -> None:
    q, k, v = block_tensors()
    visible = some_mask()
    visible[0, :, 1] = False
    attend_in_blocks(q, k, v, visible, previous_blocks=0).sum().backward()
    assert k.grad is not None and v.grad is not None
    assert not k.grad[0, :, 1].any() and not v.grad[0, :, 1].any()
    assert v.grad[0, :, -1].all()


def neighbouring_blocks() -> tuple[list[Tensor], Tensor]:
    """Four blocks of three positions, each seeing the two blocks before it and itself so far."""
    rng = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 2, 3, 2, dtype=torch.float64, generator=rng).requires_grad_() for _ in range(3)]
    visible = local_1d_pattern(12, 3, 6).visible()
    return tensors, visible


def test_block_kernel_puts_windows_together_from_the_blocks_before() -> None:
    (q, k, v), visible = neighbouring_blocks()
    nothing = torch.zeros(2, 2, 3, 2, dtype=torch.float64)
    windows = [torch.cat([torch.cat([nothing, t])[i : i + 4] for i in range(3)], 2) for t in (k, v)]
    expected = attend_in_blocks(q, *windows, visible, previous_blocks=0)
    torch.testing.assert_close(attend_in_blocks(q, k, v, visible, previous_blocks=2), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_windows_put_together_equal_finite_differences() -> None:
    tensors, visible = neighbouring_blocks()
    assert torch.autograd.gradcheck(lambda q, k, v: attend_in_blocks(q, k, v, visible, previous_blocks=2), tensors)
