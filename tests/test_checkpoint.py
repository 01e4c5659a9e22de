import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasterformer import __version__
from rasterformer.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    load_model_folder,
    prune_checkpoints,
    save_checkpoint,
    save_model_folder,
    unflatten_optimizer,
)
from rasterformer.errors import CheckpointError

CONFIG = {"recipe": {"system": "toy", "model": {"width": 8}}, "num_classes": 2, "class_names": ["cat", "dog"]}
MODEL_FILES = ["README.md", "config.json", "manifest.json", "model.safetensors"]
STEP_FILES = ["config.json", "ema.safetensors", "manifest.json", "model.safetensors", "state.json"]


def tensors(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(40, 50, generator=rng),
        "half": torch.randn(3, generator=rng).to(torch.bfloat16),
        "count": torch.tensor(seed),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def save_model(folder: Path, seed: int = 0) -> Path:
    save_model_folder(folder, config=CONFIG, state=tensors(seed), card=f"# Model {seed}\n")
    return folder


def save_step(folder: Path, step: int) -> Path:
    place = folder / f"step-{step:06d}"
    groups = {"model": tensors(step), "ema": tensors(step + 1)}
    save_checkpoint(place, config=CONFIG, tensors=groups, state={"step": step, "seed": 3, "best": 0.1})
    return place


def test_model_folder_round_trip_is_exact(tmp_path: Path) -> None:
    config, state = load_model_folder(save_model(tmp_path / "new" / "model"))
    assert config == {**CONFIG, "format_version": 1, "rasterformer_version": __version__}
    assert same(state, tensors(0))
    assert sorted(os.listdir(tmp_path / "new")) == ["model"]
    assert sorted(os.listdir(tmp_path / "new" / "model")) == MODEL_FILES
    assert (tmp_path / "new" / "model" / "README.md").read_text() == "# Model 0\n"


def test_loaded_config_can_be_saved_again(tmp_path: Path) -> None:
    config, state = load_model_folder(save_model(tmp_path / "a"))
    save_model_folder(tmp_path / "b", config=config, state=state, card="")
    assert load_model_folder(tmp_path / "b")[0] == config


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_step(tmp_path, 7))
    assert isinstance(loaded, Checkpoint)
    assert loaded.state == {"step": 7, "seed": 3, "best": 0.1}
    assert loaded.tensors.keys() == {"model", "ema"}
    assert same(loaded.tensors["model"], tensors(7)) and same(loaded.tensors["ema"], tensors(8))


def test_shared_and_strided_tensors_are_saved_by_value(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    state = {"embedding": table, "head": table, "transposed": table.T, "row": table[1]}
    save_model_folder(tmp_path / "m", config=CONFIG, state=state, card="")
    assert same(load_model_folder(tmp_path / "m")[1], state)


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    save_model(tmp_path / "m", seed=1)
    save_model(tmp_path / "m", seed=2)
    assert same(load_model_folder(tmp_path / "m")[1], tensors(2))
    assert sorted(os.listdir(tmp_path)) == ["m"]


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def flip_the_last_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 128
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def zero_a_page(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(b"\0" * min(4096, len(raw)) + raw[4096:])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [flip_a_bit, flip_the_last_bit, truncate, empty, append, zero_a_page, Path.unlink, replace_by_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", MODEL_FILES)
def test_damaged_model_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = save_model(tmp_path / "m")
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"m/{name} (is|cannot|has)"):
        load_model_folder(folder)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", STEP_FILES)
def test_damaged_checkpoint_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = save_step(tmp_path, 1)
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"step-000001/{name} (is|cannot|has)"):
        load_checkpoint(folder)


def test_swapped_files_are_detected(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 1)
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "ema.safetensors").rename(folder / "model.safetensors")
    (folder / "x").rename(folder / "ema.safetensors")
    with pytest.raises(
        CheckpointError,
        match="ema.safetensors is damaged: its SHA-256 .* Copy the folder again from where it came, or load a",
    ):
        load_checkpoint(folder)


def test_every_single_flipped_bit_of_the_manifest_is_detected(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    raw = (folder / "manifest.json").read_bytes()
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << position % 8
        (folder / "manifest.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="manifest.json"):
            load_model_folder(folder)


def test_missing_path_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="someone/model does not exist"):
        load_model_folder("someone/model")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is not a folder"):
        load_checkpoint(tmp_path / "file")


def test_checkpoint_is_no_model_folder_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="manifest.json does not list state.json; listed: README.md, config.json"):
        load_checkpoint(save_model(tmp_path / "m"))
    save_checkpoint(tmp_path / "step-1", config=CONFIG, tensors={"ema": tensors(0)}, state={})
    with pytest.raises(CheckpointError, match="manifest.json does not list model.safetensors"):
        load_model_folder(tmp_path / "step-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clas_names": []}, r"clas_names = \[\] is not known. Did you mean 'class_names'\?"),
        ({"num_classes": "2"}, r"num_classes = '2' must be of the type int"),
        ({"num_classes": True}, r"num_classes = True must be of the type int"),
    ],
)
def test_config_is_a_closed_schema(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_model_folder(tmp_path / "m", config={**CONFIG, **change}, state={}, card="")
    assert not (tmp_path / "m").exists()


def test_config_without_its_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config: recipe is missing"):
        save_model_folder(tmp_path / "m", config={"num_classes": 0}, state={}, card="")


def test_config_of_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rasterformer.checkpoint.FORMAT_VERSION", 2)
    folder = save_model(tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"format_version = 2 is not known; rasterformer {__version__} reads 1"):
        load_model_folder(folder)


@pytest.mark.parametrize("name", ["holiday.png", "samples/", "notes"])
def test_folder_with_other_files_is_never_replaced(tmp_path: Path, name: str) -> None:
    folder = save_model(tmp_path / "m")
    (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    with pytest.raises(CheckpointError, match=f"m holds {name.strip('/')}, which is no part of a model"):
        save_model(folder, seed=1)
    assert same(load_model_folder(folder)[1], tensors(0))


def test_file_in_the_place_of_the_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(CheckpointError, match="m is a file"):
        save_model(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "mine"


def test_full_disk_is_an_error_of_ours_and_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "m")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="m cannot be written: No space left on device"):
        save_model(folder, seed=1)
    monkeypatch.undo()
    assert same(load_model_folder(folder)[1], tensors(0))
    assert sorted(os.listdir(tmp_path)) == ["m"]


class Killed(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


SYSCALLS = ["open", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir"]


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool) -> list[str]:
    """Makes the system call number `call` (before or after it took effect) and all later ones raise `Killed`."""
    made: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) > call or (len(made) == call and not after):
                raise Killed
            result = real(*args, **kwargs)
            if len(made) == call:
                raise Killed
            return result

        return function

    for name in SYSCALLS:
        monkeypatch.setattr(os, name, dying(name, getattr(os, name)))
    return made


@pytest.mark.filterwarnings("ignore:.* was being replaced when the program stopped")
@pytest.mark.parametrize("after", [False, True])
def test_kill_at_every_system_call_leaves_the_old_model_or_the_new(tmp_path: Path, after: bool) -> None:
    survivors = []
    for call in range(1, 200):
        root = tmp_path / str(call)
        folder = save_model(root / "m", seed=1)
        with pytest.MonkeyPatch.context() as patch:
            made = kill_at(patch, call, after=after)
            try:
                save_model(folder, seed=2)
                killed = False
            except Killed:
                killed = True
        state = load_model_folder(folder)[1]
        assert same(state, tensors(1)) or same(state, tensors(2))
        survivors.append(int(state["count"]))
        save_model(folder, seed=3)  # and the next save finds nothing in its way
        assert same(load_model_folder(folder)[1], tensors(3))
        assert sorted(os.listdir(root)) == ["m"]
        if not killed:
            break
    assert not killed and made.count("fsync") >= 6 and made.count("rename") == 2
    assert survivors == sorted(survivors) and set(survivors) == {1, 2}


@pytest.mark.parametrize("after", [False, True])
def test_kill_at_every_system_call_leaves_the_previous_checkpoint(tmp_path: Path, after: bool) -> None:
    for call in range(1, 200):
        checkpoints = tmp_path / str(call)
        save_step(checkpoints, 1)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, call, after=after)
            try:
                save_step(checkpoints, 2)
                killed = False
            except Killed:
                killed = True
        latest = latest_checkpoint(checkpoints)
        assert latest is not None and load_checkpoint(latest).state["step"] == (1 if latest.name.endswith("1") else 2)
        if not killed:
            break
    assert not killed and latest.name == "step-000002"


def test_model_that_was_being_replaced_is_loaded_with_a_warning(tmp_path: Path) -> None:
    save_model(tmp_path / "m").rename(tmp_path / "m.old")
    with pytest.warns(UserWarning, match="m was being replaced when the program stopped; .*m.old is used"):
        _, state = load_model_folder(tmp_path / "m")
    assert same(state, tensors(0))


def test_latest_is_the_largest_step_not_the_last_name(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-2"):
        save_checkpoint(tmp_path / name, config=CONFIG, tensors={}, state={})
    (tmp_path / "step-11.tmp").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-10"


def test_there_is_no_latest_where_nothing_was_saved(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_damaged_latest_is_skipped_and_named(tmp_path: Path) -> None:
    for step in (1, 2):
        save_step(tmp_path, step)
    flip_a_bit(tmp_path / "step-000002" / "ema.safetensors")
    with pytest.warns(UserWarning, match="checkpoint step-000002 is skipped: .*ema.safetensors is damaged"):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-000001"


@pytest.mark.filterwarnings("ignore:checkpoint .* is skipped")
def test_when_all_checkpoints_are_damaged_all_are_listed(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save_step(tmp_path, step) / "state.json")
    with pytest.raises(CheckpointError, match=r"(?s)is intact:.*step-000002/state.json.*step-000001/state.json"):
        latest_checkpoint(tmp_path)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_step(tmp_path, step)
    (tmp_path / "step-000006.tmp").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000004", "step-000005"]


def test_prune_does_not_count_an_incomplete_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    (tmp_path / "step-000003" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="checkpoint step-000003 does not count: .*model.safetensors is missing"):
        prune_checkpoints(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["step-000002", "step-000003"]


def same_tree(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same_tree(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_tree, first, second))
    return bool(first == second)


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda params: torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98)),
    lambda params: torch.optim.Adam(params, lr=torch.tensor(0.1), amsgrad=True, foreach=False),
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params: torch.optim.LBFGS(params, history_size=2),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_optimizer_state_survives_the_disk_exactly(
    tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer], steps: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 2, generator=rng)), nn.Parameter(torch.randn(2, generator=rng))]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(((weight - 1) ** 4).sum() for weight in weights)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    optimizer = make(weights)
    for _ in range(steps):
        optimizer.step(closure)
    state = optimizer.state_dict()
    named, layout = flatten_optimizer(state)
    save_checkpoint(tmp_path / "step-1", config=CONFIG, tensors={"optimizer": named}, state={"layout": layout})
    loaded = load_checkpoint(tmp_path / "step-1")
    restored = unflatten_optimizer(loaded.tensors["optimizer"], loaded.state["layout"])
    assert same_tree(restored, state)
    make(weights).load_state_dict(restored)


@pytest.mark.parametrize("layout", [{"tensor": "gone"}, {"set": []}, {"list": 3}, {}])
def test_optimizer_layout_that_does_not_fit_is_refused(layout: Any) -> None:
    with pytest.raises(CheckpointError, match="optimizer state does not fit its tensors at {"):
        unflatten_optimizer({}, layout)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 1)
    shutil.copytree(folder, tmp_path / "copy")
    assert sorted(os.listdir(folder)) == STEP_FILES
    for name in ("config.json", "state.json", "manifest.json"):
        json.loads((folder / name).read_text())
