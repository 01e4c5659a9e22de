from pathlib import Path

import pytest

from rasterformer.cli.main import main
from rasterformer.recipe_file import shipped_recipes

TEXT = "# A small model for tests.\n# Command: rasterformer train small\n\nsystem: image_transformer\n"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "small.yaml").write_text(TEXT)
    (folder / "larger-one.yaml").write_text("# Larger\n# still. And more.\nsystem: image_transformer\n")
    monkeypatch.setattr("rasterformer.recipe_file._SHIPPED_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("shipped")
def test_list_has_names_and_first_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["larger-one  Larger still.", "small       A small model for tests."]


@pytest.mark.usefixtures("shipped")
def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "small"]) == 0
    assert capsys.readouterr().out == TEXT


@pytest.mark.parametrize(
    ("destination", "written"), [([], "small.yaml"), (["mine.yaml"], "mine.yaml"), (["shipped/.."], "small.yaml")]
)
def test_copy_writes_the_file(shipped: Path, destination: list[str], written: str) -> None:
    assert main(["recipes", "copy", "small", *destination]) == 0
    assert (shipped / written).read_text() == TEXT


def test_copy_never_overwrites(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shipped / "small.yaml").write_text("mine")
    assert main(["recipes", "copy", "small"]) == 2
    assert "small.yaml exists already" in capsys.readouterr().err
    assert (shipped / "small.yaml").read_text() == "mine"


@pytest.mark.usefixtures("shipped")
def test_copy_into_a_missing_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "small", "no/where.yaml"]) == 2
    assert "no/where.yaml cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("command", ["show", "copy"])
def test_unknown_name_gets_a_suggestion(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", command, "smal"]) == 2
    expected = "error: 'smal' is no shipped recipe. Did you mean 'small'? Allowed: larger-one, small.\n"
    assert capsys.readouterr().err == expected


def test_every_shipped_recipe_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in shipped_recipes().items():
        assert main(["recipes", "show", name]) == 0
        assert capsys.readouterr().out == path.read_text(encoding="utf-8")
