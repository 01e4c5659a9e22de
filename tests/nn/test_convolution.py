"""The causal convolution, in raster and in block order, and the encoder's, against loops over cells and taps."""

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.pixels import block_raster_order
from rasterformer.nn.convolution import MAX_STEP, CausalConv2d, CausalConv2dStep, Conv2d

GRID = (4, 5)
KERNELS = [(1, 1), (1, 3), (2, 1), (2, 3), (3, 5), (3, 7), (6, 3), (2, 11)]  # the last three reach beyond the grid


def make(kernel: tuple[int, int], *, sees_itself: bool) -> CausalConv2d:
    torch.manual_seed(0)
    convolution = CausalConv2d(2, 3, GRID, kernel, sees_itself=sees_itself).double()
    torch.nn.init.normal_(convolution.bias)
    return convolution


def random_x() -> Tensor:
    return torch.randn(2, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cases() -> list[tuple[tuple[int, int], bool]]:
    return [(kernel, itself) for kernel in KERNELS for itself in (True, False) if itself or kernel != (1, 1)]


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "sees_itself"), cases())
def test_forward_equals_a_loop_over_cells_and_taps(kernel: tuple[int, int], sees_itself: bool) -> None:
    convolution, x = make(kernel, sees_itself=sees_itself), random_x()
    taps = [
        (row, col)
        for row in range(-kernel[0] + 1, 1)
        for col in range(-(kernel[1] // 2), kernel[1] // 2 + 1)
        if row < 0 or col < 0 or (sees_itself and col == 0)
    ]
    assert convolution.weight.shape == (3, 2 * len(taps))
    expected = convolution.bias.expand(2, 20, 3).clone()
    for cell in range(20):
        row, col = divmod(cell, 5)
        for number, (down, right) in enumerate(taps):
            if row + down >= 0 and 0 <= col + right < 5:
                source = x[:, (row + down) * 5 + col + right]
                expected[:, cell] += source @ convolution.weight[:, 2 * number : 2 * number + 2].T
    torch.testing.assert_close(convolution(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 20])
@pytest.mark.parametrize(("kernel", "sees_itself"), cases())
def test_step_equals_forward(kernel: tuple[int, int], sees_itself: bool, chunk: int) -> None:
    convolution, x = make(kernel, sees_itself=sees_itself), random_x()
    step = CausalConv2dStep(convolution, 2, x)
    steps = [step(x[:, first : first + chunk], first) for first in range(0, 20, chunk)]
    torch.testing.assert_close(torch.cat(steps, 1), convolution(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, MAX_STEP])
@pytest.mark.parametrize("kernel", [(1, 3), (2, 3), (3, 5)])
def test_step_equals_forward_on_a_grid_larger_than_the_ring_after_the_longest_wrong_step(
    kernel: tuple[int, int], chunk: int
) -> None:
    """Before each step MAX_STEP positions of noise are given and then taken back."""
    torch.manual_seed(0)
    convolution = CausalConv2d(2, 3, (60, 5), kernel, sees_itself=True).double()
    x = torch.randn(2, 300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step, steps = CausalConv2dStep(convolution, 2, x), []
    assert step.ring_size < 300
    for first in range(0, 300, chunk):
        step(torch.full_like(x[:, first : first + MAX_STEP], 5.0), first)
        steps.append(step(x[:, first : first + chunk], first))
    torch.testing.assert_close(torch.cat(steps, 1), convolution(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("sees_itself", [True, False])
def test_no_cell_sees_a_later_one(sees_itself: bool) -> None:
    convolution, x = make((3, 5), sees_itself=sees_itself), random_x()
    before = convolution(x)
    for cell in range(20):
        changed = x.clone()
        changed[:, cell] += 1
        moved = (convolution(changed) - before).abs().amax((0, 2)) > 1e-12
        assert not bool(moved[: cell + int(not sees_itself)].any())
        assert bool(moved[cell:].any()) or cell == 19, "every cell that can be seen is seen"


def test_the_ring_holds_the_window_and_the_longest_step_only() -> None:
    step = CausalConv2dStep(make((2, 3), sees_itself=True), 2, random_x())
    assert step.ring_size == 5 + 1 + MAX_STEP  # one row up, one column left
    assert step.ring.shape == (2, step.ring_size + 1, 2)


def test_a_step_longer_than_the_longest_is_refused() -> None:
    step = CausalConv2dStep(make((2, 3), sees_itself=True), 1, random_x())
    with pytest.raises(AssertionError, match=f"at most {MAX_STEP} positions, not {MAX_STEP + 1}"):
        step(torch.zeros(1, MAX_STEP + 1, 2, dtype=torch.float64), 0)


# blocks of a grid of 4 rows and 6 columns; where columns are channels, three to a pixel, some cut through pixels
BLOCKS = [(2, 3), (2, 2), (4, 1), (1, 6), (1, 2), (2, 6), (4, 6), (1, 1)]
BLOCK_GRID = (4, 6)


def make_in_blocks(block: tuple[int, int], kernel: tuple[int, int], *, sees_itself: bool) -> CausalConv2d:
    torch.manual_seed(0)
    order = block_raster_order(BLOCK_GRID, block)
    convolution = CausalConv2d(2, 3, BLOCK_GRID, kernel, sees_itself=sees_itself, order=order).double()
    torch.nn.init.normal_(convolution.bias)
    return convolution


def random_cells() -> Tensor:
    return torch.randn(2, 24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("sees_itself", [True, False])
@pytest.mark.parametrize("kernel", [(1, 3), (2, 3), (3, 5), (6, 11)])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_in_block_order_forward_equals_a_loop_and_steps_equal_forward(
    block: tuple[int, int], kernel: tuple[int, int], sees_itself: bool
) -> None:
    """The window has the rows above and the columns to the left, and none to the right."""
    convolution, x = make_in_blocks(block, kernel, sees_itself=sees_itself), random_cells()
    cells = block_raster_order(BLOCK_GRID, block).tolist()
    taps = [
        (row, col)
        for row in range(-kernel[0] + 1, 1)
        for col in range(-(kernel[1] // 2), 1)
        if (row, col) != (0, 0) or sees_itself
    ]
    assert convolution.weight.shape == (3, 2 * len(taps))
    expected = convolution.bias.expand(2, 24, 3).clone()
    for position, cell in enumerate(cells):
        row, col = divmod(cell, 6)
        for number, (down, right) in enumerate(taps):
            if row + down >= 0 and col + right >= 0:
                source = cells.index((row + down) * 6 + col + right)
                expected[:, position] += x[:, source] @ convolution.weight[:, 2 * number : 2 * number + 2].T
    torch.testing.assert_close(convolution(x), expected, rtol=1e-12, atol=1e-12)
    for chunk in (1, 5):
        step = CausalConv2dStep(convolution, 2, x)
        steps = [step(x[:, first : first + chunk], first) for first in range(0, 24, chunk)]
        torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("sees_itself", [True, False])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_in_block_order_no_cell_sees_a_later_one(block: tuple[int, int], sees_itself: bool) -> None:
    convolution, x = make_in_blocks(block, (6, 13), sees_itself=sees_itself), random_cells()  # wider than the grid
    before = convolution(x)
    for position in range(24):
        changed = x.clone()
        changed[:, position] += 1
        moved = (convolution(changed) - before).abs().amax((0, 2)) > 1e-12
        assert not bool(moved[: position + int(not sees_itself)].any())
        assert bool(moved[position]) is sees_itself


@torch.no_grad()
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 5), (9, 3)])
@pytest.mark.parametrize("block", [None, (2, 3), (2, 2), (1, 1)], ids=str)
def test_the_encoders_convolution_equals_a_loop_over_a_centred_window(
    block: tuple[int, int] | None, kernel: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    order = None if block is None else block_raster_order(BLOCK_GRID, block)
    convolution, x = Conv2d(2, 3, BLOCK_GRID, kernel, order=order).double(), random_cells()
    torch.nn.init.normal_(convolution.bias)
    cells = list(range(24)) if order is None else order.tolist()
    expected = convolution.bias.expand(2, 24, 3).clone()
    for position, cell in enumerate(cells):
        for number in range(kernel[0] * kernel[1]):
            row = cell // 6 + number // kernel[1] - kernel[0] // 2
            col = cell % 6 + number % kernel[1] - kernel[1] // 2
            if 0 <= row < 4 and 0 <= col < 6:
                source = x[:, cells.index(row * 6 + col)]
                expected[:, position] += source @ convolution.weight[:, 2 * number : 2 * number + 2].T
    torch.testing.assert_close(convolution(x), expected, rtol=1e-12, atol=1e-12)
