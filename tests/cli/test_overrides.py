import pytest

from rasterformer.cli.main import main
from rasterformer.cli.overrides import parse_overrides
from rasterformer.errors import ConfigError


def test_both_forms_are_read_in_order() -> None:
    tokens = ["--model.depth", "8", "--training.steps=200", "--model.depth", "9"]
    assert parse_overrides(tokens) == [("model.depth", "8"), ("training.steps", "200"), ("model.depth", "9")]


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (["--a.b", "-1"], "-1"),
        (["--a.b="], ""),
        (["--a.b=x=y"], "x=y"),
        (["--a.b=--c"], "--c"),
        (["--a.b", "[1, 2]"], "[1, 2]"),
        (["--a.b", "1.5"], "1.5"),
    ],
)
def test_value_is_taken_as_it_stands(tokens: list[str], value: str) -> None:
    assert parse_overrides(tokens) == [("a.b", value)]


def test_nothing_is_no_override() -> None:
    assert parse_overrides([]) == []


@pytest.mark.parametrize("token", ["--resmue", "model.depth", "--depth=8", "-n", "stray", "--x=1.5"])
def test_word_that_names_no_field_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=f"'{token}' is no option of this command"):
        parse_overrides(["--model.depth", "8", token])


@pytest.mark.parametrize("tokens", [["--model.depth"], ["--model.depth", "--model.width", "8"]])
def test_missing_value_is_named(tokens: list[str]) -> None:
    with pytest.raises(ConfigError, match="--model.depth has no value"):
        parse_overrides(tokens)


def test_train_takes_overrides_between_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["--model.dpth", "3", "--data", "x", "--training.steps=-5", "--dry-run", "--data.flip_prob", "-1"]
    assert main(["train", "tiny", *tokens]) == 2
    shown = capsys.readouterr().err
    for received in ("model.dpth = 3 is not known", "training.steps = -5 must be", "data.flip_prob = -1.0 must lie"):
        assert received in shown
    assert shown.startswith("error: tiny has 3 problems:")
