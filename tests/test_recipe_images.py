"""The images of a recipe: fitted as it says and, for a paired task, with their partners."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.data import open_images
from rasterformer.errors import ConfigError, DataError
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_images_of, open_recipe_images
from rasterformer.system import System
from rasterformer.tasks import SuperResolution

Split = Literal["train", "test", "all"]
NAMES = [f"{k}.png" for k in range(10)]


def write(path: Path, side: int, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Ten targets of 8x8 pixels and their sources of 4x4."""
    for seed, name in enumerate(NAMES):
        write(tmp_path / "targets" / name, 8, seed=seed)
        write(tmp_path / "sources" / name, 4, seed=100 + seed)
    return tmp_path / "targets", tmp_path / "sources"


def recipe(path: Path | None, *more: tuple[str, str]) -> Recipe:
    data = [("data.path", "null" if path is None else str(path)), ("data.holdout_fraction", "0.4")]
    return load_recipe("tiny", [*data, *more])


def paired(folders: tuple[Path, Path], *more: tuple[str, str]) -> Recipe:
    task = [("task.name", "paired"), ("task.source_path", str(folders[1])), ("task.source_size", "4")]
    return recipe(folders[0], *task, ("model.encoder_depth", "1"), *more)


def stored(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_without_a_second_folder_it_is_the_split_of_the_images(folders: tuple[Path, Path]) -> None:
    splits: tuple[Split, Split] = ("train", "test")
    parts = [open_recipe_images(recipe(folders[0]), split) for split in splits]
    assert sorted(parts[0].names + parts[1].names) == NAMES and all(parts)
    for part, split in zip(parts, splits, strict=True):
        direct = open_images(str(folders[0]), image_size=8, split=split, holdout_fraction=0.4)
        assert (part.names, part.fingerprint, part.sources) == (direct.names, direct.fingerprint, None)
        assert torch.equal(part.images(slice(None)), direct.images(slice(None)))


def test_images_are_fitted_as_the_recipe_says(folders: tuple[Path, Path]) -> None:
    """2 rows above and below cut off: 4x8 remain, of which the sides are reduced separately, to 3x3 by areas."""
    fit = [("data.trim", "[2, 0]"), ("data.reduction", "area"), ("data.fit", "stretch"), ("data.image_size", "3")]
    images = open_recipe_images(recipe(folders[0], *fit), "all")
    assert images.preprocessing == (
        "2 rows above and below and 0 columns on either side cut off, then both sides separately, reduced to 3x3 by area "
        "averaging, rounded down"
    )
    direct = open_images(str(folders[0]), image_size=3, fit="stretch", trim=(2, 0), reduction="area")
    assert torch.equal(images.images(slice(None)), direct.images(slice(None)))


def test_other_images_take_the_place_of_the_recipes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "other" / "x.png", 8)
    assert open_recipe_images(recipe(folders[0]), "all", path=str(tmp_path / "other")).names == ("x.png",)
    assert open_recipe_images(recipe(None), "all", path=str(tmp_path / "other")).names == ("x.png",)


def test_a_recipe_that_names_no_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.path is not set. Give your images: --data DIR"):
        open_recipe_images(recipe(None), "train")


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_every_target_has_its_partner_in_every_batch(folders: tuple[Path, Path], split: Split) -> None:
    images = open_recipe_images(paired(folders), split)
    assert images.sources is not None and len(images) == len(images.sources) > 0
    index = torch.arange(len(images)).flip(0)
    batch = images.batch(index, use_labels=False)
    assert batch.cond.source is not None
    for k, target, source in zip(index.tolist(), batch.images, batch.cond.source, strict=True):
        assert torch.equal(target, stored(folders[0] / images.names[k]))
        assert torch.equal(source, stored(folders[1] / images.names[k]))


def test_sources_are_of_the_targets_size_where_none_is_given(folders: tuple[Path, Path]) -> None:
    for seed, name in enumerate(NAMES):
        write(folders[1] / name, 16, seed=seed)
    images = open_recipe_images(paired(folders, ("task.source_size", "null")), "all")
    assert images.sources is not None and images.sources.images(slice(None)).shape == (10, 3, 8, 8)


def test_the_fingerprint_changes_with_targets_and_with_sources(folders: tuple[Path, Path]) -> None:
    def fingerprint() -> str:
        return open_recipe_images(paired(folders), "all").fingerprint

    first = fingerprint()
    assert first == fingerprint() and first != open_recipe_images(recipe(folders[0]), "all").fingerprint
    write(folders[1] / "3.png", 6)
    second = fingerprint()
    write(folders[0] / "3.png", 9)
    assert len({first, second, fingerprint()}) == 3


def test_a_target_without_a_partner_is_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "7.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 targets have no partner there, the first '7\.png'\."):
        open_recipe_images(paired(folders), "all")


def test_a_second_folder_that_is_not_there_is_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"task\.source_path = '.*nowhere'"):
        open_recipe_images(paired((folders[0], folders[1].parent / "nowhere")), "all")


def test_partners_of_one_size_are_trimmed_and_reduced_alike(folders: tuple[Path, Path]) -> None:
    for seed, name in enumerate(NAMES):
        write(folders[1] / name, 8, seed=seed)  # the same picture as the target
    fit = [("data.image_size", "3"), ("data.trim", "[1, 1]"), ("data.reduction", "area")]
    images = open_recipe_images(
        paired(folders, *fit, ("task.source_size", "3"), ("task.source_reduction", "area")), "all"
    )
    assert images.sources is not None
    assert torch.equal(images.sources.images(slice(None)), images.images(slice(None)))


@pytest.mark.parametrize("reduction", ["auto", "area", "nearest"])
def test_sources_have_a_reduction_of_their_own(folders: tuple[Path, Path], reduction: str) -> None:
    for seed, name in enumerate(NAMES):
        values = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folders[1] / name)
    images = open_recipe_images(paired(folders, ("task.source_reduction", reduction)), "all")
    direct = open_images(str(folders[1]), image_size=4, reduction=reduction)
    assert images.preprocessing == "none (stored at 8x8)" and images.sources is not None
    assert torch.equal(images.sources.images(slice(None)), direct.images(slice(None)))


def test_the_images_of_a_cascade_are_those_of_its_last_stage(folders: tuple[Path, Path]) -> None:
    words = [("data.path", str(folders[0])), ("data.image_size", "4"), ("data.holdout_fraction", "0.4")]
    base = System.create(load_recipe("imagen-tiny", words))
    recipe = replace(base.recipe, data=replace(base.recipe.data, image_size=8), task=SuperResolution(2))
    cascade = replace(base, upscalers=(System.create(recipe),))
    small, large = open_images_of(base, "test"), open_images_of(cascade, "test")
    assert (small.image_size, large.image_size, large.names) == (4, 8, small.names)
    assert torch.equal(large.images(slice(None)), open_recipe_images(recipe, "test").images(slice(None)))
    assert small.fingerprint == large.fingerprint
    assert open_images_of(cascade, "all", path=str(folders[0])).num_images == 10
