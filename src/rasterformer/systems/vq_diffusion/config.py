"""The `model:` section of a recipe for discrete diffusion over codes. No torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rasterformer.heads import head_problems


@dataclass(frozen=True)
class Config:
    """What the network is, which noise it removes, and what it learns from. The defaults are the paper's form, small.

    Args:
        tokenizer: run or model folder of the tokenizer of the images. A trained model carries it along and no longer needs it.
        drop_unused_codes: codes that never occur in the training images are dropped from the model's vocabulary; the map is
            kept with the model.
        num_steps: T, levels of noise.
        schedule: of the noise. `paper`: codes are masked (90 % in the end) or replaced by random ones; `release`: of the paper's
            code, which masks only, evenly; `linear`, `cosine`: masks only, to exactly nothing.
        step_embedding: how the network knows the level: `table`, a learned vector for each (paper), or `sinusoidal`, which
            knows levels in between.
        width: D.
        depth: number of layers.
        num_heads: heads.
        mlp_width: inner width of the feed-forward.
        activation: `quick_gelu` (paper: x sigmoid(1.702 x)), `gelu` or `swiglu`.
        mlp: `linear`, or two 3x3 `convolution`s (paper's small model, and those without text).
        bias: of queries, keys, values and their output; the paper's have one.
        qk_norm: normalise queries and keys.
        rotary: turn queries and keys by row and column of their code, besides the learned vectors of each row and column.
        dropout_prob: on the input and on every sublayer's output.
        pooled_text: the network sees the mean of a text's tokens instead of the tokens; for comparison.
        auxiliary_weight: of -log p(x_0 | x_t), beside the bound.
        auxiliary_adaptive: that weight falls from twice to once its value over the levels (paper's code).
        importance_sampling: levels are drawn in proportion to the root of their mean squared loss; False: evenly. (Of the
            discrete bound only.)
        bound: `discrete`, over T levels (paper), or `continuous`, over any level: for `linear` and `cosine`.
        drop_condition_prob: the condition of so many images is hidden in training; guidance needs some. Without a condition it
            does nothing.
    """

    takes_text: ClassVar[bool] = True

    tokenizer: str | None = None
    drop_unused_codes: bool = True
    num_steps: int = 100
    schedule: Literal["paper", "release", "linear", "cosine"] = "paper"
    step_embedding: Literal["table", "sinusoidal"] = "table"
    width: int = 256
    depth: int = 6
    num_heads: int = 8
    mlp_width: int = 1024
    activation: Literal["quick_gelu", "gelu", "swiglu"] = "quick_gelu"
    mlp: Literal["linear", "convolution"] = "linear"
    bias: bool = True
    qk_norm: bool = False
    rotary: bool = False
    dropout_prob: float = 0.0
    pooled_text: bool = False
    auxiliary_weight: float = 5e-4
    auxiliary_adaptive: bool = True
    importance_sampling: bool = True
    bound: Literal["discrete", "continuous"] = "discrete"
    drop_condition_prob: float = 0.1

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool = False) -> list[str]:
        """Returns what is wrong between the network and the recipe's task, by name (None: there is none), and its text."""
        found = []
        if task is not None:
            found.append(
                f"task.name = {task!r}: this system takes no sources. Leave the task out; complete and restore fill in missing "
                "parts with any model."
            )
        if self.pooled_text and not has_text:
            found.append("model.pooled_text = true, but the recipe has no section text. Add one, or set it to false.")
        return found

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name, least in (("num_steps", 2), ("width", 1), ("depth", 1), ("num_heads", 1), ("mlp_width", 1)):
            if getattr(self, name) < least:
                found.append(f"model.{name} = {getattr(self, name)} must be at least {least}.")
        if found:
            return found
        found += head_problems(self.width, self.num_heads, num_kv_heads=self.num_heads, rotary=self.rotary)
        if self.step_embedding == "sinusoidal" and self.width % 2:
            found.append(f"model.step_embedding = 'sinusoidal' needs an even model.width, not {self.width}.")
        if self.bound == "continuous" and self.step_embedding != "sinusoidal":
            found.append(
                f"model.bound = 'continuous' needs levels in between: model.step_embedding = {self.step_embedding!r} must be "
                "sinusoidal."
            )
        if self.bound == "continuous" and self.schedule not in ("linear", "cosine"):
            found.append(
                "model.bound = 'continuous' is for schedules that only mask: "
                f"model.schedule = {self.schedule!r} must be linear or cosine."
            )
        if self.auxiliary_weight < 0:
            found.append(f"model.auxiliary_weight = {self.auxiliary_weight} must not be negative.")
        if not 0.0 <= self.dropout_prob < 1.0:
            found.append(f"model.dropout_prob = {self.dropout_prob} must lie in 0..1, 1 excluded.")
        if not 0.0 <= self.drop_condition_prob < 1.0:
            found.append(f"model.drop_condition_prob = {self.drop_condition_prob} must lie in 0..1, 1 excluded.")
        return found
