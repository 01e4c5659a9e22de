"""What users would take instead, from PyPI (extra `bench`): built as like to the paper's form as each allows."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.systems.image_transformer.config import Config

VALUES = 256  # and one more, with which ImageGPT begins an image


def require(package: str) -> Any:
    """Imports an opponent, or says what to install."""
    try:
        return importlib.import_module(package)
    except ImportError:
        sys.exit(f"{package} is not installed. Install the opponents: pip install -c constraints.txt -e '.[bench]'")


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of installed distributions."""
    return {name: importlib.metadata.version(name) for name in names}


class ImageGPT:
    """transformers' ImageGPT with its key-value cache: every position sees all before it, in one growing cache.

    Args:
        config: gives width, depth, heads and feed-forward.
        length: positions of an image.
        dtype: of weights and cache.
    """

    def __init__(self, config: Config, length: int, dtype: torch.dtype) -> None:
        transformers = require("transformers")
        transformers.logging.set_verbosity_error()
        settings = transformers.ImageGPTConfig(
            vocab_size=VALUES + 1,
            n_positions=length,
            n_embd=config.width,
            n_layer=config.depth,
            n_head=config.num_heads,
            n_inner=config.mlp_width,
        )
        self.new_cache = lambda: transformers.DynamicCache(config=settings)
        self.model: nn.Module = transformers.ImageGPTForCausalImageModeling(settings).eval().to(dtype)
        self.config, self.dtype, self.length = config, dtype, length

    def cache_at(self, position: int, batch_size: int) -> Any:
        """A cache as it is after `position` positions, filled with noise."""
        cache, config = self.new_cache(), self.config
        shape = (batch_size, config.num_heads, position, config.width // config.num_heads)
        for layer in range(config.depth):
            cache.update(torch.randn(shape, dtype=self.dtype), torch.randn(shape, dtype=self.dtype), layer)
        return cache

    def draw(self, count: int, cache: Any, batch_size: int, rng: torch.Generator) -> Tensor:
        """Draws the next `count` symbols: one step and one multinomial draw each."""
        x = torch.full((batch_size, 1), VALUES)
        for _ in range(count):
            logits = self.model(input_ids=x, past_key_values=cache, use_cache=True).logits[:, -1, :VALUES]
            x = torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=rng)
        return x

    def generate(self, count: int) -> Tensor:
        """Draws one image's first `count` symbols by the library's own `generate`."""
        start = torch.full((1, 1), VALUES)
        out: Tensor = self.model.generate(  # type: ignore[operator]
            input_ids=start, max_new_tokens=count, do_sample=True, use_cache=True, top_k=0
        )
        return out


def local_attention_network(config: Config, length: int) -> nn.Module:
    """local-attention's LocalTransformer: the same window, a block and the one before it."""
    network: nn.Module = require("local_attention").LocalTransformer(
        num_tokens=VALUES,
        max_seq_len=length,
        dim=config.width,
        depth=config.depth,
        causal=True,
        local_attn_window_size=config.block_length,
        heads=config.num_heads,
        dim_head=config.width // config.num_heads,
        ff_mult=config.mlp_width // config.width,
        num_residual_streams=1,
    )
    return network


def x_transformers_network(config: Config, length: int) -> nn.Module:
    """x-transformers' decoder with dense flash attention."""
    package = require("x_transformers")
    network: nn.Module = package.TransformerWrapper(
        num_tokens=VALUES,
        max_seq_len=length,
        attn_layers=package.Decoder(
            dim=config.width,
            depth=config.depth,
            heads=config.num_heads,
            attn_dim_head=config.width // config.num_heads,
            ff_mult=config.mlp_width // config.width,
            attn_flash=True,
        ),
    )
    return network


def training_step(network: nn.Module, x: Tensor) -> None:
    """Forward and backward of the next-symbol loss on x int64 [B, L], in bfloat16 autocast."""
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten()).backward()
