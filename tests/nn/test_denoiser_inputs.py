"""What denoisers are told: what becomes of it, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.denoiser_inputs import (
    AttentionPooling,
    DenoiserInputs,
    NetworkInputs,
    NullToken,
    NumberEmbedding,
    Tokens,
)

F64 = torch.float64


def make(**changes: object) -> DenoiserInputs:
    torch.manual_seed(0)
    fixed = {
        "image_channels": 2,
        "noised_image": True,
        "num_sinusoids": 4,
        "vector_width": 6,
        "text_dim": 5,
        "text_enters": "both",
        "multiple": 2,
    }
    return DenoiserInputs(3, **{**fixed, **changes}).to(F64)  # type: ignore[arg-type]


def arguments() -> dict[str, Tensor | None]:
    rng = torch.Generator().manual_seed(1)
    shapes = {"z": (2, 3, 4, 2), "log_snr": (2,), "text": (2, 3, 5), "image": (2, 2, 4, 2), "image_log_snr": (2,)}
    given: dict[str, Tensor | None] = {
        key: torch.randn(shape, dtype=F64, generator=rng) for key, shape in shapes.items()
    }
    return given | {"text_known": torch.tensor([[True, True, False], [False, False, False]])}


@torch.no_grad()
def test_a_number_becomes_two_maps_of_its_sinusoids() -> None:
    torch.manual_seed(0)
    embedding = NumberEmbedding(4, 3).to(F64)
    found = embedding(torch.tensor([0.0, -2.5]))
    for row, value in zip(found, (0.0, -2.5), strict=True):
        angles = [value, value / 10000]
        waves = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=F64)
        inside = embedding.up.weight @ waves + embedding.up.bias
        inside = inside / (1 + (-inside).exp())
        # the sinusoids are float32
        torch.testing.assert_close(row, embedding.down.weight @ inside + embedding.down.bias, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_pooling_is_what_a_learned_query_finds_in_the_known_tokens() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(5, 4).to(F64)
    states = torch.randn(2, 3, 5, dtype=F64)
    known = torch.tensor([[True, True, True], [True, False, True]])
    found = pooling(Tokens(states, known))
    attention = pooling.attention
    query = attention.query(pooling.query[0, 0])
    for image in range(2):
        weights, total = [], torch.zeros(64, dtype=F64)
        for state in states[image, known[image]]:
            key, value = attention.project(state).chunk(2)
            weights.append(float(torch.exp(query @ key / 8)))
            total = total + weights[-1] * value
        pooled = attention.out(total / sum(weights))
        centred = pooled - pooled.mean()
        normed = centred / (centred.square().mean() + 1e-5).sqrt()
        torch.testing.assert_close(found[image], pooling.out(normed), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_the_null_token_stands_before_all_others_and_alone_where_there_are_none() -> None:
    torch.manual_seed(0)
    null = NullToken(2).to(F64)
    states, known = torch.randn(2, 3, 2, dtype=F64), torch.tensor([[True, False, True], [False] * 3])
    given = null(states, known, batch_size=2)
    assert torch.equal(given.states[:, 0], null.state.expand(2, 2)) and torch.equal(given.states[:, 1:], states)
    assert given.known is not None and given.known.tolist() == [[True, True, False, True], [True, False, False, False]]
    assert null(states, None, batch_size=2).known is None
    alone = null(None, None, batch_size=2)
    assert alone.known is None and torch.equal(alone.states, null.state.expand(2, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("enters", ["tokens", "pooled", "both"])
def test_vector_is_silu_of_the_sum_of_what_is_said_and_holds_the_text_where_it_is_pooled(enters: str) -> None:
    inputs, given = make(text_enters=enters), arguments()
    told: NetworkInputs = inputs(**given)
    assert (told.tokens is not None) == (enters != "pooled")
    for image in range(2):
        total = inputs.noise(50 * given["log_snr"])[image] + inputs.image_noise(50 * given["image_log_snr"])[image]
        if enters != "tokens":
            tokens = inputs.null_token(given["text"], given["text_known"], batch_size=2)
            total = total + inputs.pooling(tokens)[image]
        torch.testing.assert_close(told.vector[image], total / (1 + (-total).exp()), rtol=1e-12, atol=1e-12)
    assert torch.equal(told.maps[:, :3], given["z"]) and torch.equal(told.maps[:, 3:], given["image"])


WRONG = {
    "z of rank 3": (
        {"z": torch.zeros(2, 4, 2)},
        ShapeError,
        r"z is torch.float32 \[2, 4, 2\].*\[B, 3, height, width\]",
    ),
    "z of 4 channels": ({"z": torch.zeros(2, 4, 4, 2)}, ShapeError, r"\[2, 4, 4, 2\]"),
    "z of bytes": ({"z": torch.zeros(2, 3, 4, 2, dtype=torch.uint8)}, ShapeError, "z is torch.uint8"),
    "z without pixels": ({"z": torch.zeros(2, 3, 0, 2)}, ShapeError, "z has 0x2 pixels.*multiples of 2"),
    "log_snr of one": (
        {"log_snr": torch.zeros(1)},
        ShapeError,
        r"log_snr is torch.float32 \[1\]; float \[2\] is needed",
    ),
    "log_snr of steps": ({"log_snr": torch.zeros(2, dtype=torch.int64)}, ShapeError, "log_snr is torch.int64"),
    "image of another size": ({"image": torch.zeros(2, 2, 2, 2)}, ShapeError, r"\[2, 2, 2, 2\]; float \[2, 2, 4, 2\]"),
    "image of another dtype": (
        {"image": torch.zeros(2, 2, 4, 2, dtype=torch.int32)},
        ShapeError,
        "image is torch.int32",
    ),
    "no image": ({"image": None}, ConfigError, "image is missing: this network is told one of 2 channels"),
    "image_log_snr of three": ({"image_log_snr": torch.zeros(3)}, ShapeError, r"image_log_snr is torch.float32 \[3\]"),
    "no image_log_snr": (
        {"image_log_snr": None},
        ConfigError,
        "image_log_snr is missing: this network is told how noisy",
    ),
    "text of rank 2": ({"text": torch.zeros(2, 5)}, ShapeError, r"text is torch.float32 \[2, 5\].*float \[2, S, 5\]"),
    "text of other states": ({"text": torch.zeros(2, 3, 4)}, ShapeError, r"text is torch.float32 \[2, 3, 4\]"),
    "text of one image": ({"text": torch.zeros(1, 3, 5)}, ShapeError, r"text is torch.float32 \[1, 3, 5\]"),
    "text of bytes": ({"text": torch.zeros(2, 3, 5, dtype=torch.uint8)}, ShapeError, "text is torch.uint8"),
    "text_known of a number": ({"text_known": torch.ones(2, 3)}, ShapeError, r"text_known is torch.float32 \[2, 3\]"),
    "text_known of more": (
        {"text_known": torch.ones(2, 4, dtype=torch.bool)},
        ShapeError,
        r"bool \[2, 4\]; .*\[2, 3\]",
    ),
    "text_known of nothing": ({"text": None}, ConfigError, "text_known was given without text"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_refused_with_what_was_received(what: str) -> None:
    change, kind, message = WRONG[what]
    with pytest.raises(kind, match=message):
        make()(**{**arguments(), **change})


def test_noise_of_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="noised_image = True, but image_channels = 0"):
        make(image_channels=0)
