"""`rasterformer doctor`: what this machine and this installation can do, one line each."""

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rasterformer
from rasterformer.recipe_file import shipped_recipes

LOW_DISK_BYTES = 2_000_000_000
_PACKAGES = ("numpy", "pillow", "safetensors", "pyyaml", "pydantic", "cyclopts", "rich")


def doctor() -> int:
    """Check this machine and this installation. Exits with 1 only where nothing could run; warnings do not count."""
    failed = False
    for level, line in _findings():
        print(f"{level:5} {line}")
        failed = failed or level == "fail"
    return int(failed)


def _findings() -> Iterator[tuple[str, str]]:
    yield "ok", f"rasterformer {rasterformer.__version__}, Python {platform.python_version()}, {platform.platform()}"
    for package in _PACKAGES:
        try:
            yield "ok", f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield "fail", f"{package} is not installed; install rasterformer with pip, which brings it."
    yield from _torch_findings()
    yield from _disk_findings()
    yield _found("recipes", list(shipped_recipes()))
    yield _found("embedded sets", _embedded_sets())


def _torch_findings() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "fail", f"torch cannot be imported: {error}"
        return
    yield "ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        yield "ok", f"processor: {capabilities.get('cpu_name', 'unknown')}, with bfloat16 matrix units (AMX)"
    else:
        yield "warn", "processor: no bfloat16 matrix units; training on it is several times slower"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield "ok", f"CUDA device {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield "warn", f"no CUDA device (torch is built with {built}); the processor is used"


def _disk_findings() -> Iterator[tuple[str, str]]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    yield "warn" if free < LOW_DISK_BYTES else "ok", f"{free / 1e9:.1f} GB free in {here}"
    try:
        with tempfile.TemporaryFile(dir=here):
            yield "ok", f"{here} can be written"
    except OSError as error:
        yield "warn", f"{here} cannot be written ({error.strerror}); give --out a folder that can"


def _embedded_sets() -> list[str]:
    folder = Path(rasterformer.__file__).parent / "data" / "embedded"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _found(what: str, names: list[str]) -> tuple[str, str]:
    if not names:
        return "warn", f"{what}: none found; the installation is incomplete"
    return "ok", f"{what}: {', '.join(names)}"
