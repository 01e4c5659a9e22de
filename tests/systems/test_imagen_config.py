"""What is wrong with the `model:` section of a recipe for diffusion of pixels: every sentence, and when it is said."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from rasterformer.systems.imagen.config import READ_BY, Config
from rasterformer.systems.imagen.model import build
from rasterformer.tasks import SourceShape

KINDS: dict[str, Config] = {name: Config(denoiser=name) for name in ("unet", "efficient_unet", "transformer")}
UNET, EFFICIENT, TRANSFORMER = KINDS.values()
OTHER: dict[str, Any] = {  # values that suit those who read them
    "multipliers": (1, 2, 4),
    "res_blocks": (1, 1, 1),
    "attention_levels": (2,),
    "self_attention": False,
    "norm_groups": 4,
    "depth": 40,
    "patch": 4,
    "mlp_width": 512,
    "encoder_depth": 9,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_denoiser_has_no_problems_by_default(name: str) -> None:
    assert KINDS[name].problems() == []
    assert KINDS[name].fit_problems(task=None, image_size=64, has_text=True) == []


WRONG: list[tuple[Config, dict[str, Any], str]] = [
    *(
        (UNET, {name: 0}, f"model.{name} = 0 must be at least 1.")
        for name in ("width", "norm_groups", "head_dim", "depth", "patch", "mlp_width", "text_width", "encoder_depth")
    ),
    (UNET, {"dropout_prob": 1.0}, "model.dropout_prob = 1.0 must lie in 0..1, 1 excluded."),
    (UNET, {"drop_condition_prob": -0.1}, "model.drop_condition_prob = -0.1 must lie in 0..1, 1 excluded."),
    (EFFICIENT, {"source_noise": 1.5}, "model.source_noise = 1.5 must lie in 0..1."),
    (UNET, {"prediction": "edm"}, "model.prediction = 'edm' and model.schedule = 'cosine': edm is both or neither."),
    (UNET, {"schedule": "edm"}, "model.prediction = 'v' and model.schedule = 'edm': edm is both or neither."),
    *(
        (
            UNET,
            {"prediction": "edm", "schedule": "edm", **more},
            "model.prediction = 'edm' has its own weights and levels: leave weighting and log_snr_shift out.",
        )
        for more in ({"weighting": "min_snr"}, {"log_snr_shift": 1.0})
    ),
    (
        EFFICIENT,
        {"source_enters": "both"},
        "model.source_enters = 'both' needs model.denoiser = 'transformer', which sees tokens of an image encoder.",
    ),
    (
        TRANSFORMER,
        {"source_enters": "tokens", "source_noise": 0.3},
        "model.source_noise needs model.source_enters = 'channels' or 'both': an image encoder alone is not told how much "
        "noise there is. Here they are 0.3 and 'tokens'.",
    ),
    (UNET, {"crop": 6}, "model.crop = 6 must be a multiple of 4 for this network. Use 4 or 8."),
    (EFFICIENT, {"crop": 0}, "model.crop = 0 must be a multiple of 8 for this network. Use 8."),
    (TRANSFORMER, {"crop": 7}, "model.crop = 7 must be a multiple of 2 for this network. Use 6 or 8."),
    (TRANSFORMER, {"head_dim": 24}, "model.head_dim = 24 does not divide model.width = 64."),
    *(
        (UNET, {"multipliers": value}, f"model.multipliers = {list(value)} must be numbers of at least 1, one for each level.")
        for value in ((), (0, 1, 2))
    ),
    *(
        (
            EFFICIENT,
            {"res_blocks": value},
            f"model.res_blocks = {list(value)} must have 3 numbers of at least 1, one for each of model.multipliers.",
        )
        for value in ((2, 2), (2, 0, 2))
    ),
    (
        UNET,
        {"res_blocks": (1, 2, 2)},
        "model.res_blocks = [1, 2, 2]: model.denoiser = 'unet' has as many on every level; efficient_unet may have others.",
    ),
    (UNET, {"norm_groups": 24}, "model.norm_groups = 24 must divide the channels of every level, [64, 128, 192]."),
    (UNET, {"width": 33, "norm_groups": 33, "head_dim": 33}, "model.width = 33 must be even."),
    (UNET, {"attention_levels": (1, 3)}, "model.attention_levels = [1, 3]: there is no level 3 of 3."),
    (UNET, {"head_dim": 64, "multipliers": (1, 3, 5), "width": 32, "attention_levels": (2,)}, "model.head_dim = 64 does not "
     "divide the 160 channels of level 2, which has attention."),
    (EFFICIENT, {"head_dim": 128}, "model.head_dim = 128 does not divide the 192 channels of level 2, which has attention."),
]  # fmt: skip


@pytest.mark.parametrize(("config", "changes", "message"), WRONG)
def test_what_is_wrong_is_said_once(config: Config, changes: dict[str, Any], message: str) -> None:
    assert replace(config, **changes).problems() == [message]


def test_heads_whose_dimensions_cannot_be_turned_in_pairs_are_refused() -> None:
    (found,) = replace(TRANSFORMER, width=33, head_dim=33).problems()
    assert "33" in found and "head" in found


def test_efficient_unet_may_have_other_numbers_of_blocks_and_takes_source_noise() -> None:
    assert replace(EFFICIENT, res_blocks=(1, 2, 3), source_noise=0.3).problems() == []


@pytest.mark.parametrize("enters", ["channels", "both"])
def test_noise_on_sources_that_enter_as_channels_is_told(enters: Any) -> None:
    assert replace(TRANSFORMER, source_enters=enters, source_noise=0.3).problems() == []


# fields of another denoiser


def test_the_fields_of_some_denoisers_exist_and_have_another_value_here() -> None:
    assert list(READ_BY) == list(OTHER) and set(READ_BY) <= {field.name for field in fields(Config)}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("denoiser", KINDS)
def test_a_field_is_refused_where_nothing_reads_it_and_only_there(denoiser: str, name: str) -> None:
    sees: dict[str, Any] = {"source_enters": "both"} if denoiser == "transformer" else {}
    found = replace(KINDS[denoiser], **{name: OTHER[name]}, **sees).problems()
    if denoiser in READ_BY[name]:
        assert found == []
        return
    assert len(found) == 1 and found[0].startswith(f"model.{name} = ")
    assert (
        f"is not read by model.denoiser = '{denoiser}', but by {' and '.join(READ_BY[name])}. Leave it out" in found[0]
    )


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("denoiser", KINDS)
def test_the_table_says_what_networks_are_made_of(denoiser: str, name: str) -> None:
    """A network is another one by a field that its denoiser reads, and the same by any other."""
    small = Config(
        denoiser=denoiser,  # type: ignore[arg-type]
        width=16,
        multipliers=(1, 1, 1),
        head_dim=8,
        mlp_width=8,
        depth=1,
        source_enters="both" if denoiser == "transformer" else "channels",
    )
    other: dict[str, Any] = {name: 2 if name == "depth" else OTHER[name]}
    made = []
    for config in (small, replace(small, **other)):
        _, model = build(config, image_size=16, num_classes=0, source=SourceShape(3, 4, has_mask=False))
        made.append(repr(model) + str([weight.shape for weight in model.parameters()]))
    assert (made[0] != made[1]) == (denoiser in READ_BY[name])


def test_values_are_written_as_in_a_recipe_and_all_of_them_are_named() -> None:
    config = replace(UNET, patch=8, depth=40, encoder_depth=9, self_attention=False)
    assert config.problems() == [
        "model.self_attention = false is not read by model.denoiser = 'unet', but by efficient_unet. Leave it out, or at true.",
        "model.depth = 40 is not read by model.denoiser = 'unet', but by transformer. Leave it out, or at 6.",
        "model.patch = 8 is not read by model.denoiser = 'unet', but by transformer. Leave it out, or at 2.",
        "model.encoder_depth = 9 is not read by model.denoiser = 'unet', but by transformer. Leave it out, or at 2.",
    ]
    (found,) = replace(TRANSFORMER, multipliers=(1, 2)).problems()
    assert found == (
        "model.multipliers = [1, 2] is not read by model.denoiser = 'transformer', but by unet and efficient_unet. Leave it "
        "out, or at [1, 2, 3]."
    )


def test_the_depth_of_an_image_encoder_that_is_not_there_is_refused() -> None:
    (found,) = replace(TRANSFORMER, encoder_depth=3).problems()
    assert found == (
        "model.encoder_depth = 3 is not read with model.source_enters = 'channels': there is no image encoder. Leave it out, or "
        "at 2; or set model.source_enters to tokens or both."
    )


# network, task and image


@pytest.mark.parametrize(
    ("config", "task", "size", "message"),
    [
        (UNET, None, 18, "data.image_size = 18 must be a multiple of 4 for this network. Use 16 or 20."),
        (EFFICIENT, None, 20, "data.image_size = 20 must be a multiple of 8 for this network. Use 16 or 24."),
        (
            replace(EFFICIENT, source_noise=0.3),
            None,
            16,
            "model.source_noise = 0.3 is for task super_resolution: the source of another task is given. Set it to 0.",
        ),
        (
            replace(EFFICIENT, source_noise=0.3),
            "inpaint",
            16,
            "model.source_noise = 0.3 is for task super_resolution: the source of another task is given. Set it to 0.",
        ),
        (
            replace(TRANSFORMER, source_enters="tokens"),
            None,
            16,
            "model.source_enters = 'tokens', but the recipe has no task, and so no source.",
        ),
        (replace(UNET, crop=32), None, 16, "model.crop = 32 is larger than data.image_size = 16."),
    ],
)
def test_what_does_not_fit_the_task_or_the_images_is_said_once(
    config: Config, task: str | None, size: int, message: str
) -> None:
    assert config.problems() == []
    assert config.fit_problems(task=task, image_size=size) == [message]


def test_what_fits_is_not_refused() -> None:
    assert replace(EFFICIENT, source_noise=1.0, crop=16).fit_problems(task="super_resolution", image_size=16) == []
    assert replace(TRANSFORMER, source_enters="both").fit_problems(task="inpaint", image_size=16) == []
