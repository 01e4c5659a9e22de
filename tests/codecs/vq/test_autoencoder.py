"""Encoder and decoder against the paper's definition written as loops and plain functions, sizes, and what is refused."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.vq.autoencoder import AttentionBlock, Decoder, Encoder, Level, ResBlock, VQAutoencoder
from rasterformer.codecs.vq.quantise import Quantised
from rasterformer.errors import ConfigError, ShapeError

SMALL = {"base_width": 4, "multipliers": (1, 2, 2), "res_blocks": 1, "attention_levels": (1,), "norm_groups": 2}


class Rounding(nn.Module):
    """A quantiser whose codes are the signs of the first dimension."""

    def forward(self, z: Tensor) -> Quantised:
        values = z + (z.round() - z).detach()
        return Quantised(values=values, codes=(z[:, 0] > 0).long(), loss=(z - z.round()).square().mean(), terms={})


def encoder(**changes: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(3, 5, **{**SMALL, **changes}).double()  # type: ignore[arg-type]


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(1)
    return Decoder(3, 5, **{**SMALL, **changes}).double()  # type: ignore[arg-type]


def autoencoder(**changes: object) -> VQAutoencoder:
    return VQAutoencoder(encoder(**changes), decoder(**changes), Rounding(), z_channels=5, dim=6).double()


def random_maps(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 1)


# ---- the parts


def reference_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> Tensor:
    """Wu & He 2018, equations 1 and 7, one image and one group after the other."""
    out = torch.empty_like(x)
    size = x.shape[1] // num_groups
    for b in range(len(x)):
        for first in range(0, x.shape[1], size):
            group = x[b, first : first + size]
            mean = group.sum() / group.numel()
            variance = ((group - mean) ** 2).sum() / group.numel()
            out[b, first : first + size] = (group - mean) / (variance + 1e-6).sqrt()
    return out * weight[:, None, None] + bias[:, None, None]


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def shake_norms(module: nn.Module) -> None:
    """Scales and biases of norms that a test can tell from one and zero."""
    for m in module.modules():
        if isinstance(m, nn.GroupNorm):
            nn.init.normal_(m.weight, 1.0, 0.3)
            nn.init.normal_(m.bias, 0.0, 0.3)


@torch.no_grad()
@pytest.mark.parametrize("out_channels", [4, 6])
def test_a_residual_block_is_norm_swish_convolution_twice_and_a_shortcut(out_channels: int) -> None:
    torch.manual_seed(0)
    block = ResBlock(4, out_channels, norm_groups=2, dropout_prob=0.0).double()
    shake_norms(block)
    x = random_maps(2, 4, 5, 3)
    h = swish(reference_norm(x, block.norm1.weight, block.norm1.bias, 2))
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = swish(reference_norm(h, block.norm2.weight, block.norm2.bias, 2))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    assert (block.shortcut is None) == (out_channels == 4)
    expected = h + (x if block.shortcut is None else F.conv2d(x, block.shortcut.weight, block.shortcut.bias))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_attention_block_is_softmax_over_all_cells() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(4, norm_groups=2).double()
    shake_norms(block)
    x = random_maps(2, 4, 2, 3)
    normed = reference_norm(x, block.norm.weight, block.norm.bias, 2).flatten(2)  # [B, C, HW]
    got = block(x).flatten(2)

    def apply(conv: nn.Conv2d, cell: Tensor) -> Tensor:
        return F.linear(cell, conv.weight[:, :, 0, 0], conv.bias)

    for b in range(2):
        keys = [apply(block.key, normed[b, :, i]) for i in range(6)]
        values = [apply(block.value, normed[b, :, i]) for i in range(6)]
        for i in range(6):
            query = apply(block.query, normed[b, :, i])
            weights = [math.exp(float(query @ key) / math.sqrt(4)) for key in keys]
            mean = torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0) / sum(weights)
            expected = x.flatten(2)[b, :, i] + apply(block.out, mean)
            torch.testing.assert_close(got[b, :, i], expected, rtol=1e-12, atol=1e-12)


def resampling(way: Literal["down", "up"]) -> tuple[Level, Tensor, Tensor]:
    """A level of nothing but its resampling, and the weight and bias of that."""
    torch.manual_seed(0)
    level = Level(2, 2, 0, has_attention=False, resample=way, norm_groups=1, dropout_prob=0.0).double()
    assert level.resample is not None and level.resample.bias is not None
    return level, level.resample.weight, level.resample.bias


@torch.no_grad()
@pytest.mark.parametrize("axis", [2, 3])
def test_the_way_down_pads_only_at_the_right_and_the_bottom(axis: int) -> None:
    """Cell i sees pixels 2i, 2i + 1 and 2i + 2: the first cell nothing beyond the border, the last one a line of zeros."""
    (down, _, _), x = resampling("down"), random_maps(1, 2, 6, 6)
    before = down(x)
    assert before.shape == (1, 2, 3, 3)
    for line in range(6):
        changed = x.clone()
        changed.select(axis, line).add_(1.0)
        differs = (down(changed) - before).abs().sum([d for d in range(4) if d != axis]) > 1e-9
        assert differs.tolist() == [2 * i <= line <= 2 * i + 2 for i in range(3)]


@torch.no_grad()
def test_the_way_down_is_a_sum_over_nine_pixels() -> None:
    (down, weight, bias), x = resampling("down"), random_maps(1, 2, 4, 6)
    for row in range(2):
        for col in range(3):
            expected = bias.clone()
            for dy in range(3):
                for dx in range(3):
                    if 2 * row + dy < 4 and 2 * col + dx < 6:
                        expected += weight[:, :, dy, dx] @ x[0, :, 2 * row + dy, 2 * col + dx]
            torch.testing.assert_close(down(x)[0, :, row, col], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_way_up_repeats_every_pixel_twice_along_both_sides_before_its_convolution() -> None:
    (up, weight, bias), x = resampling("up"), random_maps(1, 2, 2, 3)
    got = up(x)
    assert got.shape == (1, 2, 4, 6)
    for row in range(4):
        for col in range(6):
            expected = bias.clone()
            for y in range(max(row - 1, 0), min(row + 2, 4)):
                for across in range(max(col - 1, 0), min(col + 2, 6)):
                    expected += weight[:, :, y - row + 1, across - col + 1] @ x[0, :, y // 2, across // 2]
            torch.testing.assert_close(got[0, :, row, col], expected, rtol=1e-12, atol=1e-12)


def test_dropout_stands_before_the_second_convolution_in_training_only() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, norm_groups=2, dropout_prob=1.0).double()
    x, bias = random_maps(1, 4, 3, 3), block.conv2.bias
    assert bias is not None
    expected = x + bias[:, None, None]
    torch.testing.assert_close(block.train()(x), expected)
    assert (block.eval()(x) - expected).abs().max() > 1e-3


# ---- the whole, from the parameters by their names


class Reference:
    """The paper's networks as one function each, which reads parameters by their public names."""

    def __init__(self, module: nn.Module, num_groups: int) -> None:
        self.state, self.num_groups = module.state_dict(), num_groups

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        weight = self.state.pop(f"{name}.weight")
        padding = options.pop("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state.pop(f"{name}.bias"), padding=padding, **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return reference_norm(x, self.state.pop(f"{name}.weight"), self.state.pop(f"{name}.bias"), self.num_groups)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", swish(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", swish(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in ("query", "key", "value"))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1]), 2)
        return x + self.conv(f"{name}.out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))

    def middle(self, x: Tensor) -> Tensor:
        return self.block("middle_block2", self.attention("middle_attention", self.block("middle_block1", x)))

    def level(self, name: str, x: Tensor, num_blocks: int, has_attention: bool) -> Tensor:
        for j in range(num_blocks):
            x = self.block(f"{name}.blocks.{j}", x)
            if has_attention:
                x = self.attention(f"{name}.attentions.{j}", x)
        return x


@torch.no_grad()
def test_the_encoder_is_the_papers_and_its_parameters_have_their_public_names() -> None:
    module = encoder(attention_levels=(1, 2), res_blocks=2)
    shake_norms(module)
    images = random_maps(2, 3, 8, 12)
    names = Reference(module, 2)
    h = names.conv("conv_in", images)
    for i in range(3):
        h = names.level(f"levels.{i}", h, 2, i in (1, 2))
        if i < 2:
            h = names.conv(f"levels.{i}.resample", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    expected = names.conv("conv_out", swish(names.norm("norm_out", names.middle(h))))
    assert not names.state and expected.shape == (2, 5, 2, 3)
    torch.testing.assert_close(module(images), expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_the_decoder_is_the_papers_and_its_levels_are_named_in_running_order() -> None:
    module = decoder(attention_levels=(2,), res_blocks=2)
    shake_norms(module)
    features = random_maps(2, 5, 2, 3)
    names = Reference(module, 2)
    h = names.middle(names.conv("conv_in", features))
    for i in range(3):
        h = names.level(f"levels.{i}", h, 3, i == 0)  # the coarsest is level 2 of the encoder and runs first
        if i < 2:
            h = names.conv(f"levels.{i}.resample", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    expected = names.conv("conv_out", swish(names.norm("norm_out", h)))
    assert not names.state and expected.shape == (2, 3, 8, 12)
    torch.testing.assert_close(module(features), expected, rtol=1e-11, atol=1e-11)


def test_without_middle_attention_there_is_none() -> None:
    for make in (encoder, decoder):
        whole, without = set(make().state_dict()), set(make(middle_attention=False).state_dict())
        assert without < whole and all(name.startswith("middle_attention.") for name in whole - without)


@pytest.mark.parametrize(
    ("multipliers", "level", "expected"),
    [((1, 1, 2, 2, 4), 4, (29.3, 42.4)), ((1, 1, 2, 4), 3, (26.3, 38.3))],
    ids=["f16", "f8 Gumbel"],
)
def test_parameter_counts_are_those_of_the_published_models(
    multipliers: tuple[int, ...], level: int, expected: tuple[float, float]
) -> None:
    """In millions. imagenet_vqgan (1024 codes) and vqgan_gumbel_f8 of CompVis/taming-transformers, counted there."""
    with torch.device("meta"):
        sizes = {"base_width": 128, "multipliers": multipliers, "res_blocks": 2, "attention_levels": (level,)}
        both = Encoder(3, 256, **sizes), Decoder(3, 256, **sizes)  # type: ignore[arg-type]
    assert (millions(both[0]), millions(both[1])) == expected


# ---- sizes, shifts, dtypes


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (20, 4)])
def test_any_multiple_of_the_factor_gives_one_cell_for_each_square(height: int, width: int) -> None:
    model, images = autoencoder(), random_maps(2, 3, height, width)
    assert model.factor == 4
    values = model.encode(images)
    assert values.shape == (2, 6, height // 4, width // 4)
    torch.testing.assert_close(values, model.before(model.encoder(images)), rtol=0, atol=0)
    decoded = model.decode(values)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, model.decoder(model.after(values)), rtol=0, atol=0)
    torch.testing.assert_close(model.encode(images[1:]), values[1:], rtol=1e-9, atol=1e-9)  # images do not mix


@torch.no_grad()
def test_away_from_the_border_a_pattern_that_repeats_has_codes_that_repeat() -> None:
    """A cell is computed alike wherever it lies: what tells cells apart is only how far the border is."""
    module = encoder(multipliers=(1, 2), attention_levels=())
    values = module(random_maps(1, 3, 2, 2).repeat(1, 1, 20, 24))  # [1, 5, 20, 24]
    inside = values[:, :, 9:-9, 9:-9]  # the border reaches 3 pixels, then 7 cells
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside), rtol=1e-9, atol=1e-9)
    assert (values - inside[:, :, :1, :1]).abs().amax((0, 1))[0].min() > 1e-6


@torch.no_grad()
def test_away_from_the_border_equal_codes_decode_to_a_pattern_with_the_period_of_the_factor() -> None:
    module = decoder(multipliers=(1, 2), attention_levels=())
    images = module(random_maps(1, 5, 1, 1).expand(1, 5, 28, 28))  # [1, 3, 56, 56]
    inside = images[:, :, 24:-24, 24:-24]  # the border reaches 9 cells, then 6 pixels
    torch.testing.assert_close(inside, inside[:, :, :2, :2].repeat(1, 1, 4, 4), rtol=1e-9, atol=1e-9)
    assert (images[:, :, :2, :2] - inside[:, :, :2, :2]).abs().max() > 1e-6


def test_forward_decodes_what_the_quantiser_gave_and_passes_gradients_straight_through() -> None:
    model, images = autoencoder(), random_maps(2, 3, 8, 8)
    reconstruction, quantised = model(images)
    z = model.encode(images)
    torch.testing.assert_close(quantised.values, z.round())
    torch.testing.assert_close(reconstruction, model.decode(z.round()))
    reconstruction.square().mean().backward()
    gradient = model.encoder.conv_in.weight.grad
    assert gradient is not None and gradient.abs().min() > 0
    assert model.last_layer is model.decoder.conv_out.weight


@torch.no_grad()
@pytest.mark.parametrize(("base_width", "is_last"), [(6, False), (8, True)])
def test_with_groups_of_four_channels_or_more_processors_have_channels_last(base_width: int, is_last: bool) -> None:
    model, images = autoencoder(base_width=base_width), random_maps(2, 3, 8, 12)
    values = model.encode(images)
    decoded = model.decode(values)
    for maps in (values, decoded):
        assert maps.is_contiguous(memory_format=torch.channels_last) == is_last
        assert maps.is_contiguous() != is_last
    torch.testing.assert_close(values, model.before(model.encoder(images)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decoded, model.decoder(model.after(values.contiguous())), rtol=1e-9, atol=1e-9)


def test_under_bfloat16_results_and_gradients_are_those_of_float32_but_for_rounding() -> None:
    model, images = autoencoder().float(), random_maps(2, 3, 8, 8).float()
    found = []
    for is_low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            decoded = model.decode(model.encode(images))
        assert decoded.dtype == (torch.bfloat16 if is_low else torch.float32)
        gradient = torch.autograd.grad(decoded.float().square().mean(), model.encoder.conv_in.weight)[0]
        found.append((decoded.float(), gradient))
    for exact, low in zip(*found, strict=True):
        assert 0 < (exact - low).norm() < 0.1 * exact.norm()  # some forty operations, each rounded to 2^-9


# ---- what is refused


@pytest.mark.parametrize(("height", "width"), [(10, 8), (8, 10), (3, 3), (0, 4)])
def test_sides_that_are_no_multiple_of_the_factor_are_refused(height: int, width: int) -> None:
    with pytest.raises(ShapeError, match=f"images are {height}x{width} pixels.* multiples of 4"):
        autoencoder().encode(random_maps(1, 3, height, width))


@pytest.mark.parametrize(
    "images",
    [
        random_maps(1, 1, 8, 8),
        random_maps(3, 8, 8),
        random_maps(1, 8, 8, 3),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)
def test_encode_refuses_other_shapes_and_dtypes(images: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        autoencoder().encode(images)
    assert f"images are {images.dtype} {list(images.shape)}" in str(caught.value)
    assert "float [B, 3, height, width]" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [random_maps(1, 5, 2, 2), random_maps(6, 2, 2), torch.zeros(1, 6, 2, 2, dtype=torch.int64)],
    ids=lambda values: f"{values.dtype} {list(values.shape)}",
)
def test_decode_refuses_other_shapes_and_dtypes(values: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        autoencoder().decode(values)
    assert f"values are {values.dtype} {list(values.shape)}" in str(caught.value)
    assert "float [B, 6, height, width]" in str(caught.value)


@pytest.mark.parametrize("make", [encoder, decoder])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"norm_groups": 32},
            r"norm_groups = 32 does not divide (4|8) channels.*Use norm_groups of 1, 2, 4",
        ),
        ({"norm_groups": 3}, r"norm_groups = 3 does not divide (4|8) channels"),
        ({"norm_groups": 0}, r"norm_groups = 0 does not divide"),
        ({"multipliers": ()}, r"multipliers = \[\]"),
        ({"multipliers": (1, 0, 2)}, r"multipliers = \[1, 0, 2\].* at least 1"),
        ({"res_blocks": 0}, r"res_blocks = 0.* at least 1"),
        ({"attention_levels": (1, 3)}, r"attention_levels = \[1, 3\]: there is no level 3.* 0 \(finest\) to 2"),
        ({"attention_levels": (-1,)}, r"attention_levels = \[-1\]: there is no level -1"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(
    make: Callable[..., nn.Module], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_an_encoder_and_a_decoder_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="z_channels = 7, but the encoder gives 5 and the decoder takes 5 channels"):
        VQAutoencoder(encoder(), decoder(), Rounding(), z_channels=7, dim=6)
    with pytest.raises(ConfigError, match="makes sides 4 times smaller, the decoder 2 times larger"):
        VQAutoencoder(encoder(), decoder(multipliers=(1, 2)), Rounding(), z_channels=5, dim=6)
