"""Larger pictures in tiles: what is known stays, every pixel is drawn, later tiles see what earlier ones kept."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rasterformer.codecs import PixelCodec
from rasterformer.data.png import image_grid
from rasterformer.drawing.canvas import Canvas, draw_canvas, plan_canvas, source_sheet, visible_source
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Batch, Cond, Known
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.tasks import Colourise, Inpaint, SourceShape, SuperResolution, Task

CODEC = PixelCodec(4, is_joint=True)
NETWORK = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "dropout_prob": 0.0, "attention": "full"} | {
    "output": "residual"  # so that neighbours matter
}
DMOL = {"distribution": "dmol", "num_mixtures": 2, "encoder_depth": 1, "encoder_cell": "pixel", "norm_position": "pre"}


def pictures(count: int, height: int, width: int, *, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=rng)


def some_mask(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(7)) < 0.5


def make(task: Task) -> System:
    recipe = Recipe(
        "image_transformer", Config(**NETWORK, **DMOL), DataConfig(image_size=4), TrainingConfig(), task=task
    )
    system = System.create(recipe)
    system.model.eval()
    with torch.no_grad():  # so that the source matters
        rng = torch.Generator().manual_seed(0)
        for weight in system.model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=rng)
    return system


class Pencil:
    """Draws numbers of the given streams, 1..255, where nothing is known, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Cond, Known | None, Tensor]] = []

    def __call__(self, cond: Cond, before: Known | None, rng: Sequence[torch.Generator]) -> Tensor:
        images = torch.stack([torch.randint(1, 256, (3, 4, 4), generator=g) for g in rng])
        x = CODEC.encode(images.to(torch.uint8))
        if before is not None:
            x = torch.where(before.where[..., None], before.x, x)
        self.calls.append((cond, before, x))
        return x


def canvas_of(source: Tensor, known: Tensor | None = None, *, factor: int = 1, overlap: int | None = 2) -> Canvas:
    shape = SourceShape(source.shape[1], 4 // factor, known is not None)
    return plan_canvas(source, known, shape, image_size=4, overlap=overlap, tile=True)


def drawn(canvas: Canvas, *, n: int = 1, at_a_time: int = 100, seed: int = 0) -> tuple[Tensor, Pencil]:
    pencil = Pencil()
    result = draw_canvas(canvas, CODEC, pencil, cond=Cond(), n=n, seed=seed, first=0, pieces_at_a_time=at_a_time)
    return result, pencil


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 9), (7, 5), (8, 8)])
def test_every_pixel_is_drawn_and_each_tile_keeps_what_earlier_ones_drew(height: int, width: int, overlap: int) -> None:
    """Against a loop over tiles: of its kept rows and columns a tile fills the pixels that are still empty."""
    source = pictures(2, height, width, channels=1)
    canvas = canvas_of(source, overlap=overlap)
    result, pencil = drawn(canvas, n=2)
    assert result.shape == (2, 2, 3, height, width) and bool((result > 0).all())
    expected = torch.zeros(4, 3, height, width, dtype=torch.uint8)
    for wave, (cond, before, x) in zip(canvas.waves, pencil.calls, strict=True):
        pieces, empty = CODEC.decode(x), expected.clone() == 0
        where = torch.zeros(len(x), 16, dtype=torch.bool) if before is None else before.where
        for k, tile in enumerate(wave):
            rows, cols = slice(tile.top, tile.top + 4), slice(tile.left, tile.left + 4)
            for image in range(4):
                number = 4 * k + image
                assert torch.equal(cond.source[number], source[image // 2, :, rows, cols])
                known = ~empty[image, 0, rows, cols].flatten()
                assert torch.equal(where[number], known)
                if before is not None:
                    seen = expected[image, :, rows, cols].flatten(1).T
                    assert torch.equal(before.x[number][known], seen[known].long())
        for k, tile in enumerate(wave):
            keep = (slice(tile.top, tile.keep_bottom), slice(tile.left, tile.keep_right))
            for image in range(4):
                part = pieces[4 * k + image, :, : tile.keep_bottom - tile.top, : tile.keep_right - tile.left]
                place = expected[image][:, keep[0], keep[1]]
                expected[image][:, keep[0], keep[1]] = torch.where(place > 0, place, part)
    assert torch.equal(result.flatten(0, 1), expected)


def test_results_do_not_depend_on_how_many_pieces_are_drawn_together() -> None:
    canvas = canvas_of(pictures(2, 7, 9))
    result, _ = drawn(canvas, n=2, seed=3)
    for at_a_time in (1, 3):
        again, pencil = drawn(canvas, n=2, at_a_time=at_a_time, seed=3)
        assert torch.equal(again, result) and max(len(x) for _, _, x in pencil.calls) == at_a_time
    assert not torch.equal(drawn(canvas, n=2, seed=4)[0], result)


def test_every_tile_of_every_result_has_random_numbers_of_its_own() -> None:
    _, pencil = drawn(canvas_of(pictures(2, 8, 8), overlap=0), n=2)
    pieces = torch.cat([x for _, _, x in pencil.calls])
    assert len(pieces) == 2 * 2 * 4 == len({piece.numpy().tobytes() for piece in pieces})


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_results_are_larger_by_the_factor(factor: int) -> None:
    result, _ = drawn(canvas_of(pictures(1, 5, 6), factor=factor, overlap=None))
    assert result.shape == (1, 1, 3, 5 * factor, 6 * factor) and bool((result > 0).all())


def test_known_pixels_stay_and_tiles_without_an_unknown_pixel_are_not_drawn() -> None:
    source, known = pictures(1, 4, 10), torch.ones(1, 4, 10, dtype=torch.bool)
    known[0, 2, 9] = False
    result, pencil = drawn(canvas_of(source, known), n=2)
    where = known[0].expand(3, -1, -1)
    assert all(torch.equal(image[where], source[0][where]) for image in result[0])
    assert bool((result[0, 0, :, 2, 9] != result[0, 1, :, 2, 9]).any())
    ((cond, before, x),) = pencil.calls
    assert len(x) == 2 and before is not None
    assert torch.equal(before.where, CODEC.positions_of(known[:, :, 6:]).expand(2, -1))
    assert torch.equal(cond.known, known[:, :, 6:].expand(2, -1, -1))


def test_the_encoder_of_inpainting_sees_what_was_drawn_and_zeros_elsewhere() -> None:
    source, known = pictures(1, 4, 6), some_mask(1, 4, 6)
    result, pencil = drawn(canvas_of(source, known))
    (first, _, _), (second, _, _) = pencil.calls
    assert torch.equal(first.source, source[..., :4] * known[:, None, :, :4])
    earlier = known.clone()
    earlier[:, :, :3] = True  # of two columns of overlap the first tile keeps one
    assert torch.equal(second.known, earlier[..., 2:])
    assert torch.equal(second.source, (result[:, 0] * earlier[:, None])[..., 2:])


@pytest.mark.parametrize("task", [Colourise(), SuperResolution(2), Inpaint()], ids=lambda task: type(task).__name__)
def test_the_first_tile_of_a_picture_is_the_result_of_that_piece_alone(task: Task) -> None:
    system, factor = make(task), 2 if isinstance(task, SuperResolution) else 1
    size = 4 // factor
    images = pictures(1, 2 * size, 2 * size)
    options, alone = {}, {}
    if isinstance(task, Inpaint):
        known = some_mask(1, 8, 8)
        options, alone = {"known": known}, {"known": known[:, :4, :4]}
    overlap = 2 // factor
    (whole,) = system.transform(images, n=2, overlap=overlap, seed=4, as_tensor=True, **options)
    (piece,) = system.transform(images[:, :, :size, :size], n=2, seed=4, as_tensor=True, **alone)
    keep = (size - overlap // 2) * factor
    assert whole.shape == (2, 3, 8, 8) and 2 < keep
    assert torch.equal(whole[:, :, :keep, :keep], piece[:, :, :keep, :keep])


def test_inpainting_a_larger_picture_keeps_its_known_pixels_exactly() -> None:
    images, known = pictures(2, 7, 9), some_mask(2, 7, 9)
    results = make(Inpaint()).transform(images, known=known, n=2, as_tensor=True)
    for image, mask, result in zip(images, known, results, strict=True):
        assert torch.equal(result[:, :, mask], image[:, mask].expand(2, -1, -1))
        assert not torch.equal(result[0][:, ~mask], result[1][:, ~mask])


def test_a_later_tile_sees_what_an_earlier_one_drew() -> None:
    """A source pixel that only the first tile has changes what tiles without it draw, by way of what they both cover."""
    system, dark = make(Colourise()), pictures(1, 4, 8)
    dark[:, :, :2, 0] = 0
    light = dark.clone()
    light[:, :, :2, 0] = 255
    (one,), (other,) = (system.transform(each, n=8, overlap=3, as_tensor=True) for each in (dark, light))
    assert not torch.equal(one[..., :4], other[..., :4])
    assert not torch.equal(one[..., 4:], other[..., 4:])
    (one,), (other,) = (system.transform(each, n=8, overlap=0, as_tensor=True) for each in (dark, light))
    assert not torch.equal(one[..., :4], other[..., :4])
    assert torch.equal(one[..., 4:], other[..., 4:]), "without overlap there is no way"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pictures(1, 4, 4, channels=1), r"source is torch.uint8 \[1, 1, 4, 4\]; .* \[B, 3, h, w\]"),
        (pictures(1, 4, 4).int(), r"source is torch.int32 \[1, 3, 4, 4\]"),
        (pictures(1, 4, 4)[0], r"source is torch.uint8 \[3, 4, 4\]"),
        (pictures(1, 3, 9), "source is 9x3 pixels; this model needs at least 4x4"),
    ],
)
def test_sources_that_do_not_fit_are_refused(source: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        plan_canvas(source, None, SourceShape(3, 4, False), image_size=4, overlap=None, tile=True)


def test_masks_of_another_size_or_type_and_tiles_that_are_not_wished_for_are_refused() -> None:
    source, shape = pictures(2, 4, 5), SourceShape(3, 4, True)
    for mask, received in [
        (some_mask(2, 4, 4), r"torch.bool \[2, 4, 4\]"),
        (some_mask(1, 4, 5), r"torch.bool \[1, 4, 5\]"),
        (some_mask(2, 4, 5).int(), r"torch.int32 \[2, 4, 5\]"),
    ]:
        with pytest.raises(ShapeError, match=rf"the mask is {received}; torch.bool \[2, 4, 5\] is needed"):
            plan_canvas(source, mask, shape, image_size=4, overlap=None, tile=True)
    with pytest.raises(ConfigError, match="source is 5x4 pixels, this model takes 4x4"):
        plan_canvas(source, some_mask(2, 4, 5), shape, image_size=4, overlap=None, tile=False)
    with pytest.raises(ConfigError, match="overlap = -1 must lie in"):
        plan_canvas(source, some_mask(2, 4, 5), shape, image_size=4, overlap=-1, tile=True)


def test_a_source_is_shown_by_repeated_pixels_in_grey_and_with_missing_ones_grey() -> None:
    small = pictures(2, 2, 2, channels=1)
    shown = visible_source(Cond(source=small), (4, 6))
    assert shown.shape == (2, 3, 4, 6)
    for row in range(4):
        for col in range(6):
            assert torch.equal(shown[:, :, row, col], small[:, :, row // 2, col // 3].expand(-1, 3))
    source, known = pictures(1, 2, 2), torch.tensor([[[True, False], [False, True]]])
    masked = visible_source(Cond(source=source, known=known), (2, 2))
    assert torch.equal(masked[0, :, 0, 0], source[0, :, 0, 0]) and torch.equal(masked[0, :, 1, 1], source[0, :, 1, 1])
    assert masked[0, :, 0, 1].tolist() == masked[0, :, 1, 0].tolist() == [128, 128, 128]


def test_the_sheet_has_a_row_of_source_samples_and_original_for_each_image() -> None:
    images, source, samples = pictures(2, 4, 4), 255 - pictures(2, 4, 4), pictures(6, 4, 4).view(2, 3, 3, 4, 4)
    sheet = source_sheet(Batch(images, Cond(source=source)), samples, scale=2)
    rows = [picture for k in range(2) for picture in (source[k], *samples[k], images[k])]
    assert torch.equal(sheet, image_grid(torch.stack(rows), columns=5, scale=2))
