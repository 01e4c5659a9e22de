"""The `model:` section of an Image Transformer recipe. No torch here."""

from dataclasses import dataclass
from typing import Literal

from rasterformer.heads import head_problems


@dataclass(frozen=True)
class Config:
    """What the network is. The defaults are the paper's small categorical model.

    A cell is one channel of a pixel (`categorical`: L = 3 H W) or a whole pixel (`dmol`: L = H W). Lengths of 1D
    attention are in cells. Sizes of 2D attention are in pixels, or in cells with `block_unit: cell`.

    Args:
        distribution: `categorical`: softmax over 256 values; `dmol`: mixture of discretized logistics (section 3.1).
        num_mixtures: components of `dmol`.
        input: what a cell's input is made of. `table`: embeddings of the previous cell's values, one table of 256 per
            channel; `linear`: a linear map of the previous pixel's values, the paper's 1x3 convolution (`dmol` only);
            `linear_relu`: the same followed by a ReLU, as in the paper's code; `neighbourhood`: a causal convolution
            over the values around the cell.
        neighbourhood: rows and columns of that convolution, cells; the columns odd. With `local_2d` those to the right of the
            cell are left out, here and in mlp_kernel.
        positions: `sinusoidal` or `learned` (half of the width for the row, half for column and channel), `learned_summed`
            (two full-width tables, added, as in the paper's code), or `none`.
        rotary: turn queries and keys by their row and column.
        learned_start: the first position's input is a learned vector instead of zeros.
        attention: `full`, `local_1d` or `local_2d`.
        block_length, memory_length: l_q and l_m of `local_1d`; the memory is counted without the query block.
        query_block: rows and columns of a block of `local_2d`.
        flange: rows above and columns to either side that a block of `local_2d` sees.
        block_unit: unit of the columns of query_block and flange.
        attention_layers: which layers attend, counted from 0. None: all.
        width: d.
        depth: number of layers.
        num_heads: query heads.
        num_kv_heads: key and value heads. None: as many as num_heads.
        attention_width: width of all query heads together. None: width.
        qk_norm: normalise queries and keys.
        mlp_width: inner width of the feed-forward.
        activation: of the feed-forward.
        mlp_kernel: rows and columns that the feed-forward's first map sees; 1x1 is the paper's.
        norm: `layer` (paper) or `rms`.
        norm_position: `post` (paper, equations 1 and 2) or `pre`.
        dropout_prob: on the input and on every sublayer's output.
        output: `plain`: one linear map; `residual`: relative to a prediction from the west, north and north-west
            neighbours, starting as a spread of scales around it.
        init: `paper`: uniform variance scaling, gain 0.2; `zero_residual`: every residual branch starts at zero.
        loss_chunk: positions whose output is held at a time during training. None: all.
        encoder_depth: layers of the encoder, which reads the source image of a task; 0: its embedding only. None: no encoder.
        encoder_cell: what a position of the encoder is: one channel of a source pixel (paper) or a whole pixel.
        encoder_attention: `full` (paper) or `local_2d`, for large sources.
        encoder_block, encoder_flange: block and the frame around it that `local_2d` of the encoder sees, source pixels.
        encoder_kernel: rows and columns, both odd, that the first map of its feed-forwards sees; 1x1 is the paper's.
        source_attention_layers: which decoder layers attend to the encoder's positions. None: all (paper).
        shown_source: add to each position a linear map of the values of the source pixel that lies there.
        source_rest: tell each position, and its output, the mean of what is left of its source pixel's area (super-resolution,
            or a source of the same size, in colour; `categorical`).
        aligned_source: add to each position what the encoder made of the source pixel that lies there.
    """

    distribution: Literal["categorical", "dmol"] = "categorical"
    num_mixtures: int = 10
    input: Literal["table", "linear", "linear_relu", "neighbourhood"] = "table"
    neighbourhood: tuple[int, int] = (4, 7)
    positions: Literal["sinusoidal", "learned", "learned_summed", "none"] = "sinusoidal"
    rotary: bool = False
    learned_start: bool = False
    attention: Literal["full", "local_1d", "local_2d"] = "local_1d"
    block_length: int = 256
    memory_length: int = 256
    query_block: tuple[int, int] = (8, 8)
    flange: tuple[int, int] = (8, 8)
    block_unit: Literal["pixel", "cell"] = "pixel"
    attention_layers: tuple[int, ...] | None = None
    width: int = 512
    depth: int = 8
    num_heads: int = 8
    num_kv_heads: int | None = None
    attention_width: int | None = None
    qk_norm: bool = False
    mlp_width: int = 1024
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    mlp_kernel: tuple[int, int] = (1, 1)
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    dropout_prob: float = 0.1
    output: Literal["plain", "residual"] = "plain"
    init: Literal["paper", "zero_residual"] = "paper"
    loss_chunk: int | None = None
    encoder_depth: int | None = None
    encoder_cell: Literal["channel", "pixel"] = "channel"
    encoder_attention: Literal["full", "local_2d"] = "full"
    encoder_block: tuple[int, int] = (8, 8)
    encoder_flange: tuple[int, int] = (4, 4)
    encoder_kernel: tuple[int, int] = (1, 1)
    source_attention_layers: tuple[int, ...] | None = None
    aligned_source: bool = False
    shown_source: bool = False
    source_rest: bool = False

    @property
    def takes_source(self) -> bool:
        """Whether the network is conditioned on a source image, as a task needs."""
        return self.encoder_depth is not None

    @property
    def heads_width(self) -> int:
        """Width of all query heads together."""
        return self.width if self.attention_width is None else self.attention_width

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool = False) -> list[str]:
        """Returns what is wrong between the network and the recipe's task, by name; None: there is no task."""
        if self.takes_source == (task is not None):
            return []
        if task is not None:
            return ["task is set, but the network reads no source. Set model.encoder_depth, to 4 for example."]
        return [
            "model.encoder_depth is set, but there is no task that makes sources. Set task.name, or leave the encoder out."
        ]

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name in ("num_mixtures", "width", "depth", "num_heads", "mlp_width", "block_length"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} = {getattr(self, name)} must be at least 1.")
        if found:
            return found
        found += head_problems(
            self.heads_width,
            self.num_heads,
            num_kv_heads=self.kv_heads,
            rotary=self.rotary,
            width_name="width" if self.attention_width is None else "attention_width",
        )
        if self.memory_length < 0:
            found.append(f"model.memory_length = {self.memory_length} must not be negative.")
        if min(self.query_block) < 1 or min(self.flange) < 0:
            found.append(
                f"model.query_block = {self.query_block} must be positive and model.flange = {self.flange} not negative."
            )
        for name in ("neighbourhood", "mlp_kernel"):
            rows, cols = getattr(self, name)
            if rows < 1 or cols < 1 or cols % 2 == 0:
                found.append(f"model.{name} = {(rows, cols)} must be positive, with an odd number of columns.")
        if self.input == "neighbourhood" and self.neighbourhood == (1, 1):
            found.append("model.neighbourhood = (1, 1) holds no earlier cell. Use a wider one, such as (2, 3).")
        for name in ("attention_layers", "source_attention_layers"):
            wrong = [layer for layer in getattr(self, name) or () if not 0 <= layer < self.depth]
            if wrong:
                found.append(f"model.{name} has {wrong}, but layers are counted 0..{self.depth - 1}.")
        if self.encoder_depth is not None and self.encoder_depth < 0:
            found.append(f"model.encoder_depth = {self.encoder_depth} must not be negative, or be null.")
        if self.source_rest and (self.distribution != "categorical" or self.encoder_depth is None):
            found.append("model.source_rest = true needs model.distribution = 'categorical' and model.encoder_depth.")
        if min(self.encoder_block) < 1 or min(self.encoder_flange) < 0:
            found.append(
                f"model.encoder_block = {self.encoder_block} must be positive and model.encoder_flange = "
                f"{self.encoder_flange} not negative."
            )
        if any(side < 1 or side % 2 == 0 for side in self.encoder_kernel):
            found.append(f"model.encoder_kernel = {self.encoder_kernel} must be two odd numbers.")
        if not 0.0 <= self.dropout_prob < 1.0:
            found.append(f"model.dropout_prob = {self.dropout_prob} must lie in 0..1, 1 excluded.")
        if self.loss_chunk is not None and self.loss_chunk < 1:
            found.append(f"model.loss_chunk = {self.loss_chunk} must be at least 1, or null.")
        if self.distribution == "categorical" and self.input in ("linear", "linear_relu"):
            found.append(
                f"model.input = {self.input!r} maps whole pixels and needs model.distribution = 'dmol'. "
                "Use 'table' or 'neighbourhood' with 'categorical'."
            )
        return found
