from pathlib import Path

import pytest
import torch

from rasterformer import __version__
from rasterformer.cli import doctor
from rasterformer.cli.main import main


def test_doctor_reports_versions_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"rasterformer {__version__}" in shown and f"torch {torch.__version__}" in shown
    assert all(line.split()[0] in ("ok", "warn") for line in shown.splitlines())


def test_little_disk_space_is_a_warning_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 10**18)
    assert main(["doctor"]) == 0
    assert any(line.startswith("warn") and "GB free" in line for line in capsys.readouterr().out.splitlines())


def test_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert main(["doctor"]) == 0
    assert f"warn  {tmp_path} cannot be written (Permission denied)" in capsys.readouterr().out


def test_missing_package_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package-here",))
    assert main(["doctor"]) == 1
    assert "fail  no-such-package-here is not installed" in capsys.readouterr().out
