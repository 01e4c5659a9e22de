"""What a source pixel leaves for the rest of its area: the mean, and the score of each value by its distance from it."""

import pytest
import torch

from rasterformer.codecs.pixels import PixelCodec, block_raster_order
from rasterformer.conditioning.resize import reduce_area
from rasterformer.errors import ConfigError
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.model import build
from rasterformer.systems.image_transformer.source_rest import FEW, SourceRest
from rasterformer.tasks import SourceShape

SIZE = 8


def codec(in_blocks: bool) -> PixelCodec:
    order = block_raster_order((SIZE, 3 * SIZE), (4, 6)) if in_blocks else None
    return PixelCodec(SIZE, is_joint=False, order=order)


def images(count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=rng).to(torch.uint8)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_mean_is_what_the_drawn_pixels_of_an_area_leave_of_its_sum(factor: int, in_blocks: bool) -> None:
    """An independent loop over positions in generation order, with a running sum of each area and channel."""
    pixels = codec(in_blocks)
    shape = SourceShape(3, SIZE // factor, False)
    rest = SourceRest(4, pixels, shape)
    picture = images(1)
    source = picture if factor == 1 else reduce_area(picture, factor)
    x = pixels.encode(picture)
    found = rest.mean(x, source, torch.arange(len(pixels.order)))[0]
    sums: dict[tuple[int, int, int], list[int]] = {}
    for position, cell in enumerate(pixels.order.tolist()):
        row, column = divmod(cell, 3 * SIZE)
        column, channel = divmod(column, 3)
        area = (channel, row // factor, column // factor)
        drawn = sums.setdefault(area, [])
        whole = factor**2 * int(source[0][area]) + (factor**2 - 1) / 2  # the middle of what rounding down hides
        expected = (whole - sum(drawn)) / (factor**2 - len(drawn))
        assert float(found[position]) == pytest.approx(min(max(expected, 0), 255), abs=1e-3)
        drawn.append(int(x[0, position, 0]))


@pytest.mark.parametrize("factor", [2, 4])
def test_the_last_pixel_of_an_area_is_known_up_to_rounding(factor: int) -> None:
    pixels = codec(False)
    rest = SourceRest(4, pixels, SourceShape(3, SIZE // factor, False))
    picture = images(5)
    x = pixels.encode(picture)
    last = (rest.left == 1).nonzero()[:, 0]
    assert len(last) == 3 * (SIZE // factor) ** 2
    missed = rest.mean(x, reduce_area(picture, factor), last) - x[:, last, 0]
    assert float(missed.abs().max()) <= (factor**2 - 1) / 2


@torch.no_grad()
def test_scores_depend_on_the_distance_from_the_mean_whether_few_or_many_are_asked_for() -> None:
    pixels = codec(False)
    rest = SourceRest(4, pixels, SourceShape(3, SIZE // 2, False))
    torch.nn.init.normal_(rest.score)
    picture = images(8)
    x, source = pixels.encode(picture), reduce_area(picture, 2)
    positions = torch.arange(len(pixels.order))
    mean = rest.mean(x, source, positions)
    assert mean.numel() > FEW
    many = rest.scores(mean, positions)
    few = torch.cat([rest.scores(mean[:, k : k + 1], positions[k : k + 1]) for k in range(len(positions))], 1)
    assert torch.equal(many, few)
    b, k, value = 3, 100, 17
    left, channel = int(rest.left[k]), k % 3
    assert float(many[b, k, value]) == float(rest.score[left - 1, channel, value - round(float(mean[b, k])) + 255])


def test_it_needs_a_source_in_colour_without_a_mask() -> None:
    small = {"width": 8, "depth": 1, "num_heads": 1, "mlp_width": 8, "encoder_depth": 0, "source_rest": True}
    for shape in (SourceShape(1, SIZE, False), SourceShape(3, SIZE, True)):
        with pytest.raises(
            ConfigError, match="model.source_rest = true needs sources of three channels without a mask"
        ):
            build(Config(**small), image_size=SIZE, num_classes=0, source=shape)
    assert Config(**small).problems() == []
    message = "model.source_rest = true needs model.distribution = 'categorical' and model.encoder_depth."
    assert Config(**{**small, "distribution": "dmol"}).problems() == [message]
