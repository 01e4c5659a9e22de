"""A picture of what a model really does: the order in which it generates, its query blocks, and what one pixel depends on.

Nothing is read from the recipe. The order comes from the codec. What a position sees is measured by perturbation: one
pixel of the input is changed, and every output that moves has seen it; once for a single attention layer, fed with random
features (the paper's Figure 2), and once for the whole network, fed with a random image.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rasterformer.codecs.pixels import PixelCodec
from rasterformer.data.png import write_png
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Batch, Cond
from rasterformer.nn.attention import Attention

if TYPE_CHECKING:
    from rasterformer.system import System

BATCH = 32  # perturbed inputs at a time
SIDE = 320  # pixels of a panel


def draw_order(system: System, path: Path, position: tuple[int, int] | None = None) -> None:
    """Writes a PNG of up to three panels: order and query blocks; one attention layer's view; the whole network's view.

    Args:
        system: a trained model (an untrained one may depend on less than it will).
        path: the PNG.
        position: row and column of the pixel whose view is drawn. None: the centre.

    Raises:
        ConfigError: the pixel lies outside the image.
    """
    size = system.image_size
    row, column = (size // 2, size // 2) if position is None else position
    if not (0 <= row < size and 0 <= column < size):
        raise ConfigError(f"position {row},{column} lies outside the {size}x{size} image.")
    pixel = row * size + column
    model = copy.deepcopy(system.model).double().cpu().eval()
    pixel_of = _pixel_of_position(system)
    assert isinstance(model, Autoregressive), "a model of pixels"
    rank = _first_position(pixel_of, size * size)
    attentions = (module for module in model.modules() if isinstance(module, Attention) and module.pattern.is_causal)
    attention = next(attentions, None)  # of the decoder
    sees = None if attention is None else layer_dependence(attention, pixel_of, size * size)
    blocks = None if sees is None else query_blocks(sees, rank)
    panels = [("generation order" + ("" if blocks is None else " and query blocks"), _order_panel(rank, blocks, size))]
    if sees is not None:
        panels.append((f"one attention layer, pixel {row},{column}", _view_panel(sees[:, pixel], pixel, rank, size)))
    grey = Batch(torch.full((1, 3, size, size), 128, dtype=torch.uint8))
    cond = system.with_source(
        grey, first=0, purpose="order", seed=0
    ).cond  # an arbitrary source, where the task makes one
    if system.model.num_classes:
        cond = replace(cond, label=torch.zeros(1, dtype=torch.int64))
    reach = model_dependence(model, cond, pixel_of, size * size, pixel)
    panels.append((f"whole network, pixel {row},{column}", _view_panel(reach, pixel, rank, size)))
    write_png(path, _side_by_side(panels), metadata={"kind": "order", "position": [row, column]})


@torch.inference_mode()
def layer_dependence(attention: Attention, pixel_of: Tensor, num_pixels: int) -> Tensor:
    """Which pixels the outputs of one attention layer depend on: bool [pixel changed, pixel that moves]."""
    rng = torch.Generator().manual_seed(0)
    h = torch.randn(1, len(pixel_of), attention.project.in_features, generator=rng, dtype=torch.float64)
    change = torch.randn(h.shape[-1], generator=rng, dtype=torch.float64)
    before = attention(h)
    found = torch.zeros(num_pixels, num_pixels, dtype=torch.bool)
    for changed in torch.arange(num_pixels).split(BATCH):
        is_changed = pixel_of == changed[:, None]  # [n, L]
        moved = (attention(h + is_changed[..., None] * change) - before).abs().amax(-1) > 1e-12
        found[changed] = _by_pixel(moved, pixel_of, num_pixels)
    return found


@torch.inference_mode()
def model_dependence(model: Autoregressive, cond: Cond, pixel_of: Tensor, num_pixels: int, pixel: int) -> Tensor:
    """Which pixels the prediction of one pixel depends on, given one condition: bool [num_pixels]."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, model.distribution.vocab_size, (1, *model.x_shape), generator=rng)
    half = model.distribution.vocab_size // 2
    positions = (pixel_of == pixel).nonzero()[:, 0]
    before = model(x, cond)[:, positions]
    found = torch.zeros(num_pixels, dtype=torch.bool)
    for changed in torch.arange(num_pixels).split(BATCH):
        is_changed = (pixel_of == changed[:, None])[..., None]  # [n, L, 1]
        other = torch.where(is_changed, (x + half) % model.distribution.vocab_size, x)
        each = cond.rows(torch.zeros(len(changed), dtype=torch.int64))
        found[changed] = ((model(other, each)[:, positions] - before).abs() > 1e-12).flatten(1).any(-1)
    return found


def query_blocks(sees: Tensor, rank: Tensor) -> Tensor:
    """Numbers the query blocks: int64 [num_pixels].

    Two pixels that follow one another in the order share a block when the later sees what the earlier sees and itself.
    So the first two blocks of 1D attention count as one: the second sees all of the first, as if there were no border.

    Args:
        sees: bool [pixel changed, pixel that moves].
        rank: int64 [num_pixels], place of each pixel in the generation order.
    """
    block = torch.zeros_like(rank)
    order = rank.argsort()
    number = 0
    for earlier, later in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        expected = sees[:, earlier].clone()
        expected[later] = True
        number += int(not torch.equal(expected, sees[:, later]))
        block[later] = number
    return block


def _pixel_of_position(system: System) -> Tensor:
    """Pixel index, row W + column, of each position in generation order: int64 [L]."""
    if not isinstance(system.codec, PixelCodec):
        raise ConfigError("--order draws who sees whom among pixels; this model works on codes.")
    cells_per_pixel = 3 // system.codec.symbols_per_position
    return system.codec.order // cells_per_pixel


def _first_position(pixel_of: Tensor, num_pixels: int) -> Tensor:
    """Place of each pixel in the order of first appearance: int64 [num_pixels]."""
    first = torch.full((num_pixels,), len(pixel_of)).scatter_reduce(0, pixel_of, torch.arange(len(pixel_of)), "amin")
    return first.argsort().argsort()


def _by_pixel(moved: Tensor, pixel_of: Tensor, num_pixels: int) -> Tensor:
    """bool [n, L] -> bool [n, num_pixels], True where any position of the pixel is."""
    counts = torch.zeros(len(moved), num_pixels, dtype=torch.int64)
    return counts.index_add(1, pixel_of, moved.long()) > 0


def _order_panel(rank: Tensor, blocks: Tensor | None, size: int) -> Image.Image:
    share = rank.double() / max(len(rank) - 1, 1)
    colours = torch.stack([40 + 200 * share, 90 + 60 * share, 210 - 170 * share], -1)
    return _panel(colours, size, blocks)


def _view_panel(seen: Tensor, pixel: int, rank: Tensor, size: int) -> Image.Image:
    colours = torch.full((len(seen), 3), 235.0)
    colours[rank < rank[pixel]] = torch.tensor([205.0, 210.0, 220.0])  # generated before, but not seen
    colours[seen] = torch.tensor([60.0, 120.0, 200.0])
    colours[pixel] = torch.tensor([230.0, 80.0, 40.0])
    return _panel(colours, size, None)


def _panel(colours: Tensor, size: int, blocks: Tensor | None) -> Image.Image:
    pixels = colours.round().to(torch.uint8).view(size, size, 3)
    scale = max(SIDE // size, 2)
    image = Image.fromarray(pixels.numpy()).resize((size * scale, size * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    grid = None if blocks is None else blocks.view(size, size)
    for y in range(size):
        for x in range(size):
            if grid is not None and x + 1 < size and grid[y, x] != grid[y, x + 1]:
                draw.line([((x + 1) * scale, y * scale), ((x + 1) * scale, (y + 1) * scale)], fill="white", width=2)
            if grid is not None and y + 1 < size and grid[y, x] != grid[y + 1, x]:
                draw.line([(x * scale, (y + 1) * scale), ((x + 1) * scale, (y + 1) * scale)], fill="white", width=2)
    return image


def _side_by_side(panels: list[tuple[str, Image.Image]]) -> Tensor:
    gap, title = 16, 22
    width = sum(panel.width + gap for _, panel in panels) + gap
    sheet = Image.new("RGB", (width, panels[0][1].height + title + gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for text, panel in panels:
        draw.text((left, 5), text, fill="black")
        sheet.paste(panel, (left, title))
        left += panel.width + gap
    flat = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return flat.view(sheet.height, sheet.width, 3).permute(2, 0, 1).contiguous()
