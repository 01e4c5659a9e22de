"""The Image Transformer (Parmar et al. 2018, arXiv 1802.05751): exact likelihood of pixels by local self-attention.

One decoder serves the paper's form and the modern one; `config.py` says which is which and README.md where each element
of the paper is found. Read `forward` first: embed, layers, head. `begin` and `step` do the same, position by position.
With a task, `encoder.py` reads a source image, and the decoder attends to what it made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rasterformer.autoregressive.sample import draw
from rasterformer.codecs.pixels import PixelCodec, block_raster_order
from rasterformer.conditioning.check import check_label
from rasterformer.distributions import Categorical, DiscretizedLogisticMixture
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Distribution, Known, Loss, OnStep, SampleOptions
from rasterformer.nn.attention import Attention
from rasterformer.nn.blocks import FeedForward, LayerStep, TransformerLayer, make_norm
from rasterformer.nn.convolution import MAX_STEP
from rasterformer.nn.cross_attention import CrossAttention
from rasterformer.nn.pattern import AttentionPattern, full_pattern, local_1d_pattern, local_2d_pattern
from rasterformer.nn.positions import LearnedPositions, rotary_angles, sinusoidal_positions
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.encoder import Encoder
from rasterformer.systems.image_transformer.input import Input, InputStep, NeighbourhoodInput, PixelInput, TableInput
from rasterformer.systems.image_transformer.output import Head, PlainHead, ResidualCategoricalHead, ResidualMixtureHead
from rasterformer.systems.image_transformer.source_rest import SourceRest
from rasterformer.tasks import SourceShape


@dataclass
class DecodingState:
    """What `step` carries on. Everything is allocated by `begin` and written in place."""

    x: (
        Tensor | None
    )  # int64 [B, L, E], of which the first `done` positions are known; for heads that look at neighbours
    done: int
    places: Tensor | None  # [L, D], what is added to each position
    condition: Tensor | None  # [B, 1, D]
    aligned: Tensor | None  # [B, S, D], what is added where each source cell lies
    shown: Tensor | None  # [B, pixels, D], what is added where each source pixel lies
    source: Tensor | None  # uint8 [B, 3, h, w], where it is needed at each position
    input: InputStep
    layers: list[LayerStep]


class ImageTransformer(Autoregressive):
    """Transformer over the cells of an image, in generation order; with an encoder, where there is a source image.

    Args:
        config: what the network is.
        codec: gives grid and generation order.
        num_classes: classes to condition on; 0 for none.
        source: shape of the source images. None: there are none, and no encoder.
    """

    sinusoids: Tensor | None
    all_positions: Tensor
    pixels: Tensor
    channels: Tensor
    cells: Tensor | None
    source_pixels: Tensor | None

    def __init__(
        self, config: Config, codec: PixelCodec, num_classes: int, *, source: SourceShape | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.x_shape = codec.x_shape
        self.num_classes = num_classes
        self.distribution: Distribution = (
            Categorical(256)
            if config.distribution == "categorical"
            else DiscretizedLogisticMixture(config.num_mixtures)
        )
        self.pattern = attention_pattern(config, codec)
        width, grid = config.width, codec.grid
        rows, cols = codec.order // grid[1], codec.order % grid[1]
        order = codec.order if config.attention == "local_2d" else None

        if config.input == "table":
            channels = torch.arange(3).expand(len(cols), 3) if codec.x_shape[1] == 3 else (cols % 3)[:, None]
            self.input: Input = TableInput(channels, width, learned_start=config.learned_start)
        elif config.input == "neighbourhood":
            self.input = NeighbourhoodInput(
                codec.x_shape[1],
                width,
                grid,
                config.neighbourhood,
                order=order,
                learned_start=config.learned_start,
            )
        else:
            with_relu = config.input == "linear_relu"
            self.input = PixelInput(width, with_relu=with_relu, learned_start=config.learned_start)

        sinusoids = sinusoidal_positions(rows, cols, width) if config.positions == "sinusoidal" else None
        self.register_buffer("sinusoids", sinusoids, persistent=False)
        self.register_buffer("all_positions", torch.arange(len(rows)), persistent=False)
        is_learned = config.positions in ("learned", "learned_summed")
        summed = config.positions == "learned_summed"
        self.positions = LearnedPositions(rows, cols, width, summed=summed) if is_learned else None
        self.class_embedding = nn.Embedding(num_classes, width) if num_classes else None
        self.dropout = nn.Dropout(config.dropout_prob)

        is_joint, image_size = codec.x_shape[1] == 3, codec.image_shape[1]
        columns = cols if is_joint else cols // 3
        self.register_buffer("pixels", rows * image_size + columns, persistent=False)  # raster index of each position's
        self.register_buffer("channels", cols % 3, persistent=False)  # of each position, where channels are separate
        self.encoder = None if source is None else Encoder(config, source)
        self.align: nn.Linear | None = None
        cells = None
        if self.encoder is not None and config.aligned_source:
            self.align = nn.Linear(width, width, bias=False)
            cells = self.encoder.cells_at(rows, columns, None if is_joint else cols % 3, image_size)
        self.register_buffer("cells", cells, persistent=False)  # [L, m], which source cells lie where a position lies
        self.shown: nn.Linear | None = None
        source_pixels = None
        if self.encoder is not None and config.shown_source:
            self.shown = nn.Linear(self.encoder.shape.channels + int(self.encoder.shape.has_mask), width, bias=False)
            side = self.encoder.shape.size
            source_pixels = rows * side // image_size * side + columns * side // image_size
        self.register_buffer("source_pixels", source_pixels, persistent=False)  # [L], raster index in the source
        self.rest: SourceRest | None = None
        if config.source_rest:
            if source is None or source.channels != 3 or source.has_mask:
                raise ConfigError(
                    "model.source_rest = true needs sources of three channels without a mask. Set it to false."
                )
            self.rest = SourceRest(width, codec, source)

        head_dim = config.heads_width // config.num_heads
        angles = rotary_angles(rows, cols, head_dim) if config.rotary else None
        attending = range(config.depth) if config.attention_layers is None else config.attention_layers
        to_source = range(config.depth) if config.source_attention_layers is None else config.source_attention_layers
        layers = []
        for index in range(config.depth):
            attention = Attention(
                width,
                num_heads=config.num_heads,
                num_kv_heads=config.kv_heads,
                head_dim=head_dim,
                pattern=self.pattern,
                qk_norm=config.qk_norm,
                angles=angles,
            )
            source_attention = None
            if self.encoder is not None and index in to_source:
                source_attention = CrossAttention(
                    width,
                    num_heads=config.num_heads,
                    num_kv_heads=config.kv_heads,
                    head_dim=head_dim,
                    qk_norm=config.qk_norm,
                )
            feed_forward = FeedForward(
                width,
                config.mlp_width,
                activation=config.activation,
                grid=grid,
                kernel=config.mlp_kernel,
                order=order,
            )
            layers.append(
                TransformerLayer(
                    width,
                    attention=attention if index in attending else None,
                    source_attention=source_attention,
                    feed_forward=feed_forward,
                    norm=config.norm,
                    is_post_norm=config.norm_position == "post",
                    dropout_prob=config.dropout_prob,
                )
            )
        self.layers: list[TransformerLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.final_norm = make_norm(config.norm, width) if config.norm_position == "pre" else nn.Identity()
        if config.output == "plain":
            has_bias = config.distribution == "categorical"  # as in the paper's code
            self.head: Head = PlainHead(width, self.distribution.params_per_position, has_bias=has_bias)
        elif config.distribution == "categorical":
            self.head = ResidualCategoricalHead(width, grid, codec.order)
        else:
            self.head = ResidualMixtureHead(width, grid, codec.order, config.num_mixtures)
        self._initialise()

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L, E] -> params [B, L, P]; params[:, i] depends only on x[:, :i] and cond."""
        return self._output(self.features(x, cond), x, cond.source, self.all_positions)

    def features(self, x: Tensor, cond: Cond) -> Tensor:
        """The decoder without its head: x int64 [B, L, E] -> [B, L, D]."""
        source = self._encode(cond, len(x))
        h = _add(self.input(x), self._places(), self._condition(cond, len(x)))
        h = _add(h, self._aligned(source, slice(None)), _at(self._show(cond), self.source_pixels))
        h = self.dropout(_add(h, self._rest(x, cond.source, self.all_positions)))
        for layer in self.layers:
            h = layer(h, source)
        return self.final_norm(h)

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """Mean negative log-likelihood per dimension, in nats; exact (paper, section 3: maximum likelihood).

        Where the condition gives pixels, the others are the dimensions: p(unknown pixels | source).
        With `loss_chunk`, the head's output is made for that many positions at a time and made again for the gradient,
        so that logits never exist for a whole batch.
        """
        h = self.features(x, cond)
        length, symbols = self.x_shape
        unknown = None if cond.known is None else ~cond.known.flatten(1)[:, self.pixels]  # [B, L]
        size = self.config.loss_chunk or length
        positions = self.all_positions
        nats = x.new_zeros(len(x), dtype=torch.float32)
        dims = x.new_full((len(x),), length * symbols) if unknown is None else symbols * unknown.sum(1)
        for first in range(0, length, size):
            part = slice(first, first + size)
            counted = None if unknown is None else unknown[:, part]
            if size < length and torch.is_grad_enabled():
                arguments = (h[:, part], x, cond.source, positions[part], counted)
                nats = nats + checkpoint(self._chunk_nats, *arguments, use_reentrant=False)
            else:
                nats = nats + self._chunk_nats(h[:, part], x, cond.source, positions[part], counted)
        return Loss(total=nats.sum() / dims.sum(), nats=nats.detach(), dims=dims, bound="exact")

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x int64 [B, L, E], position by position from caches."""
        return draw(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, DecodingState]:
        """Returns params [B, 1, P] of position 0 and the state that `step` carries on."""
        like = self.layers[0].feed_forward.down.weight
        x = None
        if self.head.sees_neighbours or self.rest is not None:
            x = torch.zeros(batch_size, *self.x_shape, dtype=torch.int64, device=like.device)
        places, condition = self._places(), self._condition(cond, batch_size)
        source = self._encode(cond, batch_size)
        aligned = None if source is None or self.align is None else self.align(source)
        state = DecodingState(
            x=x,
            done=0,
            places=None if places is None else places.to(like.dtype),
            condition=condition,
            aligned=aligned,
            shown=self._show(cond),
            source=cond.source if self.rest is not None else None,
            input=self.input.stepper(batch_size, like),
            layers=[LayerStep(layer, batch_size, like, source) for layer in self.layers],
        )
        h = self.input.start(like.new_empty(batch_size, 1, self.config.width))
        return self._decode(h, state, 0), state

    def step(self, x: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """x int64 [B, n, E], the next positions -> params [B, n, P] of those after them, n - 1 at the end of the image."""
        first, size = state.done, self.pattern.block_size
        state.done = first + x.shape[1]
        if state.x is not None:
            state.x[:, first : state.done] = x
        parts = []
        start, end = first + 1, min(state.done + 1, self.x_shape[0])
        while start < end:  # in pieces that lie in one query block
            stop = min(end, (start // size + 1) * size, start + MAX_STEP)
            h = state.input(x[:, start - 1 - first : stop - 1 - first], start)
            parts.append(self._decode(h, state, start))
            start = stop
        if len(parts) == 1:
            return parts[0], state
        none = self.head.linear.weight.new_zeros(len(x), 0, self.distribution.params_per_position)
        return torch.cat([none, *parts], 1), state

    def known(self, cond: Cond) -> Known | None:
        """The positions of the pixels that the source shows as they are."""
        if cond.known is None:
            return None
        assert cond.source is not None, "a mask comes with its source"
        pixels = cond.source.permute(0, 2, 3, 1).flatten(1, 2)[:, self.pixels].long()  # [B, L, 3]
        x = pixels if self.x_shape[1] == 3 else pixels.gather(2, self.channels.expand(len(pixels), -1)[..., None])
        return Known(x, cond.known.flatten(1)[:, self.pixels])

    def state_bytes(self, batch_size: int) -> int:
        """Bytes of caches, of the symbols where the head looks at them, of the source where it is needed at each step, of the
        class vectors, and of learned positions."""
        like = self.layers[0].feed_forward.down.weight.to("meta")
        kept = sum(LayerStep(layer, batch_size, like).nbytes for layer in self.layers)
        kept += self.input.stepper_bytes(batch_size, like)
        if self.encoder is not None:
            size = self.encoder.num_positions
            of_layers = [layer.source_attention for layer in self.layers if layer.source_attention is not None]
            kept += sum(attention.kept_bytes(batch_size, size, like) for attention in of_layers)
            kept += batch_size * size * self.config.width * like.element_size() if self.align is not None else 0
        if self.head.sees_neighbours or self.rest is not None:
            kept += batch_size * 8 * math.prod(self.x_shape)
        if self.shown is not None and self.encoder is not None:
            kept += batch_size * self.encoder.shape.size**2 * self.config.width * like.element_size()
        if self.rest is not None and self.encoder is not None:
            kept += batch_size * self.encoder.shape.channels * self.encoder.shape.size**2
        vectors = batch_size if self.class_embedding is not None else 0
        if self.positions is not None or (self.sinusoids is not None and self.sinusoids.dtype != like.dtype):
            vectors += self.x_shape[0]
        return kept + vectors * self.config.width * like.element_size()

    def to_bfloat16(self) -> ImageTransformer:
        """Returns a copy with all weights but the head's in bfloat16, and tables such as rotary angles as they are."""
        rounded = copy.deepcopy(self)
        for name, weight in rounded.named_parameters():
            if not name.startswith(("head.", "rest.")):
                weight.data = weight.data.to(torch.bfloat16)
        return rounded

    def lookahead(self, state: DecodingState) -> int:
        """How many positions can be given to `step` now, and all but the first of them be taken back."""
        size = self.pattern.block_size
        end = ((state.done + 1) // size + 1) * size  # a finished query block has moved its memory on
        return min(self.x_shape[0] - state.done, end - state.done - 1, MAX_STEP)

    def rewind(self, state: DecodingState, done: int) -> DecodingState:
        """Takes back what was given after the first `done` positions."""
        state.done = done
        return state

    def _decode(self, h: Tensor, state: DecodingState, first: int) -> Tensor:
        """h [B, n, D], what the input makes of positions first.., in one query block -> params [B, n, P]."""
        part = slice(first, first + h.shape[1])
        h = _add(h, None if state.places is None else state.places[part], state.condition)
        if state.aligned is not None and self.cells is not None:
            h = h + state.aligned[:, self.cells[part]].sum(2)
        if state.shown is not None and self.source_pixels is not None:
            h = h + state.shown[:, self.source_pixels[part]]
        h = _add(h, self._rest(state.x, state.source, self.all_positions[part]))
        for layer in state.layers:
            h = layer(h, first)
        return self._output(self.final_norm(h), state.x, state.source, self.all_positions[part])

    def _output(self, h: Tensor, x: Tensor | None, source: Tensor | None, positions: Tensor) -> Tensor:
        """h [B, n, D] at `positions` -> params [B, n, P]."""
        params = self.head(h.to(self.head.linear.weight.dtype), x, positions)
        if self.rest is None:
            return params
        assert x is not None and source is not None, "what is left is known from both"
        return params + self.rest.scores(self.rest.mean(x, source, positions), positions)

    def _rest(self, x: Tensor | None, source: Tensor | None, positions: Tensor) -> Tensor | None:
        """What is left of the source, as a feature: [B, n, D]."""
        if self.rest is None:
            return None
        assert x is not None and source is not None, "what is left is known from both"
        return self.rest.features(self.rest.mean(x, source, positions), positions)

    def _places(self) -> Tensor | None:
        """Where each position lies: [L, D]."""
        if self.positions is None:
            return self.sinusoids
        return self.positions() if self.sinusoids is None else self.sinusoids + self.positions()

    def _encode(self, cond: Cond, batch_size: int) -> Tensor | None:
        """What the encoder makes of the source: [B, S, D]."""
        if self.encoder is None:
            if cond.source is not None or cond.known is not None:
                raise ConfigError("source was given, but this model was trained without one. Leave it out.")
            return None
        self.encoder.check(cond, batch_size)
        assert cond.source is not None, "checked just now"
        encoded: Tensor = self.encoder(cond.source, cond.known)
        return encoded

    def _aligned(self, source: Tensor | None, part: slice) -> Tensor | None:
        """What is added to each position for the source cells that lie there: [B, L, D]."""
        if source is None or self.align is None or self.cells is None:
            return None
        return self.align(source)[:, self.cells[part]].sum(2)

    def _show(self, cond: Cond) -> Tensor | None:
        """A linear map of each source pixel's values; of missing ones 0, and whether they are there: [B, pixels, D]."""
        if self.shown is None or cond.source is None:
            return None
        values = cond.source.permute(0, 2, 3, 1).to(self.shown.weight.dtype) / 127.5 - 1  # [B, h, w, c]
        if cond.known is not None:
            flag = cond.known[..., None].to(values.dtype)
            values = torch.cat([values * flag, flag], -1)
        return self.shown(values.flatten(1, 2))

    def _condition(self, cond: Cond, batch_size: int) -> Tensor | None:
        """The class embedding times sqrt(d), the same for every position: [B, 1, D]."""
        check_label(cond.label, num_classes=self.num_classes, batch_size=batch_size)
        if self.class_embedding is None or cond.label is None:
            return None
        return self.class_embedding(cond.label)[:, None] * math.sqrt(self.config.width)

    def _chunk_nats(
        self, h: Tensor, x: Tensor, source: Tensor | None, positions: Tensor, counted: Tensor | None
    ) -> Tensor:
        log_prob = self.distribution.log_prob(self._output(h, x, source, positions), x[:, positions])
        return -(log_prob if counted is None else log_prob.masked_fill(~counted, 0)).sum(1)

    def _initialise(self) -> None:
        if isinstance(self.head, ResidualMixtureHead | ResidualCategoricalHead):
            self.head.reset()
        if self.config.init == "paper":  # uniform, variance 0.2 / mean of fan-in and fan-out, dense and embeddings
            keeps_its_own = ("positions.", "rest.") + (("head.",) if self.config.output == "residual" else ())
            for name, weight in self.named_parameters():
                if weight.ndim >= 2 and not _starts_with(name, keeps_its_own):
                    matrices = _stacked_matrices(name)
                    bound = math.sqrt(3 * 0.2 / ((weight.shape[0] / matrices + weight.shape[1]) / 2))
                    nn.init.uniform_(weight, -bound, bound)
                elif name.endswith("bias") and not _starts_with(name, keeps_its_own):
                    nn.init.zeros_(weight)
            return
        layers = [*self.layers, *(self.encoder.layers if self.encoder is not None else [])]
        for layer in layers:
            assert isinstance(layer, TransformerLayer)
            attentions = [a.out for a in (layer.attention, layer.source_attention) if a is not None]
            for branch in [layer.feed_forward.down, *attentions]:
                nn.init.zeros_(branch.weight)
                if branch.bias is not None:
                    nn.init.zeros_(branch.bias)
        for linear in (self.align, self.shown):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=self.config.width**-1.0)


def _at(vectors: Tensor | None, index: Tensor | None) -> Tensor | None:
    """vectors [B, S, D] at each position, index int64 [n] -> [B, n, D]."""
    return None if vectors is None or index is None else vectors[:, index]


def _starts_with(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a weight belongs to one of the parts, of the decoder or of the encoder."""
    return name.removeprefix("encoder.").startswith(parts)


def _stacked_matrices(name: str) -> int:
    """How many matrices of the paper lie one under the other in this weight."""
    if name.endswith("source_attention.project.weight"):
        return 2
    return 3 if name.endswith("attention.project.weight") else 1


def _add(h: Tensor, *vectors: Tensor | None) -> Tensor:
    for vector in vectors:
        h = h if vector is None else h + vector.to(h.dtype)
    return h


def attention_pattern(config: Config, codec: PixelCodec) -> AttentionPattern:
    """Who sees whom, from the recipe's words."""
    length = codec.x_shape[0]
    if config.attention == "full":
        return full_pattern(length)
    if config.attention == "local_1d":
        return local_1d_pattern(length, config.block_length, config.memory_length)
    block, flange = block_in_cells(config)
    return local_2d_pattern(codec.order, codec.grid, block, flange)


def block_in_cells(config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Query block and flange of 2D attention in grid cells; a pixel is three cells wide when channels are separate."""
    cells = 3 if config.distribution == "categorical" and config.block_unit == "pixel" else 1
    return (config.query_block[0], config.query_block[1] * cells), (config.flange[0], config.flange[1] * cells)


def build(
    config: Config, *, image_size: int, num_classes: int, source: SourceShape | None = None
) -> tuple[PixelCodec, ImageTransformer]:
    """Makes codec and network, with fresh weights from torch's current random state.

    Args:
        config: what the network is.
        image_size: side of the images, pixels.
        num_classes: classes to condition on; 0 for none.
        source: shape of the source images. None: there are none.

    Raises:
        ConfigError: the query blocks do not tile the image, or there is a source but no encoder, or the reverse.
    """
    if (source is not None) != config.takes_source:
        raise ConfigError(
            "model.encoder_depth is null, but the recipe has a task, whose sources an encoder reads. Set it, to 4 for example."
            if source is not None
            else f"model.encoder_depth = {config.encoder_depth}, but the recipe has no task. Add one, or set it to null."
        )
    is_joint = config.distribution == "dmol"
    order = None
    if config.attention == "local_2d":
        grid = (image_size, image_size if is_joint else 3 * image_size)
        order = block_raster_order(grid, block_in_cells(config)[0])
    codec = PixelCodec(image_size, is_joint=is_joint, order=order)
    return codec, ImageTransformer(config, codec, num_classes, source=source)
