"""The program that takes a torch checkpoint apart, in a process of its own: `python -I -S unpickle.py` (pickle_reader.py).

A pickle is a program. This one can do nothing but build containers, numbers and text: whatever it names becomes a class
that takes any argument and does nothing, apart from five names that describe tensors. Nothing is imported from what the
file names, and while it runs every event that Python audits (opening, importing, starting, connecting) ends the process.

Standard input: JSON with checkpoint, limit_seconds. Written into the current folder: `storages.safetensors`, the storages
that the wanted tensors lie in, as flat tensors; and `report.json`. Only the standard library is used.
"""

import json
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, NamedTuple

try:
    import resource
except ImportError:  # Windows has no such limits; the parent's limit of time holds there
    resource = None  # type: ignore[assignment]

MAX_PICKLE_BYTES = 64_000_000  # of data.pkl, which describes tensors and holds none
MAX_MEMORY_BYTES = 4_000_000_000
COPY_BYTES = 1 << 22
ENTRIES = ("state_dict", "ema", "model")  # Lightning; LlamaGen, whose loader also prefers ema
STORAGES = {
    "DoubleStorage": ("F64", 8), "LongStorage": ("I64", 8), "FloatStorage": ("F32", 4), "IntStorage": ("I32", 4),
    "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}  # fmt: skip


class Refused(Exception):
    """The file is not one that is read; the message is for the user."""


class Stub:
    """Stands for anything that a checkpoint names and that is not a tensor: it takes whatever it is given."""

    def __new__(cls, *args: object, **options: object) -> "Stub":
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def ignore(self, *args: object, **options: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = ignore


class Storage(NamedTuple):
    """Numbers in the archive's member `data/KEY`."""

    key: str
    dtype: str
    item_bytes: int
    numel: int


class Described(NamedTuple):
    """A tensor before it is read: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> object:
    """torch._utils._rebuild_tensor_v2."""
    if isinstance(storage, Stub):  # of a dtype that is not read
        return storage
    if isinstance(storage, Storage) and type(offset) is int and type(shape) is tuple and type(stride) is tuple:
        if len(shape) == len(stride) and all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *stride)):
            return Described(storage, offset, shape, stride)
    raise Refused("describes a tensor in another way than torch does")


def rebuild_parameter(tensor: object, *_: object) -> object:
    """torch._utils._rebuild_parameter."""
    return tensor


class RestrictedUnpickler(pickle.Unpickler):
    """Builds containers, numbers, text and descriptions of tensors; `stubbed` collects every other name."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.stubbed: set[str] = set()
        self.storages = {name: type(name, (Stub,), {}) for name in STORAGES}
        self.known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch", name): kind for name, kind in self.storages.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """What the file names, without importing it."""
        if (module, name) not in self.known:
            self.stubbed.add(ascii(f"{module}.{name}")[1:-1][:200])
            self.known[module, name] = type("Unknown", (Stub,), {})
        return self.known[module, name]

    def persistent_load(self, pid: object) -> object:
        """("storage", kind, key, device, count) -> Storage."""
        if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage" and type(pid[4]) is int and pid[4] >= 0):
            raise Refused("refers to data in another way than torch does")
        _, kind, key, _, count = pid
        for name, (dtype, item_bytes) in STORAGES.items():
            if kind is self.storages[name] and type(key) is str:
                return Storage(key, dtype, item_bytes, count)
        return Stub()


def main() -> int:
    """Writes the results into the current folder; returns 0, or 3 where report.json has nothing but an error."""
    order = json.load(sys.stdin)
    if resource is not None:
        limits = {
            resource.RLIMIT_AS: MAX_MEMORY_BYTES,
            resource.RLIMIT_CPU: order["limit_seconds"],
            resource.RLIMIT_CORE: 0,
        }
        for kind, limit in limits.items():
            with suppress(ValueError, OSError):  # the machine's own limit is lower, or it has none of this kind
                resource.setrlimit(kind, (limit, limit))
    try:
        report = take_apart(order["checkpoint"])
    except Refused as error:
        report = {"error": str(error)}
    except MemoryError:
        report = {"error": f"needs more than {MAX_MEMORY_BYTES} bytes of memory to be read"}
    except (zipfile.BadZipFile, struct.error, RuntimeError, EOFError, ValueError, KeyError) as error:
        report = {"error": f"is damaged or cut off ({ascii(str(error))[:200]})"}
    with open("report.json", "w", encoding="utf-8") as file:
        json.dump(report, file)
    return 3 if "error" in report else 0


def take_apart(path: str) -> dict[str, object]:
    """Writes storages.safetensors and returns the report."""
    with open(path, "rb") as file:
        check_format(file.read(16), zipfile.is_zipfile(path))
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            root = root_of(archive)
            if root + "byteorder" in archive.namelist() and member(archive, root + "byteorder", 10) != b"little":
                raise Refused("was written on a machine of another byte order")
            unpickler = RestrictedUnpickler(BytesIO(member(archive, root + "data.pkl", MAX_PICKLE_BYTES)))
            content = quarantined(unpickler.load)
            entry, wanted, beside = find_entry(content)
            tensors = {name: value for name, value in dict.items(wanted) if is_named_tensor(name, value)}
            write_storages(archive, root, [tensor.storage for tensor in tensors.values()], size)
            dropped = [ascii(name)[:200] for name in dict.keys(wanted) if name not in tensors]
    return {
        "entry": entry,
        "tensors": {name: [t.storage.key, t.offset, t.shape, t.stride] for name, t in tensors.items()},
        "stubbed": sorted(unpickler.stubbed),
        "dropped": dropped,
        "beside": [ascii(name)[:200] for name in beside],
    }


def check_format(start: bytes, is_zip: bool) -> None:
    if start.startswith(b"PK"):
        if not is_zip:
            raise Refused("is damaged or cut off: the list at the end of its zip archive is missing")
    elif start.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"):
        raise Refused(
            "is in the format that torch.save had before 1.6, which is not read; "
            "load it where you trust it and save it again with a newer torch"
        )
    else:
        raise Refused("is no zip archive of torch.save")


def root_of(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise Refused(f"has {len(names)} members named FOLDER/data.pkl; an archive of torch.save has 1")
    return names[0].removesuffix("data.pkl")


def stored(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The member, which torch never compresses: what is read is then no larger than the file."""
    found = archive.getinfo(name)
    if found.compress_type != zipfile.ZIP_STORED or found.file_size != found.compress_size or found.flag_bits & 1:
        raise Refused(f"has the compressed member {ascii(name)[:200]}; torch.save compresses nothing")
    return found


def member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    found = stored(archive, name)
    if found.file_size > max_bytes:
        raise Refused(f"has {found.file_size} bytes in {ascii(name)[:200]}; {max_bytes} are allowed")
    return archive.read(found)


def quarantined(load: Callable[[], object]) -> object:
    """The unpickled content; any event that Python audits stops the work."""
    is_running = True

    def refuse(event: str, _: object) -> None:
        if is_running:
            raise Refused(f"tries to do more than to describe tensors ({event})")

    sys.addaudithook(refuse)
    try:
        return load()
    except (Refused, MemoryError):
        raise
    except Exception as error:  # a pickle can be wrong in every way
        raise Refused(
            f"has a pickle that cannot be read ({type(error).__name__}: {ascii(str(error))[:200]})"
        ) from error
    finally:
        is_running = False


def is_named_tensor(name: object, value: object) -> bool:
    return type(name) is str and isinstance(value, Described)


def find_entry(content: object) -> tuple[str | None, dict[Any, Any], list[Any]]:
    """The dict of tensors with its name in the file, and the names beside it; None: the file is that dict."""
    if isinstance(content, dict):
        for entry in (*ENTRIES, None):
            found = content if entry is None else dict.get(content, entry)
            if isinstance(found, dict) and any(is_named_tensor(*item) for item in dict.items(found)):
                return entry, found, [name for name in dict.keys(content) if entry and name != entry]
    raise Refused(f"holds no dict of tensors, neither by itself nor as one of its entries {', '.join(ENTRIES)}")


def write_storages(archive: zipfile.ZipFile, root: str, storages: list[Storage], max_bytes: int) -> None:
    """Copies the members with the storages; larger numbers first, so that all of them are aligned."""
    unique = {storage.key: storage for storage in storages}
    if any(unique[storage.key] != storage for storage in storages):
        raise Refused("gives one storage two types or sizes")
    if sum(storage.numel * storage.item_bytes for storage in unique.values()) > max_bytes:
        raise Refused(f"describes more data than its {max_bytes} bytes")
    header, end = {}, 0
    ordered = sorted(unique.values(), key=lambda storage: -storage.item_bytes)
    for storage in ordered:
        start, end = end, end + storage.numel * storage.item_bytes
        header[storage.key] = {"dtype": storage.dtype, "shape": [storage.numel], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open("storages.safetensors", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for storage in ordered:
            found = stored(archive, f"{root}data/{storage.key}")
            if found.file_size != storage.numel * storage.item_bytes:
                raise Refused(
                    f"has {found.file_size} bytes in {ascii(found.filename)[:200]}, "
                    f"where {storage.numel * storage.item_bytes} are described"
                )
            with archive.open(found) as source:
                while chunk := source.read(COPY_BYTES):
                    out.write(chunk)


if __name__ == "__main__":
    sys.exit(main())
