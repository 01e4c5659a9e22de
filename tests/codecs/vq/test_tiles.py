"""Decoding in tiles: the whole where it fits or where the decoder is local; smooth seams; never more than a tile at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.codec import CodeCodec, to_pictures
from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.codecs.vq.tiles import decode_in_tiles, encode_in_tiles
from rasterformer.errors import ConfigError, ShapeError


def autoencoder(channels: int = 3, *, norm: bool = True, kernel: int = 3) -> VQAutoencoder:
    """A real one. Without norms it is local; with kernel 1 each code decides its own pixels alone."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"base_width": 4, "multipliers": (1, 1), "res_blocks": 1, "attention_levels": (),
                             "middle_attention": False, "norm_groups": 2}  # fmt: skip
    quantiser = VectorQuantiser(9, 3)
    nn.init.normal_(quantiser.codebook)
    model = VQAutoencoder(Encoder(channels, 4, **sizes), Decoder(channels, 4, **sizes), quantiser, z_channels=4, dim=3)
    for name, module in list(model.decoder.named_modules()):
        parent = model.decoder.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.GroupNorm) and not norm:
            setattr(parent, name.rpartition(".")[2], nn.Identity())
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and kernel == 1:
            with torch.no_grad():
                centre = module.weight[:, :, 1:2, 1:2].clone()
                module.weight.zero_()[:, :, 1:2, 1:2] = centre
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(20)  # begins as good as constant
    return model.eval()


def random_codes(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 9, (batch, height, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole(model: VQAutoencoder, codes: Tensor) -> Tensor:
    return model.decode(model.quantiser.lookup(codes))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 8), (8, 1), (1, 1)])
def test_a_grid_that_fits_is_decoded_as_a_whole(height: int, width: int) -> None:
    model, codes = autoencoder(), random_codes(height, width)
    found = decode_in_tiles(model, codes, tile=8, overlap=4)
    assert torch.equal(found, to_pictures(whole(model, codes), "rgb"))
    assert found.dtype == torch.uint8 and found.shape == (2, 3, 2 * height, 2 * width)


TILINGS = [(8, 4), (8, 0), (6, 3), (5, 2), (1, 0), (4, 1)]


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
@pytest.mark.parametrize(("height", "width"), [(9, 16), (8, 11), (20, 3)])
def test_where_each_code_decides_its_own_pixels_tiles_are_the_whole(
    height: int, width: int, tile: int, overlap: int
) -> None:
    model, codes = autoencoder(norm=False, kernel=1), random_codes(height, width)
    found = decode_in_tiles(model, codes, tile=tile, overlap=overlap).int()
    expected = to_pictures(whole(model, codes), "rgb").int()
    assert int((found - expected).abs().max()) <= 1  # a mean of equal numbers may round differently
    assert float((found != expected).double().mean()) < 0.01
    assert len(expected.unique()) > 5


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
def test_weights_sum_to_one(tile: int, overlap: int) -> None:
    model = autoencoder()
    with torch.no_grad():
        model.decoder.conv_out.weight.zero_()
        model.decoder.conv_out.bias.copy_(torch.tensor([-0.5, 0.0, 0.7]))  # type: ignore[union-attr]
    found = decode_in_tiles(model, random_codes(11, 17), tile=tile, overlap=overlap)
    for channel, value in enumerate((-0.5, 0.0, 0.7)):
        level = (value + 1) * 127.5  # 127.5 may round to either side
        assert (found[:, channel].double() - level).abs().max() <= 0.5 + 1e-6


def test_a_local_decoder_gives_the_whole_away_from_the_tiles_borders() -> None:
    """A pixel is decided by codes up to 12 away: 9 convolutions of codes, 6 of pixels."""
    model, codes = autoencoder(norm=False), random_codes(6, 60)
    expected = to_pictures(whole(model, codes), "rgb")
    found = decode_in_tiles(model, codes, tile=48, overlap=4)  # columns 0..48 and 12..60
    differs = (found != expected).any(0).any(0).any(0).nonzero()[:, 0] // 2
    assert len(differs) and all(12 <= column < 24 or 36 <= column < 48 for column in differs.tolist())


def test_seams_are_slow_changes() -> None:
    """Two tiles that differ by a constant: across their overlap the image climbs in a straight line."""
    model = autoencoder(channels=1, norm=False)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.zero_()
    calls: list[float] = [-0.5, 0.5]
    biases = iter(calls)

    def set_bias(module: nn.Module, args: Any) -> None:
        with torch.no_grad():
            model.decoder.conv_out.bias.fill_(next(biases))  # type: ignore[union-attr]

    model.decoder.register_forward_pre_hook(set_bias)
    row = decode_in_tiles(model, random_codes(4, 12, 1), pictures="grey", tile=8, overlap=4)[0, 0, 3].int()
    low, high = round(0.5 * 127.5), round(1.5 * 127.5)
    assert row[:8].tolist() == [low] * 8 and row[16:].tolist() == [high] * 8
    line = [(-0.5 + (k + 1) / 9 + 1) * 127.5 for k in range(8)]
    assert row[8:16].tolist() == pytest.approx(line, abs=0.5 + 1e-4)


def test_the_decoder_never_sees_more_than_a_tile() -> None:
    model, seen = autoencoder(), list[tuple[int, ...]]()
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    decode_in_tiles(model, random_codes(10, 30, 1), tile=8, overlap=2)
    assert {shape[2:] for shape in seen} == {(8, 8)}
    assert len(seen) == 2 * 5  # rows from 0 and 2; columns from 0, 6, 12, 18 and 22
    seen.clear()
    decode_in_tiles(model, random_codes(3, 30, 1), tile=8, overlap=2)
    assert {shape[2:] for shape in seen} == {(3, 8)}


def test_labels_are_the_likeliest_of_the_mixture() -> None:
    model, codes = autoencoder(channels=5, norm=False, kernel=1), random_codes(4, 20)
    found = decode_in_tiles(model, codes, pictures="labels", tile=8, overlap=4)
    assert torch.equal(found[:, 0].long(), whole(model, codes).argmax(1))
    assert torch.equal(found[:, 1], found[:, 0])


@pytest.mark.parametrize(("tile", "overlap"), [(8, 5), (8, -1), (0, 0), (-2, 0)])
def test_tiles_that_make_no_sense_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"overlap = {overlap}.*tile = {tile}"):
        decode_in_tiles(autoencoder(), random_codes(9, 9), tile=tile, overlap=overlap)


def encoding(*, norm: bool) -> CodeCodec:
    """Of an autoencoder whose encoder, without norms, sees 9 codes to each side at most."""
    model = autoencoder()
    for module in model.encoder.modules():
        if isinstance(module, nn.GroupNorm) and not norm:
            module.forward = lambda h: h  # type: ignore[method-assign]
    with torch.no_grad():  # a codebook of what it sees, so that codes differ
        vectors = model.encode(torch.rand(1, 3, 24, 24) * 2 - 1).flatten(2)[0].T
        model.quantiser.codebook.copy_(vectors[:: len(vectors) // 9][:9])
    return CodeCodec(model, 8)


def random_images(height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=rng)


def test_an_image_that_fits_is_encoded_as_a_whole() -> None:
    codec, images = encoding(norm=True), random_images(16, 10)
    assert torch.equal(encode_in_tiles(codec, images, tile=8, overlap=4), codec.codes(images))


@pytest.mark.parametrize(("height", "width"), [(100, 84), (40, 130), (120, 48)])
def test_tiles_give_the_codes_of_the_whole_where_the_encoder_is_local(height: int, width: int) -> None:
    codec, images = encoding(norm=False), random_images(height, width)
    found = encode_in_tiles(codec, images, tile=40, overlap=20)
    assert torch.equal(found, codec.codes(images))
    assert len(found.unique()) > 3, "the codes say something"


def test_the_encoder_never_sees_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, seen = encoding(norm=True), list[torch.Size]()
    encode = codec.autoencoder.encode
    monkeypatch.setattr(codec.autoencoder, "encode", lambda images: seen.append(images.shape) or encode(images))
    codes = encode_in_tiles(codec, random_images(60, 44), tile=8, overlap=4)
    assert codes.shape == (2, 30, 22) and len(seen) > 10
    assert max(max(shape[2:]) for shape in seen) == 16


def test_sides_that_are_no_multiples_are_refused() -> None:
    with pytest.raises(ShapeError, match="41"):
        encode_in_tiles(encoding(norm=True), random_images(41, 40), tile=8, overlap=4)
    with pytest.raises(ConfigError, match="overlap = 5"):
        encode_in_tiles(encoding(norm=True), random_images(40, 40), tile=8, overlap=5)
