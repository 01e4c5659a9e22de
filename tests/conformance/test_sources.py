"""What every system with a source must hold: each value of it matters, where it may, and only a fitting one is taken."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.score import symbol_nats
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond


def random_x(model: Autoregressive, batch: int = 1) -> Tensor:
    return torch.randint(
        0, model.distribution.vocab_size, (batch, *model.x_shape), generator=torch.Generator().manual_seed(1)
    )


def moved_by_each_value(case, model: Autoregressive) -> Tensor:
    """Change one source value in each row: bool [values, L], which positions' params move (float64)."""
    one = case.cond(1)
    source = one.source
    count = source.numel()
    changed = source.repeat(count, 1, 1, 1)
    changed.view(count, count)[torch.arange(count), torch.arange(count)] += 97  # modulo 256
    same = one.rows(torch.zeros(count, dtype=torch.int64))
    x = random_x(model)
    with torch.no_grad():
        difference = model(x.expand(count, -1, -1), replace(same, source=changed)) - model(x, one)
    return difference.abs().amax(-1) > 1e-10


def test_each_source_value_moves_every_position_that_may_see_it_and_no_other(source_case) -> None:
    """With attention to the encoder: all positions. Without, and without encoder layers: those in the cell and later ones."""
    codec, model = source_case.build()
    moved = moved_by_each_value(source_case, model)
    if source_case.fields.get("source_attention_layers") != ():
        assert bool(moved.all())
        return
    assert source_case.fields["encoder_depth"] == 0 and codec.x_shape[1] == 3
    channels, size = source_case.source_shape().channels, source_case.source_shape().size
    for value, row in enumerate(moved.view(channels * size * size, -1)):
        top, left = divmod(value % (size * size), size)
        scale = 4 // size
        inside = [
            position
            for position, cell in enumerate(codec.order.tolist())
            if cell // 4 // scale == top and cell % 4 // scale == left
        ]
        assert bool(row[inside].all())
        assert not bool(row[: inside[0]].any())


@torch.no_grad()
def test_the_source_of_an_image_is_its_own(source_case) -> None:
    _, model = source_case.build()
    x, cond = random_x(model, 3), source_case.cond(3)
    together = symbol_nats(model, x, cond)
    for k in range(3):
        alone = symbol_nats(model, x[k : k + 1], cond.rows(slice(k, k + 1)))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_source_that_does_not_fit_is_refused_with_what_was_received(source_case) -> None:
    _, model = source_case.build()
    x, good = random_x(model, 2), source_case.cond(2)
    _, channels, height, width = good.source.shape
    calls = [lambda cond: model(x, cond), lambda cond: model.begin(cond, 2), lambda cond: model.loss(x, cond, rng=None)]
    for call in calls:
        with pytest.raises(ConfigError, match=f"source is missing: .*{height}x{width} sources"):
            call(replace(good, source=None))
        for shape in [
            (1, channels, height, width),
            (2, 4 - channels, height, width),
            (2, channels, height + 1, width),
            (2, channels, height, width + 1),
            (2, channels, height),
        ]:
            wanted = rf"source is torch.uint8 \[{', '.join(map(str, shape))}\]; .*\[2, {channels}, {height}, {width}\]"
            with pytest.raises(ConfigError, match=wanted):
                call(replace(good, source=torch.zeros(shape, dtype=torch.uint8)))
        with pytest.raises(ConfigError, match=r"source is torch.float32 \[2, "):
            call(replace(good, source=good.source.float()))
        with pytest.raises(ConfigError, match="known was given, but this model has no use for a mask"):
            call(replace(good, known=torch.ones(2, height, width, dtype=torch.bool)))


@torch.no_grad()
def test_a_mask_that_does_not_fit_is_refused_with_what_was_received(mask_case) -> None:
    _, model = mask_case.build()
    x, good = random_x(model, 2), mask_case.cond(2)
    for call in (lambda cond: model(x, cond), lambda cond: model.begin(cond, 2)):
        with pytest.raises(ConfigError, match="known was not given, but this model needs the mask"):
            call(replace(good, known=None))
        with pytest.raises(ConfigError, match="source is missing"):
            call(replace(good, source=None))
        for shape in [(1, 4, 4), (2, 3, 4), (2, 4, 5), (2, 1, 4, 4)]:
            with pytest.raises(
                ConfigError, match=rf"known is torch.bool \[{', '.join(map(str, shape))}\]; .*\[2, 4, 4\]"
            ):
                call(replace(good, known=torch.ones(shape, dtype=torch.bool)))
        with pytest.raises(ConfigError, match=r"known is torch.uint8 \[2, 4, 4\]"):
            call(replace(good, known=good.known.to(torch.uint8)))


@torch.no_grad()
def test_a_model_without_an_encoder_refuses_source_and_mask(case) -> None:
    if case.source is not None:
        return
    _, model = case.build()
    for extra in (
        Cond(source=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
        Cond(known=torch.ones(1, 4, 4, dtype=torch.bool)),
    ):
        cond = replace(case.cond(1), source=extra.source, known=extra.known)
        for call in (lambda cond=cond: model(random_x(model), cond), lambda cond=cond: model.begin(cond, 1)):
            with pytest.raises(ConfigError, match="source was given, but this model was trained without one"):
                call()
