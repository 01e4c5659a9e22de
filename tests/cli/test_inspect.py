from pathlib import Path

import pytest
import torch

from rasterformer.checkpoint import save_checkpoint, save_model_folder
from rasterformer.cli.main import main
from rasterformer.data.png import write_png

CONFIG = {
    "recipe": {"system": "toy", "model": {"width": 8}, "data": {"image_size": 4}},
    "num_classes": 2,
    "class_names": ["cat", "dog"],
    "steps": 70,
}
STATE = {"weight": torch.zeros(10, 20), "bias": torch.zeros(7, dtype=torch.bfloat16)}


def save_run(run: Path) -> Path:
    save_model_folder(run / "model", config=CONFIG, state=STATE, card="")
    save_checkpoint(run / "checkpoints" / "step-70", config=CONFIG, tensors={"ema": STATE}, state={})
    (run / "checkpoints" / "step-71.tmp").mkdir()
    return run


def test_model_folder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_run(tmp_path) / "model"
    assert main(["inspect", str(folder)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == str(folder)
    assert "system toy" in lines and "classes cat, dog" in lines and "steps 70" in lines
    assert "model.safetensors 207 numbers in 2 tensors, BF16, F32" in lines
    assert "model.width = 8" in lines and "data.image_size = 4" in lines
    assert any(line.startswith("files 3 verified, ") for line in lines)


def test_run_is_described_by_its_model_and_its_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(save_run(tmp_path))]) == 0
    shown = capsys.readouterr().out
    headings = [line for line in shown.splitlines() if not line.startswith(" ")]
    assert headings == [str(tmp_path / "checkpoints" / "step-70"), str(tmp_path / "model")]
    assert "ema.safetensors" in shown


def test_damaged_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_run(tmp_path) / "model"
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert main(["inspect", str(folder)]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_picture_gives_its_metadata_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "x.png", torch.zeros(3, 4, 4, dtype=torch.uint8), metadata={"seed": 5, "label": "Käfer"})
    assert main(["inspect", str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().out == '{\n  "seed": 5,\n  "label": "Käfer"\n}\n'


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["empty"], "empty is no model folder, run or checkpoint: no manifest.json in it or below it"),
        (["plain.png"], "plain.png has no metadata of rasterformer"),
        (["plain.png", "--order", "o.png"], "--order needs a model; plain.png is a file"),
        (["empty", "--position", "1,2"], "--position 1,2 needs --order OUT.png"),
        (["run/model", "--order", "o.png", "--position", "1;2"], "--position '1;2' is not ROW,COL"),
        (["run/model", "--order", "o.png", "--position=-1,2"], "--position '-1,2' is not ROW,COL"),
        (["nowhere"], "nowhere does not exist"),
        (["words"], "words is a pipeline's folder. Its model is words/prior."),
    ],
)
def test_what_cannot_be_inspected_is_named(
    tokens: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    save_run(tmp_path / "words" / "prior")
    write_png(tmp_path / "plain.png", torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert main(["inspect", *tokens]) == 2
    assert message in capsys.readouterr().err


def test_of_a_cascade_only_what_differs_from_the_base_is_shown_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"system": "toy", "text": {"length": 8}, "model": {"width": 8, "depth": 2}, "data": {"image_size": 4}}
    larger = {"system": "toy", "task": {"factor": 2}, "model": {"width": 8, "depth": 3}, "data": {"image_size": 8}}
    config = CONFIG | {
        "recipe": recipe,
        "image_shape": [3, 4, 4],
        "upscalers": [{"recipe": larger, "image_shape": [3, 8, 8], "steps": 5}],
    }
    save_model_folder(tmp_path / "model", config=config, state=STATE, card="")
    assert main(["inspect", str(tmp_path / "model")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("recipe of stage 1:")
    assert lines[first + 1 :] == [
        "  text.length = 8",
        "  model.width = 8",
        "  model.depth = 2",
        "  data.image_size = 4",
        "recipe of stage 2, only what differs from stage 1 (null: not there):",
        "  upscaler_1.text.length = null",
        "  upscaler_1.model.depth = 3",
        "  upscaler_1.data.image_size = 8",
        "  upscaler_1.task.factor = 2",
    ]
