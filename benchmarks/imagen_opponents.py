"""diffusers as users would take it instead of our U-Net and samplers: the same network with our weights, on our noise levels.

`library_unet` is `UNet2DConditionModel` in the form that it has for DeepFloyd IF, whose blocks compute what ours do;
`default_unet` has the blocks that it has by default. diffusers is from PyPI (extra `bench`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.opponents import require
from rasterformer.diffusion.gaussian import GaussianProcess
from rasterformer.diffusion.samplers import Sampler, times_of
from rasterformer.nn.unet import Unet

NORM_EPS = 1e-6  # of ours
SCHEDULERS = {
    "ancestral": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
SAME_METHOD: tuple[Sampler, ...] = ("ancestral", "ddim", "dpmpp_2m")  # theirs of `heun` takes other slopes


@dataclass(frozen=True)
class Form:
    """What both networks are made from.

    Args:
        width, multipliers, res_blocks, attention_levels, head_dim, text_dim: as `Unet` has them.
        norm_groups: groups of every GroupNorm.
    """

    width: int
    multipliers: tuple[int, ...]
    res_blocks: int
    attention_levels: tuple[int, ...]
    head_dim: int
    text_dim: int
    norm_groups: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


def our_unet(form: Form, *, gradient_checkpointing: bool = False) -> Unet:
    """Our network for images of 3 channels; the text is beside keys and values alone, not pooled."""
    return Unet(
        3,
        width=form.width,
        multipliers=form.multipliers,
        res_blocks=form.res_blocks,
        attention_levels=form.attention_levels,
        head_dim=form.head_dim,
        text_dim=form.text_dim,
        text_enters="tokens",
        norm_groups=form.norm_groups,
        gradient_checkpointing=gradient_checkpointing,
    )


def library_unet(ours: Unet, form: Form) -> Any:
    """diffusers' network with the same layers and the weights of ours: the text stands beside keys and values there too."""
    model = _unet(
        form,
        with_attention=("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        without=("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=form.head_dim,
        resnet_time_scale_shift="scale_shift",
    )
    for name, module in model.named_modules():
        if name.endswith("group_norm"):
            module.eps = NORM_EPS  # of attention; no argument says it
    model.load_state_dict(dict(_library_names(ours, form)))
    return model


def default_unet(form: Form) -> Any:
    """diffusers' network with its default blocks: attention to the text after self-attention, then feed-forward."""
    return _unet(
        form,
        with_attention=("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"),
        without=("DownBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        attention_head_dim=tuple(max(1, width // form.head_dim) for width in form.widths),  # heads, despite its name
        resnet_time_scale_shift="default",
    )


def _unet(
    form: Form,
    *,
    with_attention: tuple[str, str],
    without: tuple[str, str],
    mid_block_type: str,
    attention_head_dim: int | tuple[int, ...],
    resnet_time_scale_shift: Literal["default", "scale_shift"],
) -> Any:
    down, up = (
        tuple(pair[side] for pair in (with_attention if k in form.attention_levels else without for k in levels))
        for side, levels in enumerate((range(len(form.widths)), range(len(form.widths))[::-1]))
    )
    diffusers = require("diffusers")
    diffusers.utils.logging.set_verbosity_error()  # it warns at every change of dtype
    return diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=down,
        mid_block_type=mid_block_type,
        up_block_types=up,
        block_out_channels=form.widths,
        layers_per_block=form.res_blocks,
        norm_num_groups=form.norm_groups,
        norm_eps=NORM_EPS,
        cross_attention_dim=form.text_dim,
        attention_head_dim=attention_head_dim,
        resnet_time_scale_shift=resnet_time_scale_shift,
    )


def _library_names(ours: Unet, form: Form) -> Iterator[tuple[str, Tensor]]:
    """Our weights under diffusers' names; the token that stands for no text has none there."""
    for own, theirs in {
        "inputs.noise.up": "time_embedding.linear_1",
        "inputs.noise.down": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }.items():
        yield from _moved(ours.get_submodule(own), theirs)
    down, up = iter(ours.down), iter(ours.up)
    coarsest = len(form.widths) - 1
    for level in range(coarsest + 1):
        for k in range(form.res_blocks):
            yield from _stage(next(down), f"down_blocks.{level}", k)
        if level < coarsest:
            yield from _block(next(down), f"down_blocks.{level}.downsamplers.0")
    for k, stage in enumerate(ours.middle):
        yield from _stage(stage, "mid_block", k)
    for level in range(coarsest + 1):
        for k in range(form.res_blocks + 1):
            yield from _stage(next(up), f"up_blocks.{level}", k)
        if level < coarsest:
            yield from _block(next(up), f"up_blocks.{level}.upsamplers.0")


def _stage(stage: Any, place: str, k: int) -> Iterator[tuple[str, Tensor]]:
    yield from _block(stage, f"{place}.resnets.{k}")
    if stage.attention is None:
        return
    attention, place = stage.attention, f"{place}.attentions.{k}"
    yield from _moved(attention.norm, f"{place}.group_norm")
    yield from _moved(attention.query, f"{place}.to_q")
    yield from _moved(attention.out, f"{place}.to_out.0")
    for layer, keys, values in ((attention.of_cells, "to_k", "to_v"), (attention.of_text, "add_k_proj", "add_v_proj")):
        for kind, weight in layer.state_dict().items():
            for name, half in zip((keys, values), weight.chunk(2), strict=True):
                yield f"{place}.{name}.{kind}", half


def _block(stage: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    names = {"modulation": "time_emb_proj", "shortcut": "conv_shortcut"}
    for name, module in stage.block.named_children():
        yield from _moved(module, f"{place}.{names.get(name, name)}")


def _moved(module: torch.nn.Module, place: str) -> Iterator[tuple[str, Tensor]]:
    for kind, weight in module.state_dict().items():
        yield f"{place}.{kind}", weight


@dataclass(frozen=True)
class Text:
    """Texts as both networks take them.

    Args:
        states: [B, S, D].
        known: bool [B, S].
    """

    states: Tensor
    known: Tensor

    def with_null(self, null: Tensor) -> dict[str, Tensor]:
        """As diffusers is given it, with the token [1, D] before it that ours has there; the arguments of its network."""
        states = torch.cat([null.detach().expand(len(self.states), 1, -1).to(self.states), self.states], 1)
        known = torch.nn.functional.pad(self.known, (1, 0), value=True)
        return {"encoder_hidden_states": states, "encoder_attention_mask": known}


class LibrarySchedule:
    """A scheduler of diffusers that visits the times and noise levels of ours, for a network that says v.

    Their tables have whole steps: theirs has as many as are drawn, of which step k has the noise of our time (k + 1) / steps.

    Args:
        sampler: ours, whose like it is.
        process: whose noise levels it has.
        steps: drawn.
    """

    def __init__(self, sampler: Sampler, process: GaussianProcess, steps: int) -> None:
        times = torch.tensor(times_of(steps, 1.0), dtype=torch.float64).flip(0)
        kept = process.alpha(times).square()
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        options: dict[str, Any] = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
        if sampler in ("ancestral", "ddim"):
            options |= {"clip_sample": False}
        if sampler == "dpmpp_2m":
            options |= {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
        scheduler = getattr(require("diffusers"), SCHEDULERS[sampler])
        self.scheduler: Any = scheduler(num_train_timesteps=steps, trained_betas=betas.tolist(), **options)
        self.scheduler.alphas_cumprod = kept  # theirs went through float32, where the last beta is 1
        self.steps = steps
        self.told_log_snr = process.log_snr(times).float()  # [steps], of each of their steps
        self.takes_generator = sampler == "ancestral"

    def draw(self, network: Any, z: Tensor, rng: Sequence[torch.Generator]) -> Tensor:
        """The loop of their examples: network(z, log SNR [B]) -> v; z [B, C, H, W], noise -> images."""
        scheduler = self.scheduler
        scheduler.set_timesteps(self.steps)
        z = z * scheduler.init_noise_sigma
        options: dict[str, Any] = {"generator": list(rng)} if self.takes_generator else {}
        for t in scheduler.timesteps:
            v = network(scheduler.scale_model_input(z, t), self.told_log_snr[int(t)].expand(len(z)))
            z = scheduler.step(v, t, z, **options).prev_sample
        return z
