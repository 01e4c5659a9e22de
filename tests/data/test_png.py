"""Contact sheets pixel by pixel; PNG files that give back the picture and the record."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from rasterformer.data.png import GAP_VALUE, image_grid, png_bytes, read_png_metadata, to_pil, write_png
from rasterformer.errors import ConfigError, DataError, ShapeError


def random_images(num_images: int, height: int = 4, width: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8, generator=rng)


def test_each_sheet_pixel_is_its_images_pixel_or_the_gap():
    images, columns, scale, gap = random_images(5, 2, 3), 3, 2, 1
    sheet = image_grid(images, columns=columns, scale=scale, gap=gap)
    cell_height, cell_width = 2 * scale + gap, 3 * scale + gap
    assert sheet.shape == (3, 2 * cell_height - gap, columns * cell_width - gap)
    for row in range(sheet.shape[1]):
        for column in range(sheet.shape[2]):
            index = row // cell_height * columns + column // cell_width
            y, x = row % cell_height // scale, column % cell_width // scale
            inside = index < 5 and y < 2 and x < 3
            expected = images[index, :, y, x].tolist() if inside else [GAP_VALUE] * 3
            assert sheet[:, row, column].tolist() == expected


@pytest.mark.parametrize(
    ("num_images", "height", "width", "rows", "columns"),
    [(1, 4, 4, 1, 1), (16, 4, 4, 4, 4), (10, 4, 4, 3, 4), (8, 2, 8, 4, 2), (2, 8, 2, 1, 2)],
)
def test_sheet_is_nearly_square_by_default(num_images, height, width, rows, columns):
    sheet = image_grid(random_images(num_images, height, width), gap=0)
    assert sheet.shape == (3, rows * height, columns * width)


def test_grid_refuses_other_than_uint8_rgb_batches():
    for wrong in (random_images(2).float(), random_images(2)[0], random_images(2)[:, :1], random_images(2)[:0]):
        with pytest.raises(ShapeError, match=rf"{str(wrong.dtype)[6:]} and shape \[{wrong.shape[0]},"):
            image_grid(wrong)
        with pytest.raises(ShapeError, match=rf"{str(wrong.dtype)[6:]} and shape \[{wrong.shape[0]},"):
            to_pil(wrong)


@pytest.mark.parametrize("option", [{"columns": 0}, {"scale": 0}, {"gap": -1}])
def test_grid_refuses_impossible_options(option):
    [(name, value)] = option.items()
    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        image_grid(random_images(1), **option)


def test_pil_images_hold_the_same_pixels():
    images = random_images(2, 3, 5)
    for image, picture in zip(images, to_pil(images), strict=True):
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


def test_written_file_gives_back_pixels_and_record(tmp_path):
    image = random_images(1, 5, 7)[0]
    metadata = {"prompt": "日本の花 🌸 «é»", "seed": 3, "options": {"temperature": 0.9, "top_k": None}}
    path = tmp_path / "new" / "folder" / "picture.png"
    write_png(path, image, metadata=metadata)
    assert read_png_metadata(path) == metadata
    with Image.open(path) as picture:
        assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), image)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_record_is_an_international_text_chunk():
    payload = png_bytes(random_images(1)[0], metadata={"name": "é"})
    start = payload.index(b"iTXt") + 4
    assert payload[start:].startswith(b'rasterformer\0\0\0\0\0{"name": "\xc3\xa9"}')  # keyword, flags, UTF-8 text


def test_file_without_record_gives_none(tmp_path):
    write_png(tmp_path / "plain.png", random_images(1)[0])
    assert read_png_metadata(tmp_path / "plain.png") is None


def test_metadata_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "picture.png"
    write_png(path, random_images(1)[0], metadata={"seed": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_png(path, random_images(1)[0], metadata={"loss": float("nan")})
    with pytest.raises(TypeError, match="Tensor"):
        write_png(path, random_images(1)[0], metadata={"loss": torch.zeros(())})
    assert read_png_metadata(path) == {"seed": 1}


def test_write_refuses_a_batch():
    with pytest.raises(ShapeError, match=r"shape \[1, 3, 4, 4\]"):
        png_bytes(random_images(1))


def test_write_below_a_file_names_the_path(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file/picture.png cannot be written"):
        write_png(tmp_path / "file" / "picture.png", random_images(1)[0])


def test_failed_replacement_leaves_no_partial_file(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(DataError, match="picture.png cannot be written"):
        write_png(tmp_path / "picture.png", random_images(1)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_reading_names_a_missing_and_a_foreign_file(tmp_path):
    with pytest.raises(DataError, match=r"missing\.png cannot be read"):
        read_png_metadata(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png cannot be read"):
        read_png_metadata(tmp_path / "text.png")


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "JSON list")])
def test_reading_refuses_a_damaged_record(tmp_path, text, message):
    record = PngImagePlugin.PngInfo()
    record.add_itxt("rasterformer", text)
    to_pil(random_images(1))[0].save(tmp_path / "odd.png", pnginfo=record)
    with pytest.raises(DataError, match=f"odd.png.*{message}"):
        read_png_metadata(tmp_path / "odd.png")
