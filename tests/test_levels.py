"""Who may import whom: the levels of the package, read from the source of every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rasterformer

ROOT = Path(rasterformer.__file__).parent
LEVELS = {
    "errors": 0, "interfaces": 0, "registry": 0, "recipe": 0, "recipe_file": 0, "pipeline_file": 0, "tasks": 0, "heads": 0,
    "nn": 1, "distributions": 1, "data": 1,
    "codecs": 2, "conditioning": 2, "autoregressive": 2, "diffusion": 2,
    "systems": 3,
    "training": 4, "evaluation": 4, "compression": 4, "manifest": 4, "checkpoint": 4, "system": 4, "loading": 4,
    "drawing": 4, "recipe_images": 4, "code_sets": 4, "batches": 4, "given_images": 4, "model_card": 4, "cascade": 4,
    "tokenizer": 4, "weights": 4,
    "cli": 5, "study": 5, "studio": 5,
}  # fmt: skip
# Imported inside functions, because they are heavy and optional: an extra installs them.
OPTIONAL_PACKAGES = {"torchmetrics", "matplotlib", "constriction", "transformers", "tokenizers", "huggingface_hub"}
WITHOUT_TORCH = ("", "errors", "registry", "recipe", "recipe_file", "pipeline_file", "tasks", "manifest", "cli.main",
                 "cli.overrides", "cli.recipes", "cli.inspect", "cli.doctor", "cli.study", "study.store",
                 "study.server")  # fmt: skip


def modules() -> dict[str, ast.Module]:
    """Name below the package ("systems.image_transformer.model") -> syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def ours(imported: str) -> str | None:
    """The name below the package, or None for an import from elsewhere."""
    head, _, rest = imported.partition(".")
    return rest if head == "rasterformer" else None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import; `from a import b` counts as `a.b` where that is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if ours(full) in MODULES else node.module


def level_violations(name: str, tree: ast.AST) -> list[str]:
    """Imports of `name` that its level forbids."""
    head = name.partition(".")[0]
    found = []
    for line, imported in imports(tree):
        target = ours(imported)
        if not target:  # from elsewhere, or the package itself, which has nothing but names
            continue
        target_head = target.partition(".")[0]
        level, target_level = LEVELS[head], LEVELS[target_head]
        same_system = name.split(".")[:2] == target.split(".")[:2]
        if target_level > level:
            found.append(f"{name}:{line} (level {level}) imports {target} (level {target_level})")
        elif target_head == "systems" and (level == 4 or (head == "systems" and not same_system)):
            found.append(f"{name}:{line} reaches {target} without the registry")
    return found


def late_import_violations(name: str, tree: ast.AST) -> list[str]:
    """Imports inside functions of anything but an optional package."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for line, imported in imports(function):
                if imported.partition(".")[0] not in OPTIONAL_PACKAGES:
                    found.append(f"{name}:{line} imports {imported} inside a function")
    return found


def top_level_imports(tree: ast.Module) -> set[str]:
    """What importing the module imports: not what stands in functions or below `if TYPE_CHECKING`."""
    found: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found.update(imported for _, imported in imports(statement))
    return found


def import_time_closure(name: str) -> dict[str, str]:
    """Everything that importing our module `name` imports -> the module of ours that does it."""
    pending, seen, found = [name], set(), {}
    while pending:
        module = pending.pop()
        packages = [".".join(module.split(".")[:end]) for end in range(len(module.split(".")))]
        for part in [*packages, module]:
            if part in seen or part not in MODULES:
                continue
            seen.add(part)
            for imported in top_level_imports(MODULES[part]):
                found.setdefault(imported, part)
                target = ours(imported)
                if target is not None:
                    pending.append(target)
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_module_imports_only_its_level_and_below(name: str) -> None:
    assert name.partition(".")[0] in LEVELS, f"{name} has no level: add it to LEVELS"
    assert level_violations(name, MODULES[name]) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] != "cli"])
def test_module_has_no_import_inside_a_function(name: str) -> None:
    assert late_import_violations(name, MODULES[name]) == []


def test_no_cycle_of_imports() -> None:
    edges = {name: {target for imported in top_level_imports(tree) if (target := ours(imported)) in MODULES}
             for name, tree in MODULES.items()}  # fmt: skip
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join((*above[above.index(name) :], name))}"
        if name not in done:
            for target in sorted(edges[name] - {""}):
                visit(target, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


CONFIGS = tuple(name for name in MODULES if name.startswith("systems.") and name.endswith(".config"))


@pytest.mark.parametrize("name", WITHOUT_TORCH + CONFIGS)
def test_module_does_not_import_torch(name: str) -> None:
    heavy = {imported: by for imported, by in import_time_closure(name).items()
             if imported.partition(".")[0] in ("torch", "safetensors", "numpy")}  # fmt: skip
    assert heavy == {}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nn.attention", "from rasterformer.codecs import pixels"),
        ("recipe", "import rasterformer.nn.attention"),
        ("training.loop", "from rasterformer.systems.image_transformer import model"),
        ("systems.a.model", "from rasterformer.systems.b import model"),
        ("data.folder", "from rasterformer.cli.main import main"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert len(level_violations(name, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("systems.a.model", "from rasterformer.systems.a.config import Config"),
        ("training.loop", "from rasterformer.registry import model_module"),
        ("cli.demo", "import rasterformer.systems.image_transformer.model"),
    ],
)
def test_an_allowed_import_passes(name: str, source: str) -> None:
    assert level_violations(name, ast.parse(source)) == []


def test_an_import_inside_a_function_is_found() -> None:
    source = "def f():\n    import json\n    import matplotlib\n"
    assert late_import_violations("nn.x", ast.parse(source)) == ["nn.x:2 imports json inside a function"]
