"""One documented result for every odd image, one reason for every refused one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rasterformer.data.decode as decode
from rasterformer.data import decode_file, decode_image
from rasterformer.data.decode import to_labels
from rasterformer.errors import DataError


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def pixels_of(content: bytes) -> list[list[list[int]]]:
    return np.asarray(decode_image(content).image).tolist()


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
THREE = Image.fromarray(np.array([[RED, GREEN, BLUE]], np.uint8))


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {}), ("GIF", {})]
)
def test_lossless_formats_give_their_pixels(format: str, options: dict[str, object]) -> None:
    decoded = decode_image(saved(THREE, format, **options))
    assert np.asarray(decoded.image).tolist() == [[RED, GREEN, BLUE]]
    assert (decoded.format, decoded.repairs) == (format, ())


def test_jpeg_is_read() -> None:
    decoded = decode_image(saved(Image.new("RGB", (8, 8), (200, 100, 50)), "JPEG", quality=100))
    assert decoded.format == "JPEG"
    assert np.abs(np.asarray(decoded.image).astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(2, [[2, 1], [4, 3]]), (3, [[4, 3], [2, 1]]), (6, [[3, 1], [4, 2]]), (8, [[2, 4], [1, 3]])],
)
def test_exif_orientation_turns_the_image_upright(format: str, orientation: int, expected: list[list[int]]) -> None:
    # EXIF 2.3, tag 0x0112: 2 mirrored, 3 turned by 180, 6 to be turned clockwise by 90, 8 counter-clockwise
    grey = np.kron(np.array([[1, 2], [3, 4]], np.uint8) * 50, np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode_image(saved(Image.fromarray(grey), format, exif=exif, **options))
    corners = np.asarray(decoded.image)[8::16, 8::16, 0] / 50
    assert corners.round().astype(int).tolist() == expected
    assert decoded.repairs == ("turned upright by its EXIF orientation",)


def test_16_bit_grey_is_divided_by_257_and_rounded() -> None:
    values = [0, 128, 129, 257, 40_000, 65_406, 65_407, 65_535]
    content = png(8, 1, depth=16, colour=0, rows=b"\0" + np.array(values, ">u2").tobytes())
    assert [pixel[0] for pixel in pixels_of(content)[0]] == [round(value / 257) for value in values]
    tiff = saved(Image.fromarray(np.array([values], np.uint16)), "TIFF")
    assert pixels_of(tiff) == pixels_of(content)


def test_16_bit_grey_with_a_transparent_value_shows_white_there() -> None:
    rows = b"\0" + np.array([0, 514], ">u2").tobytes()
    content = png(2, 1, depth=16, colour=0, rows=rows, extra=chunk(b"tRNS", struct.pack(">H", 514)))
    assert pixels_of(content) == [[[0, 0, 0], WHITE]]


def test_16_bit_colour_keeps_its_high_byte_and_says_so() -> None:
    decoded = decode_image(png(1, 1, depth=16, colour=2, rows=b"\0" + np.array([65_535, 0x1234, 0], ">u2").tobytes()))
    assert np.asarray(decoded.image).tolist() == [[[255, 0x12, 0]]]
    assert decoded.repairs == ("high byte of 16-bit samples",)


def test_alpha_is_composited_on_white_and_hides_what_is_transparent() -> None:
    layered = Image.fromarray(np.array([[[9, 8, 7, 0], [0, 0, 0, 128], [1, 2, 3, 255]]], np.uint8), "RGBA")
    decoded = decode_image(saved(layered, "PNG"))
    assert np.asarray(decoded.image).tolist() == [[WHITE, [127, 127, 127], [1, 2, 3]]]
    assert decoded.repairs == ("transparency composited on white",)


def test_palette_with_transparent_entry_is_composited_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixels_of(saved(palette, "PNG")) == [[RED, BLUE]]
    assert pixels_of(saved(palette, "PNG", transparency=0)) == [[WHITE, BLUE]]


def test_cmyk_is_converted() -> None:
    decoded = decode_image(saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"))
    assert np.asarray(decoded.image).tolist() == [[RED]]
    assert decoded.repairs == ("CMYK converted without its profile",)


def test_grey_and_bilevel_become_rgb_without_being_called_repaired() -> None:
    assert decode_image(saved(Image.new("L", (1, 1), 77), "PNG")).image.getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(saved(Image.new("1", (1, 1), 1), "PNG")).repairs == ()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode_image(saved(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert decoded.image.getpixel((0, 0)) == (255, 0, 0)
    assert "first frame of several" in decoded.repairs


@pytest.mark.parametrize(
    ("mode", "value", "words"), [("F", 0.5, "floating-point samples"), ("I", 70_000, "32-bit integer samples")]
)
def test_samples_without_a_stated_white_are_refused(mode: str, value: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        decode_image(saved(Image.new(mode, (2, 2), value), "TIFF"))


@pytest.mark.parametrize(
    ("width", "height", "received"),
    [
        (32_769, 600, "32769x600 pixels, a side"),
        (8_001, 8_000, "8001x8000 pixels are more"),
        (650, 10, "650x10 .*64:1"),
    ],
)
def test_size_is_refused_from_the_header_alone(width: int, height: int, received: str) -> None:
    with pytest.raises(DataError, match=received):
        decode_image(png(width, height, depth=8, colour=0, rows=b""))  # has no pixels that could be decoded


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(DataError, match="not a PNG/JPEG/WEBP/TIFF/BMP/GIF image"):
        decode_image(saved(Image.new("RGB", (16, 16)), format))


def test_damaged_files_are_refused_wherever_they_are_cut(noise) -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        content = saved(Image.fromarray(noise(16, 16)), format)
        for length in range(1, len(content) - 20, 37):
            with pytest.raises(DataError):
                decode_image(content[:length])


def test_file_that_is_empty_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty file \(0 bytes\)"):
        decode_file(tmp_path / "empty.png")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        decode_file(tmp_path / "gone.png")
    with pytest.raises(DataError, match="not a regular file"):
        decode_file(tmp_path)


def test_file_above_64_megabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(decode.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="file of 64000001 bytes, at most 64000000"):
        decode_file(tmp_path / "big.png")


LABELS = np.array([[0, 1, 2], [11, 200, 255]], np.uint8)


def labels_of(content: bytes) -> np.ndarray:
    image = decode_image(content, "labels").image
    assert image.mode == "RGB"
    channels = np.asarray(image)
    assert (channels == channels[..., :1]).all()
    return channels[..., 0]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_a_grey_label_map_gives_its_values(format: str) -> None:
    assert np.array_equal(labels_of(saved(Image.fromarray(LABELS), format)), LABELS)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_a_palette_label_map_gives_its_indices_and_not_its_colours(format: str) -> None:
    palette = Image.fromarray(LABELS, "P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert np.array_equal(labels_of(saved(palette, format)), LABELS)
    assert not np.array_equal(np.asarray(decode_image(saved(palette, format)).image)[..., 0], LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_entries_gives_indices_too(bits: int) -> None:
    labels = np.arange(8, dtype=np.uint8).reshape(2, 4) % 2**bits
    palette = Image.fromarray(labels, "P")
    palette.putpalette(list(range(200, 200 + 3 * 2**bits)))
    assert np.array_equal(labels_of(saved(palette, "PNG", bits=bits)), labels)


def test_label_maps_in_other_layouts_give_their_values() -> None:
    assert np.array_equal(labels_of(saved(Image.fromarray(LABELS).convert("RGB"), "PNG")), LABELS)
    assert np.array_equal(labels_of(saved(Image.fromarray(LABELS.astype(np.uint16)), "PNG")), LABELS)
    assert labels_of(saved(Image.fromarray(LABELS > 1), "PNG")).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_a_label_map_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    assert np.array_equal(labels_of(saved(Image.fromarray(LABELS), "PNG", exif=exif)), LABELS[::-1, ::-1])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_label_map_with_transparency_is_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode {mode} with transparency: a label map needs one channel"):
        decode_image(saved(Image.new(mode, (2, 2)), "PNG"), "labels")
    with pytest.raises(DataError, match="mode P with transparency"):
        decode_image(saved(Image.fromarray(LABELS, "P"), "PNG", transparency=0), "labels")


def test_a_label_map_in_colours_is_refused() -> None:
    with pytest.raises(DataError, match="mode RGB with channels that differ: a label map needs one channel"):
        decode_image(saved(THREE, "PNG"), "labels")


@pytest.mark.parametrize(
    ("values", "received"),
    [
        (np.array([[3, 256]], np.uint16), r"values 3\.\.256"),
        (np.array([[-1, 5]], np.int32), r"values -1\.\.5"),
        (np.array([[0.5, 2.0]], np.float32), r"values 0\.5\.\.2\.0"),
    ],
)
def test_label_maps_of_other_values_are_refused(values: np.ndarray, received: str) -> None:
    with pytest.raises(DataError, match=received + ": a label map needs whole numbers 0..255"):
        to_labels(Image.fromarray(values))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_a_label_map_in_a_format_that_may_change_values_is_refused(format: str) -> None:
    with pytest.raises(DataError, match=f"a label map in {format}, .* Save it as PNG"):
        decode_image(saved(Image.fromarray(LABELS), format), "labels")
