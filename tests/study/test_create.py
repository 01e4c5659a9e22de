"""Folders -> pairs: what is drawn, what is shown, what is refused."""

import io
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from rasterformer.data.png import write_png
from rasterformer.errors import ConfigError, DataError
from rasterformer.study.create import create_study, study_png
from rasterformer.study.store import Condition, Pair, Store


def pairs_of(path: Path) -> list[Pair]:
    with Store(path) as store:
        return list(store.pairs().values())


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(png)))


def chunks(png: bytes) -> list[bytes]:
    """Names of the chunks of a PNG file (PNG specification, section 5.3)."""
    found, at = [], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        name, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(name + content) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        found.append(name)
        at += 12 + length
    return found


def test_conditions_are_read_from_the_files_and_each_gets_its_pairs(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    done = create_study(real, [generated], tmp_path / "study.db", pairs=3, checks=2)
    counts = Counter(pair.condition for pair in pairs_of(tmp_path / "study.db"))
    assert counts == {Condition("runs/a", 0.9): 3, Condition("runs/a", 1.0): 3, None: 2}
    assert done.sides == {Condition("runs/a", 0.9): 8, Condition("runs/a", 1.0): 8} and done.reduced == 8


def test_contact_sheet_is_skipped_and_said(real: Path, generated: Path, tmp_path: Path) -> None:
    done = create_study(real, [generated], tmp_path / "study.db", pairs=4, checks=0)  # all four of each temperature
    assert [(Path(file).name, reason) for file, reason in done.skipped] == [("grid.png", "a contact sheet, no sample")]


def test_no_image_is_drawn_twice(real: Path, generated: Path, tmp_path: Path) -> None:
    create_study(real, [generated], tmp_path / "study.db", pairs=4, checks=4)
    pairs = pairs_of(tmp_path / "study.db")
    assert len({pair.real for pair in pairs}) == len({pair.generated for pair in pairs}) == 12


def test_pairs_follow_the_seed(real: Path, generated: Path, tmp_path: Path) -> None:
    drawn = []
    for k, seed in enumerate((0, 0, 1)):
        create_study(real, [generated], tmp_path / f"{k}.db", pairs=2, checks=1, seed=seed)
        drawn.append(pairs_of(tmp_path / f"{k}.db"))
    assert drawn[0] == drawn[1] != drawn[2]


def test_folders_name_the_conditions_of_files_without_a_record(real: Path, tmp_path: Path) -> None:
    for folder in ("both/one", "both/other", "third/one"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / folder / f"{k}.png")
    create_study(real, [tmp_path / "both", tmp_path / "third"], tmp_path / "study.db", pairs=2, checks=0)
    models = {pair.condition.model for pair in pairs_of(tmp_path / "study.db") if pair.condition}
    assert models == {str(tmp_path / "both/one"), str(tmp_path / "third/one"), "other"}


def test_name_and_temperature_serve_files_without_a_record(real: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn/a.bmp")
    out = tmp_path / "study.db"
    create_study(real, [tmp_path / "drawn"], out, pairs=1, checks=0, name="theirs", temperature=0.8)
    assert pairs_of(out)[0].condition == Condition("theirs", 0.8)


def test_real_images_are_reduced_to_the_generated_size_by_area_and_both_enlarged_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = blocks.repeat(3, 0).repeat(3, 1)  # whose mean over areas is `blocks`
    assert study_png(Image.fromarray(large), 8) == study_png(Image.fromarray(blocks), 8)
    shown = pixels(study_png(Image.fromarray(blocks), 8)).astype(float)
    at = (np.arange(128) + 0.5) / 16 - 0.5  # bilinear: linear between centres, constant beyond the outer ones
    rows = np.stack([np.interp(at, np.arange(8), blocks[:, c, k]) for c in range(8) for k in range(3)])
    rows = rows.reshape(8, 3, 128)
    expected = np.stack([[np.interp(at, np.arange(8), rows[:, k, y]) for k in range(3)] for y in range(128)])
    assert np.abs(shown - expected.transpose(0, 2, 1)).max() <= 1  # Pillow rounds after each direction


def test_the_largest_centred_square_is_shown() -> None:
    wide = np.zeros((8, 12, 3), dtype=np.uint8)
    wide[:, 2:10] = 200
    assert (pixels(study_png(Image.fromarray(wide), 8)) == 200).all()


def test_pictures_carry_nothing_but_pixels_and_are_equally_long(real: Path, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for path in real.iterdir():
        Image.open(path).save(path, icc_profile=profile, dpi=(300, 300), pnginfo=None)
    (tmp_path / "drawn").mkdir()
    for k in range(3):
        image = torch.full((3, 8, 8), k, dtype=torch.uint8)
        write_png(tmp_path / f"drawn/{k}.png", image, metadata={"model": "secret-model", "temperature": 1.0})
    create_study(real, [tmp_path / "drawn"], tmp_path / "study.db", pairs=3, checks=1)
    pictures = [png for pair in pairs_of(tmp_path / "study.db") for png in (pair.real, pair.generated)]
    assert len({len(png) for png in pictures}) == 1
    assert len({png[:33] for png in pictures}) == 1  # signature and IHDR
    assert len({tuple(chunks(png)) for png in pictures}) == 1
    assert all(set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"} for png in pictures)
    assert not any(b"secret-model" in png for png in pictures)


def test_a_check_shows_noise_instead_of_a_generated_image(tmp_path: Path) -> None:
    for folder in ("real", "drawn"):
        (tmp_path / folder).mkdir()
        for k in range(2):
            Image.new("RGB", (32, 32), (90 + k,) * 3).save(tmp_path / folder / f"{k}.png")
    create_study(tmp_path / "real", [tmp_path / "drawn"], tmp_path / "study.db", pairs=1, checks=1)
    (check,) = [pair for pair in pairs_of(tmp_path / "study.db") if pair.condition is None]
    assert pixels(check.real).std() == 0 and pixels(check.generated).std() > 30


def test_broken_and_small_real_images_are_passed_over_and_named(real: Path, generated: Path, tmp_path: Path) -> None:
    (real / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (7, 20)).save(real / "small.png")
    done = create_study(real, [generated], tmp_path / "study.db", pairs=4, checks=4)  # needs all 12 good ones
    reasons = {Path(file).name: reason for file, reason in done.skipped}
    assert set(reasons) <= {"broken.png", "small.png", "grid.png"}
    with pytest.raises(DataError, match="12 of 14 real images can be used, 13 are needed.*2 passed over"):
        create_study(real, [generated], tmp_path / "more.db", pairs=4, checks=5)
    assert not (tmp_path / "more.db").exists()


def test_too_few_generated_images_are_counted(real: Path, generated: Path, tmp_path: Path) -> None:
    message = "runs/a, temperature 0.9: 4 of 4 generated images can be used, 5 are needed"
    with pytest.raises(DataError, match=message):
        create_study(real, [generated], tmp_path / "study.db", pairs=5)


def test_no_image_at_all_names_a_reason(real: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no generated image can be used; 1 passed over, the first one .*a\.png"):
        create_study(real, [tmp_path / "drawn"], tmp_path / "study.db")


def test_sizes_may_not_differ_within_a_condition(real: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    for side in (8, 12):
        Image.new("RGB", (side, side)).save(tmp_path / f"drawn/{side}.png")
    with pytest.raises(DataError, match="12x12.*8x8|8x8.*12x12"):
        create_study(real, [tmp_path / "drawn"], tmp_path / "study.db", pairs=2)


def test_an_existing_study_is_left_as_it_is(real: Path, generated: Path, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"precious")
    with pytest.raises(DataError, match="study.db exists already"):
        create_study(real, [generated], tmp_path / "study.db", pairs=1)
    assert (tmp_path / "study.db").read_bytes() == b"precious"


def test_missing_and_nested_folders_are_named(real: Path, generated: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        create_study(real, [tmp_path / "nowhere"], tmp_path / "study.db")
    with pytest.raises(DataError, match="one of them lies in the other"):
        create_study(tmp_path, [generated], tmp_path / "study.db")


@pytest.mark.filterwarnings("ignore:seconds = ")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs = 0"),
        ({"checks": -1}, "checks = -1"),
        ({"seconds": 0.0}, "seconds = 0.0"),
        ({"seconds": 61.0}, "seconds = 61.0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"pairs": 1, "checks": 0, "name": "mine"}, "name = mine, .*own record"),
    ],
)
def test_options_out_of_range_are_named(
    options: dict[str, Any], message: str, real: Path, generated: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_study(real, [generated], tmp_path / "study.db", **options)


def test_no_generated_folder_is_refused(real: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of generated images"):
        create_study(real, [], tmp_path / "study.db")


def test_a_time_outside_the_papers_is_warned_of(real: Path, generated: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="seconds = 3.0: the paper"):
        create_study(real, [generated], tmp_path / "study.db", pairs=1, checks=0, seconds=3.0)
