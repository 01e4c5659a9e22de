"""The `model:` section of a recipe for diffusion of pixels. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from rasterformer.heads import head_problems

U_NETS = ("unet", "efficient_unet")
READ_BY = {  # which denoisers read a field; those that are not named here all do
    "multipliers": U_NETS,
    "res_blocks": U_NETS,
    "attention_levels": ("unet",),
    "self_attention": ("efficient_unet",),
    "norm_groups": U_NETS,
    "depth": ("transformer",),
    "patch": ("transformer",),
    "mlp_width": ("transformer",),
    "encoder_depth": ("transformer",),
}


@dataclass(frozen=True)
class Config:
    """What the network is, which noise it removes, what it sees. The defaults are a small base model of the paper's form.

    A field that the denoiser does not read stays at its default.

    Args:
        denoiser: `unet`, the paper's base model; `efficient_unet`, its super-resolution model; `transformer`, over patches.
        width: channels of the finest level over its multiplier; of the transformer, its width.
        multipliers: of the U-Nets: channels of each level over width, finest first.
        res_blocks: of the U-Nets: residual blocks of each level.
        attention_levels: of `unet`: levels with attention, 0 is the finest; the coarsest always has it in the middle.
        self_attention: of `efficient_unet`: the coarsest cells see each other.
        norm_groups: of the U-Nets: groups of every GroupNorm (paper: 32); few are fast on processors.
        head_dim: channels of an attention head.
        depth: of the transformer: layers.
        patch: of the transformer: pixels along each side of a patch.
        mlp_width: of the transformer: inner width of the feed-forward.
        dropout_prob: inside blocks and layers.
        text_width: of the text's tokens and of the class as the network sees them.
        text_enters: attention sees the `tokens`, or they are `pooled` into the vector that scales and shifts every block, or
            `both` (paper).
        source_enters: a task's source as `channels` beside the noisy image (paper), as `tokens` of an image encoder that is
            trained with the network (transformer only), or `both`.
        encoder_depth: layers of that image encoder; its patches and width are the transformer's.
        source_noise: noise is put on sources, of a time drawn for each image from 0 to this, and the network is told it: for
            sources that will be drawn themselves (paper, section 2.4, noise conditioning augmentation: 1). 0: none is. Needs
            sources that enter as channels.
        prediction: what the network says: `eps` (paper), `x0`, `v`, or `edm`: by the preconditioning of Karras et al. 2022.
        schedule: of the noise: `cosine` (paper: base and first super-resolution), `linear` (second), or `edm`.
        log_snr_shift: added to the log SNR of the schedule; below 0 for larger images (`gaussian.resolution_shift`).
        weighting: of the squared error: `plain` (paper) or `min_snr` (Hang et al. 2023).
        crop: side of the random parts of images that a training step looks at, pixels. None: all of an image.
        drop_condition_prob: text and class of so many images are hidden in training (paper: 0.1); guidance needs some.
        gradient_checkpointing: less memory in training, a third more time.
    """

    takes_text: ClassVar[bool] = True

    denoiser: Literal["unet", "efficient_unet", "transformer"] = "unet"
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 3)
    res_blocks: tuple[int, ...] = (2, 2, 2)
    attention_levels: tuple[int, ...] = (1, 2)
    self_attention: bool = True
    norm_groups: int = 8
    head_dim: int = 32
    depth: int = 6
    patch: int = 2
    mlp_width: int = 1024
    dropout_prob: float = 0.0
    text_width: int = 256
    text_enters: Literal["tokens", "pooled", "both"] = "both"
    source_enters: Literal["channels", "tokens", "both"] = "channels"
    encoder_depth: int = 2
    source_noise: float = 0.0
    prediction: Literal["eps", "x0", "v", "edm"] = "v"
    schedule: Literal["cosine", "linear", "edm"] = "cosine"
    log_snr_shift: float = 0.0
    weighting: Literal["plain", "min_snr"] = "plain"
    crop: int | None = None
    drop_condition_prob: float = 0.1
    gradient_checkpointing: bool = False

    @property
    def multiple(self) -> int:
        """What height and width of images must be multiples of."""
        if self.denoiser == "transformer":
            return self.patch
        return 1 << (len(self.multipliers) - (self.denoiser == "unet"))

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool = False) -> list[str]:
        """Returns what is wrong between the network and the recipe's task, by name (None: there is none), and its image size.

        Texts fit every network.
        """
        found = []
        if image_size % self.multiple:
            found.append(
                f"data.image_size = {image_size} must be a multiple of {self.multiple} for this network. "
                f"Use {_multiples_near(image_size, self.multiple)}."
            )
        if self.source_noise and task != "super_resolution":
            found.append(
                f"model.source_noise = {self.source_noise} is for task super_resolution: the source of another task is given. "
                "Set it to 0."
            )
        if self.source_enters != "channels" and task is None:
            found.append(f"model.source_enters = {self.source_enters!r}, but the recipe has no task, and so no source.")
        if self.crop is not None and self.crop > image_size:
            found.append(f"model.crop = {self.crop} is larger than data.image_size = {image_size}.")
        return found

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name in ("width", "norm_groups", "head_dim", "depth", "patch", "mlp_width", "text_width", "encoder_depth"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} = {getattr(self, name)} must be at least 1.")
        for name in ("dropout_prob", "drop_condition_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(f"model.{name} = {getattr(self, name)} must lie in 0..1, 1 excluded.")
        if not 0.0 <= self.source_noise <= 1.0:
            found.append(f"model.source_noise = {self.source_noise} must lie in 0..1.")
        if found:
            return found
        found += self._transformer_problems() if self.denoiser == "transformer" else self._unet_problems()
        found += self._unread_problems()
        if (self.prediction == "edm") != (self.schedule == "edm"):
            found.append(
                f"model.prediction = {self.prediction!r} and model.schedule = {self.schedule!r}: edm is both or neither."
            )
        if self.prediction == "edm" and (self.weighting != "plain" or self.log_snr_shift != 0.0):
            found.append(
                "model.prediction = 'edm' has its own weights and levels: leave weighting and log_snr_shift out."
            )
        if self.denoiser != "transformer" and self.source_enters != "channels":
            found.append(
                f"model.source_enters = {self.source_enters!r} needs model.denoiser = 'transformer', which sees tokens of an "
                "image encoder."
            )
        elif self.source_noise and self.source_enters == "tokens":
            found.append(
                "model.source_noise needs model.source_enters = 'channels' or 'both': an image encoder alone is not told how "
                f"much noise there is. Here they are {self.source_noise} and 'tokens'."
            )
        if self.crop is not None and (self.crop < self.multiple or self.crop % self.multiple):
            found.append(
                f"model.crop = {self.crop} must be a multiple of {self.multiple} for this network. "
                f"Use {_multiples_near(self.crop, self.multiple)}."
            )
        return found

    def _unread_problems(self) -> list[str]:
        """Fields that were set, and that nothing reads."""
        found = []
        default = {field.name: field.default for field in fields(self)}
        for name, readers in READ_BY.items():
            value = getattr(self, name)
            if value == default[name]:
                continue
            if self.denoiser not in readers:
                found.append(
                    f"model.{name} = {_plain(value)} is not read by model.denoiser = {self.denoiser!r}, but by "
                    f"{' and '.join(readers)}. Leave it out, or at {_plain(default[name])}."
                )
            elif name == "encoder_depth" and self.source_enters == "channels":
                found.append(
                    f"model.encoder_depth = {value} is not read with model.source_enters = 'channels': there is no image "
                    f"encoder. Leave it out, or at {default[name]}; or set model.source_enters to tokens or both."
                )
        return found

    def _transformer_problems(self) -> list[str]:
        if self.width % self.head_dim:
            return [f"model.head_dim = {self.head_dim} does not divide model.width = {self.width}."]
        heads = self.width // self.head_dim
        return head_problems(self.width, heads, num_kv_heads=heads, rotary=True)

    def _unet_problems(self) -> list[str]:
        found = []
        if not self.multipliers or min(self.multipliers) < 1:
            found.append(
                f"model.multipliers = {list(self.multipliers)} must be numbers of at least 1, one for each level."
            )
            return found
        if len(self.res_blocks) != len(self.multipliers) or min(self.res_blocks) < 1:
            found.append(
                f"model.res_blocks = {list(self.res_blocks)} must have {len(self.multipliers)} numbers of at least 1, one for "
                "each of model.multipliers."
            )
        if self.denoiser == "unet" and len(set(self.res_blocks)) > 1:
            found.append(
                f"model.res_blocks = {list(self.res_blocks)}: model.denoiser = 'unet' has as many on every level; "
                "efficient_unet may have others."
            )
        widths = {self.width, *(self.width * multiplier for multiplier in self.multipliers)}
        if any(width % self.norm_groups for width in widths):
            found.append(
                f"model.norm_groups = {self.norm_groups} must divide the channels of every level, {sorted(widths)}."
            )
        if self.width % 2:
            found.append(f"model.width = {self.width} must be even.")
        if self.denoiser == "unet":
            wrong = [level for level in self.attention_levels if not 0 <= level < len(self.multipliers)]
            if wrong:
                found.append(
                    f"model.attention_levels = {list(self.attention_levels)}: there is no level {wrong[0]} of "
                    f"{len(self.multipliers)}."
                )
            attended = {*(level for level in self.attention_levels if level not in wrong), len(self.multipliers) - 1}
        else:
            attended = {len(self.multipliers) - 1}
        for level in sorted(attended):
            if (self.width * self.multipliers[level]) % self.head_dim:
                found.append(
                    f"model.head_dim = {self.head_dim} does not divide the {self.width * self.multipliers[level]} channels of "
                    f"level {level}, which has attention."
                )
        return found


def _multiples_near(size: int, multiple: int) -> str:
    """`16 or 20` of 18 and 4; above 0."""
    below = max(size // multiple, 0) * multiple
    return " or ".join(str(near) for near in (below, below + multiple) if near)


def _plain(value: object) -> object:
    """As a recipe writes it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value).lower() if isinstance(value, bool) else value
