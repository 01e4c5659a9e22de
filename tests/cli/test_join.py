"""`rasterformer join`: from trained stages to one folder, by words that a user types."""

from __future__ import annotations

from pathlib import Path

import pytest

import rasterformer
from rasterformer.cli.main import main
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained: `base` of 8x8 pixels, `upscaler` of 16x16, `larger` of 32x32."""
    folder = tmp_path_factory.mktemp("models")
    System.create(load_recipe("imagen-tiny")).save(folder / "base")
    for name, size in (("upscaler", 16), ("larger", 32)):
        recipe = load_recipe("imagen-tiny-upscaler", [("data.image_size", str(size))])
        System.create(recipe).save(folder / name)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_stages_become_one_folder_and_the_next_command_is_said(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cascade"
    assert run("join", models / "base", models / "upscaler", models / "larger", "--out", out) == 0
    said = capsys.readouterr().out
    weights = sum(
        weight.numel()
        for name in ("base", "upscaler", "larger")
        for weight in rasterformer.load(models / name).model.parameters()
    )
    assert f"{out} written: 3 stages, 8x8 -> 16x16 -> 32x32 pixels, {weights:,} parameters" in said
    assert f"now:  rasterformer sample {out} -n 16 --text 'WORDS' --seed 1" in said
    loaded = rasterformer.load(out)
    assert [stage.recipe.data.image_size for stage in (loaded, *loaded.upscalers)] == [8, 16, 32]


def test_upscalers_alone_are_used_by_upscale(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("join", models / "upscaler", models / "larger", "--out", tmp_path / "both") == 0
    assert f"now:  rasterformer upscale {tmp_path / 'both'} " in capsys.readouterr().out


def test_stages_that_do_not_fit_are_refused_and_nothing_is_written(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("join", models / "base", models / "larger", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"{models / 'larger'} enlarges images of 16x16 pixels, but {models / 'base'}" in said and "draws 8x8" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_as_it_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (models / "larger" / "config.json").read_bytes()
    assert run("join", models / "base", models / "upscaler", "--out", models / "larger") == 2
    assert f"--out {models / 'larger'} exists already" in capsys.readouterr().err
    assert (models / "larger" / "config.json").read_bytes() == before


def test_a_base_alone_is_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("join", models / "base", "--out", tmp_path / "out") == 2
    said = f"error: join needs a base and at least one upscaler, and {models / 'base'} stands alone. Give: rasterformer join "
    assert capsys.readouterr().err.startswith(said) and not (tmp_path / "out").exists()
