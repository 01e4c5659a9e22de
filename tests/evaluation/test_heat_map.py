import torch

from rasterformer.evaluation.heat_map import heat_map, legend


def lightness(colour: torch.Tensor) -> float:
    """CIE L* of sRGB uint8 [3] (IEC 61966-2-1, CIE 1976)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (colour.double() / 255).tolist()]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return float(116 * luminance ** (1 / 3) - 16 if luminance > 216 / 24389 else luminance * 24389 / 27)


def test_more_is_always_lighter_in_steps_of_like_size() -> None:
    colours = heat_map(torch.linspace(0, 1, 21)[None], top=1.0)  # [3, 1, 21]
    levels = [lightness(colours[:, 0, k]) for k in range(21)]
    steps = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    assert levels[0] < 5 and levels[-1] > 95
    assert min(steps) > 2 and max(steps) < 8  # 4.6 on average


def test_values_beyond_the_ends_take_the_colours_of_the_ends() -> None:
    values = torch.tensor([[-1.0, 0.0, 4.0, 400.0]])
    colours = heat_map(values, top=4.0)
    assert torch.equal(colours[..., 0], colours[..., 1]) and torch.equal(colours[..., 2], colours[..., 3])
    assert not torch.equal(colours[..., 1], colours[..., 2])


def test_an_image_is_coloured_alike_alone_and_in_a_batch() -> None:
    values = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    batch = heat_map(values, top=0.7)
    assert batch.shape == (5, 3, 4, 6) and batch.dtype == torch.uint8
    assert all(torch.equal(heat_map(one, top=0.7), colours) for one, colours in zip(values, batch, strict=True))


def test_the_legend_goes_from_nothing_to_the_top() -> None:
    picture = legend(width=50, height=3)
    assert picture.shape == (3, 3, 50)
    ends = heat_map(torch.tensor([[0.0, 1.0]]), top=1.0)
    assert torch.equal(picture[:, 0, [0, -1]], ends[:, 0])
