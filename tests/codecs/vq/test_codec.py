"""Images <-> codes around a real, tiny autoencoder: what the encoder sees, orders, round trips, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.codec import CodeCodec, network_input, to_pictures
from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.errors import ShapeError


def autoencoder(channels: int = 3) -> VQAutoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"base_width": 4, "multipliers": (1, 1), "res_blocks": 1, "attention_levels": (),
                             "middle_attention": False, "norm_groups": 2}  # fmt: skip
    quantiser = VectorQuantiser(9, 3)
    torch.nn.init.normal_(quantiser.codebook)
    parts = Encoder(channels, 4, **sizes), Decoder(channels, 4, **sizes)
    return VQAutoencoder(*parts, quantiser, z_channels=4, dim=3).eval()


def random_images(batch: int = 3, height: int = 8, width: int = 8, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, high, (batch, 3, height, width), dtype=torch.uint8, generator=rng)


def test_levels_0_to_255_become_minus_1_to_1() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    seen = network_input(images, "rgb")
    expected = [[[[level / 127.5 - 1 for level in range(row, row + 16)] for row in range(0, 256, 16)]] * 3]
    torch.testing.assert_close(seen, torch.tensor(expected))
    assert float(seen.min()) == -1 and float(seen.max()) == 1
    assert torch.equal(network_input(images, "grey"), seen[:, :1])


@pytest.mark.parametrize("pictures", ["rgb", "grey"])
def test_pictures_are_the_inverse_of_what_the_encoder_sees(pictures: Any) -> None:
    images = random_images() if pictures == "rgb" else random_images()[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(to_pictures(network_input(images, pictures), pictures), images)


def test_pictures_are_rounded_and_clamped() -> None:
    output = torch.tensor([-7.0, -1.0, -0.9951, -0.001, 0.001, 0.9, 1.0, 3.0]).view(1, 1, 2, 4)
    assert to_pictures(output, "grey")[0, 2].flatten().tolist() == [0, 0, 1, 127, 128, 242, 255, 255]


def test_labels_are_one_hot_and_come_back_as_the_likeliest() -> None:
    images = random_images(high=5)[:, :1].expand(-1, 3, -1, -1)
    seen = network_input(images, "labels", 5)
    for b, row, col in [(0, 0, 0), (1, 3, 5), (2, 7, 7)]:
        assert seen[b, :, row, col].tolist() == [float(label == images[b, 0, row, col]) for label in range(5)]
    assert seen.shape == (3, 5, 8, 8) and seen.dtype == torch.float32
    assert torch.equal(to_pictures(seen + 0.3 * torch.rand(seen.shape), "labels"), images)


def test_one_channel_is_enough() -> None:
    images = random_images()[:, :1]
    for pictures in ("rgb", "grey"):
        assert torch.equal(network_input(images, pictures), network_input(images.expand(-1, 3, -1, -1), pictures))


@pytest.mark.parametrize("order", ["raster", "spiral_in", "morton", "random"])
def test_codes_come_in_generation_order(order: Any) -> None:
    model, images, cells = autoencoder(), random_images(), code_order(order, (4, 4))
    codec = CodeCodec(model, 8, order=cells)
    x = codec.encode(images)
    with torch.no_grad():
        codes = model(images.float() / 127.5 - 1)[1].codes
    assert len(codes.unique()) > 1
    assert x.shape == (3, 16, 1) and x.dtype == torch.int64
    assert x[1, :, 0].tolist() == [int(codes[1, cell // 4, cell % 4]) for cell in cells.tolist()]
    assert torch.equal(codec.to_grid(x), codes) and torch.equal(codec.to_x(codes), x)


def test_decode_is_what_the_autoencoder_reconstructs() -> None:
    model, images = autoencoder(), random_images()
    codec = CodeCodec(model, 8, order=code_order("spiral_out", (4, 4)))
    with torch.no_grad():
        output, _ = model(images.float() / 127.5 - 1)
    expected = ((output.clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    assert torch.equal(codec.decode(codec.encode(images)), expected)
    assert not codec.lossless and codec.vocab_size == 9
    assert codec.image_shape == (3, 8, 8) and codec.x_shape == (16, 1) and codec.grid == (4, 4)


def test_any_multiple_of_the_factor_has_codes_and_images() -> None:
    codec = CodeCodec(autoencoder(), 8)
    codes = codec.codes(random_images(2, 6, 12))
    assert codes.shape == (2, 3, 6) and codec.images(codes).shape == (2, 3, 6, 12)
    with pytest.raises(ShapeError, match="7x8 pixels.*multiples of 2"):
        codec.codes(random_images(2, 7, 8))


def test_codes_and_images_of_label_maps() -> None:
    codec = CodeCodec(autoencoder(5), 8, pictures="labels", num_labels=5)
    images = codec.decode(codec.encode(random_images(high=5)))
    assert images.dtype == torch.uint8 and int(images.max()) < 5
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_nothing_here_is_differentiated() -> None:
    codec = CodeCodec(autoencoder(), 8)
    assert not codec.encode(random_images()).requires_grad
    assert not codec.images(torch.zeros(1, 4, 4, dtype=torch.int64)).requires_grad


@pytest.mark.parametrize(
    "images",
    [
        random_images().float(),
        random_images(3, 10, 8),
        random_images(3, 8, 10),
        random_images()[:, :2],
        random_images()[0],
    ],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)
def test_encode_refuses_other_shapes_and_dtypes(images: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        CodeCodec(autoencoder(), 8).encode(images)
    assert str(list(images.shape)) in str(caught.value) and str(images.dtype) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 15, 1), (2, 16, 2), (2, 16), (2, 4, 4)])
def test_decode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        CodeCodec(autoencoder(), 8).decode(torch.zeros(shape, dtype=torch.int64))
    assert str(list(shape)) in str(caught.value) and "[B, 16, 1]" in str(caught.value)


def test_a_label_above_the_last_is_refused() -> None:
    images = random_images(high=5)
    images[1, 0, 2, 3] = 5
    with pytest.raises(ShapeError, match=r"holds the label 5, but the model knows 5: 0\.\.4"):
        CodeCodec(autoencoder(5), 8, pictures="labels", num_labels=5).encode(images)


def test_a_size_that_is_no_multiple_of_the_factor_is_refused() -> None:
    with pytest.raises(ShapeError, match="images of 9 pixels are no multiple of the tokenizer's factor 2"):
        CodeCodec(autoencoder(), 9)
