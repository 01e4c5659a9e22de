"""Recipe: everything that decides a training run, as typed dataclasses which a YAML file fills. No torch here.

`systems/<name>/config.py` holds the dataclass behind the `model:` section. Read next: `recipes/*.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rasterformer.tasks import Task

MINILM_DIM, MINILM_LENGTH = 384, 512


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what is done to them.

    Args:
        path: a folder, an .npz file, or the name of an embedded set; `--data` sets it. None: must be given.
        image_size: side of the square that the model sees, pixels.
        fit: `crop` takes the largest centred square and reduces it; `stretch` reduces both sides separately.
        trim: rows cut off above and below, and columns cut off on either side, before anything else; of
            sources of a paired task, too.
        reduction: `auto`: by box averaging where the factor is whole, else by Lanczos; `area`: by area averaging, rounded down,
            as the paper's super-resolution data were made; `nearest`: the images are label maps (grey values or palette
            numbers are class indices), and the pixel at the centre of each area is taken. Sources of a paired task have
            their own, `task.source_reduction`.
        flip_prob: probability of mirroring a training image left to right.
        use_labels: condition on the class of the image, where the data has classes.
        holdout_fraction: share of the images kept for held-out figures when the data has no split of its own.
    """

    path: str | None = None
    image_size: int = 32
    fit: Literal["crop", "stretch"] = "crop"
    trim: tuple[int, int] = (0, 0)
    reduction: Literal["auto", "area", "nearest"] = "auto"
    flip_prob: float = 0.0
    use_labels: bool = False
    holdout_fraction: float = 0.1

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        if self.image_size < 2:
            found.append(f"data.image_size = {self.image_size} must be at least 2 pixels.")
        if min(self.trim) < 0:
            found.append(f"data.trim = {self.trim} must not be negative.")
        if not 0.0 <= self.flip_prob <= 1.0:
            found.append(f"data.flip_prob = {self.flip_prob} must lie in 0..1.")
        if not 0.0 < self.holdout_fraction < 1.0:
            found.append(f"data.holdout_fraction = {self.holdout_fraction} must lie between 0 and 1.")
        return found


@dataclass(frozen=True)
class TextConfig:
    """How captions are read. A recipe without this section has none.

    Args:
        encoder: `minilm`: MiniLM-L6, frozen, of the extra `text`; `folder`: a T5, CLIP or BERT, frozen, of a local folder
            (extra `hf`); `bytes`: UTF-8, embedded by layers that are trained with the model.
        folder: of `encoder: folder`, as transformers saves a model: config.json, safetensors, the tokenizer's files.
        length: most tokens of a text, with those that begin and end it; what is longer is cut.
        dim: dimensions of a token's state: the encoder's own; of `bytes`, any.
    """

    encoder: Literal["minilm", "folder", "bytes"] = "minilm"
    folder: str | None = None
    length: int = 64
    dim: int = 384

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        if self.encoder == "folder" and self.folder is None:
            found.append("text.folder is missing: text.encoder = 'folder' reads texts by the model in a local folder.")
        if self.encoder != "folder" and self.folder is not None:
            found.append(
                f"text.folder = {self.folder!r} is not for text.encoder = {self.encoder!r}: set the latter to folder, or the "
                "former to null."
            )
        if self.length < 2:
            found.append(f"text.length = {self.length} must be at least 2: a text has a token before and one after it.")
        if self.dim < 1:
            found.append(f"text.dim = {self.dim} must be at least 1.")
        if self.encoder == "minilm" and self.dim != MINILM_DIM:
            found.append(f"text.dim = {self.dim} must be {MINILM_DIM}, the dimensions of text.encoder = 'minilm'.")
        if self.encoder == "minilm" and self.length > MINILM_LENGTH:
            found.append(f"text.length = {self.length}: text.encoder = 'minilm' reads at most {MINILM_LENGTH} tokens.")
        return found


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found.

    Args:
        steps: optimiser steps; the learning-rate schedule ends there.
        minutes: wall-clock budget; the schedule then follows the larger of the two progresses and the run ends at
            whichever comes first. None: no limit. A run with a budget is not reproducible to the bit.
        batch_size: images per optimiser step.
        accumulation_steps: the batch is processed in so many parts, whose gradients add up.
        optimizer: `adam`, `adamw`, or `muon` (the layers' matrices by Muon, Jordan 2024; everything else by AdamW).
        learning_rate: peak rate of Adam/AdamW.
        muon_learning_rate: peak rate of Muon's matrices.
        schedule: `cosine` (to zero), `linear` (to zero, over the last `decay_fraction` of the run), `constant`, or
            `transformer` (Vaswani et al. 2017, 5.3: `learning_rate` is the value reached at the end of the warm-up).
        decay_fraction: share of the run over which `linear` falls.
        warmup_steps: linear warm-up.
        beta1, beta2, epsilon: of Adam/AdamW.
        weight_decay: of AdamW and Muon, decoupled, on matrices only.
        clip_norm: gradients are scaled down to this global norm. None: never.
        ema_decay: decay of the exponential moving average of the weights, which is what is evaluated and shipped.
            None: the weights themselves are shipped.
        average_checkpoints: ship the plain mean of the last n checkpoints instead (paper, Table 3). 0: no.
        precision: `bfloat16` autocast, `float32`, or `auto`: bfloat16 where the processor or GPU has matrix units.
        seed: of the initial weights, of the order of the data and of dropout.
        log_every, eval_every, sample_every, save_every: in steps. None: only at the end.
        eval_images: number of held-out images for the figures during training. None: all.
        keep_checkpoints: the newest n stay on disk.
    """

    steps: int = 1000
    minutes: float | None = None
    batch_size: int = 16
    accumulation_steps: int = 1
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    schedule: Literal["cosine", "linear", "constant", "transformer"] = "cosine"
    decay_fraction: float = 1.0
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    average_checkpoints: int = 0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = None
    sample_every: int | None = None
    save_every: int | None = 1000
    eval_images: int | None = 256
    keep_checkpoints: int = 3

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name in ("steps", "batch_size", "accumulation_steps", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                found.append(f"training.{name} = {getattr(self, name)} must be at least 1.")
        for name in ("eval_every", "sample_every", "save_every", "eval_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"training.{name} = {value} must be at least 1, or null.")
        for name in ("learning_rate", "muon_learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                found.append(f"training.{name} = {getattr(self, name)} must be above 0.")
        for name in ("warmup_steps", "weight_decay", "average_checkpoints"):
            if getattr(self, name) < 0:
                found.append(f"training.{name} = {getattr(self, name)} must not be negative.")
        for name in ("minutes", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"training.{name} = {value} must be above 0, or null.")
        if not 0.0 < self.decay_fraction <= 1.0:
            found.append(f"training.decay_fraction = {self.decay_fraction} must lie above 0 and not above 1.")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            found.append(f"training.ema_decay = {self.ema_decay} must lie between 0 and 1, or be null.")
        if self.accumulation_steps >= 1 and self.batch_size % self.accumulation_steps:
            found.append(
                f"training.accumulation_steps = {self.accumulation_steps} does not divide "
                f"training.batch_size = {self.batch_size}."
            )
        if self.average_checkpoints and self.ema_decay is not None:
            found.append(
                "training.average_checkpoints and training.ema_decay exclude each other: set one to 0 or null."
            )
        if self.average_checkpoints > self.keep_checkpoints:
            found.append(
                f"training.average_checkpoints = {self.average_checkpoints} needs as many checkpoints on disk, but "
                f"training.keep_checkpoints = {self.keep_checkpoints}."
            )
        return found


@dataclass(frozen=True)
class Recipe:
    """A whole training run: which system, its network, the data, the training.

    `task` says what images are made from. None: from nothing, a class or a text. `text` says how captions are read.
    None: they are not.
    """

    system: str
    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    task: Task | None = None
    text: TextConfig | None = None
