"""Captions are read on a CUDA device where there is one, and their states come back to the processor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rasterformer.conditioning.text import MiniLMEncoder
from rasterformer.conditioning.text_cache import NEAR, CachedTextEncoder
from rasterformer.nn.minilm import MiniLM

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")
TEXTS = ["a red square", "a bird", ""]


class Letters:
    """In place of the tokenizer: a token for each letter."""

    def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(ids=[ord(letter) for letter in text])


def test_captions_are_read_on_the_device_and_states_are_on_the_processor() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MiniLM().eval().requires_grad_(False)
    encoder = MiniLMEncoder(network, cast(Any, Letters()))
    expected, known = encoder.encode(TEXTS, length=16)
    encoder.to(DEVICE)
    states, known_there = encoder.encode(TEXTS, length=16)
    assert network.words.weight.device.type == DEVICE.type and states.device.type == "cpu"
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-3)  # TF32 may be on
    assert torch.equal(known_there, known)
    cached = CachedTextEncoder(encoder)
    cached.prepare(TEXTS, length=16, device=DEVICE, say=lambda _: None)
    assert network.words.weight.device.type == "cpu", "the memory is the model's again"
    kept, _ = cached.encode(TEXTS, length=16)
    assert bool(((kept - expected).norm(dim=-1) <= 2 * NEAR * expected.norm(dim=-1)).all())
