"""What the data and training sections refuse, one case for each sentence; the values stand in the message."""

from dataclasses import replace

import pytest

from rasterformer.recipe import DataConfig, TrainingConfig


@pytest.mark.parametrize("config", [DataConfig(), TrainingConfig()])
def test_defaults_have_no_problems(config: DataConfig | TrainingConfig) -> None:
    assert config.problems() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 1),
        ("flip_prob", 1.5),
        ("flip_prob", -0.1),
        ("holdout_fraction", 0.0),
        ("holdout_fraction", 1.0),
    ],
)
def test_data_value_out_of_range_is_named(field: str, value: float) -> None:
    [problem] = replace(DataConfig(), **{field: value}).problems()  # type: ignore[arg-type]
    assert problem.startswith(f"data.{field} = {value} ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("accumulation_steps", 0),
        ("accumulation_steps", 3),
        ("log_every", 0),
        ("keep_checkpoints", 0),
        ("eval_every", 0),
        ("sample_every", -1),
        ("save_every", 0),
        ("eval_images", 0),
        ("learning_rate", 0.0),
        ("muon_learning_rate", -1.0),
        ("epsilon", 0.0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("average_checkpoints", -1),
        ("average_checkpoints", 4),
        ("minutes", 0.0),
        ("clip_norm", -1.0),
        ("ema_decay", 1.0),
    ],
)
def test_training_value_out_of_range_is_named(field: str, value: float) -> None:
    [problem] = replace(TrainingConfig(), **{field: value}).problems()  # type: ignore[arg-type]
    assert problem.startswith(f"training.{field} = {value} ")


def test_averaging_in_two_ways_is_refused() -> None:
    [problem] = TrainingConfig(average_checkpoints=2, ema_decay=0.99).problems()
    assert "exclude each other" in problem


def test_several_problems_are_all_returned() -> None:
    assert len(TrainingConfig(steps=0, learning_rate=-1.0, minutes=-2.0).problems()) == 3
