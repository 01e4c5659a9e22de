"""Small studies, folders of pictures, and the real server as a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.data.png import write_png
from rasterformer.study.create import study_png
from rasterformer.study.store import Condition, Pair, Store

MAIN = "import sys; from rasterformer.cli.main import main; sys.exit(main())"


def noise(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """12 images of 16x16 pixels."""
    folder = tmp_path / "real"
    folder.mkdir()
    for k in range(12):
        noise(k, 16).save(folder / f"photo-{k}.png")
    return folder


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """8 images of 8x8 pixels with a record, four at each of two temperatures, and their contact sheet."""
    folder = tmp_path / "generated"
    for k in range(8):
        image = torch.from_numpy(np.array(noise(100 + k, 8))).permute(2, 0, 1)
        write_png(folder / f"{k:04d}.png", image, metadata={"model": "runs/a", "temperature": 0.9 if k < 4 else 1.0})
    write_png(folder / "grid.png", image, metadata={"model": "runs/a", "temperature": 0.9, "images": 8})
    return folder


@pytest.fixture
def new_study(tmp_path: Path) -> Callable[..., Path]:
    """Makes a study whose pair k has a real image of grey level k and a generated one of level 255 - k."""

    def make(*, pairs: int = 4, checks: int = 1, seconds: float = 1.0) -> Path:
        made = []
        for k in range(pairs + checks):
            real, generated = (study_png(Image.new("RGB", (8, 8), (level,) * 3), 8) for level in (k, 255 - k))
            made.append(Pair(real, generated, Condition("m", 0.9 if k % 2 else 1.0) if k < pairs else None))
        path = tmp_path / "study.db"
        Store.create(path, made, seconds=seconds).close()
        return path

    return make


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def serve() -> Callable[..., object]:
    """Runs `rasterformer study serve` in a process of its own, yields that once it answers, and kills it at the end."""

    @contextmanager
    def serving(study: Path, port: int, *options: str) -> Iterator["subprocess.Popen[str]"]:
        words = [sys.executable, "-c", MAIN, "study", "serve", str(study), "--port", str(port), *options]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for _ in range(2000):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/page.css", trust_env=False, timeout=60)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.05)
            else:
                raise AssertionError("the server does not answer")
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    return serving
