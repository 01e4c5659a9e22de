"""What holds for every set: refusals, the holdout, the fingerprint, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.data import EMBEDDED_SETS, open_images
from rasterformer.errors import ConfigError, DataError, ShapeError


def test_missing_path_is_named_with_the_embedded_sets() -> None:
    with pytest.raises(DataError, match="data.path = 'no/such/place': no such file or folder.*emoji, toonheads"):
        open_images("no/such/place", image_size=8)


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"image_size": 0}, "data.image_size = 0"),
        ({"split": "tests"}, "split = 'tests' is not known. Did you mean 'test'"),
        ({"holdout_fraction": 1.0}, "data.holdout_fraction = 1.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], received: str) -> None:
    with pytest.raises(ConfigError, match=received):
        open_images("toonheads", **({"image_size": 8} | options))


def test_unknown_embedded_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match="'embedded:toonhead'.*Did you mean 'toonheads'"):
        open_images("embedded:toonhead", image_size=8)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path.name}': no image in it. Allowed are PNG"):
        open_images(str(tmp_path), image_size=8)


def test_folder_with_only_broken_images_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match="none of its 2 images can be used; the first is 'a.png': not a PNG"):
        open_images(str(tmp_path), image_size=8)


def test_images_that_are_all_too_small_are_refused_with_the_size_that_fits(tmp_path: Path, write_image, noise) -> None:
    write_image(tmp_path / "a.png", noise(6, 5))
    write_image(tmp_path / "b.png", noise(7, 9))
    expected = (
        r"all 2 images are smaller than data.image_size = 8 \(from 5x6 to 9x7 pixels\).*image_size to 5 .*at most 7"
    )
    with pytest.raises(DataError, match=expected):
        open_images(str(tmp_path), image_size=8)


def test_file_that_is_no_set_is_refused(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png"])
    with pytest.raises(DataError, match="a.png': neither a folder nor an .npz file"):
        open_images(str(tmp_path / "a.png"), image_size=8)


def test_one_image_cannot_be_divided(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png"])
    with pytest.raises(DataError, match="one image cannot be divided"):
        open_images(str(tmp_path), image_size=8, split="test")


def test_empty_part_of_an_own_split_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train_images=np.zeros((2, 8, 8), np.uint8), test_images=np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match="this part of its own split is empty"):
        open_images(str(tmp_path / "x.npz"), image_size=8, split="test")


def contents(path: Path, split: str) -> set[bytes]:
    images = open_images(str(path), image_size=8, split=split, holdout_fraction=0.25)
    return {image.numpy().tobytes() for image in images.images(slice(None))}


def test_holdout_divides_the_images_and_new_ones_move_no_old_one(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, [f"{k}.png" for k in range(200)])
    train, test = contents(tmp_path, "train"), contents(tmp_path, "test")
    assert train | test == contents(tmp_path, "all") and not train & test
    assert 25 <= len(test) <= 75  # 50 expected, standard deviation 6.1: four of them
    write_folder(tmp_path, [f"{k}.png" for k in range(230)])
    assert train <= contents(tmp_path, "train") and test <= contents(tmp_path, "test")


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_holdout_of_few_images_leaves_neither_part_empty(tmp_path: Path, write_folder, fraction: float) -> None:
    write_folder(tmp_path, ["a.png", "b.png", "c.png"])
    sizes = [
        len(open_images(str(tmp_path), image_size=8, split=split, holdout_fraction=fraction))
        for split in ("train", "test")
    ]
    assert sorted(sizes) == [1, 2]


def test_holdout_is_named(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    origin = open_images(str(tmp_path), image_size=8, split="test", holdout_fraction=0.3).split_origin
    assert origin == "a hash of each image's name (holdout_fraction 0.3); the set has no split of its own"


def test_fingerprint_changes_with_names_sizes_and_array_content_only(tmp_path: Path, write_folder) -> None:
    def fingerprint(path: Path) -> str:
        return open_images(str(path), image_size=4).fingerprint

    one = fingerprint(write_folder(tmp_path / "one", ["a.png", "b.png"]))
    assert len(one) == 64 and one == fingerprint(write_folder(tmp_path / "two", ["a.png", "b.png"]))
    (tmp_path / "two/b.png").rename(tmp_path / "two/c.png")
    assert fingerprint(tmp_path / "two") != one
    array = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=array)
    before = fingerprint(tmp_path / "x.npz")
    array[1, 2, 3, 0] = 1
    np.savez(tmp_path / "x.npz", images=array)
    assert fingerprint(tmp_path / "x.npz") != before


def test_images_that_exceed_the_memory_are_decoded_when_asked_for(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "broken.png").write_bytes(b"broken")
    held = open_images(str(tmp_path), image_size=4)
    lazy = open_images(str(tmp_path), image_size=4, max_memory_bytes=4 * 3 * 4 * 4 - 1)
    assert held.in_memory and not lazy.in_memory
    for index in (slice(None), slice(1, 2), slice(0, 0), torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(held.images(index), lazy.images(index))
    assert held.skipped == lazy.skipped and held.fingerprint == lazy.fingerprint


def test_image_that_vanishes_after_opening_is_named(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png"])
    lazy = open_images(str(tmp_path), image_size=4, max_memory_bytes=0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="'a.png' was readable when the set was opened.*No such file"):
        lazy.images(slice(None))


def test_batch_has_the_labels_when_asked(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["cat/a.png", "dog/b.png"])
    images = open_images(str(tmp_path), image_size=8)
    batch = images.batch(torch.tensor([1, 0, 1]), use_labels=True)
    assert batch.cond.label is not None and batch.cond.label.tolist() == [1, 0, 1]
    assert torch.equal(batch.images, images.images(torch.tensor([1, 0, 1])))
    assert images.batch(torch.tensor([1]), use_labels=False).cond.label is None


def test_labels_are_refused_where_there_are_no_classes(tmp_path: Path, write_folder) -> None:
    images = open_images(str(write_folder(tmp_path, ["a.png"])), image_size=8)
    with pytest.raises(DataError, match=f"data.use_labels = true, but {tmp_path.name!r} has no classes"):
        images.batch(torch.tensor([0]), use_labels=True)


@pytest.mark.parametrize("index", [torch.tensor([[0]]), torch.tensor([0.0]), torch.tensor(0)])
def test_index_of_another_shape_or_dtype_is_refused(tmp_path: Path, write_folder, index: torch.Tensor) -> None:
    images = open_images(str(write_folder(tmp_path, ["a.png"])), image_size=8)
    with pytest.raises(ShapeError, match=r"It must be int64 \[n\]"):
        images.images(index)


def test_progress_ends_at_the_number_of_images(tmp_path: Path, write_folder) -> None:
    calls: list[tuple[int, int]] = []
    write_folder(tmp_path, ["a.png", "b.png"])
    open_images(str(tmp_path), image_size=8, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2, 2)


def test_order_of_many_images_is_kept_by_the_threads() -> None:
    whole = open_images("toonheads", image_size=8, split="test")
    sheet = Image.open(Path(open_images.__code__.co_filename).parent / "embedded/toonheads/test.webp").convert("RGB")
    tiles = np.asarray(sheet).reshape(10, 8, 4, 40, 8, 4, 3).mean((2, 5)).swapaxes(1, 2).reshape(400, 8, 8, 3)
    difference = np.abs(whole.images(slice(None)).numpy().transpose(0, 2, 3, 1) - tiles)
    assert difference.max() <= 0.5


@pytest.mark.parametrize(("name", "sizes", "num_classes"), [("toonheads", (5000, 400), 5), ("emoji", (2818, 305), 10)])
def test_embedded_sets_have_their_splits_classes_and_captions(
    name: str, sizes: tuple[int, int], num_classes: int
) -> None:
    assert name in EMBEDDED_SETS
    for split, size in zip(("train", "test"), sizes, strict=True):
        if split == "train" and name == "toonheads":
            continue  # half a second, and nothing that the test part does not show
        images = open_images(f"embedded:{name}", image_size=32, split=split)
        assert len(images) == size and images.lossless is True and images.skipped == ()
        assert len(images.class_names) == num_classes
        assert images.labels is not None and images.labels.shape == (size,)
        assert images.captions is not None and all(images.captions)
        assert (images.split_origin, images.preprocessing) == ("the set's own split", "none (stored at 32x32)")


def test_hair_colours_of_the_embedded_heads_fit_their_captions_and_pixels() -> None:
    images = open_images("toonheads", image_size=32, split="test")
    assert images.labels is not None and images.captions is not None
    names = [images.class_names[k] for k in images.labels.tolist()]
    # `brown` is also a word of `light brown` and of skin, so the caption is searched for `COLOUR hair`
    assert all(f"{name} hair" in caption or f"{name} bun" in caption or name in caption
               for name, caption in zip(names, images.captions, strict=True))  # fmt: skip
    top = images.images(slice(None))[:, :, 2:8, 10:22].float().mean((1, 2, 3))
    mean = {name: top[torch.tensor([n == name for n in names])].mean() for name in images.class_names}
    assert min(mean, key=mean.__getitem__) == "black" and max(mean, key=mean.__getitem__) == "blond"


def test_embedded_sets_are_small_and_carry_their_licences() -> None:
    root = Path(open_images.__code__.co_filename).parent / "embedded"
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 4_000_000
    assert "CC BY 4.0" in (root / "toonheads/ATTRIBUTION.md").read_text()
    assert "TERMS AND CONDITIONS" in (root / "emoji/LICENSE").read_text()


def test_variants_of_an_emoji_stay_in_one_part() -> None:
    root = Path(open_images.__code__.co_filename).parent / "embedded/emoji"
    tones = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}

    def bases(part: str) -> set[tuple[str, ...]]:
        with np.load(root / f"{part}.npz", allow_pickle=False) as arrays:
            codes = [[c for c in code.split("-") if c != "FE0F"] for code in arrays["unified"]]
            return {tuple(c for c in code if c not in tones or len(code) == 1) for code in codes}

    assert not bases("train") & bases("test")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reduction": "area"}, "centre crop to a square, reduced to 3x3 by area averaging, rounded down"),
        (
            {"reduction": "area", "fit": "stretch"},
            "both sides separately, reduced to 3x3 by area averaging, rounded down",
        ),
        (
            {"trim": (0, 1), "reduction": "area"},
            "0 rows above and below and 1 columns on either side cut off, then reduced to 3x3 by area averaging, rounded down",
        ),
        (
            {"trim": (1, 2)},
            "1 rows above and below and 2 columns on either side cut off, then reduced to 3x3 by box averaging",
        ),
    ],
)
def test_what_was_done_to_the_images_is_said(
    tmp_path: Path, write_image, noise, options: dict[str, object], said: str
) -> None:
    """Of 8x10 pixels."""
    write_image(tmp_path / "a.png", noise(8, 10))
    images = open_images(str(tmp_path), image_size=3, **options)
    assert images.preprocessing == said and len(images) == 1


def test_trimmed_images_are_the_same_in_memory_and_on_demand(tmp_path: Path, write_image, noise) -> None:
    pixels = noise(10, 8)
    write_image(tmp_path / "a.png", pixels)
    for max_memory_bytes in (1 << 20, 0):
        images = open_images(str(tmp_path), image_size=4, trim=(3, 2), max_memory_bytes=max_memory_bytes)
        assert np.array_equal(images.images(slice(None))[0].numpy(), pixels[3:7, 2:6].transpose(2, 0, 1))


def test_an_image_too_small_after_trimming_is_passed_over_and_named(tmp_path: Path, write_image, noise) -> None:
    write_image(tmp_path / "large.png", noise(12, 9))
    write_image(tmp_path / "small.png", noise(9, 12))
    for max_memory_bytes in (1 << 20, 0):
        images = open_images(str(tmp_path), image_size=8, trim=(2, 0), max_memory_bytes=max_memory_bytes)
        assert images.names == ("large.png",)
        assert images.skipped == (("small.png", "12x5 pixels when trimmed, smaller than 8x8"),)


def test_when_all_are_too_small_after_trimming_the_sizes_are_those_that_remain(
    tmp_path: Path, write_image, noise
) -> None:
    write_image(tmp_path / "a.png", noise(10, 9))
    with pytest.raises(DataError, match=r"all 1 images are smaller than data.image_size = 8 .*to 6 to use all"):
        open_images(str(tmp_path), image_size=8, trim=(2, 1))


def test_trimming_that_leaves_nothing_of_any_image_names_the_trim(tmp_path: Path, write_image, noise) -> None:
    write_image(tmp_path / "a.png", noise(20, 20))
    with pytest.raises(DataError) as caught:
        open_images(str(tmp_path), image_size=8, trim=(40, 20))
    assert "data.trim" in str(caught.value) and "to -" not in str(caught.value)


def test_a_celeba_image_is_a_square_before_it_is_reduced(tmp_path: Path, write_image, noise) -> None:
    """178x218 pixels without 40 rows and 20 columns are 138x138; the border is of a colour that nothing else has."""
    pixels = np.full((218, 178, 3), 255, np.uint8)
    face = pixels[40:178, 20:158]
    face[:] = noise(138, 138) // 2
    write_image(tmp_path / "a.png", pixels)
    whole = open_images(str(tmp_path), image_size=138, trim=(40, 20), reduction="area")
    assert np.array_equal(whole.images(slice(None))[0].numpy(), face.transpose(2, 0, 1))
    assert whole.preprocessing.endswith("then none (stored at 138x138)")
    small = open_images(str(tmp_path), image_size=32, trim=(40, 20), reduction="area")
    assert small.preprocessing == (
        "40 rows above and below and 20 columns on either side cut off, then reduced to 32x32 by area averaging, rounded down"
    )
    assert int(small.images(slice(None)).max()) < 128


@pytest.mark.parametrize("max_memory_bytes", [0, 2**30])
def test_label_maps_survive_exactly(tmp_path: Path, max_memory_bytes: int) -> None:
    """Grey and palette files, reduced from 11 to 4: pixels 1, 4, 6 and 9, in which the centres of the areas lie."""
    labels = np.random.default_rng(0).choice(np.array([0, 3, 200], np.uint8), (2, 11, 11))
    Image.fromarray(labels[0]).save(tmp_path / "0.png")
    palette = Image.fromarray(labels[1], "P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "1.png")
    images = open_images(str(tmp_path), image_size=4, reduction="nearest", max_memory_bytes=max_memory_bytes)
    chosen = labels[:, [1, 4, 6, 9]][:, :, [1, 4, 6, 9]]
    assert np.array_equal(images.images(slice(None)).numpy(), np.repeat(chosen[:, None], 3, 1))
    assert images.preprocessing == "reduced to 4x4 by the pixel at the centre of each area; values are class indices"


def test_a_contact_sheet_holds_no_label_maps(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "x.webp", lossless=True)
    (tmp_path / "x.jsonl").write_text("{}\n{}\n")
    assert len(open_images(str(tmp_path), image_size=4)) == 2
    with pytest.raises(DataError, match="a label map in WEBP"):
        open_images(str(tmp_path), image_size=4, reduction="nearest")
