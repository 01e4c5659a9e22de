import builtins
import collections
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.errors import CheckpointError
from rasterformer.weights import pickle_reader
from rasterformer.weights.pickle_reader import read_checkpoint

WEIGHT = torch.arange(6.0).view(2, 3)


class Callback:
    """A class of another program, as Lightning's callbacks are: the reader must not import this file."""

    def __init__(self) -> None:
        self.best = {"loss": 1.0}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def archive(path: Path, pickled: bytes, members: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, payload in (members or {}).items():
            file.writestr(f"archive/{name}", payload)
    return path


def equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool],
)  # fmt: skip
def test_each_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.tensor([[0, 1, 0], [1, 1, 0]]).to(dtype)
    odd = torch.ones(3, dtype=torch.uint8)  # would leave what follows misaligned
    read = read_checkpoint(saved(tmp_path / "x.pt", {"odd": odd, "x": x})).tensors
    assert equal(read["x"], x) and equal(read["odd"], odd)


def test_views_parameters_scalars_and_empty_tensors_come_back(tmp_path: Path) -> None:
    base = torch.randn(4, 5, 6)
    state = collections.OrderedDict(
        whole=base,
        transposed=base.transpose(0, 2),
        part=base[1:3, ::2, 3],
        parameter=torch.nn.Parameter(torch.randn(2)),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 7),
    )
    read = read_checkpoint(saved(tmp_path / "x.pt", state)).tensors
    assert list(read) == list(state)
    assert all(equal(read[name], tensor.detach()) for name, tensor in state.items())
    assert all(tensor.is_contiguous() for tensor in read.values())


def test_module_state_comes_back_with_its_metadata_ignored(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    read = read_checkpoint(saved(tmp_path / "x.pt", module.state_dict()))
    assert set(read.tensors) == set(module.state_dict())
    assert all(equal(read.tensors[name], tensor) for name, tensor in module.state_dict().items())
    assert read.entry is None and read.beside == () and read.dropped == ()


def test_lightning_checkpoint_is_read_although_its_callbacks_are_keyed_by_a_class(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "callbacks": {Callback: {"best": Callback(), "shape": torch.Size([2])}},
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.zeros(2)}}, "groups": collections.defaultdict(list, a=[1])}
        ],
        "state_dict": {"w": WEIGHT, "steps": 5, "nested": {"v": WEIGHT}, "c": torch.zeros(1, dtype=torch.complex64)},
    }
    read = read_checkpoint(saved(tmp_path / "x.ckpt", content))
    assert list(read.tensors) == ["w"] and equal(read.tensors["w"], WEIGHT)
    assert read.entry == "state_dict"
    assert read.dropped == ("'steps'", "'nested'", "'c'")
    assert read.beside == ("'epoch'", "'callbacks'", "'optimizer_states'")
    stubbed = set(read.stubbed)
    assert any(name.endswith("test_pickle_reader.Callback") for name in stubbed)
    assert {"torch.Size", "collections.defaultdict", "torch.ComplexFloatStorage"} <= stubbed
    assert not any("FloatStorage" in name for name in stubbed - {"torch.ComplexFloatStorage"})


@pytest.mark.parametrize(("names", "entry"), [(["model"], "model"), (["model", "ema"], "ema")])
def test_entry_of_other_programs_is_found(names: list[str], entry: str, tmp_path: Path) -> None:
    content = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(names)}
    read = read_checkpoint(saved(tmp_path / "x.pt", content))
    assert read.entry == entry and equal(read.tensors["w"], content[entry]["w"])


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, Any]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Attack(os.system, f"touch {marker}"),
        "open": Attack(builtins.open, str(marker), "w"),
        "eval": Attack(builtins.eval, touch),
        "exec": Attack(builtins.exec, touch),
        "__import__": Attack(builtins.__import__, "antigravity"),
        "subprocess": Attack(subprocess.check_call, ["touch", str(marker)]),
        "getattr": Attack(getattr, Attack(builtins.__import__, "os"), "system"),
        "pickle in a pickle": Attack(pickle.loads, pickle.dumps(Attack(os.system, f"touch {marker}"))),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("place", ["beside", "in the state", "as a name"])
def test_attack_does_nothing_and_the_tensors_are_read(name: str, place: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    content: dict[str, Any] = {"state_dict": {"w": WEIGHT}}
    if place == "beside":
        content["hyper_parameters"] = attack
    elif place == "in the state":
        content["state_dict"]["bad"] = attack
    else:
        content["callbacks"] = {attack: 1}
    path = saved(tmp_path / "x.ckpt", content)
    with zipfile.ZipFile(path) as file:  # the pickle as such is dangerous: it names a function and calls it
        assert b"R" in file.read("x/data.pkl")
    read = read_checkpoint(path)
    assert not marker.exists()
    assert equal(read.tensors["w"], WEIGHT) and list(read.tensors) == ["w"]
    named = {"subprocess": "check_call", "pickle in a pickle": "loads", "os.system": "system"}.get(name, name)
    assert any(what.endswith(f".{named}") for what in read.stubbed)


def test_the_attacks_of_these_tests_are_real(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(attacks(marker)["exec"]))
    assert marker.exists()


def test_state_that_calls_an_attack_in_every_way_of_a_pickle_is_inert(tmp_path: Path) -> None:
    """GLOBAL+REDUCE, INST, OBJ, NEWOBJ, STACK_GLOBAL, BUILD of os.system, written by hand."""
    marker = tmp_path / "marker"
    command = f"touch {marker}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    system = b"cos\nsystem\n"
    calls = [
        system + b"(" + text + b"tR0",
        b"(" + text + b"ios\nsystem\n0",
        b"(" + system + text + b"o0",
        system + text + b"\x85\x810",
        b"\x8c\x02os\x8c\x06system\x93" + text + b"\x85R0",
        system + b"(" + text + b"tR}" + b"X\x03\x00\x00\x00run" + text + b"sb0",
    ]
    path = archive(tmp_path / "x.ckpt", b"\x80\x04" + b"".join(calls) + b"}.")
    with pytest.raises(CheckpointError, match="holds no dict of tensors"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "has a pickle that cannot be read \\(EOFError"),
        (b"garbage", "has a pickle that cannot be read \\(UnpicklingError"),
        (b"\x80\x02K\x01.", "holds no dict of tensors, .* state_dict, ema, model"),
        (b"\x80\x02}.", "holds no dict of tensors"),
        (b"\x80\x02K\x01Q.", "refers to data in another way than torch does"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR.", "describes a tensor in another way"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "has a pickle that cannot be read \\(TypeError"),
        (b"\x80\x02\x82\x01.", "has a pickle that cannot be read \\(ValueError"),
    ],
)
def test_other_pickles_are_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ckpt", pickled)
    with pytest.raises(CheckpointError, match=f"x.ckpt {message}"):
        read_checkpoint(path)


def described(count: int, *, key: str = "0", offset: int = 0, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of {"w": a float32 tensor}, with any numbers."""

    def number(n: int) -> bytes:
        raw = n.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def text(s: str) -> bytes:
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    pid = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count) + b"tQ"
    tensor = b"(" + pid + number(offset) + numbers(shape) + numbers(stride) + b"\x89N" + b"t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"Rs."


def test_a_pickle_written_by_hand_is_read(tmp_path: Path) -> None:
    data = struct.pack("<6f", *range(6))
    path = archive(tmp_path / "x.pt", described(6, offset=1, shape=(2, 2), stride=(1, 2)), {"data/0": data})
    assert read_checkpoint(path).tensors["w"].tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (described(6, offset=1, shape=(6,), stride=(1,)), "shape \\[6\\] and strides \\[1\\], more than its 6 stored numbers"),
        (described(6, shape=(2, 2), stride=(6, 1)), "more than its 6 stored"),
        (described(6, shape=(10**12,), stride=(0,)), "shape \\[1000000000000\\] and strides \\[0\\], more than its 6"),
        (described(6, shape=(2**61, 2**61, 0), stride=(1, 1, 1)), "more than its 6"),
        (described(6, offset=10**15, shape=(1,), stride=(1,)), "more than its 6"),
        (described(6, offset=-1, shape=(1,), stride=(1,)), "describes a tensor in another way"),
        (described(6, shape=(2,), stride=(-1,)), "describes a tensor in another way"),
        (described(6, shape=(2,), stride=(1, 1)), "describes a tensor in another way"),
        (described(-6, shape=(2,), stride=(1,)), "refers to data in another way"),
        (described(7, shape=(2,), stride=(1,)), "has 24 bytes in 'archive/data/0', where 28 are described"),
        (described(10**12, shape=(2,), stride=(1,)), "describes more data than its [0-9]+ bytes"),
        (described(6, key="1", shape=(2,), stride=(1,)), "damaged or cut off .*no item named.*archive/data/1"),
        (described(6, key="../../0", shape=(2,), stride=(1,)), "damaged or cut off .*no item named"),
    ],
)  # fmt: skip
def test_tensors_beyond_their_data_are_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", pickled, {"data/0": bytes(24)})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_compressed_members_are_refused_before_they_grow(tmp_path: Path) -> None:
    pickled = described(10**7, shape=(2,), stride=(1,))
    path = archive(tmp_path / "x.pt", pickled, {"data/0": bytes(4 * 10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        CheckpointError, match="has the compressed member 'archive/data.pkl'; torch.save compresses nothing"
    ):
        read_checkpoint(path)


def test_a_storage_of_two_sizes_is_refused(tmp_path: Path) -> None:
    one, other = (described(n, shape=(1,), stride=(1,)) for n in (5, 6))
    both = one[:-1] + other[3:].replace(b"X\x01\x00\x00\x00w", b"X\x01\x00\x00\x00v")
    path = archive(tmp_path / "x.pt", both, {"data/0": bytes(24)})
    with pytest.raises(CheckpointError, match="gives one storage two types or sizes"):
        read_checkpoint(path)


def test_cut_off_file_is_refused_wherever_the_cut_is(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.pt", {"w": torch.zeros(1000)}).read_bytes()
    for length in (3, 40, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut.pt is (damaged or cut off|no zip archive)"):
            read_checkpoint(tmp_path / "cut.pt")


def test_altered_number_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.full((1000,), 3.0)})
    raw = path.read_bytes()
    place = raw.index(struct.pack("<4f", 3.0, 3.0, 3.0, 3.0))
    path.write_bytes(raw[: place + 100] + b"\xff" + raw[place + 101 :])
    with pytest.raises(CheckpointError, match="is damaged or cut off .*CRC"):
        read_checkpoint(path)


def test_older_format_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": WEIGHT}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="x.pt is in the format that torch.save had before 1.6.*save it again"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/b.txt": b""}, "has 0 members named FOLDER/data.pkl"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, "has 2 members named FOLDER/data.pkl"),
        ({"a/data.pkl": b"", "a/byteorder": b"big"}, "another byte order"),
    ],
)
def test_other_archives_are_refused(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name, payload in members.items():
            file.writestr(name, payload)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.zip")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere.pt is no file"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_pickle_that_takes_memory_without_end_is_stopped(tmp_path: Path) -> None:
    """A pickle of a few bytes that asks for a memo of 2^31 entries."""
    path = archive(tmp_path / "x.pt", b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(CheckpointError, match="x.pt needs more than 4000000000 bytes of memory"):
        read_checkpoint(path)


def test_reader_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(pickle_reader, "_PROGRAM", slow)
    with pytest.raises(CheckpointError, match="x.pt was not read within 1 seconds"):
        read_checkpoint(saved(tmp_path / "x.pt", {"w": WEIGHT}), limit_seconds=1)


def test_reader_that_breaks_off_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nsys.exit('no space left')\n")
    monkeypatch.setattr(pickle_reader, "_PROGRAM", broken)
    with pytest.raises(CheckpointError, match="x.pt could not be read: the reader ended with 1 \\('no space left'\\)"):
        read_checkpoint(saved(tmp_path / "x.pt", {"w": WEIGHT}))


def test_reader_knows_nothing_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text("import os, sys\nsys.exit(ascii((sorted(os.environ), 'site' in sys.modules, os.getcwd())))\n")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setattr(pickle_reader, "_PROGRAM", spy)
    with pytest.raises(CheckpointError, match="could not be read") as caught:
        read_checkpoint(saved(tmp_path / "x.pt", {"w": WEIGHT}))
    assert "SECRET" not in str(caught.value) and "False, " in str(caught.value) and os.getcwd() not in str(caught.value)


def test_quarantine_ends_what_opens_a_file(tmp_path: Path) -> None:
    """The second line of defence, behind the names: should something run all the same, it can open and start nothing."""
    folder, marker = Path(pickle_reader.__file__).parent, tmp_path / "marker"
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "import unpickle\n"
        f"try:\n    unpickle.quarantined(lambda: open({str(marker)!r}, 'w'))\n"
        "except unpickle.Refused as error:\n    print(error)\n"
        f"open({str(marker)!r} + '2', 'w').close()\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "tries to do more than to describe tensors (open)\n"
    assert not marker.exists() and (tmp_path / "marker2").exists()
