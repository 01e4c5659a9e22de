import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import pytest

from rasterformer import registry
from rasterformer.errors import ConfigError
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import (
    load_recipe,
    read_yaml,
    recipe_from_dict,
    recipe_hash,
    recipe_header,
    recipe_to_dict,
    recipe_to_yaml,
    shipped_recipes,
)
from rasterformer.tasks import TASKS, Colourise, Denoise, Edges, Inpaint, Paired, SuperResolution

Write = Callable[[str], Path]


@dataclass(frozen=True)
class Config:
    takes_text: ClassVar[bool] = True

    width: int = 8
    num_heads: int = 2
    rate: float = 0.5
    rotary: bool = False
    kind: Literal["local1d", "local2d"] = "local1d"
    shade: Literal["dark", "light"] | None = None
    name: str = "plain"
    depth: int | None = None
    block: tuple[int, int] = (4, 4)
    reads_source: bool = False
    needs_text: bool = False

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool) -> list[str]:
        if self.needs_text and not has_text:
            return ["model.needs_text = true, but there is no text."]
        if self.reads_source == (task is not None):
            return []
        return [f"model.reads_source = {self.reads_source} does not go with the task {task} of {image_size} pixels."]

    def problems(self) -> list[str]:
        if self.width % self.num_heads:
            return [f"model.num_heads = {self.num_heads} does not divide model.width = {self.width}."]
        return []


@pytest.fixture(autouse=True)
def toy_system(monkeypatch: pytest.MonkeyPatch) -> None:
    package, config = ModuleType("toy_system"), ModuleType("toy_system.config")
    config.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_system", package)
    monkeypatch.setitem(sys.modules, "toy_system.config", config)
    monkeypatch.setitem(registry.SYSTEMS, "toy", "toy_system")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def test_what_is_left_out_keeps_its_default(write: Write) -> None:
    recipe = load_recipe(write("# a comment\nsystem: toy\nmodel: {width: 16}\ntraining:\n  steps: 7\n"))
    assert recipe == Recipe("toy", Config(width=16), DataConfig(), TrainingConfig(steps=7))


def test_every_kind_of_field_is_filled(write: Write) -> None:
    text = (
        "system: toy\nmodel:\n  rate: 2\n  rotary: true\n  kind: local2d\n  name: '12'\n  depth: 3\n  block: [8, 32]\n"
    )
    expected = Config(rate=2.0, rotary=True, kind="local2d", name="12", depth=3, block=(8, 32))
    assert load_recipe(write(text)).model == expected


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "+.001", "1.0e-3"])
def test_scientific_numbers_are_numbers(write: Write, text: str) -> None:
    assert load_recipe(write(f"system: toy\ntraining: {{learning_rate: {text}}}")).training.learning_rate == 0.001


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "1:30", "0x10"])
def test_what_older_yaml_would_convert_stays_text(write: Write, text: str) -> None:
    assert load_recipe(write(f"system: toy\nmodel: {{name: {text}}}")).model.name == text


def test_overrides_replace_fields_and_the_last_one_counts(write: Write) -> None:
    path = write("system: toy\nmodel: {width: 16}\ntraining:\n")
    pairs = [("model.width", "4"), ("training.minutes", "0.5"), ("model.width", "6"), ("training.clip_norm", "null"),
             ("model.block", "[1, 2]"), ("data.path", "some/where")]  # fmt: skip
    recipe = load_recipe(path, pairs)
    assert recipe.model == Config(width=6, block=(1, 2))
    assert recipe.training == TrainingConfig(minutes=0.5, clip_norm=None)
    assert recipe.data == DataConfig(path="some/where")


@pytest.mark.parametrize("name", ["depth", "modle.depth", "system.x", "model.", "extra.field"])
def test_override_that_names_no_field_of_a_section_is_refused(write: Write, name: str) -> None:
    with pytest.raises(ConfigError, match=f"override '{name}' is not section.field"):
        load_recipe(write("system: toy"), [(name, "1")])


def test_override_with_an_unknown_field_gets_a_suggestion(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"model.widht = 8 is not known. Did you mean 'width'\?"):
        load_recipe(write("system: toy"), [("model.widht", "8")])


def test_override_whose_value_is_no_yaml_is_named(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"override model.block, line 1 cannot be read as YAML"):
        load_recipe(write("system: toy"), [("model.block", "[1, 2")])


def test_all_errors_are_reported_at_once(write: Write) -> None:
    path = write(
        "system: toy\nmodle: {}\n"
        "model: {widht: 8, width: 9, num_heads: 4}\n"
        "data: {image_size: 1, flip: 0.5}\n"
        "training: {steps: abc, batch_size: true, precision: half, step: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path} has 9 problems:"
    expected = [
        "modle = {} is no section. Did you mean 'model'?",
        "data.flip = 0.5 is not known. Did you mean 'flip_prob'?",
        "data.image_size = 1 must be at least 2 pixels.",
        "training.step = 3 is not known. Did you mean 'steps'?",
        "training.steps = 'abc' has the wrong type: it must be a valid integer.",
        "training.batch_size = True has the wrong type: it must be a valid integer.",
        "training.precision = 'half' must be one of 'auto', 'bfloat16', 'float32'.",
        "model.widht = 8 is not known. Did you mean 'width'?",
        "model.num_heads = 4 does not divide model.width = 9.",
    ]
    assert len(lines) == len(expected)
    for sentence in expected:
        assert any(line.strip().startswith(sentence) for line in lines), sentence


@pytest.mark.parametrize(
    ("field", "text", "allowed"),
    [
        ("width", "8.0", "a valid integer"),
        ("width", "'8'", "a valid integer"),
        ("width", "null", "a valid integer"),
        ("rate", "true", "a valid number"),
        ("rate", "fast", "a valid number"),
        ("rate", "1e999", "a finite number"),
        ("rotary", "1", "a valid boolean"),
        ("rotary", "yes", "a valid boolean"),
        ("name", "12", "a valid string"),
        ("depth", "x", "a valid integer, or null"),
        ("block", "[1, x]", "a valid integer"),
        ("block", "7", "a valid array"),
        ("block", "[1]", "required"),
        ("block", "[1, 2, 3]", "at most 2 items"),
        ("name", "[a]", "a valid string"),
    ],
)
def test_value_of_another_type_is_refused(write: Write, field: str, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{field} = .* has the wrong type: .*{allowed}"):
        load_recipe(write(f"system: toy\nmodel: {{{field}: {text}}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("local3d", r"model.kind = 'local3d' must be one of 'local1d', 'local2d'. Did you mean 'local[12]d'\?$"),
        ("convolution", r"model.kind = 'convolution' must be one of 'local1d', 'local2d'.$"),
        ("3", r"model.kind = 3 must be one of 'local1d', 'local2d'.$"),
        ("null", r"model.kind = None must be one of 'local1d', 'local2d'.$"),
    ],
)
def test_a_value_that_is_no_choice_names_all_choices_and_the_nearest(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(f"system: toy\nmodel: {{kind: {text}}}"))


def test_null_is_named_where_it_is_a_choice(write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"model.shade = 'darc' must be one of 'dark', 'light', or null. Did you mean 'dark'"
    ):
        load_recipe(write("system: toy\nmodel: {shade: darc}"))
    assert load_recipe(write("system: toy\nmodel: {shade: null}")).model.shade is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", r"system is missing. Allowed: .*toy"),
        ("system: toi", r"system = 'toi' is not known. Did you mean 'toy'\? Allowed: "),
        ("system: [toy]", r"system = \['toy'\] is not known"),
        ("system: toy\nmodel: 3", r"model = 3 must be a section"),
        ("- toy", r"holds \['toy'\]; a recipe has the sections system, task, text, model, data, training"),
        ("", r"holds None; a recipe has the sections"),
        ("system: toy\nsystem: toy", r"line 2 cannot be read as YAML: key 'system' is repeated"),
        ("system: toy\nmodel:\n  width: 1\n  width: 2", r"line 4 .*key 'width' is repeated"),
        ("system: toy\nmodel: &a {width: 1}\ndata: *a", r"line 3 cannot be read as YAML: aliases"),
        ("system: !!python/name:os.system x", r"line 1 cannot be read as YAML: could not determine a constructor"),
        ("system: toy\nmodel: {<<: {width: 1}}", r"model.<< = .* is not known"),
        ("system: toy\nmodel: {1: 2}", r"model.1 = 2 is not known"),
        ("system: !!int abc", r"cannot be read as YAML: invalid literal"),
        ("a: b: c", r"line 1 cannot be read as YAML: mapping values are not allowed"),
        ("system: toy\n---\nsystem: toy", r"cannot be read as YAML: but found another document"),
        ("[" * 5000, r"nested too deeply"),
    ],
)
def test_file_that_is_no_recipe_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(text))


def test_large_file_is_refused_unread(write: Write) -> None:
    with pytest.raises(ConfigError, match="mine.yaml is larger than 1000000 bytes"):
        load_recipe(write("#" * 1_000_001))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"system: \xff")
    with pytest.raises(ConfigError, match="x.yaml is not UTF-8 text .byte 8"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/x.yaml", "nowhere/x.yaml is no recipe file: it does not exist"),
        (".", r"\. is no recipe file: it is a folder"),
        ("no-such-recipe", "'no-such-recipe' is neither a file nor a shipped recipe"),
    ],
)
def test_source_that_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(source)


def test_missing_required_field_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Strict:
        width: int

        def problems(self) -> list[str]:
            return []

    monkeypatch.setattr(sys.modules["toy_system.config"], "Config", Strict)
    with pytest.raises(ConfigError, match="model.width is missing"):
        recipe_from_dict({"system": "toy"})


RECIPE = Recipe(
    "toy",
    Config(rate=1e-9, name="1e3", depth=None, block=(2, 3)),
    DataConfig(path="ä: b #c"),
    TrainingConfig(learning_rate=3e-4, minutes=2.0),
)


@pytest.mark.parametrize("name", ["1e3", "null", "true", "~", "", "no", "0x1", "2024-01-01", "a: b", "*x", " x", "é"])
def test_yaml_round_trip_is_identity(write: Write, name: str) -> None:
    recipe = replace(RECIPE, model=replace(RECIPE.model, name=name))
    assert load_recipe(write(recipe_to_yaml(recipe))) == recipe


def test_dict_round_trip_is_identity_and_plain() -> None:
    plain = recipe_to_dict(RECIPE)
    assert plain["model"]["block"] == [2, 3]
    assert recipe_from_dict(plain) == RECIPE


def test_hash_changes_with_every_field_and_with_nothing_else() -> None:
    assert recipe_hash(RECIPE) == recipe_hash(recipe_from_dict(recipe_to_dict(RECIPE)))
    assert len(recipe_hash(RECIPE)) == 12 and int(recipe_hash(RECIPE), 16) >= 0
    changed = [
        replace(RECIPE, model=replace(RECIPE.model, width=10)),
        replace(RECIPE, data=replace(RECIPE.data, image_size=16)),
        replace(RECIPE, training=replace(RECIPE.training, seed=1)),
    ]
    assert len({recipe_hash(recipe) for recipe in [RECIPE, *changed]}) == 4


def test_header_of_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tini' is no shipped recipe"):
        recipe_header("tini")


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "pipeline" not in read_yaml(name)])
def test_shipped_recipe_is_valid_and_opens_with_its_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert f"rasterformer train {name}" in recipe_header(name)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "pipeline" in read_yaml(name)])
def test_shipped_pipeline_opens_with_its_command_and_is_no_recipe(name: str) -> None:
    assert f"rasterformer train {name}" in recipe_header(name)
    with pytest.raises(ConfigError, match="pipeline = .* is no section"):
        load_recipe(name)


PLAIN_TASK = "system: toy\nmodel: {reads_source: true}\ndata: {image_size: 12}\n"
TASK_SECTIONS = {
    "super_resolution": SuperResolution(3),
    "inpaint": Inpaint(masks=("half", "border"), most_strokes=7),
    "colourise": Colourise(),
    "edges": Edges(1.5, 0.2, 0.3),
    "denoise": Denoise((2.5, 7.0), jpeg_quality=(20, 90)),
    "paired": Paired("ä: b #c", source_size=6, source_reduction="nearest"),
}


def test_every_task_is_in_the_round_trip() -> None:
    assert set(TASK_SECTIONS) == set(TASKS)


@pytest.mark.parametrize("name", TASK_SECTIONS)
def test_a_recipe_with_a_task_survives_the_round_trip(write: Write, name: str) -> None:
    model = replace(RECIPE.model, reads_source=True)
    recipe = replace(RECIPE, model=model, data=DataConfig(image_size=12), task=TASK_SECTIONS[name])
    plain = recipe_to_dict(recipe)
    assert plain["task"]["name"] == name
    assert recipe_from_dict(json.loads(json.dumps(plain))) == recipe
    assert load_recipe(write(recipe_to_yaml(recipe))) == recipe
    assert recipe_hash(recipe) != recipe_hash(replace(recipe, task=None))


def test_a_task_named_alone_has_its_defaults(write: Write) -> None:
    assert load_recipe(write(PLAIN_TASK + "task: {name: super_resolution}")).task == SuperResolution(4)
    assert load_recipe(write(PLAIN_TASK + "task: {name: colourise}")).task == Colourise()


def test_without_a_task_neither_the_dict_nor_the_hash_knows_of_tasks() -> None:
    """Recipes from before there were tasks keep their hash: SHA-256 of the canonical JSON of the other sections."""
    assert set(recipe_to_dict(RECIPE)) == {"system", "model", "data", "training"}
    sections = {"system": RECIPE.system} | {
        name: asdict(getattr(RECIPE, name)) for name in ("model", "data", "training")
    }
    canonical = json.dumps(sections, sort_keys=True, separators=(",", ":"))
    assert recipe_hash(RECIPE) == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_a_task_is_set_and_changed_by_overrides(write: Write) -> None:
    path = write(PLAIN_TASK + "task: {name: super_resolution, factor: 2}")
    assert load_recipe(path, [("task.factor", "6")]).task == SuperResolution(6)
    plain = write(PLAIN_TASK)
    assert load_recipe(plain, [("task.name", "inpaint"), ("task.masks", "[half]")]).task == Inpaint(masks=("half",))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{name: colorise}", r"task.name = 'colorise' is not known. Did you mean 'colourise'\?"),
        ("{name: 3}", r"task.name = 3 is not known"),
        ("{factor: 2}", r"task = \{'factor': 2\} must be a section with a name. Allowed: .*super_resolution"),
        ("inpaint", r"task = 'inpaint' must be a section with a name"),
        ("{name: super_resolution, factr: 2}", r"task.factr = 2 is not known. Did you mean 'factor'\?"),
        ("{name: super_resolution, factor: '2'}", r"task.factor = '2' has the wrong type: it must be a valid integer"),
        (
            "{name: inpaint, masks: [whole]}",
            r"task.masks = \['whole'\] has the entry 'whole', but each must be one of 'rectangles', 'strokes'",
        ),
        ("{name: denoise, gaussian_std: 5}", r"task.gaussian_std = 5 has the wrong type: it must be a valid array"),
        (
            "{name: super_resolution, factor: 5}",
            r"task.factor = 5 does not divide data.image_size = 12. Use one of 2, 3, 4, 6, 12",
        ),
        ("{name: paired}", "task.source_path is missing"),
    ],
)
def test_a_task_that_cannot_be_done_is_refused(write: Write, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(PLAIN_TASK + f"task: {section}"))


def test_a_task_and_a_network_that_reads_a_source_need_one_another(write: Write) -> None:
    with pytest.raises(ConfigError, match="task is set, but the network reads no source. Set model.encoder_depth"):
        load_recipe(write("system: image_transformer\ntask: {name: colourise}"))
    with pytest.raises(ConfigError, match="model.reads_source = True does not go with the task None of 12 pixels"):
        load_recipe(write(PLAIN_TASK))
    with pytest.raises(
        ConfigError, match="model.reads_source = False does not go with the task colourise of 32 pixels"
    ):
        load_recipe(write("system: toy\ntask: {name: colourise}"))
    with pytest.raises(ConfigError, match="model.encoder_depth is set, but there is no task"):
        load_recipe(write("system: image_transformer\nmodel: {encoder_depth: 0}"))


def test_texts_are_read_where_the_section_is_and_by_default_not(write: Write) -> None:
    assert load_recipe(write("system: toy")).text is None
    assert load_recipe(write("system: toy\ntext: null")).text is None
    assert load_recipe(write("system: toy\ntext: {}")).text == TextConfig("minilm", None, 64, 384)
    content = "system: toy\ntext: {encoder: folder, folder: 'ä: b', length: 9, dim: 512}"
    recipe = load_recipe(write(content))
    assert recipe.text == TextConfig("folder", "ä: b", 9, 512)
    assert load_recipe(write(recipe_to_yaml(recipe))) == recipe == recipe_from_dict(recipe_to_dict(recipe))
    assert list(recipe_to_dict(recipe))[:2] == ["system", "text"]


def test_without_texts_neither_the_dict_nor_the_hash_knows_of_them() -> None:
    assert "text" not in recipe_to_dict(RECIPE)
    hashes = {recipe_hash(replace(RECIPE, text=text)) for text in (None, TextConfig(), TextConfig(length=9))}
    assert len(hashes) == 3


def test_an_override_of_texts_makes_the_section(write: Write) -> None:
    file = write("system: toy")
    assert load_recipe(file, [("text.length", "32")]).text == TextConfig(length=32)
    changed = load_recipe(file, [("text.encoder", "bytes"), ("text.dim", "48")])
    assert changed.text == TextConfig("bytes", dim=48)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{encoder: bert}", "text.encoder = 'bert' must be one of 'minilm', 'folder', 'bytes'."),
        ("{lenght: 3}", "text.lenght = 3 is not known. Did you mean 'length'"),
        ("7", "text = 7"),
        ("{length: 1}", "text.length = 1 must be at least 2"),
        ("{encoder: bytes, dim: 0}", "text.dim = 0 must be at least 1"),
        ("{dim: 512}", "text.dim = 512 must be 384"),
        ("{length: 513}", "text.length = 513: text.encoder = 'minilm' reads at most 512"),
        ("{encoder: folder}", "text.folder is missing"),
        ("{folder: here}", "text.folder = 'here' is not for text.encoder = 'minilm'"),
        ("{encoder: bytes, folder: here}", "text.folder = 'here' is not for text.encoder = 'bytes'"),
    ],
)
def test_a_section_of_texts_that_cannot_be_used_is_refused(write: Write, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(f"system: toy\ntext: {section}"))


@pytest.mark.parametrize("system", ["image_transformer", "vqgan"])
def test_systems_that_read_no_texts_refuse_the_section(write: Write, system: str) -> None:
    with pytest.raises(ConfigError, match=f"text is a section for .*vqgan_transformer.*system = '{system}' does not"):
        load_recipe(write(f"system: {system}\ntext: {{}}"))


def test_older_recipes_without_texts_are_read_and_those_with_are_refused(write: Write) -> None:
    """Both fields stood in every recipe.yaml and config.json of a prior over codes."""
    old = "system: toy\nmodel: {{width: 16, text_dim: {}, text_length: 64}}"
    assert load_recipe(write(old.format("null"))) == load_recipe(write("system: toy\nmodel: {width: 16}"))
    with pytest.raises(ConfigError, match=r"model\.text_dim = 384 is a section of its own now.*trained again"):
        load_recipe(write(old.format(384)))


def test_a_network_says_before_training_that_it_needs_a_text() -> None:
    content = {"system": "toy", "model": {"needs_text": True}, "text": {"encoder": "bytes", "dim": 4}}
    assert recipe_from_dict(content).model.needs_text
    with pytest.raises(ConfigError, match="model.needs_text = true, but there is no text"):
        recipe_from_dict({**content, "text": None})
