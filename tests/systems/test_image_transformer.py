"""The Image Transformer's own elements: shifted input, positions, class vector, heads, sizes, chunks of the loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.codecs import PixelCodec
from rasterformer.codecs.pixels import block_raster_order
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.nn.positions import sinusoidal_positions
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.input import NeighbourhoodInput, PixelInput, TableInput
from rasterformer.systems.image_transformer.model import ImageTransformer, build
from rasterformer.systems.image_transformer.output import median_edge, neighbour_positions

TINY = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "dropout_prob": 0.0, "block_length": 16}
BLOCKS = {"attention": "local_2d", "query_block": (2, 2), "flange": (1, 1)}
DMOL = {"distribution": "dmol", "num_mixtures": 2}


def make(*, num_classes: int = 0, **fields: Any) -> tuple[PixelCodec, ImageTransformer]:
    torch.manual_seed(0)
    codec, model = build(Config(**{**TINY, "memory_length": 16, **fields}), image_size=4, num_classes=num_classes)
    return codec, model.double().eval()


def embedded(model: ImageTransformer, x: Tensor, cond: Cond | None = None) -> Tensor:
    """What enters the first layer, [B, L, D]."""
    seen: list[Tensor] = []
    hook = model.layers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(x, cond or Cond())
    hook.remove()
    return seen[0]


def random_x(model: ImageTransformer) -> Tensor:
    return torch.randint(0, 256, (2, *model.x_shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("blocks", [{}, BLOCKS], ids=["raster", "blocks"])
def test_categorical_input_t_is_the_previous_value_in_its_channels_table_at_the_position_of_t(blocks: dict) -> None:
    """Embedding of (value, channel) of cell t-1 in generation order times sqrt(d), plus the encoding of cell t itself."""
    codec, model = make(**blocks)
    x = random_x(model)
    h = embedded(model, x)
    cells = codec.order.tolist()
    encoding = sinusoidal_positions(codec.order // 12, codec.order % 12, 8).double()
    torch.testing.assert_close(h[:, 0], encoding[0].expand(2, -1))  # the first input is a vector of zeros
    assert isinstance(model.input, TableInput)
    table = model.input.table.weight.detach()
    for t in range(1, 48):
        channel = cells[t - 1] % 12 % 3
        expected = table[x[:, t - 1, 0] + 256 * channel] * 8**0.5 + encoding[t]
        torch.testing.assert_close(h[:, t], expected)


@pytest.mark.parametrize("with_relu", [False, True])
def test_dmol_input_t_is_a_linear_map_of_the_previous_pixel(with_relu: bool) -> None:
    codec, model = make(**DMOL, **BLOCKS, input="linear_relu" if with_relu else "linear", positions="none")
    x = random_x(model)
    h = embedded(model, x)
    assert isinstance(model.input, PixelInput)
    linear = model.input.linear
    assert not h[:, 0].any()
    for t in range(1, 16):
        expected = (x[:, t - 1].double() / 127.5 - 1) @ linear.weight.T + linear.bias
        torch.testing.assert_close(h[:, t], expected.relu() if with_relu else expected)


def test_a_learned_start_replaces_the_zeros_of_the_first_input_only() -> None:
    _, model = make(learned_start=True, positions="none")
    _, plain = make(positions="none")
    with torch.no_grad():
        model.input.start.vector.copy_(torch.arange(8.0))  # type: ignore[union-attr]
        model.input.table.weight.copy_(plain.input.table.weight)  # type: ignore[union-attr]
    x = random_x(model)
    assert embedded(model, x)[0, 0].tolist() == list(range(8))
    assert torch.equal(embedded(model, x)[:, 1:], embedded(plain, x)[:, 1:])


def test_the_class_vector_times_sqrt_d_is_added_to_every_position() -> None:
    _, model = make(num_classes=3)
    x = random_x(model)
    label = torch.tensor([2, 0])
    assert model.class_embedding is not None
    difference = embedded(model, x, Cond(label=label)) - embedded(model, x, Cond(label=torch.tensor([1, 1])))
    rows = model.class_embedding.weight.detach()
    expected = (rows[label] - rows[1]) * 8**0.5
    torch.testing.assert_close(difference, expected[:, None].expand(-1, 48, -1))


@torch.no_grad()
def test_the_last_sub_pixel_of_every_2d_block_is_an_input() -> None:
    """The paper's code shifts each block on its own and loses these; here the next block's first input carries them."""
    _, model = make(**BLOCKS)
    x = random_x(model)
    before = model(x, Cond())
    size = model.pattern.block_size
    for last in range(size - 1, 47, size):
        changed = x.clone()
        changed[:, last] = (changed[:, last] + 50) % 256
        moved = (model(changed, Cond()) - before).abs().amax((0, 2)) > 1e-9
        assert bool(moved[last + 1]), f"position {last + 1} does not know cell {last}"
        assert not bool(moved[: last + 1].any())


def test_attention_has_a_width_of_its_own() -> None:
    _, model = make(attention_width=24, num_heads=4, num_kv_heads=2)
    attention = model.layers[0].attention
    assert attention is not None
    shapes = {name: tuple(weight.shape) for name, weight in attention.named_parameters()}
    assert shapes == {"project.weight": (24 + 2 * 12, 8), "out.weight": (8, 24)}


def test_attention_layers_leaves_attention_out_of_the_others() -> None:
    _, model = make(depth=3, attention_layers=(1,))
    assert [layer.attention is not None for layer in model.layers] == [False, True, False]


def test_2d_blocks_are_counted_in_pixels_or_in_cells() -> None:
    assert make(**BLOCKS)[1].pattern.block_size == 2 * 2 * 3
    assert make(**{**BLOCKS, "query_block": (2, 4)}, block_unit="cell")[1].pattern.block_size == 2 * 4
    assert make(**BLOCKS, **DMOL)[1].pattern.block_size == 2 * 2


def test_blocks_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="query_block = 3x6 cells does not tile the grid of 4x12"):
        make(**{**BLOCKS, "query_block": (3, 2)})


@pytest.mark.parametrize("bias", [("categorical", True), ("dmol", False)])
def test_the_plain_head_has_a_bias_with_categorical_only(bias: tuple[str, bool]) -> None:
    _, model = make(distribution=bias[0])
    assert (model.head.linear.bias is not None) is bias[1]


CHUNKED = {
    "categorical": {},
    "dmol": DMOL,
    "residual": {**DMOL, "output": "residual", "input": "neighbourhood"},
    "residual-categorical": {"output": "residual", "input": "neighbourhood"},
}


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("size", [1, 5, 48])
def test_the_loss_in_chunks_has_the_same_value_and_gradients(name: str, size: int) -> None:
    found = []
    for chunk in (None, size):
        _, model = make(**CHUNKED[name], loss_chunk=chunk)
        loss = model.loss(random_x(model), Cond(), rng=None)
        loss.total.backward()
        found.append((loss.nats, [weight.grad for weight in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [(3, 1), (3, 2), (1, 3), (3, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 3])
def test_neighbours_are_west_north_and_north_west_with_the_nearest_known_standing_in(
    stride: int, block: tuple[int, int]
) -> None:
    """Blocks of the grid of 3 rows and 6 columns; with stride 3 some of them cut through pixels."""
    rows, cols = 3, 6
    order = block_raster_order((rows, cols), block)
    cells = order.tolist()
    for position, neighbours in enumerate(neighbour_positions((rows, cols), order, stride).tolist()):
        row, col = divmod(cells[position], cols)
        west, north, corner = (row, col - stride), (row - 1, col), (row - 1, col - stride)
        if row == 0 and col < stride:
            assert neighbours == [0, 0, 0]  # of the first pixel
            continue
        if col < stride:
            expected = [north] * 3
        else:
            expected = [west] * 3 if row == 0 else [west, north, corner]
        assert [divmod(cells[neighbour], cols) for neighbour in neighbours] == expected
        assert max(neighbours) < position


def test_median_edge_is_the_median_of_west_north_and_their_plane() -> None:
    neighbours = torch.randint(0, 256, (200, 3, 2), generator=torch.Generator().manual_seed(0))
    west, north, corner = neighbours.unbind(1)
    expected = torch.stack([west, north, west + north - corner]).median(0).values
    assert torch.equal(median_edge(neighbours), expected)


@torch.no_grad()
def test_residual_means_are_relative_to_the_predictions_of_all_channels() -> None:
    """With a map of zeros the mean of each channel is its own prediction, whatever the coefficients."""
    _, model = make(**DMOL, output="residual")
    head = model.head
    head.linear.weight.zero_()
    head.linear.bias.zero_()
    head.linear.bias[2 + 12 :] = 0.7  # raw coefficients
    x = random_x(model)
    x[:, 0], x[:, 1], x[:, 4] = torch.tensor([10, 20, 30]), torch.tensor([50, 60, 70]), torch.tensor([90, 100, 110])
    params = model(x, Cond())[0, 5]  # west is pixel 4, north 1, north-west 0
    mean = params[2:8].view(3, 2)[:, 0]
    coefficient = torch.tanh(torch.tensor(0.7, dtype=torch.float64))
    grid = [max(50, 90) / 127.5 - 1, max(60, 100) / 127.5 - 1, max(70, 110) / 127.5 - 1]
    assert float(mean[0]) == pytest.approx(grid[0])
    assert float(mean[1] + coefficient * grid[0]) == pytest.approx(grid[1])
    assert float(mean[2] + coefficient * (grid[0] + grid[1])) == pytest.approx(grid[2])


@pytest.mark.parametrize("fields", [{}, DMOL], ids=["categorical", "dmol"])
@torch.no_grad()
def test_a_neighbourhood_sees_its_window_before_the_cell_and_nothing_else(fields: dict) -> None:
    codec, model = make(**fields, input="neighbourhood", neighbourhood=(2, 3), positions="none")
    assert isinstance(model.input, NeighbourhoodInput)
    x, cols = random_x(model), codec.grid[1]
    before = embedded(model, x)
    for cell in range(len(codec.order)):
        changed = x.clone()
        changed[:, cell] = (changed[:, cell] + 50) % 256
        moved = ((embedded(model, changed) - before).abs().amax((0, 2)) > 1e-9).nonzero()[:, 0].tolist()
        row, col = divmod(cell, cols)
        window = [(row, col + 1), (row + 1, col - 1), (row + 1, col), (row + 1, col + 1)]
        expected = sorted(r * cols + c for r, c in window if r < codec.grid[0] and 0 <= c < cols)
        assert moved == [seen for seen in expected if seen > 0]


def test_a_neighbourhood_without_an_earlier_cell_is_a_problem() -> None:
    (problem,) = Config(input="neighbourhood", neighbourhood=(1, 1)).problems()
    assert "model.neighbourhood = (1, 1)" in problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"width": 10, "num_heads": 3},
            "model.num_heads = 3 does not divide model.width = 10. Use 2",
        ),
        ({"width": 0}, "model.width = 0 must be at least 1"),
        ({"attention_width": 9, "num_heads": 2}, "does not divide model.attention_width = 9"),
        ({"width": 12, "num_heads": 2, "rotary": True}, "multiple of 4 dimensions, each has 6"),
        ({"num_kv_heads": 3}, "model.num_kv_heads = 3 does not divide model.num_heads = 8"),
        ({"memory_length": -1}, "model.memory_length = -1 must not be negative"),
        ({"flange": (-1, 0)}, "model.flange = (-1, 0) not negative"),
        ({"mlp_kernel": (2, 4)}, "model.mlp_kernel = (2, 4) must be positive, with an odd number of columns"),
        ({"attention_layers": (0, 8)}, "model.attention_layers has [8], but layers are counted 0..7"),
        ({"dropout_prob": 1.0}, "model.dropout_prob = 1.0 must lie in 0..1"),
        ({"loss_chunk": 0}, "model.loss_chunk = 0 must be at least 1"),
        ({"input": "linear"}, "model.input = 'linear' maps whole pixels"),
        ({"encoder_depth": -1}, "model.encoder_depth = -1 must not be negative, or be null"),
        ({"encoder_block": (0, 8)}, "model.encoder_block = (0, 8) must be positive"),
        ({"encoder_flange": (4, -1)}, "model.encoder_flange = (4, -1) not negative"),
        ({"encoder_kernel": (3, 2)}, "model.encoder_kernel = (3, 2) must be two odd numbers"),
        (
            {"source_attention_layers": (8, -1)},
            "model.source_attention_layers has [8, -1], but layers are counted 0..7",
        ),
    ],
)
def test_a_config_that_cannot_work_says_why(fields: dict, message: str) -> None:
    problems = Config(**fields).problems()
    assert any(message in problem for problem in problems), problems


def test_fresh_weights_of_the_papers_initialisation_have_its_variance() -> None:
    """Uniform with variance 0.2 / mean of fan-in and fan-out, dense and embeddings; position tables excepted."""
    _, model = make(width=64, mlp_width=128, positions="learned")
    for name, weight in model.state_dict().items():
        if weight.ndim == 2 and not name.startswith("positions."):
            for matrix in weight.chunk(3) if name.endswith("project.weight") else [weight]:  # queries, keys, values
                expected = 0.2 / (sum(matrix.shape) / 2)
                assert float(matrix.var()) == pytest.approx(expected, rel=0.1), name
                assert float(matrix.abs().max()) <= (3 * expected) ** 0.5


@torch.no_grad()
def test_zero_residual_initialisation_makes_every_layer_the_identity() -> None:
    _, model = make(init="zero_residual", norm_position="pre", depth=3)
    h = torch.randn(2, 48, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layer in model.layers:
        assert torch.equal(layer(h), h)
