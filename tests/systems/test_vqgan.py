"""The loss of stage 1 against its formula, written out and differentiated as a whole; and what a recipe may say."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.perceptual import MultiScaleGradient
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.errors import ConfigError
from rasterformer.systems.vqgan.config import Config
from rasterformer.systems.vqgan.model import TokenizerLoss, build

TINY = Config(
    base_width=8,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    z_channels=4,
    norm_groups=4,
    vocab_size=8,
    dim=4,
    perceptual="none",
    discriminator_width=8,
    discriminator_layers=1,
    discriminator_start=0,
    adversarial_start=0,
)


def make(config: Config, seed: int = 0) -> tuple[VQAutoencoder, TokenizerLoss]:
    torch.manual_seed(seed)
    autoencoder, loss = build(config).train(), TokenizerLoss(config).train()
    if loss.discriminator is not None:
        for weight in loss.discriminator.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.1)  # begins as good as constant
    return autoencoder, loss


def random_images(batch: int = 4, size: int = 16, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    if high == 256:
        return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=rng)
    return torch.randint(0, high, (batch, 1, size, size), dtype=torch.uint8, generator=rng).expand(-1, 3, -1, -1)


def reference_gradients(
    config: Config, autoencoder: VQAutoencoder, loss: TokenizerLoss, images: Tensor, *, ramp: float
) -> tuple[list[Tensor], list[Tensor], float]:
    """Gradients of the total of equations 6 and 7, as one differentiated scalar; of the discriminator's loss; and lambda."""
    autoencoder, discriminator = copy.deepcopy(autoencoder), copy.deepcopy(loss.discriminator)
    x = images.float() / 127.5 - 1
    x = x[:, :1] if config.pictures == "grey" else x
    quantised = autoencoder.quantiser(autoencoder.encode(x))
    x_hat = autoencoder.decode(quantised.values)
    power = 1 if config.pixel_loss == "l1" else 2
    l_rec = config.pixel_weight * ((x - x_hat).abs() ** power).sum() / x.numel()
    if config.perceptual == "gradient":
        shown = [images_.expand(-1, 3, -1, -1) for images_ in (x, x_hat)]
        l_rec = l_rec + config.perceptual_weight * MultiScaleGradient()(*shown).mean()
    total, of_discriminator, ratio = l_rec + config.codebook_weight * quantised.loss, [], 1.0
    if discriminator is not None:
        if ramp:
            l_adv = -discriminator(x_hat).mean()
            if config.adaptive:
                last = autoencoder.decoder.conv_out.weight
                lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (l_rec, l_adv)]
                ratio = min(float(lengths[0] / (lengths[1] + config.delta)), config.largest_lambda)
            total = total + ratio * config.adversarial_weight * ramp * l_adv
        real, fake = discriminator(x), discriminator(x_hat.detach())
        if config.adversarial_loss == "hinge":
            d_loss = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
        else:
            d_loss = -0.5 * (torch.sigmoid(real).log().mean() + torch.sigmoid(-fake).log().mean())
        of_discriminator = list(torch.autograd.grad(d_loss, list(discriminator.parameters())))
    weights = list(autoencoder.parameters())
    found = torch.autograd.grad(total, weights, allow_unused=True)
    of_autoencoder = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    return of_autoencoder, of_discriminator, ratio


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(w) if w.grad is None else w.grad for w in module.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Both were computed in float32, in another order: equal up to some thousandths of the longest gradient."""
    assert max(float(e.abs().max()) for e in expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


TOTALS = {
    "paper": (TINY, 1.0),
    "weights": (replace(TINY, pixel_weight=0.7, codebook_weight=0.4, adversarial_weight=1.5), 1.0),
    "squares": (replace(TINY, pixel_loss="l2"), 1.0),
    "half the ramp": (replace(TINY, adversarial_start=2, adversarial_ramp=10), 0.5),
    "before the start": (replace(TINY, adversarial_start=100), 0.0),
    "lambda at its cap": (replace(TINY, largest_lambda=0.01), 1.0),
    "a large delta": (replace(TINY, delta=0.5), 1.0),
    "no lambda": (replace(TINY, adaptive=False, adversarial_weight=0.1), 1.0),
    "vanilla": (replace(TINY, adversarial_loss="vanilla"), 1.0),
    "no batch norm": (replace(TINY, discriminator_norm="none"), 1.0),
    "grey": (replace(TINY, pictures="grey"), 1.0),
    "perceptual": (replace(TINY, perceptual="gradient", perceptual_weight=0.3), 1.0),
    "fsq": (replace(TINY, quantiser="fsq", fsq_levels=(4, 2), dim=2), 1.0),
    "sim": (replace(TINY, quantiser="sim"), 1.0),
    "ema": (replace(TINY, quantiser="ema", beta_on="commitment"), 1.0),
    "VQ-VAE": (replace(TINY, discriminator="none"), 0.0),
}


@pytest.mark.parametrize("name", TOTALS)
def test_gradients_are_those_of_the_written_total(name: str) -> None:
    config, ramp = TOTALS[name]
    autoencoder, loss = make(config)
    images = random_images(2, 32) if config.perceptual == "gradient" else random_images()
    images = images[:, :1].expand(-1, 3, -1, -1) if config.pictures == "grey" else images
    of_autoencoder, of_discriminator, ratio = reference_gradients(config, autoencoder, loss, images, ramp=ramp)
    figures, _ = loss.accumulate_gradients(autoencoder, images, batch=7)
    assert_same(gradients(autoencoder), of_autoencoder)
    if loss.discriminator is not None:
        assert_same(gradients(loss.discriminator), of_discriminator)
    if ramp and config.adaptive:
        assert figures["lambda"] == pytest.approx(ratio, rel=1e-3)
    else:
        assert "lambda" not in figures


def test_cases_of_lambda_differ() -> None:
    """The cap and delta of the cases above do something."""
    ratios = []
    for name in ("paper", "lambda at its cap", "a large delta"):
        autoencoder, loss = make(TOTALS[name][0])
        ratios.append(reference_gradients(TOTALS[name][0], autoencoder, loss, random_images(), ramp=1.0)[2])
    assert ratios[1] == 0.01 < ratios[2] < 0.9 * ratios[0]


def test_the_discriminator_does_not_learn_from_what_the_generator_wants() -> None:
    config = replace(TINY, adversarial_weight=0.0)
    found = []
    for changed in (config, replace(config, adversarial_weight=100.0)):
        autoencoder, loss = make(changed)
        loss.accumulate_gradients(autoencoder, random_images(), batch=0)
        assert loss.discriminator is not None and all(w.requires_grad for w in loss.discriminator.parameters())
        found.append((gradients(loss.discriminator), gradients(autoencoder)))
    assert all(torch.equal(one, other) for one, other in zip(found[0][0], found[1][0], strict=True))
    assert not torch.equal(found[0][1][0], found[1][1][0])


def test_the_autoencoder_does_not_learn_from_the_discriminators_loss() -> None:
    """Before the adversarial loss counts, its gradients are those without a discriminator."""
    config = replace(TINY, adversarial_start=100)
    found = []
    for changed in (config, replace(config, discriminator="none")):
        autoencoder, loss = make(changed)
        loss.accumulate_gradients(autoencoder, random_images(), batch=7)
        found.append(gradients(autoencoder))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


BEFORE = {"reconstruction_loss", "pixel_loss", "codebook_loss"}
DISCRIMINATOR = {"discriminator_loss", "logits_real", "logits_fake"}


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (2, BEFORE),
        (3, BEFORE | DISCRIMINATOR),
        (5, BEFORE | DISCRIMINATOR),
        (6, BEFORE | DISCRIMINATOR | {"lambda", "adversarial_loss"}),
    ],
)
def test_discriminator_and_generator_begin_at_their_batches(batch: int, names: set[str]) -> None:
    config = replace(TINY, discriminator_start=3, adversarial_start=6)
    autoencoder, loss = make(config)
    figures, _ = loss.accumulate_gradients(autoencoder, random_images(), batch=batch)
    assert set(figures) == names
    assert loss.discriminator is not None
    learns = any(bool(g.any()) for g in gradients(loss.discriminator))
    assert learns == (batch >= 3)


def test_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    """Without batch norm and lambda, which look at all images of a part together."""
    config = replace(TINY, discriminator_norm="none", adaptive=False, adversarial_weight=0.2)
    images, found = random_images(4), []
    for parts in ([4], [1, 3]):
        autoencoder, loss = make(config)
        for part in images.split(parts):
            loss.accumulate_gradients(autoencoder, part, batch=0, share=len(part) / 4)
        assert loss.discriminator is not None
        found.append(gradients(autoencoder) + gradients(loss.discriminator))
    assert_same(found[1], found[0])


def test_figures_are_the_values_of_the_losses() -> None:
    autoencoder, loss = make(TINY)
    with torch.no_grad():
        x = random_images().float() / 127.5 - 1
        x_hat, quantised = copy.deepcopy(autoencoder)(x)
        assert loss.discriminator is not None
        discriminator = copy.deepcopy(loss.discriminator)
        real, fake = discriminator(x), discriminator(x_hat)
    figures, encoded = loss.accumulate_gradients(autoencoder, random_images(), batch=0)
    expected = {
        "reconstruction_loss": (x - x_hat).abs().mean(),
        "pixel_loss": (x - x_hat).abs().mean(),
        "codebook_loss": quantised.loss,
        "adversarial_loss": -fake.mean(),
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "discriminator_loss": ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(float(value), rel=1e-4), name
    assert set(figures) == {*expected, "lambda"}
    assert torch.equal(encoded.codes, quantised.codes) and not encoded.z.requires_grad
    assert torch.equal(autoencoder.quantiser.nearest(encoded.z), encoded.codes)


def test_labels_learn_by_cross_entropy_over_all_pixels() -> None:
    config = replace(TINY, pictures="labels", num_labels=5, discriminator="none", pixel_weight=0.6)
    autoencoder, loss = make(config)
    images = random_images(2, high=5)
    one_hot = torch.stack([images[:, 0] == label for label in range(5)], 1).float()
    with torch.no_grad():
        output, _ = copy.deepcopy(autoencoder)(one_hot)
    total = 0.0
    for b in range(2):
        for row in range(16):
            for col in range(16):
                probs = output[b, :, row, col].double().softmax(0)
                total -= float(probs[int(images[b, 0, row, col])].log())
    figures, _ = loss.accumulate_gradients(autoencoder, images, batch=0)
    assert figures["pixel_loss"] == pytest.approx(total / (2 * 16 * 16), rel=1e-5)
    assert figures["reconstruction_loss"] == pytest.approx(0.6 * total / (2 * 16 * 16), rel=1e-5)
    assert set(figures) == BEFORE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_stays_finite_where_the_discriminator_begins_to_count(seed: int) -> None:
    config = replace(TINY, discriminator_start=5, adversarial_start=10, adversarial_ramp=4, largest_lambda=50.0)
    torch.manual_seed(seed)
    autoencoder, loss = build(config).train(), TokenizerLoss(config).train()
    optimisers = [torch.optim.Adam(part.parameters(), 2e-3, betas=(0.5, 0.9)) for part in (autoencoder, loss)]
    rng = torch.Generator().manual_seed(seed)
    ratios = []
    for batch in range(22):
        images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=rng)
        figures, _ = loss.accumulate_gradients(autoencoder, images, batch=batch)
        assert all(torch.isfinite(torch.tensor(value)) for value in figures.values()), (batch, figures)
        assert all(bool(g.isfinite().all()) for g in gradients(autoencoder) + gradients(loss))
        ratios += [figures["lambda"]] if "lambda" in figures else []
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    assert len(ratios) == 22 - 11 and all(0 <= ratio <= 50 for ratio in ratios)  # the ramp is 0 at its start


def test_a_black_image_that_is_met_exactly_gives_finite_gradients() -> None:
    """No reconstruction loss: lambda is 0, not a division by zero."""
    config = replace(TINY, pixel_weight=0.0)
    autoencoder, loss = make(config)
    figures, _ = loss.accumulate_gradients(autoencoder, random_images(), batch=0)
    assert figures["lambda"] == 0.0
    assert all(bool(g.isfinite().all()) for g in gradients(autoencoder))


@pytest.mark.parametrize("pictures", ["rgb", "grey", "labels"])
def test_channels_and_factor_follow_the_configuration(pictures: Any) -> None:
    config = Config(pictures=pictures, num_labels=7 if pictures == "labels" else None)
    assert config.channels == {"rgb": 3, "grey": 1, "labels": 7}[pictures] and config.factor == 16


GOOD = replace(TINY, discriminator_width=32)
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"model.{name} = 0 must be at least 1")
      for name in ("base_width", "res_blocks", "z_channels", "norm_groups", "vocab_size", "dim", "discriminator_width",
                   "discriminator_layers")),
    ({"multipliers": ()}, "model.multipliers = () must be one or more numbers"),
    ({"multipliers": (1, 0)}, "model.multipliers = (1, 0) must be one or more numbers"),
    ({"norm_groups": 3}, "model.norm_groups = 3 does not divide the 8 channels of model.base_width x 1"),
    ({"norm_groups": 24, "multipliers": (3, 3)}, "model.norm_groups = 24 does not divide the 8 channels"),
    ({"attention_levels": (0, 2)}, "model.attention_levels has [2], but resolutions are counted 0..1"),
    ({"pictures": "labels", "discriminator": "none"}, "model.num_labels = None does not go with model.pictures = 'labels'"),
    ({"num_labels": 4}, "model.num_labels = 4 does not go with model.pictures = 'rgb'"),
    ({"pictures": "labels", "num_labels": 257, "discriminator": "none"}, "model.num_labels = 257 must lie in 2..256"),
    ({"pictures": "labels", "num_labels": 4}, "model.pictures = 'labels' learns by cross-entropy alone"),
    ({"quantiser": "fsq"}, "model.fsq_levels = None goes with model.quantiser = 'fsq'"),
    ({"fsq_levels": (4, 2)}, "model.fsq_levels = (4, 2) goes with model.quantiser = 'fsq' and nothing else"),
    ({"quantiser": "fsq", "fsq_levels": (8, 1)}, "model.fsq_levels = (8, 1) must be numbers of at least 2"),
    ({"quantiser": "fsq", "fsq_levels": (4, 2)}, "set model.vocab_size = 8 and model.dim = 2"),
    ({"quantiser": "ema"}, "model.beta_on = 'codebook' weighs a term that model.quantiser = 'ema' does not have"),
    ({"perceptual": "lpips"}, "model.perceptual_weights = None does not go with model.perceptual = 'lpips'"),
    ({"perceptual_weights": "a"}, "model.perceptual_weights = a does not go with model.perceptual = 'none'"),
    ({"dropout_prob": 1.0}, "model.dropout_prob = 1.0 must lie in 0..1"),
    ({"ema_decay": 1.0}, "model.ema_decay = 1.0 must lie between 0 and 1"),
    ({"restart_after": 0}, "model.restart_after = 0 must be at least 1"),
    *(({name: -0.5}, f"model.{name} = -0.5 must not be negative")
      for name in ("pixel_weight", "perceptual_weight", "codebook_weight", "adversarial_weight", "beta")),
    *(({name: -1}, f"model.{name} = -1 must not be negative")
      for name in ("discriminator_start", "adversarial_start", "adversarial_ramp")),
    ({"discriminator_start": 5}, "model.discriminator_start = 5 is after model.adversarial_start = 0"),
    ({"delta": 0.0}, "model.delta = 0.0 and model.largest_lambda = 10000.0 must be above 0"),
    ({"largest_lambda": 0.0}, "model.largest_lambda = 0.0 must be above 0"),
    ({"discriminator_norm": "group", "discriminator_width": 24}, "model.discriminator_width = 24 must be a multiple of 32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=lambda value: None if isinstance(value, str) else str(value)
)
def test_what_is_wrong_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    assert GOOD.problems() == []
    assert message in " ".join(replace(GOOD, **changes).problems())


@pytest.mark.parametrize("quantiser", ["nearest", "ema", "sim", "fsq"])
@pytest.mark.parametrize("norm", ["batch", "group", "spectral", "none"])
def test_what_has_no_problems_can_be_built(quantiser: Any, norm: Any) -> None:
    more: dict[str, Any] = {"fsq_levels": (4, 2), "dim": 2} if quantiser == "fsq" else {}
    config = replace(GOOD, quantiser=quantiser, discriminator_norm=norm, beta_on="commitment", **more)
    assert config.problems() == []
    autoencoder, loss = make(config)
    assert loss.discriminator is not None and autoencoder.quantiser.vocab_size == 8
    with pytest.raises(ConfigError):
        build(replace(config, norm_groups=3))


def test_defaults_are_right() -> None:
    assert Config().problems() == []
    assert Config().fit_problems(task=None, image_size=256) == []


@pytest.mark.parametrize(
    ("config", "task", "size", "message"),
    [
        (TINY, "inpaint", 16, "task.name = 'inpaint': a tokenizer learns to reproduce its images"),
        (replace(TINY, pictures="labels", num_labels=3), "edges", 16, "model.pictures = 'labels' reads label maps as they are"),
        (TINY, None, 17, "data.image_size = 17 is no multiple of 2, the factor of model.multipliers = (1, 1). Use 16"),
        (Config(), None, 8, "Use 16, for example"),
        (replace(TINY, perceptual="efficientnet"), None, 16, "model.perceptual = 'efficientnet' needs images of at least 32"),
        (replace(TINY, perceptual="gradient"), None, 16, "model.perceptual = 'gradient' needs images of at least 32"),
        (replace(TINY, discriminator_layers=3), None, 16, "model.discriminator_layers = 3 needs images of at least 24"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_recipe_is_named(config: Config, task: str | None, size: int, message: str) -> None:
    assert message in " ".join(config.fit_problems(task=task, image_size=size))


def test_images_at_the_smallest_size_of_the_discriminator_can_be_learned_from() -> None:
    config = replace(TINY, discriminator_layers=2, multipliers=(1,))
    assert config.fit_problems(task=None, image_size=12) == []
    autoencoder, loss = make(config)
    figures, _ = loss.accumulate_gradients(autoencoder, random_images(2, 12), batch=0)
    assert "discriminator_loss" in figures


def test_reconstruction_loss_is_zero_for_equal_images() -> None:
    _, loss = make(TINY)
    images = random_images()
    seen = images.float() / 127.5 - 1
    total, parts = loss.reconstruction_loss(images, seen, seen.clone())
    assert float(total) == 0 and parts == {"pixel_loss": 0.0}
    assert float(loss.reconstruction_loss(images, seen, seen + 0.25)[0]) == pytest.approx(0.25)
    assert F.l1_loss(seen, seen + 0.25) > 0
