"""The commands that only talk about files answer at once: `import torch` alone would cost more than a second."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from rasterformer.cli.main import main
try:
    code = main({tokens!r})
except SystemExit as stop:
    code = stop.code
heavy = sorted({{"torch", "numpy", "safetensors"}} & set(sys.modules))
print("code", code, "heavy", heavy, "seconds", time.process_time())
"""


@pytest.mark.parametrize(
    "tokens",
    [["--help"], ["recipes"], ["--version"], ["vary", "--help"], ["restore", "--help"], ["sample", "--help"]],
    ids=" ".join,
)
def test_command_answers_in_half_a_second_without_torch(tokens: list[str]) -> None:
    seconds = []
    for _ in range(2):  # the second run has every file in memory
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(tokens=tokens)], capture_output=True, text=True, check=True
        )
        report = run.stdout.splitlines()[-1].split()
        assert report[:4] == ["code", "0", "heavy", "[]"], run.stdout + run.stderr
        seconds.append(float(report[-1]))
    assert min(seconds) < 0.5


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, rasterformer; print(sorted({'torch', 'yaml', 'pydantic', 'cyclopts'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
