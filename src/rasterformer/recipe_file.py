"""A recipe as a YAML file: reading it strictly, overriding single fields, writing it back. No torch here.

Strict means: a closed set of keys, no value of another type, and every problem of a recipe in one error. The YAML is
the plain part of the language (its 1.2 core values; no aliases, no tags, no repeated keys). Read first: `recipe.py`.
"""

import hashlib
import json
import re
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from rasterformer import registry
from rasterformer.errors import ConfigError, did_you_mean, nearest
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.tasks import TASKS, Task, task_name

MAX_FILE_BYTES = 1_000_000
SECTIONS = ("system", "task", "text", "model", "data", "training")
_SHIPPED_FOLDER = Path(__file__).parent / "recipes"


def load_recipe(source: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Returns the recipe of a file, with single fields replaced.

    Args:
        source: the name of a shipped recipe, or the path of a YAML file (it has a suffix or a folder in it).
        overrides: pairs such as `("model.depth", "8")`; the value is read as YAML. The last of equal fields counts.

    Raises:
        ConfigError: no such recipe or file; the file is too large, not UTF-8, or not plain YAML; an override does
            not name section.field; or any field is unknown, of the wrong type, or has a value that cannot work.
    """
    content = read_yaml(source)
    for name, text in overrides:
        section, dot, field = name.partition(".")
        if section not in SECTIONS[1:] or not dot or not field:
            raise ConfigError(
                f"override {name!r} is not section.field.{did_you_mean(section, SECTIONS[1:])} Example: model.depth."
            )
        content[section] = content.get(section) or {}
        if isinstance(content[section], dict):
            content[section][field] = _parse(text, where=f"override {name}")
    return recipe_from_dict(content, where=str(source))


def read_yaml(source: str | Path) -> dict[str, Any]:
    """Returns the plain values of a shipped recipe, a pipeline, or a file of either, as they stand.

    Raises:
        ConfigError: no such recipe or file; the file is too large, not UTF-8, or not plain YAML with sections.
    """
    path = _find(source)
    content = _parse(_read(path), where=str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {content!r}; a recipe has the sections {', '.join(SECTIONS)}.")
    return content


def recipe_from_dict(content: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Returns the recipe that plain values (of YAML or JSON) describe; sections and fields left out keep their default.

    Args:
        content: the sections `system` (required), `task`, `text`, `model`, `data`, `training`. The second and third are None
            where they are left out.
        where: the first word of the message.

    Raises:
        ConfigError: an unknown system, section or field, a missing one, a value of the wrong type, or a value that
            the section's `problems()` refuses. One message holds them all, one a line.
    """
    found = [
        f"{key} = {content[key]!r} is no section.{did_you_mean(str(key), SECTIONS)}"
        for key in content
        if key not in SECTIONS
    ]
    data = _fill("data", DataConfig, content.get("data"), found)
    training = _fill("training", TrainingConfig, content.get("training"), found)
    text = None if content.get("text") is None else _fill("text", TextConfig, content["text"], found)
    model, system = None, content.get("system")
    if system is None:
        found.append(f"system is missing.{did_you_mean('', _systems())}")
    elif not isinstance(system, str) or system not in _systems():
        found.append(f"system = {system!r} is not known.{did_you_mean(str(system), _systems())}")
    else:
        model = _fill("model", registry.config_class(system), _today(content.get("model"), found), found)
    for section in (data, training, text, model):
        found += section.problems() if section is not None else []
    task = _fill_task(content.get("task"), data, found)
    if model is not None and data is not None and not found:
        found += model.fit_problems(
            task=None if task is None else task_name(task), image_size=data.image_size, has_text=text is not None
        )
    if text is not None and model is not None and not takes_text(str(system)):
        found.append(
            f"text is a section for systems that read captions: {', '.join(filter(takes_text, registry.SYSTEMS))}. system = "
            f"{system!r} does not. Leave it out."
        )
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError("\n  ".join([f"{where} has {count}:", *found]))
    return Recipe(system=str(system), model=model, data=data, training=training, task=task, text=text)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Returns every field as plain JSON values; `recipe_from_dict` is the way back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    task, text = plain.pop("task"), plain.pop("text")
    return {
        "system": plain.pop("system"),
        **({} if recipe.task is None else {"task": {"name": task_name(recipe.task), **task}}),
        **({} if text is None else {"text": text}),
        **plain,
    }


def takes_text(system: str) -> bool:
    """Whether the system's network reads captions: its `Config` says so by `takes_text = True`."""
    return getattr(registry.config_class(system), "takes_text", False)


def recipe_to_yaml(recipe: Recipe) -> str:
    """Returns the resolved recipe, every field written out, as YAML that `load_recipe` reads back to an equal one."""
    return yaml.dump(recipe_to_dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_hash(recipe: Recipe) -> str:
    """Returns 12 hexadecimal digits that any change of any field changes (SHA-256 of the canonical JSON)."""
    canonical = json.dumps(recipe_to_dict(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes inside the package, name -> file, sorted by name."""
    return {path.stem: path for path in sorted(_SHIPPED_FOLDER.glob("*.yaml"))}


def recipe_header(name: str) -> str:
    """Returns the comment that opens a shipped recipe (command, expected time, expected result), without the `#`.

    Raises:
        ConfigError: no shipped recipe has that name.
    """
    lines = []
    for line in shipped_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines)


def shipped_text(name: str) -> str:
    """Returns the YAML text of a shipped recipe.

    Raises:
        ConfigError: no shipped recipe has that name.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise ConfigError(f"{name!r} is no shipped recipe.{did_you_mean(name, shipped)}")
    return shipped[name].read_text(encoding="utf-8")


def _systems() -> dict[str, str]:
    return registry.SYSTEMS | registry.TOKENIZERS


def _find(source: str | Path) -> Path:
    path, shipped = Path(source), shipped_recipes()
    if isinstance(source, str) and source in shipped:
        return shipped[source]
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1 or path.exists():
        raise ConfigError(f"{source} is no recipe file: it {'is a folder' if path.is_dir() else 'does not exist'}.")
    raise ConfigError(f"{str(source)!r} is neither a file nor a shipped recipe.{did_you_mean(str(source), shipped)}")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; a recipe is a short text.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _parse(text: str, *, where: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line} cannot be read as YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read as YAML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{where} cannot be read as YAML: it is nested too deeply.") from error


def _fill(section: str, config_class: type[Any], content: Any, found: list[str]) -> Any:
    """Returns `config_class` filled from plain values; what is wrong goes into `found`, one sentence each.

    None where a field is missing or of the wrong type; what the values say is not looked at.
    """
    if content is None:
        content = {}
    if not isinstance(content, dict):
        found.append(f"{section} = {content!r} must be a section with fields below it.")
        return None
    hints = typing.get_type_hints(config_class)
    types = {field.name: hints[field.name] for field in fields(config_class)}
    values, wrong = {}, []
    for key, value in content.items():
        if key not in types:
            found.append(f"{section}.{key} = {value!r} is not known.{did_you_mean(str(key), types)}")
            continue
        try:  # by way of JSON, in which a list can become a tuple though nothing else changes its type
            adapter = TypeAdapter(types[key], config={"allow_inf_nan": False})
            values[key] = adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            wrong.append(f"{section}.{key} = {value!r} {_what_it_must_be(types[key], error)}")
    wrong += [
        f"{section}.{field.name} is missing."
        for field in fields(config_class)
        if field.name not in content and field.default is MISSING and field.default_factory is MISSING
    ]
    found += wrong
    if wrong:
        return None
    return config_class(**values)


def _what_it_must_be(of_field: Any, error: ValidationError) -> str:
    """The end of the sentence about a value that is none of a field's."""
    found = error.errors()[0]
    null = ", or null" if type(None) in typing.get_args(of_field) else ""
    if found["type"] == "literal_error":
        names = [name for part in (of_field, *typing.get_args(of_field)) for name in typing.get_args(part)]
        names = [name for name in names if isinstance(name, str)]
        each = f"has the entry {found['input']!r}, but each " if found["loc"] else ""
        return f"{each}must be one of {', '.join(map(repr, names))}{null}.{nearest(str(found['input']), names)}"
    must = found["msg"].replace("Input should", "it must").replace("Field", "its last entry is")
    return f"has the wrong type: {must}{null}."


def _today(model: Any, found: list[str]) -> Any:
    """A `model:` section as it is written now: of older recipes and models, those without texts say so in two fields."""
    if not isinstance(model, dict) or "text_dim" not in model:
        return model
    if model["text_dim"] is not None:
        found.append(
            f"model.text_dim = {model['text_dim']!r} is a section of its own now, text: {{length: 64}}, and a model that was "
            "trained with it before must be trained again: texts are normalised since."
        )
    return {name: value for name, value in model.items() if name not in ("text_dim", "text_length")}


def _fill_task(content: Any, data: DataConfig | None, found: list[str]) -> Task | None:
    """Returns the task that the section names, or None where it is left out; what is wrong goes into `found`."""
    if content is None:
        return None
    if not isinstance(content, dict) or "name" not in content:
        found.append(f"task = {content!r} must be a section with a name.{did_you_mean('', TASKS)}")
        return None
    rest = {key: value for key, value in content.items() if key != "name"}
    name = content["name"]
    if not isinstance(name, str) or name not in TASKS:
        found.append(f"task.name = {name!r} is not known.{did_you_mean(str(name), TASKS)}")
        return None
    task: Task | None = _fill("task", TASKS[name], rest, found)
    if task is not None and data is not None:
        found += task.problems(data.image_size)
    return task


def _core_values() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The implicit types of YAML 1.2's core schema, by first character: `1e-3` is a number, `no` and dates are text."""
    by_first: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, first in (
        ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
        ("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ):
        for character in first:
            by_first.setdefault(character, []).append((f"tag:yaml.org,2002:{kind}", re.compile(pattern)))
    return by_first


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _core_values()
    yaml_constructors = {
        None: yaml.SafeLoader.construct_undefined,
        **{
            f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
            for kind in ("null", "bool", "int", "float", "str", "seq", "map")
        },
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are refused", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is repeated", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _core_values()  # so that what reads as a number, and only that, is quoted
