"""Attention to a source against plain loops, its step, and the bytes that the step keeps."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.nn.cross_attention import CrossAttention, CrossAttentionStep

WIDTH, HEAD = 6, 4
KINDS = {
    "plain": {"num_kv_heads": 4},
    "grouped heads": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "normalised": {"num_kv_heads": 4, "qk_norm": True},
    "all": {"num_kv_heads": 2, "qk_norm": True},
}


def make(kind: str) -> CrossAttention:
    torch.manual_seed(0)
    attention = CrossAttention(WIDTH, num_heads=4, head_dim=HEAD, **KINDS[kind]).double()
    for weight in attention.parameters():
        torch.nn.init.normal_(weight)
    return attention


def tensors() -> tuple[Tensor, Tensor]:
    """Five positions of a decoder and three of an encoder, two of each."""
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, count, WIDTH, dtype=torch.float64, generator=rng) for count in (5, 3))


def head_of(vector: Tensor, weight: Tensor, number: int, norm: torch.nn.Module) -> Tensor:
    projected = weight[HEAD * number : HEAD * number + HEAD] @ vector
    if not isinstance(norm, torch.nn.LayerNorm):
        return projected
    centred = projected - projected.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_forward_equals_a_loop_over_queries_heads_and_source_positions(kind: str) -> None:
    attention, (h, source) = make(kind), tensors()
    kv_heads = attention.num_kv_heads
    of_key, of_value = attention.project.weight.split([HEAD * kv_heads] * 2)
    plain = torch.nn.Identity()
    expected = torch.empty_like(h)
    for image in range(2):
        for query in range(5):
            mixed = []
            for head in range(4):
                shared = head * kv_heads // 4
                q = head_of(h[image, query], attention.query.weight, head, attention.query_norm)
                keys = [head_of(s, of_key, shared, attention.key_norm) for s in source[image]]
                values = [head_of(s, of_value, shared, plain) for s in source[image]]
                weights = [math.exp(float(q @ key) / math.sqrt(HEAD)) for key in keys]
                mixed.append(sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True)))
            expected[image, query] = attention.out.weight @ torch.cat(mixed)
    torch.testing.assert_close(attention(h, source), expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 2])
def test_step_equals_forward(kind: str, chunk: int) -> None:
    attention, (h, source) = make(kind), tensors()
    step = CrossAttentionStep(attention, source)
    steps = [step(part) for part in h.split(chunk, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), attention(h, source), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_kept_bytes_are_those_of_the_steps_keys_and_values(kind: str, dtype: torch.dtype) -> None:
    attention, (_, source) = make(kind).to(dtype), tensors()
    step = CrossAttentionStep(attention, source.to(dtype))
    held = sum(t.untyped_storage().nbytes() for t in (step.keys, step.values))
    assert {step.keys.dtype, step.values.dtype} == {dtype}
    assert attention.kept_bytes(2, 3, source.to(dtype)) == step.nbytes == held
    assert held == 2 * 3 * 2 * attention.num_kv_heads * HEAD * dtype.itemsize  # images, positions, both, heads


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_for_gradients_equals_the_library_and_has_its_gradients(kind: str) -> None:
    """Gradients against central differences of the form without gradients, in one direction of h and of the source."""
    attention, (h, source) = make(kind), tensors()
    known = torch.tensor([[True, False, True], [True, True, True]])
    moves = [torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) for t in (h, source)]

    def mixed(at: float) -> Tensor:
        return attention(h + at * moves[0], source + at * moves[1], known)

    with torch.no_grad():
        expected, slope = mixed(0.0), (mixed(1e-5) - mixed(-1e-5)) / 2e-5
    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    found = attention(h + at * moves[0], source + at * moves[1], known)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.square().sum() / 2, at)
    torch.testing.assert_close(gradient, (slope * expected).sum(), rtol=1e-7, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_known_of_a_source_is_as_if_it_were_not_there(kind: str) -> None:
    attention, (h, source) = make(kind), tensors()
    known = torch.tensor([[True, False, True], [False, False, True]])
    found = attention(h, source, known)
    for image in range(2):
        alone = attention(h[image : image + 1], source[image : image + 1, known[image]])
        torch.testing.assert_close(found[image : image + 1], alone, rtol=1e-12, atol=1e-12)
