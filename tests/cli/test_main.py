from collections.abc import Iterator
from pathlib import Path

import pytest

from rasterformer import __version__
from rasterformer.cli.main import COMMANDS, app, main
from rasterformer.errors import ConfigError


@pytest.fixture
def failing() -> Iterator[None]:
    """Adds a command `fail` that raises what it is told."""

    def fail(kind: str) -> None:
        import warnings

        warnings.warn("something is odd", stacklevel=1)
        raise {"ours": ConfigError("width = 3 is odd."), "interrupt": KeyboardInterrupt(), "bug": ZeroDivisionError()}[
            kind
        ]

    app.command(fail, name="fail")
    yield
    del app["fail"]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.filterwarnings("default:something is odd")
@pytest.mark.usefixtures("failing")
def test_error_of_the_user_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "ours"]) == 2
    assert capsys.readouterr().err == "warning: something is odd\nerror: width = 3 is odd.\n"


@pytest.mark.filterwarnings("default:something is odd")
@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    "tokens", [["--debug", "fail", "ours"], ["fail", "--debug", "ours"], ["fail", "ours", "--debug"]]
)
def test_debug_anywhere_shows_the_traceback(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tokens) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown and shown.endswith("error: width = 3 is odd.\n")


@pytest.mark.filterwarnings("default:something is odd")
@pytest.mark.usefixtures("failing")
def test_interrupt_says_so_and_is_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "interrupt"]) == 130
    assert capsys.readouterr().err.endswith("stopped\n")


@pytest.mark.filterwarnings("default:something is odd")
@pytest.mark.usefixtures("failing")
def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):  # the interpreter prints it and exits with 1
        main(["fail", "bug"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["doctor", "--fast"], "Unknown option: --fast"),
        (["inspect"], "requires an argument"),
        (["recipes", "show"], "requires an argument"),
    ],
)
def test_usage_error_is_code_2(tokens: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tokens) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown


def test_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalaute"]) == 2
    assert "evaluate" in capsys.readouterr().err


def test_missing_path_is_code_2_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'} does not exist.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert COMMANDS[name][1].partition(" ")[0] in capsys.readouterr().out
