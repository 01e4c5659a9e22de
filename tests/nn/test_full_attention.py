"""Attention to all keys: its two forms against the definition, and on tensors without numbers."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.nn.full_attention import PLAIN_UP_TO, attend

F64 = torch.float64


def normal(*shapes: tuple[int, ...], dtype: torch.dtype = F64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(shape, dtype=dtype, generator=rng, requires_grad=True) for shape in shapes]


def definition(q: Tensor, keys: Tensor, values: Tensor, known: Tensor) -> Tensor:
    """Of as many heads of keys as of queries."""
    scores = torch.einsum("bnld,bnmd->bnlm", q, keys) / math.sqrt(q.shape[-1])
    weights = scores.exp() * known[:, None, None]
    return torch.einsum("bnlm,bnmd->blnd", weights / weights.sum(-1, keepdim=True), values).flatten(2)


@pytest.mark.parametrize("count", [PLAIN_UP_TO, PLAIN_UP_TO + 1])
@pytest.mark.parametrize("plain_up_to", [PLAIN_UP_TO, None])
def test_few_and_many_keys_give_the_same_gradients_as_the_definition(count: int, plain_up_to: int | None) -> None:
    q, k, v = given = normal((1, 2, 3, 2), (1, 2, count, 2), (1, 2, count, 2))
    known = torch.rand(1, count, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = definition(q, k, v, known)
    found = attend(q, k, v, known, plain_up_to=plain_up_to)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), given),
        torch.autograd.grad(expected.square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plain_up_to", [0, None])  # fused, plain
def test_neighbouring_query_heads_share_a_key_head(plain_up_to: int | None) -> None:
    q, k, v = normal((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 2))
    known = torch.tensor([[True] * 5, [False, True, True, False, True]])
    heads = [0, 0, 1, 1]
    expected = definition(q, k[:, heads], v[:, heads], known)
    torch.testing.assert_close(attend(q, k, v, known, plain_up_to=plain_up_to), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("has_gradients", [False, True])
@pytest.mark.parametrize("plain_up_to", [0, None])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_tensors_without_numbers_have_the_same_shapes_and_dtypes(
    has_gradients: bool, plain_up_to: int | None, kv_heads: int
) -> None:
    given = [
        t.detach().to("meta").requires_grad_()
        for t in normal((2, 4, 3, 2), (2, kv_heads, 5, 2), (2, kv_heads, 5, 2), dtype=torch.bfloat16)
    ]
    known = torch.ones(2, 5, dtype=torch.bool, device="meta")
    with torch.set_grad_enabled(has_gradients):
        found = attend(*given, known, plain_up_to=plain_up_to)
    assert found.is_meta and found.shape == (2, 3, 8) and found.dtype == torch.bfloat16
    assert found.requires_grad == has_gradients
