"""Every target finds its partner by name, and keeps it in every batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.data import open_images, training_batches
from rasterformer.data.imageset import ImageSet
from rasterformer.data.pairs import pair_images
from rasterformer.errors import ConfigError, DataError

TARGETS = ["b.png", "a/1.png", "a/2.png", "c.d.png"]
SOURCES = ["a/2.bmp", "b.BMP", "c.d.png", "a/1.png", "lonely.png", "1.png"]


@pytest.fixture
def pair(tmp_path: Path, write_folder) -> tuple[ImageSet, str]:
    write_folder(tmp_path / "targets", TARGETS)
    write_folder(tmp_path / "sources", SOURCES, size=6)
    return open_images(str(tmp_path / "targets"), image_size=8), str(tmp_path / "sources")


def paired(pair: tuple[ImageSet, str]) -> ImageSet:
    return replace(pair[0], sources=pair_images(*pair, source_size=6, fit="crop"))


def picture(folder: str, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(Path(folder, name)))).permute(2, 0, 1)


def test_partners_have_the_same_name_up_to_the_ending(pair) -> None:
    targets, folder = pair
    sources = pair_images(targets, folder, source_size=6, fit="crop")
    partner = {"b.png": "b.BMP", "a/1.png": "a/1.png", "a/2.png": "a/2.bmp", "c.d.png": "c.d.png"}
    assert sources.names == tuple(partner[name] for name in targets.names)
    assert len(sources) == len(targets) == 4 and sources.split == targets.split
    for k, name in enumerate(sources.names):
        assert torch.equal(sources.images(torch.tensor([k]))[0], picture(folder, name))


def test_partners_of_one_split_are_those_of_its_targets(pair, tmp_path: Path) -> None:
    test_set = open_images(str(tmp_path / "targets"), image_size=8, split="test", holdout_fraction=0.5)
    sources = pair_images(test_set, pair[1], source_size=6, fit="crop")
    assert 0 < len(sources) < 4 and sources.split == "test"
    stems = [name.rpartition(".")[0] for name in test_set.names]
    assert [name.rpartition(".")[0] for name in sources.names] == stems


def test_sources_that_are_decoded_on_demand_are_the_same(pair) -> None:
    held = pair_images(*pair, source_size=6, fit="crop")
    lazy = pair_images(*pair, source_size=6, fit="crop", max_memory_bytes=0)
    assert held.in_memory and not lazy.in_memory and lazy.names == held.names
    assert torch.equal(lazy.images(slice(None)), held.images(slice(None)))


def test_a_batch_holds_the_partners(pair) -> None:
    image_set = paired(pair)
    batch = image_set.batch(torch.tensor([3, 0, 3]), use_labels=False)
    assert image_set.sources is not None and batch.cond.source is not None
    assert torch.equal(batch.cond.source, image_set.sources.images(torch.tensor([3, 0, 3])))
    assert torch.equal(batch.images, image_set.images(torch.tensor([3, 0, 3])))
    assert batch.cond.known is None


def test_without_a_second_folder_a_batch_has_no_source(pair) -> None:
    assert pair[0].sources is None and pair[0].batch(torch.tensor([0]), use_labels=False).cond.source is None


@pytest.mark.parametrize("flip_prob", [0.0, 0.5, 1.0])
def test_a_source_is_mirrored_with_its_target(pair, flip_prob: float) -> None:
    image_set, seen = paired(pair), set()
    options = {"batch_size": 3, "seed": 0, "start_step": 0, "flip_prob": flip_prob, "use_labels": False}
    assert image_set.sources is not None
    originals, sources = image_set.images(slice(None)), image_set.sources.images(slice(None))
    for batch in islice(training_batches(image_set, **options), 8):
        assert batch.cond.source is not None
        for image, source in zip(batch.images, batch.cond.source, strict=True):
            places = [(k, m) for k in range(4) for m in (0, 1) if torch.equal(image, mirrored(originals[k], m))]
            ((k, mirror),) = places
            assert torch.equal(source, mirrored(sources[k], mirror))
            seen.add(mirror)
    assert seen == {0.0: {0}, 0.5: {0, 1}, 1.0: {1}}[flip_prob]


def mirrored(image: torch.Tensor, mirror: int) -> torch.Tensor:
    return image.flip(2) if mirror else image


def test_a_set_with_partners_on_disk_is_not_in_memory(pair) -> None:
    lazy = open_images(pair[1], image_size=6, max_memory_bytes=0)
    assert paired(pair).in_memory and not replace(pair[0], sources=lazy).in_memory


def test_targets_without_a_partner_are_counted_and_named(pair) -> None:
    for name in ("b.BMP", "a/2.bmp"):
        Path(pair[1], name).unlink()
    with pytest.raises(
        DataError, match=r"sources': 2 of 4 targets have no partner there, the first 'a/2.png', 'b.png'\."
    ):
        pair_images(*pair, source_size=6, fit="crop")


def test_only_the_first_names_are_listed(pair, tmp_path: Path, write_folder) -> None:
    other = str(write_folder(tmp_path / "other", ["x.png"]))
    with pytest.raises(DataError, match=r"4 of 4 targets .*, the first ('[^']*', ){3}\.\.\.\. Put an image with"):
        pair_images(pair[0], other, source_size=6, fit="crop")


def test_a_partner_that_cannot_be_read_is_told_of(pair) -> None:
    Path(pair[1], "b.BMP").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 4 targets .* 1 images there could not be used, the first 'b.BMP': "):
        pair_images(*pair, source_size=6, fit="crop")


def test_two_sources_for_one_name_are_refused(pair, write_folder) -> None:
    write_folder(Path(pair[1]), ["a/1.gif"])
    with pytest.raises(DataError, match=r"'a/1.gif' and 'a/1.png' have the same name up to the ending"):
        pair_images(*pair, source_size=6, fit="crop")


def test_errors_about_the_second_folder_name_its_field(pair, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^task.source_path = '.*nowhere'"):
        pair_images(pair[0], str(tmp_path / "nowhere"), source_size=6, fit="crop")
    with pytest.raises(DataError, match=r"smaller than task.source_size = 7 .* Set task.source_size to 6"):
        pair_images(*pair, source_size=7, fit="crop")


def test_an_impossible_size_is_refused(pair) -> None:
    with pytest.raises(ConfigError, match="= 0 must be at least 1 pixel"):
        pair_images(*pair, source_size=0, fit="crop")


def test_label_maps_are_partners(pair, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 5, 11], np.uint8), (4, 12, 12))
    for k, name in enumerate(TARGETS):
        path = tmp_path / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels[k]).save(path)
    sources = pair_images(pair[0], str(tmp_path / "labels"), source_size=4, fit="crop", reduction="nearest")
    for k, name in enumerate(pair[0].names):
        middle = torch.from_numpy(labels[TARGETS.index(name)])[1::3, 1::3]
        assert torch.equal(sources.images(torch.tensor([k]))[0], middle.expand(3, 4, 4))


def test_a_partner_in_colour_is_no_label_map(pair) -> None:
    with pytest.raises(DataError, match="task.source_path = .* mode RGB with channels that differ"):
        pair_images(*pair, source_size=6, fit="crop", reduction="nearest")
