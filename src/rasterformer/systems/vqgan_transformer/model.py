"""A transformer over codes (Esser et al. 2021, arXiv 2012.09841, sections 3.2 and 3.3): stage 2, p(codes | condition).

The sequence is [condition, codes]: what is known comes first, as tokens, and each code is predicted from all of it and the codes
before it. `config.py` says which of its parts are the paper's (minGPT) and which are newer; README.md where each element of the
paper is found. Read `forward` first: condition, codes, layers, head. `begin` and `step` do the same, position by position.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rasterformer.autoregressive.sample import draw
from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.check import check_label, check_text
from rasterformer.distributions import Categorical
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Distribution, Known, Loss, OnStep, SampleOptions
from rasterformer.nn.attention import Attention
from rasterformer.nn.blocks import FeedForward, LayerStep, TransformerLayer, make_norm
from rasterformer.nn.pattern import full_pattern
from rasterformer.nn.positions import rotary_angles
from rasterformer.nn.text_input import TextInput
from rasterformer.recipe import TextConfig
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.tasks import SourceShape

INIT_STD = 0.02  # of all matrices and tables (paper's code)


@dataclass
class DecodingState:
    """What `step` carries on. Everything is allocated by `begin` and written in place."""

    done: int  # codes given
    aligned: Tensor | None  # [B, L, D], what is added where each code is predicted
    layers: list[LayerStep]


@dataclass(frozen=True)
class Vocabulary:
    """How many different tokens there are of each kind.

    Args:
        codes: K, of the images.
        classes: 0 for none.
        condition: of the condition's codes or coordinates. 0: there are none.
    """

    codes: int
    classes: int = 0
    condition: int = 0

    @property
    def shared(self) -> int:
        """Rows of a table that serves all of them (paper's code: one vocabulary)."""
        return max(self.codes, self.classes, self.condition)


class CodeTransformer(Autoregressive):
    """p(codes | condition) over the codes of a window, in generation order.

    Args:
        config: what the network is.
        order: int64 [L], raster index of the i-th generated code.
        grid: rows and columns of codes, L = rows * columns.
        vocabulary: sizes.
        condition_grid: rows and columns of the condition's codes. None: there are none.
        text: how texts are read. None: there are none.
    """

    null: nn.Parameter | None
    order: Tensor

    def __init__(
        self,
        config: Config,
        order: Tensor,
        grid: tuple[int, int],
        vocabulary: Vocabulary,
        *,
        condition_grid: tuple[int, int] | None = None,
        text: TextConfig | None = None,
    ) -> None:
        super().__init__()
        length, width = len(order), config.width
        self.config, self.grid, self.condition_grid, self.vocabulary = config, grid, condition_grid, vocabulary
        self.x_shape = (length, 1)
        self.num_classes = vocabulary.classes
        self.distribution: Distribution = Categorical(vocabulary.codes)
        self.register_buffer("order", order, persistent=False)

        rows = vocabulary.shared if config.shared_vocabulary else vocabulary.codes
        self.token_embedding = nn.Embedding(rows, width)
        own_tables = not config.shared_vocabulary
        self.class_embedding = nn.Embedding(vocabulary.classes, width) if own_tables and vocabulary.classes else None
        self.condition_embedding = (
            nn.Embedding(vocabulary.condition, width) if own_tables and vocabulary.condition else None
        )
        self.text_input = None
        if text is not None:
            self.text_input = TextInput(width, dim=text.dim, length=text.length, is_bytes=text.encoder == "bytes")
        self.text_padding = None if text is None else nn.Parameter(torch.zeros(width))
        self.aligned_embedding = nn.Embedding(vocabulary.condition, width) if config.aligned_condition else None
        if config.aligned_condition and condition_grid != grid:
            raise ConfigError(
                f"model.aligned_condition = true needs a condition of {grid[0]}x{grid[1]} codes like the image's, not "
                f"{condition_grid}. Use a tokenizer of the same factor, or set it to false."
            )
        is_conditional = text is not None or vocabulary.classes > 0 or condition_grid is not None
        drops = config.drop_condition_prob > 0 and is_conditional
        self.null = nn.Parameter(torch.zeros(width)) if drops else None

        self.num_condition = self._count_condition()  # S
        total = self.num_condition + length - 1
        self.position_embedding = nn.Parameter(torch.zeros(1, total, width)) if config.positions == "learned" else None
        head_dim = width // config.num_heads
        angles = self._angles(head_dim) if config.rotary else None
        pattern = full_pattern(total)
        self.layers: list[TransformerLayer] = nn.ModuleList(  # type: ignore[assignment]
            TransformerLayer(
                width,
                attention=Attention(
                    width,
                    num_heads=config.num_heads,
                    num_kv_heads=config.kv_heads,
                    head_dim=head_dim,
                    pattern=pattern,
                    qk_norm=config.qk_norm,
                    angles=angles,
                    bias=config.bias,
                ),
                feed_forward=FeedForward(
                    width, config.mlp_width, activation=config.activation, grid=(1, total), kernel=(1, 1)
                ),
                norm=config.norm,
                norm_eps=config.norm_eps,
                is_post_norm=False,
                dropout_prob=config.dropout_prob,
            )
            for _ in range(config.depth)
        )
        self.dropout = nn.Dropout(config.dropout_prob)
        self.final_norm = make_norm(config.norm, width, eps=config.norm_eps)
        self.head = nn.Linear(width, vocabulary.codes, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim >= 2 and name != "position_embedding":
                nn.init.normal_(weight, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L, 1] -> logits [B, L, K]; those of position i depend only on x[:, :i] and cond."""
        h = torch.cat([self._condition(cond, len(x)), self._tokens(x[:, :-1])], 1)  # [B, S + L - 1, D]
        h = self._placed(h, 0)
        aligned = self._aligned(cond, len(x))
        if aligned is not None:
            first = self.num_condition - 1
            h = torch.cat([h[:, :first], h[:, first:] + aligned.to(h.dtype)], 1)
        h = self.dropout(h)
        for layer in self.layers:
            h = layer(h)
        return self._logits(h[:, self.num_condition - 1 :])

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """Mean negative log-likelihood per code, in nats; exact for codes, and no likelihood of pixels.

        In training some codes of the input are replaced by random ones, and some conditions hidden, as the recipe says; `rng`
        decides which.
        """
        seen = x
        if self.training:
            seen, cond = self._disturbed(x, cond, rng)
        log_prob = self.distribution.log_prob(self.forward(seen, cond), x)
        nats = -log_prob.sum(1)
        dims = torch.full((len(x),), self.x_shape[0], dtype=torch.int64, device=x.device)
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
        """Draws x int64 [B, L, 1], position by position from caches."""
        return draw(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, DecodingState]:
        """Goes over the condition; returns logits [B, 1, K] of the first code and the state that `step` carries on."""
        condition = self._condition(cond, batch_size)
        state = DecodingState(
            done=0,
            aligned=self._aligned(cond, batch_size),
            layers=[LayerStep(layer, batch_size, condition) for layer in self.layers],
        )
        return self._decode(condition, state, 0)[:, -1:], state

    def step(self, x: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """x int64 [B, n, 1], the next codes -> logits [B, n, K] of those after them, n - 1 at the end of the image."""
        first = state.done
        state.done = first + x.shape[1]
        x = x[:, : self.x_shape[0] - 1 - first]  # nothing follows the last code
        if not x.shape[1]:
            return self.head.weight.new_zeros(len(x), 0, self.vocabulary.codes), state
        return self._decode(self._tokens(x), state, self.num_condition + first), state

    def known(self, cond: Cond) -> Known | None:
        """None: a condition says something about the codes, but gives none of them."""
        return None

    def state_bytes(self, batch_size: int) -> int:
        """Bytes of caches, and of what the condition adds to each position."""
        like = self.layers[0].feed_forward.down.weight.to("meta")
        kept = sum(LayerStep(layer, batch_size, like).nbytes for layer in self.layers)
        if self.aligned_embedding is not None:
            kept += batch_size * self.x_shape[0] * self.config.width * like.element_size()
        return kept

    def to_bfloat16(self) -> CodeTransformer:
        """Returns a copy with all weights but the head's in bfloat16."""
        rounded = copy.deepcopy(self)
        for name, weight in rounded.named_parameters():
            if not name.startswith("head."):
                weight.data = weight.data.to(torch.bfloat16)
        return rounded

    def lookahead(self, state: DecodingState) -> int:
        """How many codes can be given to `step` now, and all but the first of them be taken back."""
        return self.x_shape[0] - state.done

    def rewind(self, state: DecodingState, done: int) -> DecodingState:
        """Takes back what was given after the first `done` codes."""
        state.done = done
        return state

    def _decode(self, h: Tensor, state: DecodingState, first: int) -> Tensor:
        """h [B, n, D], tokens at places first.. of the sequence -> logits [B, n, K] of what follows each."""
        h = self._placed(h, first)
        if state.aligned is not None:
            begin = first - (self.num_condition - 1)  # code that the first of them predicts
            shown = state.aligned[:, max(begin, 0) : begin + h.shape[1]]
            h = torch.cat([h[:, : h.shape[1] - shown.shape[1]], h[:, h.shape[1] - shown.shape[1] :] + shown], 1)
        for layer in state.layers:
            h = layer(h, first)
        return self._logits(h)

    def _logits(self, h: Tensor) -> Tensor:
        return self.head(self.final_norm(h).to(self.head.weight.dtype))

    def _placed(self, h: Tensor, first: int) -> Tensor:
        if self.position_embedding is None:
            return h
        return h + self.position_embedding[:, first : first + h.shape[1]].to(h.dtype)

    def _tokens(self, x: Tensor) -> Tensor:
        """Codes int64 [B, n, 1] -> [B, n, D]."""
        return self.token_embedding(x[..., 0])

    def _condition(self, cond: Cond, batch_size: int) -> Tensor:
        """What comes first: text, class and codes, or a start token where there is none of them: [B, S, D]."""
        self._check(cond, batch_size)
        parts = []
        if self.text_input is not None and self.text_padding is not None:
            states, known = self.text_input(cond)
            padding = self.text_padding.to(states.dtype)
            missing = self.text_input.length - states.shape[1]
            states = torch.where(known[..., None], states, padding)
            parts.append(torch.cat([states, padding.expand(batch_size, missing, -1)], 1))
        if cond.label is not None:
            parts.append((self.class_embedding or self.token_embedding)(cond.label[:, None]))
        if cond.codes is not None:
            parts.append((self.condition_embedding or self.token_embedding)(cond.codes))
        if not parts:
            device = self.token_embedding.weight.device
            return self.token_embedding(torch.zeros(batch_size, 1, dtype=torch.int64, device=device))
        return self._hidden(torch.cat(parts, 1), cond)

    def _aligned(self, cond: Cond, batch_size: int) -> Tensor | None:
        """What the condition says of each code, in generation order: [B, L, D]."""
        if self.aligned_embedding is None:
            return None
        assert cond.codes is not None, "checked where the condition is embedded"
        return self._hidden(self.aligned_embedding(cond.codes[:, self.order]), cond)

    def _hidden(self, condition: Tensor, cond: Cond) -> Tensor:
        """The condition [B, n, D], or the null vector where it was dropped."""
        if cond.dropped is None:
            return condition
        if self.null is None:
            raise ConfigError(
                "guidance needs a model that has seen images without their condition, and this one has not. Train it with "
                "model.drop_condition_prob = 0.1."
            )
        return torch.where(cond.dropped[:, None, None], self.null.to(condition.dtype), condition)

    def _disturbed(self, x: Tensor, cond: Cond, rng: torch.Generator | None) -> tuple[Tensor, Cond]:
        """The input of a training step: random codes for some (paper's code: pkeep), and no condition for some images."""
        config = self.config
        if config.keep_prob == 1.0 and config.drop_condition_prob == 0.0:
            return x, cond
        assert rng is not None, "what is hidden is random"
        if config.keep_prob < 1.0:
            keep = torch.rand(x.shape, generator=rng).to(x.device) < config.keep_prob
            random = torch.randint(self.vocabulary.codes, x.shape, generator=rng).to(x.device)
            x = torch.where(keep, x, random)
        if config.drop_condition_prob > 0:
            dropped = (torch.rand(len(x), generator=rng) < config.drop_condition_prob).to(x.device)
            cond = replace(cond, dropped=dropped if cond.dropped is None else dropped | cond.dropped)
        return x, cond

    def _check(self, cond: Cond, batch_size: int) -> None:
        """Raises ConfigError where the condition is not what the model was trained with."""
        if cond.source is not None or cond.known is not None:
            raise ConfigError(
                "source was given, but this model was trained without one: it takes codes. Tokenize it first."
            )
        check_label(cond.label, num_classes=self.num_classes, batch_size=batch_size)
        check_text(cond, takes_text=self.text_input is not None, batch_size=batch_size)
        num_values = self.vocabulary.condition
        if num_values and cond.codes is None:
            raise ConfigError(f"codes is missing: this model was trained with {num_values} codes of a condition.")
        if not num_values and cond.codes is not None:
            raise ConfigError("codes was given, but this model was trained without codes of a condition. Leave it out.")
        if cond.codes is not None and len(cond.codes) != batch_size:
            raise ConfigError(f"codes has {len(cond.codes)} entries for {batch_size} images. Give one for each.")
        if cond.codes is not None and self.condition_grid is not None:
            rows, cols = self.condition_grid
            if cond.codes.shape[1:] != (rows * cols,):
                raise ConfigError(
                    f"the condition has {list(cond.codes.shape[1:])} codes; this model takes {rows}x{cols} = {rows * cols}."
                )
            if bool(((cond.codes < 0) | (cond.codes >= num_values)).any()):
                raise ConfigError(
                    f"the condition has codes {int(cond.codes.min())}..{int(cond.codes.max())}; they must lie in "
                    f"0..{num_values - 1}."
                )

    def _count_condition(self) -> int:
        count = 0 if self.text_input is None else self.text_input.length
        count += 1 if self.num_classes else 0
        count += 0 if self.condition_grid is None else self.condition_grid[0] * self.condition_grid[1]
        return count or 1  # the start token

    def _angles(self, head_dim: int) -> Tensor:
        """Rotary angles of the sequence: a code of the condition lies where its part of the image lies; text and class at 0."""
        rows, cols = [], []
        flat = self.num_condition
        if self.condition_grid is not None:
            flat -= self.condition_grid[0] * self.condition_grid[1]
        rows.append(torch.zeros(flat))
        cols.append(torch.zeros(flat))
        if self.condition_grid is not None:
            height, width = self.condition_grid
            cell = torch.arange(height * width)
            rows.append((cell // width) * (self.grid[0] / height))
            cols.append((cell % width) * (self.grid[1] / width))
        rows.append((self.order[:-1] // self.grid[1]).float())
        cols.append((self.order[:-1] % self.grid[1]).float())
        return rotary_angles(torch.cat(rows), torch.cat(cols), head_dim)


def build(
    config: Config,
    *,
    image_size: int,
    num_classes: int,
    source: SourceShape | None = None,
    text: TextConfig | None = None,
    tokenizers: Mapping[str, CodeCodec] | None = None,
) -> tuple[CodeCodec, CodeTransformer]:
    """Makes codec and network, with fresh weights from torch's current random state.

    Args:
        config: what the network is.
        image_size: side of the images, pixels.
        num_classes: classes to condition on; 0 for none.
        source: shape of the task's source images. None: there is no task.
        text: how texts are read. None: there are none.
        tokenizers: `tokenizer`, for images of image_size in raster order, and `condition_tokenizer`, for sources at the
            size at which they are tokenized.

    Raises:
        ConfigError: there is no tokenizer, or the window does not fit into the images.
    """
    tokenizers = tokenizers or {}
    if "tokenizer" not in tokenizers:
        raise ConfigError(
            "model.tokenizer is missing: the run or model folder of a tokenizer. Train one with system vqgan."
        )
    images = tokenizers["tokenizer"]
    window = config.window or images.grid
    if window[0] > images.grid[0] or window[1] > images.grid[1]:
        raise ConfigError(
            f"model.window = {window} is larger than the {images.grid[0]}x{images.grid[1]} codes of images of {image_size} "
            "pixels. Set it to null, or data.image_size to a larger one."
        )
    condition_grid, size = None, 0
    if source is not None:
        codes = tokenizers.get("condition_tokenizer", images)
        if any(codes.grid[k] * window[k] % images.grid[k] for k in (0, 1)):
            raise ConfigError(
                f"a window of {window} codes of {images.grid} does not cut whole codes out of the condition's {codes.grid}. Use "
                "a condition tokenizer of the same factor."
            )
        condition_grid = (
            codes.grid[0] * window[0] // images.grid[0],
            codes.grid[1] * window[1] // images.grid[1],
        )
        size = codes.vocab_size
    elif config.coordinates:
        condition_grid, size = window, config.num_coordinates
    vocabulary = Vocabulary(codes=images.vocab_size, classes=num_classes, condition=size)
    order = code_order(config.order, window)
    codec = CodeCodec(
        images.autoencoder,
        image_size,
        pictures=images.pictures,
        num_labels=images.num_labels,
        order=order if window == images.grid else None,
        used=None if images.used is None else images.used.used,
    )
    return codec, CodeTransformer(config, order, window, vocabulary, condition_grid=condition_grid, text=text)
