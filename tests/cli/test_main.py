import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rasterformer import __version__
from rasterformer.cli.main import COMMANDS, app, main
from rasterformer.data.png import write_png
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


class StoppedAt(io.StringIO):
    """A terminal at which the user presses Ctrl-C as soon as it shows some words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def write(self, text: str) -> int:
        if self.words in text:
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("parameters", "stopped: nothing was kept yet: start again without --resume\n"),
        ("held-out images", "go on with --resume\n"),
    ],
)
def test_a_training_that_is_stopped_says_whether_it_can_be_resumed(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", StoppedAt(words))
    for k in range(4):
        write_png(tmp_path / "images" / f"{k}.png", torch.full((3, 8, 8), 60 * k, dtype=torch.uint8))
    run = ["train", "tiny", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "run"), "--training.steps", "1"]
    assert main(run) == 130
    assert capsys.readouterr().err.endswith(said)
    monkeypatch.setattr(sys, "stdout", StoppedAt("now:"))
    again = [*run, "--resume"] if (tmp_path / "run" / "recipe.yaml").is_file() else run
    assert main(again) == 130 and (tmp_path / "run" / "model").is_dir()


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


def test_a_reader_that_has_ended_is_no_error() -> None:
    """As in `rasterformer recipes | head -1`."""
    words = [sys.executable, "-u", "-m", "rasterformer.cli.main", "recipes"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
