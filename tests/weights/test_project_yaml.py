from pathlib import Path
from typing import Any

import pytest
import yaml

from rasterformer.errors import ConfigError
from rasterformer.weights.layouts import AutoencoderShape
from rasterformer.weights.net2net import PriorShape
from rasterformer.weights.project_yaml import PriorSettings, first_stage_image_size, prior_settings

SHAPE = AutoencoderShape(3, 256, 256, 1024, 128, (1, 1, 2, 2, 4), 2, (4,), True)
PRIOR = PriorShape(vocab_size=1024, width=1024, depth=24, hidden=4096, seq_len=512)
FIRST_STAGE = {
    "embed_dim": 256,
    "n_embed": 1024,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}
NETWORK = {"vocab_size": 1024, "block_size": 512, "n_layer": 24, "n_head": 16, "n_embd": 1024}
COORDINATES = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 1024, "down_factor": 16}}


def written(path: Path, params: Any) -> Path:
    path.write_text(yaml.safe_dump({"model": {"target": "x.Y", "params": params}, "data": {}}))
    return path


def transformer(**changes: Any) -> dict[str, Any]:
    params = {
        "cond_stage_config": COORDINATES,
        "first_stage_config": {"target": "taming.models.vqgan.VQModel", "params": FIRST_STAGE},
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": NETWORK},
    }
    return params | changes


@pytest.mark.parametrize("params", [FIRST_STAGE, transformer()], ids=["autoencoder", "transformer"])
def test_size_of_the_training_images_is_found(params: dict[str, Any], tmp_path: Path) -> None:
    assert first_stage_image_size(written(tmp_path / "project.yaml", params), SHAPE) == 256


def test_attention_at_sides_that_no_level_has_is_no_contradiction(tmp_path: Path) -> None:
    network = FIRST_STAGE["ddconfig"] | {"attn_resolutions": [8, 16]}
    assert first_stage_image_size(written(tmp_path / "p.yaml", FIRST_STAGE | {"ddconfig": network}), SHAPE) == 256


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("ch", 64, "128"), ("attn_resolutions", [32], "\\[16\\]"),
     ("ch_mult", [1, 2], "\\[1, 1, 2, 2, 4\\]"), ("z_channels", 4, "256")],
)  # fmt: skip
def test_file_of_other_weights_is_refused(name: str, value: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "p.yaml", FIRST_STAGE | {"ddconfig": FIRST_STAGE["ddconfig"] | {name: value}})
    with pytest.raises(ConfigError, match=f"p.yaml belongs to other weights: {name} = .*, the weights say {said}"):
        first_stage_image_size(path, SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("- 1", "has no section model.params"),
        ("model: {params: 3}", "has no section model.params"),
        ("model: {params: {n_embed: 3}}", "has no model.params.ddconfig.resolution"),
        ("model: {params: {ddconfig: {resolution: x}}}", "has no model.params.ddconfig.resolution"),
        ("x: " + "a" * 1_000_001, "is larger than 1000000 bytes"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"--config .*p.yaml {message}"):
        first_stage_image_size(tmp_path / "p.yaml", SHAPE)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="p.yaml cannot be read: No such file"):
        first_stage_image_size(tmp_path / "p.yaml", SHAPE)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (COORDINATES, PriorSettings(16, "coordinates", 1024)),
        ({"target": "taming.modules.util.SOSProvider", "params": {"sos_token": 0}}, PriorSettings(16, "none")),
        ("__is_unconditional__", PriorSettings(16, "none")),
        ({"target": "taming.modules.util.Labelator", "params": {"n_classes": 1000}}, PriorSettings(16, "class", 1000)),
        ({"target": "taming.models.vqgan.VQModel", "params": FIRST_STAGE}, PriorSettings(16, "codes")),
        ("__is_first_stage__", PriorSettings(16, "codes")),
    ],
)
def test_heads_and_condition_are_found(stage: Any, expected: PriorSettings, tmp_path: Path) -> None:
    path = written(tmp_path / "p.yaml", transformer(cond_stage_config=stage))
    assert prior_settings(path, PRIOR) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_config": {"params": NETWORK | {"n_layer": 12}}}, "n_layer = 12, the weights say 24"),
        ({"transformer_config": {"params": NETWORK | {"n_head": 7}}}, "n_head = 7; a divisor of the width 1024 is needed"),
        ({"transformer_config": None}, "n_head = None; a divisor"),
        ({"cond_stage_config": {"target": "a.b.Labelater"}}, "'a.b.Labelater'. Did you mean 'Labelator'"),
        ({"cond_stage_config": {"target": "a.Labelator", "params": {}}}, "n_classes = None is no number"),
    ],
)  # fmt: skip
def test_transformers_that_are_not_known_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prior_settings(written(tmp_path / "p.yaml", transformer(**changes)), PRIOR)
