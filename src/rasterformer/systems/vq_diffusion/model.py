"""VQ-Diffusion (Gu et al. 2022, arXiv 2111.14822): a transformer that sees noisy codes and says what they were.

The noise is in `diffusion/discrete.py`, drawing in `diffusion/draw.py`; here are the network and what it learns from. `config.py`
says which of its parts are the paper's; README.md where each element of the paper is found. Read `forward` and `loss` first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.check import check_label, check_text
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.discrete import make_process
from rasterformer.diffusion.draw import draw_codes
from rasterformer.diffusion.importance import StepSampler
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond, Loss, OnStep, SampleOptions
from rasterformer.nn.attention import Attention
from rasterformer.nn.blocks import FeedForward
from rasterformer.nn.convolution import Conv2d
from rasterformer.nn.cross_attention import CrossAttention
from rasterformer.nn.modulation import Modulation, adaptive_norm
from rasterformer.nn.pattern import full_pattern
from rasterformer.nn.positions import rotary_angles
from rasterformer.nn.text_input import TextInput
from rasterformer.recipe import TextConfig
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.tasks import SourceShape

INIT_STD = 0.02  # of all matrices and tables (paper's code)
SINUSOID_SPAN = 4000.0  # what level T becomes before its sinusoids are taken (paper's code)


class DenoisingLayer(nn.Module):
    """AdaLN, self-attention; AdaLN, attention to the text; norm, feed-forward: each added to its input (paper, figure 2).

    Args:
        config: what it is.
        grid: rows and columns of codes.
        has_text: whether there is a text to attend to.
        has_classes: the last norm is an AdaLN on the class instead of a LayerNorm.
    """

    def __init__(self, config: Config, grid: tuple[int, int], *, has_text: bool, has_classes: bool) -> None:
        super().__init__()
        width, rows, cols = config.width, *grid
        head_dim = width // config.num_heads
        cell = torch.arange(rows * cols)
        self.attention = Attention(
            width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=head_dim,
            pattern=full_pattern(rows * cols, is_causal=False),
            qk_norm=config.qk_norm,
            angles=rotary_angles(cell // cols, cell % cols, head_dim) if config.rotary else None,
            bias=config.bias,
        )
        self.text_attention = None
        if has_text:
            self.text_attention = CrossAttention(
                width,
                num_heads=config.num_heads,
                num_kv_heads=config.num_heads,
                head_dim=head_dim,
                qk_norm=config.qk_norm,
                bias=config.bias,
            )
        self.feed_forward_norm = nn.Identity() if has_classes else nn.LayerNorm(width)
        kernel = (3, 3) if config.mlp == "convolution" else (1, 1)
        self.feed_forward = FeedForward(
            width,
            config.mlp_width,
            activation=config.activation,
            grid=grid,
            kernel=kernel,
            is_causal=False,
            down_kernel=kernel,
        )
        self.dropout = nn.Dropout(config.dropout_prob)

    def forward(
        self, h: Tensor, of_step: Tensor, of_class: Tensor | None, text: tuple[Tensor, Tensor | None] | None
    ) -> Tensor:
        """h [B, L, D] -> [B, L, D].

        Args:
            h: the codes.
            of_step: [1 or 2, B, 2, D], modulations of the norms before attention, and before attention to the text.
            of_class: [B, 2, D], that of the norm before the feed-forward; None: it is a LayerNorm.
            text: states [B, S, D] and which are known, bool [B, S] or None: all. None: there is no text.
        """
        h = h + self.dropout(self.attention(adaptive_norm(h, of_step[0])))
        if self.text_attention is not None:
            assert text is not None, "this layer attends to a text"
            h = h + self.dropout(self.text_attention(adaptive_norm(h, of_step[1]), *text))
        normed = self.feed_forward_norm(h) if of_class is None else adaptive_norm(h, of_class)
        return h + self.dropout(self.feed_forward(normed))


class VQDiffusion(CodeDenoiser):
    """p(x_0 | x_t, condition) over a grid of codes in raster order, and the bound it is trained by.

    Args:
        config: what the network is.
        grid: rows and columns of codes, L = rows * columns.
        num_codes: K.
        num_classes: classes to condition on; 0 for none.
        text: how texts are read. None: there are none.

    Attributes:
        step_sampler: how large the loss is at each level; belongs into a checkpoint of the training.
    """

    def __init__(
        self,
        config: Config,
        grid: tuple[int, int],
        num_codes: int,
        *,
        num_classes: int = 0,
        text: TextConfig | None = None,
    ) -> None:
        super().__init__()
        width, depth = config.width, config.depth
        self.config, self.grid, self.num_codes, self.num_classes = config, grid, num_codes, num_classes
        self.x_shape = (grid[0] * grid[1], 1)
        self.process = make_process(config.schedule, num_codes, config.num_steps)
        self.step_sampler = StepSampler(config.num_steps)
        self.has_null = config.drop_condition_prob > 0 and (num_classes > 0 or text is not None)

        self.token_embedding = nn.Embedding(num_codes + 1, width)  # the last is the mask
        self.row_embedding = nn.Embedding(grid[0], width)
        self.column_embedding = nn.Embedding(grid[1], width)
        num_norms = depth if text is None else 2 * depth
        levels = config.num_steps if config.step_embedding == "table" else None
        self.step_modulation = Modulation(num_norms, width, num_values=levels)
        self.class_modulation = None
        if num_classes:
            self.class_modulation = Modulation(depth, width, num_values=num_classes + int(self.has_null))
        self.text_input, self.null_text = None, None
        if text is not None:
            self.text_input = TextInput(width, dim=text.dim, length=text.length, is_bytes=text.encoder == "bytes")
            if self.has_null:
                self.null_text = nn.Parameter(torch.randn(1 if config.pooled_text else text.length, width))
        self.layers: list[DenoisingLayer] = nn.ModuleList(  # type: ignore[assignment]
            DenoisingLayer(config, grid, has_text=text is not None, has_classes=num_classes > 0) for _ in range(depth)
        )
        self.dropout = nn.Dropout(config.dropout_prob)
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Says what noisy codes were.

        Args:
            x: int64 [B, L], codes and masks (K) at level t.
            t: [B], 1..T, whole; with sinusoids any number in 0..T.
            cond: label, text, and whose condition is hidden.

        Returns:
            logits of x_0, float32 (float64 where the weights are) [B, L, K].

        Raises:
            ConfigError: the condition is not what the model was trained with, or a table is asked for a level in between.
        """
        self._check(cond, len(x))
        text = self._text(cond)
        of_step = self._of_step(t).unflatten(0, (len(self.layers), -1))  # [depth, 1 or 2, B, 2, D]
        of_class = self._of_class(cond)
        positions = (self.row_embedding.weight[:, None] + self.column_embedding.weight).flatten(0, 1)  # [L, D]
        h = self.dropout(self.token_embedding(x) + positions)  # [B, L, D]
        for number, layer in enumerate(self.layers):
            h = layer(h, of_step[number], None if of_class is None else of_class[number], text)
        logits = self.head(self.final_norm(h).to(self.head.weight.dtype))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """The variational bound per code, in nats, and a share of -log p(x_0 | x_t); an upper bound for codes, none of pixels.

        Both are estimated from one level for each image, drawn by p(t), and so divided by p(t): `nats` is an unbiased estimate
        of the whole bound of each image. (The paper's code divides the second by p(t), too.) In training some conditions are
        hidden, and the importance of the levels is counted. All that is random comes from `rng`, but for dropout.
        """
        assert rng is not None, "levels and noise are random"
        if self.training and self.has_null:
            dropped = (torch.rand(len(x), generator=rng) < self.config.drop_condition_prob).to(x.device)
            cond = replace(cond, dropped=dropped if cond.dropped is None else dropped | cond.dropped)
        estimate = self._continuous if self.config.bound == "continuous" else self._discrete
        nats, auxiliary = estimate(x[..., 0], cond, rng)  # each [B]
        dims = torch.full((len(x),), self.x_shape[0], dtype=torch.int64, device=x.device)
        bound, auxiliary = nats.sum() / dims.sum(), auxiliary.sum() / dims.sum()
        return Loss(
            total=bound + auxiliary,
            nats=nats.detach().float(),
            dims=dims,
            bound="upper",
            terms={"bound": bound.detach(), "auxiliary": auxiliary.detach()},
        )

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x int64 [B, L, 1] by the reverse chain; `options` may be DiffusionOptions."""
        return draw_codes(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def state_bytes(self, batch_size: int) -> int:
        """Bytes of what a forward pass holds at once at its largest, roughly.

        The residual stream and its norm, and the larger of three: queries, keys and values before and after they are turned; the
        inner layer of the feed-forward (of `swiglu` twice as wide before its gate); the logits, their logarithms and
        probabilities, float32.
        """
        config, size = self.config, self.token_embedding.weight.element_size()
        gates = 2 if config.activation == "swiglu" else 1
        inside = max(6 * config.width, (gates + 1) * config.mlp_width) * size
        return batch_size * self.x_shape[0] * (2 * config.width * size + max(inside, 3 * 4 * self.num_codes))

    def to_bfloat16(self) -> VQDiffusion:
        """Returns a copy with all weights but the head's in bfloat16."""
        rounded = copy.deepcopy(self)
        for name, weight in rounded.named_parameters():
            if not name.startswith("head."):
                weight.data = weight.data.to(torch.bfloat16)
        return rounded

    def _discrete(self, x0: Tensor, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Bound and auxiliary term of each image, nats [B], from one level t (paper, equations 9 to 12)."""
        count, config = len(x0), self.config
        if config.importance_sampling:
            t, prob = self.step_sampler.draw(count, rng)
        else:
            t = torch.randint(1, config.num_steps + 1, (count,), generator=rng)
            prob = torch.full((count,), 1 / config.num_steps, dtype=torch.float64)
        noise = torch.rand(*x0.shape, 2, generator=rng).to(x0.device)
        t, prob = t.to(x0.device), prob.to(x0.device)
        x_t = self.process.diffuse(x0, t, noise)
        log_x0 = F.log_softmax(self.forward(x_t, t, cond), -1)  # [B, L, K]
        nats = self.process.step_nats(log_x0, x0, x_t, t, t - 1).sum(1)
        if self.training:
            self.step_sampler.update_(t, nats.detach())
        bound = nats / prob + self.process.prior_nats() * x0.shape[1]
        return bound, self._auxiliary(log_x0, x0, t - 1) / prob

    def _continuous(self, x0: Tensor, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same from one time in (0, 1] for each image, in the limit of many levels: the masked codes' cross-entropy.

        The times of a batch are evenly spaced, from a random offset (Kingma et al. 2021, VDM, appendix I.1). The auxiliary term
        counts as often as over T levels.
        """
        count, num_steps = len(x0), self.config.num_steps
        u = 1 - (torch.rand((), generator=rng, dtype=torch.float64) + torch.arange(count) / count) % 1
        u = u.to(x0.device)
        noise = torch.rand(x0.shape, generator=rng).to(x0.device)
        fraction, weight = self.process.masked_at(u)
        x_t = self.process.diffuse_masked(x0, fraction, noise)
        log_x0 = F.log_softmax(self.forward(x_t, u * num_steps, cond), -1)  # [B, L, K]
        bound = self.process.masked_nats(log_x0, x0, x_t, weight).sum(1)
        return bound, self._auxiliary(log_x0, x0, u * num_steps) * num_steps

    def _auxiliary(self, log_x0: Tensor, x0: Tensor, levels_before: Tensor) -> Tensor:
        """-log p(x_0 | x_t) of each image, weighted: [B]; the code counts its levels from 0, levels_before is its t."""
        nats = -log_x0.gather(-1, x0[..., None]).sum((1, 2))
        factor = 2 - levels_before / self.config.num_steps if self.config.auxiliary_adaptive else 1.0
        return self.config.auxiliary_weight * factor * nats

    def _of_step(self, t: Tensor) -> Tensor:
        """t [B] -> modulations [norms, B, 2, D]."""
        if self.step_modulation.table is None:
            return self.step_modulation(t * (SINUSOID_SPAN / self.config.num_steps))
        level = t.long()
        if bool((level != t).any()) or bool((level < 1).any()) or bool((level > self.config.num_steps).any()):
            raise ConfigError(
                f"t = {t.tolist()}: model.step_embedding = 'table' knows the levels 1..{self.config.num_steps} and none in "
                "between. Train with sinusoidal."
            )
        return self.step_modulation(level - 1)

    def _of_class(self, cond: Cond) -> Tensor | None:
        """Modulations [depth, B, 2, D] by the class, or by the null class where it is hidden."""
        if self.class_modulation is None:
            return None
        assert cond.label is not None, "checked"
        label = cond.label if cond.dropped is None else cond.label.masked_fill(cond.dropped, self.num_classes)
        return self.class_modulation(label)

    def _text(self, cond: Cond) -> tuple[Tensor, Tensor | None] | None:
        """States [B, S, D] of the text, or the learned ones of no text, and which are known, bool [B, S]; None: all."""
        if self.text_input is None:
            return None
        states, known = self.text_input(cond)
        if self.config.pooled_text:
            states = states.masked_fill(~known[..., None], 0.0).sum(1, keepdim=True) / known.sum(1)[:, None, None]
            known = known.new_ones(len(known), 1)
        if cond.dropped is not None:
            assert self.null_text is not None, "checked"
            missing = len(self.null_text) - states.shape[1]
            states = F.pad(states, (0, 0, 0, missing))
            states = torch.where(cond.dropped[:, None, None], self.null_text.to(states.dtype), states)
            known = F.pad(known, (0, missing)) | cond.dropped[:, None]
        return states, None if self.config.pooled_text else known

    def _check(self, cond: Cond, batch_size: int) -> None:
        """Raises ConfigError where the condition is not what the model was trained with; `TextInput` checks texts' shapes."""
        for name, part in (("source", cond.source), ("known", cond.known), ("codes", cond.codes)):
            if part is not None:
                raise ConfigError(f"{name} was given, but this system takes classes and texts only. Leave it out.")
        check_label(cond.label, num_classes=self.num_classes, batch_size=batch_size)
        check_text(cond, takes_text=self.text_input is not None, batch_size=batch_size)
        if cond.text_known is not None and self.text_input is not None and not bool(cond.text_known.any(1).all()):
            first = int(cond.text_known.any(1).long().argmin())
            raise ConfigError(
                f"text {first} has no known token. An empty caption has two, one at each end; hide a text by `dropped`."
            )
        if cond.dropped is not None and not self.has_null:
            if not self.num_classes and self.text_input is None:
                raise ConfigError("guidance needs a model of classes or texts, and this one has neither.")
            raise ConfigError(
                "guidance needs a model that has seen images without their condition, and this one has not. Train it with "
                "model.drop_condition_prob = 0.1."
            )


def build(
    config: Config,
    *,
    image_size: int,
    num_classes: int,
    source: SourceShape | None = None,
    text: TextConfig | None = None,
    tokenizers: Mapping[str, CodeCodec] | None = None,
) -> tuple[CodeCodec, VQDiffusion]:
    """Makes network, with fresh weights from torch's current random state; its codec is the tokenizer.

    Args:
        config: what the network is.
        image_size: side of the images, pixels: the tokenizer's.
        num_classes: classes to condition on; 0 for none.
        source: None: there is no task.
        text: how texts are read. None: there are none.
        tokenizers: `tokenizer`, for images of image_size in raster order, which numbers the codes that occur.

    Raises:
        ConfigError: there is no tokenizer, there is a task, or `pooled_text` without a text.
    """
    if "tokenizer" not in (tokenizers or {}):
        raise ConfigError(
            "model.tokenizer is missing: the run or model folder of a tokenizer. Train one with system vqgan."
        )
    if source is not None:
        raise ConfigError("this system takes no sources. Leave the task out.")
    if config.pooled_text and text is None:
        raise ConfigError("model.pooled_text = true, but the recipe has no section text.")
    assert tokenizers is not None, "it holds one"
    images = tokenizers["tokenizer"]
    return images, VQDiffusion(config, images.grid, images.vocab_size, num_classes=num_classes, text=text)
