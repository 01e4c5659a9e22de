"""The patch discriminator: the paper's sizes, its patches by gradients, what each norm does, and what is refused."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.vq.discriminator import DiscriminatorNorm, PatchDiscriminator
from rasterformer.errors import ConfigError, ShapeError


def make(norm: DiscriminatorNorm = "none", *, base_width: int = 4, num_layers: int = 3) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(3, base_width=base_width, num_layers=num_layers, norm=norm).double()


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def convolutions(discriminator: PatchDiscriminator) -> list[nn.Conv2d]:
    return [layer for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]


def test_the_published_discriminator_has_2_77_million_parameters() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator(3)
    count = sum(p.numel() for p in discriminator.parameters())
    assert round(count / 1e6, 2) == 2.77


def test_widths_and_strides_are_the_papers() -> None:
    for num_layers, widths in ((1, [64, 128, 1]), (3, [64, 128, 256, 512, 1]), (4, [64, 128, 256, 512, 512, 1])):
        with torch.device("meta"):
            found = convolutions(PatchDiscriminator(3, num_layers=num_layers))
        assert [conv.out_channels for conv in found] == widths
        assert [conv.stride[0] for conv in found] == [2] * num_layers + [1, 1]


@torch.no_grad()
def test_with_batch_norm_the_logits_are_those_of_the_papers_layers() -> None:
    discriminator, images = make("batch", num_layers=2), random_images(2, 3, 20, 16)
    h = images
    weights = [conv.weight for conv in convolutions(discriminator)]
    norms = [layer for layer in discriminator.layers if isinstance(layer, nn.BatchNorm2d)]
    first, last = convolutions(discriminator)[0].bias, convolutions(discriminator)[-1].bias
    assert first is not None and last is not None
    h = F.conv2d(h, weights[0], first, stride=2, padding=1)
    for weight, norm, stride in zip(weights[1:-1], norms, (2, 1), strict=True):
        h = F.conv2d(torch.where(h > 0, h, 0.2 * h), weight, stride=stride, padding=1)
        mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, unbiased=False)
        h = (h - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    h = F.conv2d(torch.where(h > 0, h, 0.2 * h), weights[-1], last, padding=1)
    got = discriminator(images)
    assert got.shape == (2, 1, 3, 2)
    torch.testing.assert_close(got, h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_one_patch_and_its_neighbour_the_same_patch_further(num_layers: int, patch: int) -> None:
    """Isola et al. 2017, appendix 6.1.2: patches of 16, 34 and 70 pixels, one every 2^num_layers pixels."""
    discriminator, step = make(num_layers=num_layers, base_width=2), 2**num_layers
    side = patch + 5 * step
    images = random_images(1, 3, side, side).requires_grad_()
    logits = discriminator(images)
    middle = logits.shape[2] // 2
    seen = []
    for row, col in ((middle, middle), (middle, middle - 1)):
        gradient = torch.autograd.grad(logits[0, 0, row, col], images, retain_graph=True)[0].abs().sum((0, 1))
        seen.append([gradient.sum(1 - axis).nonzero().flatten().tolist() for axis in (0, 1)])
    (rows, cols), (rows_left, cols_left) = seen
    assert rows == list(range(rows[0], rows[0] + patch)) and cols == list(range(cols[0], cols[0] + patch))
    assert rows_left == rows and cols_left == [col - step for col in cols]


@pytest.mark.parametrize("norm", ["batch", "group", "spectral", "none"])
def test_weights_begin_with_the_papers_spread_and_only_convolutions_before_a_norm_have_no_bias(
    norm: DiscriminatorNorm,
) -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, base_width=32, norm=norm)
    found = convolutions(discriminator)
    for conv in found:
        weight = dict(conv.named_parameters())["parametrizations.weight.original" if norm == "spectral" else "weight"]
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert weight.mean().abs() < 0.002
    assert [conv.bias is None for conv in found] == [False, *3 * [norm in ("batch", "group")], False]
    scales = torch.cat(
        [layer.weight for layer in discriminator.layers if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
        or [torch.ones(0)]
    )
    assert len(scales) == (32 * (2 + 4 + 8) if norm in ("batch", "group") else 0)
    if len(scales):
        assert scales.mean().item() == pytest.approx(1.0, abs=0.005)
        assert scales.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
@pytest.mark.parametrize(("norm", "mixes"), [("batch", True), ("group", False), ("spectral", False), ("none", False)])
def test_only_batch_norm_mixes_images_and_only_in_training(norm: DiscriminatorNorm, mixes: bool) -> None:
    discriminator = make(norm, base_width=16)
    images = random_images(2, 3, 24, 32)
    for is_training in (True, False):
        discriminator.train(is_training)
        together = deepcopy(discriminator)(images)  # a pass in training moves what norms remember
        changed = deepcopy(discriminator)(torch.cat([images[:1], images[1:].flip(2) * 3]))
        differs = (together[:1] - changed[:1]).abs().max() > 1e-3 * together.abs().max()
        assert bool(differs) == (mixes and is_training), is_training


def test_spectral_norm_makes_every_largest_singular_value_one() -> None:
    discriminator = make("spectral")
    images = random_images(1, 3, 24, 24)
    with torch.no_grad():
        for _ in range(60):  # one power iteration each
            discriminator(images)
    for conv in convolutions(discriminator):
        largest = torch.linalg.svdvals(conv.weight.flatten(1))[0].item()
        assert largest == pytest.approx(1.0, abs=0.02)


def test_the_smallest_image_has_one_patch_and_smaller_ones_are_refused() -> None:
    for num_layers, side in ((1, 6), (2, 12), (3, 24)):
        discriminator = make(num_layers=num_layers)
        assert discriminator(random_images(1, 3, side, side + 5)).shape[:3] == (1, 1, 1)
        for height, width in ((side - 1, side), (side, side - 1)):
            with pytest.raises(ShapeError, match=f"images are {height}x{width} pixels.* at least {side}"):
                discriminator(random_images(1, 3, height, width))


@pytest.mark.parametrize(
    "images",
    [random_images(1, 1, 24, 24), random_images(3, 24, 24), torch.zeros(1, 3, 24, 24, dtype=torch.uint8)],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)
def test_other_shapes_and_dtypes_are_refused(images: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        make()(images)
    assert f"images are {images.dtype} {list(images.shape)}" in str(caught.value)
    assert "float [B, 3, height, width]" in str(caught.value)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_layers = 0\. .* at least 1"):
        PatchDiscriminator(3, num_layers=0)
    with pytest.raises(ConfigError, match=r"norm = 'bach' is not known\. Did you mean 'batch'\?"):
        PatchDiscriminator(3, norm="bach")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="32 does not divide 24 channels"):
        PatchDiscriminator(3, base_width=12, norm="group")
