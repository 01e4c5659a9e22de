"""The `model:` section of a recipe for a prior over codes. No torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rasterformer.heads import head_problems

CODE_MAPS = ("super_resolution", "edges", "colourise", "denoise", "paired")  # tasks whose sources become codes


@dataclass(frozen=True)
class Config:
    """What the transformer is, and which tokenizers' codes it sees. The defaults are the paper's form (minGPT), small.

    Args:
        tokenizer: run or model folder of the tokenizer of the images. A trained model carries it along and no longer needs it.
        condition_tokenizer: that of the task's sources. None: there is no task, or the sources are tokenized like the images
            (the paper's super-resolution).
        drop_unused_codes: codes of the tokenizer that never occur in the training images are no codes of the model; one that
            occurs later becomes the nearest that did (Gu et al. 2022). A trained model carries the map along.
        coordinates: condition on where the window lies in the image (paper, section 3.3: what an otherwise unconditional
            model needs to draw larger images).
        num_coordinates: steps from the first to the last cell of an image.
        window: rows and columns of codes that the transformer sees; larger images are drawn by sliding it. None: the
            whole image.
        order: in which codes are generated; larger images than the window need `raster`.
        width: D.
        depth: number of layers.
        num_heads: query heads.
        num_kv_heads: key and value heads. None: as many as num_heads.
        mlp_width: inner width of the feed-forward.
        activation: `gelu` (paper) or `swiglu`.
        norm: `layer` (paper) or `rms`.
        norm_eps: what norms add to the variance; minGPT's is 1e-5.
        bias: of queries, keys, values and their output; the paper's have one.
        qk_norm: normalise queries and keys.
        positions: `learned`, one vector for each place in the sequence (paper), or `none`.
        rotary: turn queries and keys by row and column of their code.
        shared_vocabulary: classes and codes of the condition use the table of the images' codes (paper).
        aligned_condition: also add to each position what the condition says of the code that is predicted there.
        dropout_prob: on the input and on every sublayer's output.
        keep_prob: a code is seen as it is with this probability, and else replaced by a random one (paper's code: pkeep).
        drop_condition_prob: the condition of so many images is hidden in training; guidance needs some, 0.1 for example.
            Without a condition it does nothing.
    """

    takes_text: ClassVar[bool] = True

    tokenizer: str | None = None
    condition_tokenizer: str | None = None
    drop_unused_codes: bool = False
    coordinates: bool = False
    num_coordinates: int = 1024
    window: tuple[int, int] | None = None
    order: Literal["raster", "subsample", "morton", "spiral_in", "spiral_out", "boustrophedon", "random"] = "raster"
    width: int = 256
    depth: int = 8
    num_heads: int = 8
    num_kv_heads: int | None = None
    mlp_width: int = 1024
    activation: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    bias: bool = True
    qk_norm: bool = False
    positions: Literal["learned", "none"] = "learned"
    rotary: bool = False
    shared_vocabulary: bool = True
    aligned_condition: bool = False
    dropout_prob: float = 0.0
    keep_prob: float = 1.0
    drop_condition_prob: float = 0.0

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool = False) -> list[str]:
        """Returns what is wrong between the network and the recipe's task, by name; None: there is no task."""
        found = []
        if task is not None and task not in CODE_MAPS:
            found.append(
                f"task.name = {task!r} has no form in codes. Use one of {', '.join(CODE_MAPS)}; complete and restore fill in "
                "missing parts with any model."
            )
        if task is None and self.condition_tokenizer is not None:
            found.append("model.condition_tokenizer is set, but there is no task that makes sources. Set task.name.")
        if task is not None and self.drop_unused_codes:
            found.append("model.drop_unused_codes is for models without a task. Set it to false.")
        if task is not None and self.coordinates:
            found.append("model.coordinates is for models without a task, whose condition says where things are.")
        if self.aligned_condition and task is None and not self.coordinates:
            found.append("model.aligned_condition needs a task, or model.coordinates: there is no map to align.")
        return found

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name in ("width", "depth", "num_heads", "mlp_width"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} = {getattr(self, name)} must be at least 1.")
        if found:
            return found
        found += head_problems(self.width, self.num_heads, num_kv_heads=self.kv_heads, rotary=self.rotary)
        if self.norm_eps <= 0:
            found.append(f"model.norm_eps = {self.norm_eps} must be above 0.")
        if self.num_coordinates < 2:
            found.append(f"model.num_coordinates = {self.num_coordinates} must be at least 2.")
        if self.window is not None and min(self.window) < 2:
            found.append(f"model.window = {self.window} must be two numbers of at least 2 codes, or null.")
        if self.window is not None and self.order != "raster":
            found.append(f"model.window slides in raster order: model.order = {self.order!r} must be raster.")
        if self.positions == "none" and not self.rotary:
            found.append("model.positions = 'none' and model.rotary = false: nothing says where a code lies. Set one.")
        if not 0.0 <= self.dropout_prob < 1.0:
            found.append(f"model.dropout_prob = {self.dropout_prob} must lie in 0..1, 1 excluded.")
        if not 0.0 < self.keep_prob <= 1.0:
            found.append(f"model.keep_prob = {self.keep_prob} must lie above 0 and not above 1.")
        if not 0.0 <= self.drop_condition_prob < 1.0:
            found.append(f"model.drop_condition_prob = {self.drop_condition_prob} must lie in 0..1, 1 excluded.")
        return found
