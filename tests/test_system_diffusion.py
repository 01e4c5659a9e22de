"""A diffusion model over codes as a `System`: what is drawn, filled in and varied, what it says of images, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rasterformer
from rasterformer.autoregressive.noise import image_generators, stream_seed
from rasterformer.conditioning.carry_on import carry_on
from rasterformer.conditioning.text import ByteTokens
from rasterformer.conditioning.text_encoder import TextEncoder
from rasterformer.data.png import to_pil
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.draw import draw_codes
from rasterformer.diffusion.options import DiffusionOptions
from rasterformer.drawing import code_images
from rasterformer.drawing.symbols import Precision
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config as PixelConfig
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config as PriorConfig
from rasterformer.tasks import Inpaint
from rasterformer.tokenizer import Tokenizer

SIZE, STEPS, CODES = 16, 6, 8  # f = 2: 8x8 codes
SMALL = Config(tokenizer="run", num_steps=STEPS, schedule="linear", width=16, depth=1, num_heads=2, mlp_width=16)
BYTES = TextConfig("bytes", dim=8, length=16)


def make_tokenizer() -> Tokenizer:
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=CODES, dim=4, perceptual="none", discriminator="none"
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=SIZE), TrainingConfig()))
    with torch.no_grad():
        tokenizer.autoencoder.before.weight.mul_(5)
        tokenizer.autoencoder.quantiser.codebook.mul_(CODES)  # type: ignore[operator]
        tokenizer.autoencoder.decoder.conv_out.weight.mul_(5)
    tokenizer.autoencoder.eval()
    return tokenizer


def make(
    *,
    classes: tuple[str, ...] = (),
    text: TextConfig | None = None,
    used: Tensor | None = None,
    std: float = 0.4,
    **changes: Any,
) -> System:
    """Untrained, with weights so large that everything matters."""
    recipe = Recipe("vq_diffusion", replace(SMALL, **changes), DataConfig(image_size=SIZE), TrainingConfig(), text=text)
    system = System.create(recipe, class_names=classes, tokenizers={"tokenizer": make_tokenizer()}, used_codes=used)
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=std)
    system.model.eval()
    return system


def autoregressive() -> System:
    config = PriorConfig(tokenizer="run", width=16, depth=1, num_heads=2, mlp_width=16)
    recipe = Recipe("vqgan_transformer", config, DataConfig(image_size=SIZE), TrainingConfig())
    return System.create(recipe, tokenizers={"tokenizer": make_tokenizer()})


def of_pixels() -> System:
    config = PixelConfig(
        width=8, depth=1, num_heads=2, mlp_width=8, dropout_prob=0.0, block_length=16, memory_length=16
    )
    return System.create(Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig()))


def random_images(batch: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (batch, 3, height // 2, width // 2), dtype=torch.uint8, generator=rng)
    return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def random_mask(height: int = SIZE, width: int = SIZE) -> Tensor:
    """Rows and columns of pixels that cut through codes."""
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[3:8, 5:12] = mask[:, -1] = False
    return mask


BELOW = torch.arange(SIZE)[:, None] >= SIZE - 4  # rows


def denoiser(system: System) -> CodeDenoiser:
    assert isinstance(system.model, CodeDenoiser)
    return system.model


def decoded(system: System, x: Tensor) -> Tensor:
    """Codes int64 [B, L, 1], by the tokenizer's numbers -> images."""
    assert system.tokenizer is not None
    return system.tokenizer.decode(x[..., 0].unflatten(1, (8, 8)))


# ---- drawing

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "paper": ({"schedule": "paper"}, {"steps": 4}),
    "release": ({"schedule": "release"}, {"order": "purity", "purity_weight": 1.0}),
    "random": ({"schedule": "cosine"}, {"order": "random", "steps": 3}),
    "guided": ({"classes": ("cat", "dog")}, {"guidance_scale": 2.0, "order": "confidence"}),
    "larger": ({}, {"size": (20, 28), "steps": 3}),
    "larger, strided": ({}, {"size": (20, 28), "window_stride": 3, "steps": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_depends_on_its_seed_and_number_only(way: str) -> None:
    changes, options = WAYS[way]
    system = make(**changes)
    images = system.sample(4, seed=3, as_tensor=True, **options)
    assert images.shape == (4, 3, *options.get("size", (SIZE, SIZE))) and images.dtype == torch.uint8
    assert torch.equal(system.sample(4, seed=3, batch_size=3, as_tensor=True, **options), images)
    assert torch.equal(system.sample(2, seed=3, first=2, as_tensor=True, **options), images[2:])
    assert not torch.equal(system.sample(4, seed=4, as_tensor=True, **options), images)
    assert len({image.numpy().tobytes() for image in images}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 2}, {"order": "random"}, {"order": "purity"}, {"order": "confidence"}, {"purity_weight": 3.0},
        {"guidance_scale": 4.0}, {"temperature": 0.3}, {"top_k": 2}, {"top_p": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_reaches_the_sampler(options: dict[str, Any]) -> None:
    system = make(classes=("cat", "dog"))
    images = system.sample(3, label="dog", seed=5, as_tensor=True, **options)
    x = draw_codes(
        denoiser(system), Cond(label=torch.ones(3, dtype=torch.int64)), 3, options=DiffusionOptions(**options),
        rng=image_generators(5, 3),
    )  # fmt: skip
    assert torch.equal(images, decoded(system, x))
    assert not torch.equal(images, system.sample(3, label="dog", seed=5, as_tensor=True))


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        (
            {},
            {"parallel": True},
            ConfigError,
            "parallel = True has no meaning here: this is a diffusion model over codes",
        ),
        ({}, {"steps": 7}, ConfigError, r"steps = 7 must lie in 1\.\.6"),
        ({}, {"steps": 0, "order": "random"}, ConfigError, "steps = 0 must be at least 1"),
        ({}, {"order": "purty"}, ConfigError, "order = 'purty' is unknown.*purity"),
        ({"schedule": "paper"}, {"order": "random"}, ConfigError, "order = 'random' reveals masks"),
        ({}, {"purity_weight": -1.0}, ConfigError, r"purity_weight = -1\.0"),
        ({}, {"guidance_scale": 2.0}, ConfigError, "guidance needs a condition"),
        (
            {"classes": ("cat",), "drop_condition_prob": 0.0},
            {"guidance_scale": 2.0},
            ConfigError,
            "drop_condition_prob",
        ),
        ({}, {"size": (15, 16)}, ShapeError, "size = 15x16 pixels is no multiple of the tokenizer's factor 2"),
        ({}, {"size": (14, 16)}, ShapeError, "size = 14x16 pixels is smaller than the model's window of 16x16"),
        ({}, {"size": (16, 20), "window_stride": 9}, ConfigError, r"window_stride = 9 must lie in 1\.\.8"),
        ({}, {"label": "cat"}, ConfigError, "label = 'cat' was given, but this model has no classes"),
        ({}, {"text": "a cat"}, ConfigError, "text was given, but this model was trained without captions"),
        ({}, {"top_k": 0}, ConfigError, "top_k = 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    changes: dict[str, Any], options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**changes).sample(1, **options)


@pytest.mark.parametrize("options", [{"steps": 2}, {"order": "random"}, {"purity_weight": 1.0}], ids=str)
def test_other_models_take_no_options_of_diffusion(options: dict[str, Any]) -> None:
    prior, pixels = autoregressive(), of_pixels()
    ((name, value),) = options.items()
    refused = f"{name} = {value!r} has no meaning here: this is a model that draws"
    for draw in (prior.sample, lambda **more: prior.complete(random_images(), **more)):
        with pytest.raises(ConfigError, match=f"{refused} code by code"):
            draw(**options)
    small = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for draw in (pixels.sample, lambda **more: pixels.complete(small, **more)):
        with pytest.raises(ConfigError, match=f"{refused} pixel by pixel"):
            draw(**options)


@pytest.mark.parametrize("make_other", [autoregressive, of_pixels])
def test_other_models_vary_nothing(make_other: Callable[[], System]) -> None:
    with pytest.raises(ConfigError, match="vary undoes noise, which only a diffusion model does"):
        make_other().vary(random_images())


def test_texts_reach_what_is_drawn_filled_in_and_varied_each_its_own_image() -> None:
    system, images = make(text=BYTES, std=0.8), random_images()
    masks = [~random_mask() | BELOW] * 2
    ways: list[Callable[[Any], Any]] = [
        lambda text: system.sample(2, text=text, as_tensor=True),
        lambda text: system.complete(images, n=4, text=text, as_tensor=True),
        lambda text: system.vary(images, strength=1.0, n=4, text=text, as_tensor=True),
        lambda text: system.restore(images, known=masks, n=4, text=text, as_tensor=True),
        lambda text: system.sample(2, text=text, size=(16, 20), as_tensor=True),
    ]
    for way in ways:
        both, first, second = way(["a cat", "dogs"]), way("a cat"), way("dogs")
        assert torch.equal(both[0], first[0]) and torch.equal(both[1], second[1])
        assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


# ---- where nothing is said


def hidden_from(system: System, draw: Callable[[], Any]) -> list[list[bool]]:
    """Whose condition was hidden in each pass of the network while something was drawn; [] where nobody's was."""
    seen: list[list[bool]] = []

    def look(_: torch.nn.Module, given: tuple[Any, ...]) -> None:
        cond: Cond = given[2]
        seen.append([] if cond.dropped is None else cond.dropped.tolist())

    handle = system.model.register_forward_pre_hook(look)
    draw()
    handle.remove()
    assert seen, "the network was asked"
    return seen


def ways_of(system: System) -> list[Callable[..., Any]]:
    """Everything that draws, two images at once or one after the other."""
    images, masks = random_images(), [BELOW.expand(SIZE, SIZE)] * 2
    return [
        lambda **more: system.sample(2, as_tensor=True, **more),
        lambda **more: system.complete(images, as_tensor=True, **more),
        lambda **more: system.vary(images, strength=1.0, as_tensor=True, **more),
        lambda **more: torch.stack(system.restore(images, known=masks, as_tensor=True, **more)),
        lambda **more: torch.stack(system.transform(images, known=masks, as_tensor=True, **more)),
    ]


def test_without_a_text_images_are_drawn_by_the_learned_null_and_not_by_an_empty_one() -> None:
    system = make(text=BYTES, std=0.8)
    for way in ways_of(system):
        assert all(all(row) and row for row in hidden_from(system, way))
        assert not any(map(any, hidden_from(system, lambda: way(text=""))))  # noqa: B023
        assert not torch.equal(way(), way(text=""))
    by_null = replace(system.with_text(Cond(), "anything", 2), dropped=torch.ones(2, dtype=torch.bool))
    x = draw_codes(denoiser(system), by_null, 2, options=DiffusionOptions(), rng=image_generators(7, 2))
    assert torch.equal(system.sample(2, seed=7, as_tensor=True), decoded(system, x))
    assert torch.equal(system.sample(2, text=[None, None], seed=7, as_tensor=True), decoded(system, x))


def test_texts_and_none_may_be_mixed() -> None:
    system = make(text=BYTES, std=0.8)
    for way in ways_of(system):
        mixed = way(text=["a cat", None])
        assert torch.equal(mixed[0], way(text="a cat")[0]) and torch.equal(mixed[1], way()[1])
    cond = system.with_text(Cond(), ["a cat", None, ""], 3)
    assert cond.dropped is not None and cond.dropped.tolist() == [False, True, False]


def test_without_a_learned_null_no_text_is_an_empty_one() -> None:
    system = make(text=BYTES, std=0.8, drop_condition_prob=0.0)
    assert not system.has_null
    for way in ways_of(system):
        assert torch.equal(way(), way(text="")) and not any(hidden_from(system, way))


def test_without_a_class_a_null_is_drawn_by_but_samples_have_one_at_random() -> None:
    system = make(classes=("cat", "dog"))
    sample, *others = ways_of(system)
    assert not any(hidden_from(system, sample))
    for way in others:
        assert all(all(row) and row for row in hidden_from(system, way))
        mixed = way(label=["dog", None])
        assert torch.equal(mixed[0], way(label="dog")[0]) and torch.equal(mixed[1], way()[1])
    plain = make(classes=("cat", "dog"), drop_condition_prob=0.0)
    assert not any(hidden_from(plain, way) != [[]] * STEPS for way in ways_of(plain)[:3])


def test_a_null_hides_no_class_and_no_text_that_was_given() -> None:
    system = make(classes=("cat", "dog"), text=BYTES, std=0.8)
    for way in ways_of(system):
        assert all(all(row) and row for row in hidden_from(system, way))
        for given in ({"label": "cat"}, {"text": "a cat"}):
            assert not any(hidden_from(system, lambda: way(**given)))  # noqa: B023
    assert system.with_text(Cond(label=torch.zeros(2).long()), None, 2).dropped is None


def test_a_prior_over_codes_draws_by_its_null_too() -> None:
    """Its text layers change nothing then, and do where an empty text is given."""
    config = PriorConfig(tokenizer="run", width=16, depth=1, num_heads=2, mlp_width=16, drop_condition_prob=0.1)
    recipe = Recipe("vqgan_transformer", config, DataConfig(image_size=SIZE), TrainingConfig(), text=BYTES)
    system = System.create(recipe, tokenizers={"tokenizer": make_tokenizer()})
    system.model.eval()
    drawn: dict[str, list[Tensor]] = {"null": [], "empty": []}
    for std in (0.1, 2.0):
        for name, weight in system.model.named_parameters():
            if name.startswith("text_input"):
                torch.nn.init.normal_(weight, std=std, generator=torch.Generator().manual_seed(1))
            elif std == 0.1:
                torch.nn.init.normal_(weight, std=0.8, generator=torch.Generator().manual_seed(2))
        for name, text in (("null", None), ("empty", "")):
            drawn[name].append(system.sample(2, text=text, as_tensor=True))
    assert torch.equal(*drawn["null"]) and not torch.equal(*drawn["empty"])


@pytest.mark.parametrize(
    ("changes", "kind"), [({"text": BYTES}, "text"), ({"classes": ("cat", "dog")}, "class")], ids=str
)
def test_guidance_by_nothing_is_refused(changes: dict[str, Any], kind: str) -> None:
    system = make(**changes)
    for way in ways_of(system)[0 if kind == "text" else 1 :]:
        with pytest.raises(
            ConfigError, match=rf"guidance_scale = 2\.0 needs a {kind} to be guided by, but image 0 has none"
        ):
            way(guidance_scale=2.0)
    given: dict[str, Any] = {"label" if kind == "class" else "text": ["cat", None]}
    with pytest.raises(ConfigError, match="but image 1 has none"):
        system.complete(random_images(), guidance_scale=2.0, **given)


class CountingBytes(TextEncoder):
    """The form of bytes, and how many texts it was asked for at a time."""

    dim, fingerprint = None, ByteTokens.fingerprint

    def __init__(self) -> None:
        self.calls: list[int] = []

    def to(self, device: str | torch.device) -> None:
        pass

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        self.calls.append(len(texts))
        return ByteTokens().encode(texts, length=length)


def test_a_text_is_read_once_and_not_more_than_64_at_a_time() -> None:
    system, counting = make(text=BYTES), CountingBytes()
    system.text_encoder = counting
    texts = ["x" * (k * k % 71 % 13) + str(k % 70) for k in range(200)]  # of 1 to 14 bytes
    cond = system.with_text(Cond(), texts, 200)
    assert counting.calls[0] == 64 and sum(counting.calls) == len(set(texts)) < 200
    tokens, known = ByteTokens().encode(texts, length=16)
    assert cond.text_tokens is not None and cond.text_known is not None and torch.equal(cond.text_known, known)
    assert torch.equal(cond.text_tokens[known], tokens[known])


def test_a_rounded_model_draws_fills_in_and_varies() -> None:
    system, images = make(classes=("cat", "dog"), text=BYTES, std=0.8), random_images()
    more: dict[str, Any] = {"label": "cat", "text": "a cat", "guidance_scale": 2.0, "as_tensor": True}
    ways: list[Callable[[Precision], Any]] = [
        lambda precision: system.sample(4, precision=precision, **more),
        lambda precision: system.complete(images, n=12, precision=precision, **more),
        lambda precision: system.vary(images, n=2, strength=1.0, precision=precision, **more),
        lambda precision: system.restore(
            images[:1], known=[BELOW.expand(SIZE, SIZE)], n=24, precision=precision, **more
        )[0],
    ]
    for way in ways:
        rounded = way("bfloat16")
        assert rounded.dtype == torch.uint8 and torch.equal(rounded, way("bfloat16"))
        assert not torch.equal(rounded, way("float32")), "rounding changes some code of several images"


def test_progress_reaches_its_end_and_no_further() -> None:
    system, images, large = make(), random_images(), random_images(1, 20, 24)
    ways: dict[str, tuple[Callable[..., Any], int]] = {
        "sample": (lambda **told: system.sample(3, batch_size=2, **told), 3 * 64),
        "larger": (lambda **told: system.sample(2, size=(20, 24), **told), 2 * 120),
        "complete": (lambda **told: system.complete(images, n=2, **told), 4 * 64),
        "vary": (lambda **told: system.vary(images, n=2, batch_size=3, **told), 4 * 64),
        "restore": (lambda **told: system.restore(large, known=[random_mask(20, 24)], n=2, **told), 2 * 120),
    }
    for name, (draw, codes) in ways.items():
        told: list[tuple[int, int]] = []
        draw(on_step=lambda done, every: told.append((done, every)))  # noqa: B023  called before the next
        assert told[-1] == (codes, codes) and {every for _, every in told} == {codes}, name
        assert [done for done, _ in told] == sorted(done for done, _ in told), name


def test_a_plan_counts_what_guidance_shows_the_network_twice() -> None:
    """A network so wide that its layers take more than what is drawn from it."""
    system = make(classes=("cat", "dog"), width=256, mlp_width=1024, std=0.01)
    plain = system.plan_sampling(4, batch_size=2)
    guided = system.plan_sampling(4, batch_size=2, guidance_scale=2.0)
    assert (plain.num_images, plain.batch_size, plain.positions) == (4, 2, 64)
    assert plain.bytes_per_image > 64 * 4 * 1024 and guided.bytes_per_image > 1.9 * plain.bytes_per_image
    assert system.plan_sampling(4, size=(20, 24)).positions == 120
    with pytest.raises(ConfigError, match="parallel = True has no meaning here: this is a diffusion model over codes"):
        system.plan_sampling(1, parallel=True)
    with pytest.raises(ConfigError, match=r"steps = 0 must lie in 1\.\.6"):
        system.plan_sampling(1, steps=0)
    with pytest.raises(ConfigError, match="top_k = 0"):
        system.plan_sampling(1, top_k=0)
    with pytest.raises(ConfigError, match=r"window_stride = 9 must lie in 1\.\.8, the smaller side of the window"):
        system.plan_sampling(1, size=(20, 24), window_stride=9)


def test_a_plan_counts_the_distributions_of_a_step() -> None:
    """At least the three of K + 1 float32 numbers for each code that a draw cannot do without."""
    assert make().plan_sampling(1).bytes_per_image >= 3 * 4 * 64 * (CODES + 1)


# ---- filling in


@pytest.mark.parametrize("changes", [{}, {"schedule": "paper"}], ids=str)
def test_known_pixels_stay_and_the_others_are_drawn(changes: dict[str, Any]) -> None:
    system, images, mask = make(**changes), random_images(), random_mask()
    completed = system.complete(images, known=mask, n=3, as_tensor=True)
    assert completed.shape == (2, 3, 3, SIZE, SIZE)
    assert torch.equal(completed[..., mask], images[:, None].expand(-1, 3, -1, -1, -1)[..., mask])
    assert len({image.numpy().tobytes() for image in completed[0]}) == 3
    assert torch.equal(system.complete(images, known=mask, n=3, batch_size=4, as_tensor=True), completed)


def test_what_is_drawn_is_drawn_given_the_codes_all_of_whose_pixels_are_known() -> None:
    system, images, mask = make(), random_images(1), random_mask()
    assert system.tokenizer is not None
    codes = system.tokenizer.encode(carry_on(images, mask[None]))
    where = torch.tensor([[bool(mask[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].all()) for j in range(8)] for i in range(8)])
    assert 0 < int(where.sum()) < 64
    x = draw_codes(
        denoiser(system), Cond(), 1, options=DiffusionOptions(steps=3), rng=image_generators(2, 1),
        known=Known(codes.flatten(1)[..., None], where.flatten()[None]),
    )  # fmt: skip
    assert torch.equal(x[0, :, 0].view(8, 8)[where], codes[0][where])
    expected = torch.where(mask, images, decoded(system, x))
    assert torch.equal(system.complete(images, known=mask, seed=2, steps=3, as_tensor=True)[:, 0], expected)
    seed = stream_seed(2, "picture", 0)
    x = draw_codes(
        denoiser(system), Cond(), 1, options=DiffusionOptions(steps=3), rng=image_generators(seed, 1),
        known=Known(codes.flatten(1)[..., None], where.flatten()[None]),
    )  # fmt: skip
    (restored,) = system.restore(images, known=[mask], seed=2, steps=3, as_tensor=True)
    assert torch.equal(restored, torch.where(mask, images, decoded(system, x)))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 22), (26, 20)])
def test_pictures_of_any_size_are_filled_in(height: int, width: int) -> None:
    system, pictures, mask = make(), random_images(2, height, width), random_mask(height, width)
    below = torch.arange(height)[:, None] >= height // 2 + height // 2 % 2
    masks = [mask, ~mask | below]
    results = system.restore(pictures, known=masks, n=2, seed=4, steps=3, as_tensor=True)
    for picture, known, result in zip(pictures, masks, results, strict=True):
        assert result.shape == (2, 3, height, width) and not torch.equal(result[0], result[1])
        assert torch.equal(result[..., known], picture.expand(2, -1, -1, -1)[..., known])
        assert bool((result[0] != picture).any(0)[~known].any())
    one = system.restore(pictures, known=masks, n=1, seed=4, steps=3, batch_size=1, as_tensor=True)
    assert all(torch.equal(alone[0], both[0]) for alone, both in zip(one, results, strict=True))


def test_a_mask_that_leaves_few_codes_whole_is_warned_of() -> None:
    system, images, thin = make(), random_images(1), torch.ones(SIZE, SIZE, dtype=torch.bool)
    thin[:, ::4] = False  # one column of four: every second code, of 2x2 pixels
    (drawn,) = system.restore(images, known=[thin], as_tensor=True)
    assert torch.equal(drawn[0][:, thin], images[0][:, thin])
    thin[:, ::2] = False
    said = r"50% of the pixels are known, but only 0% lie in codes \(2x2 pixels\).*borders at multiples of 2"
    with pytest.warns(UserWarning, match=said):
        system.restore(images, known=[thin])
    with pytest.warns(UserWarning, match=said):
        system.complete(images, known=thin)
    system.restore(images, known=[HIDDEN])  # nothing is known, and nothing lost


def test_what_is_known_changes_what_is_drawn_beside_it() -> None:
    system, images, mask = make(), random_images(2), random_mask()
    one, other = (system.restore(images[k : k + 1], known=[mask], as_tensor=True)[0] for k in range(2))
    assert not torch.equal(one[..., ~mask], other[..., ~mask])


def test_a_diffusion_model_is_one_of_in_painting_without_a_task() -> None:
    system, images = make(), random_images(1)
    assert system.recipe.task is None and system.task == Inpaint()
    with pytest.raises(
        ConfigError, match="upscale needs a model of the task super_resolution.*trained for images alone"
    ):
        system.upscale(images)
    with pytest.raises(ConfigError, match="known is missing"):
        system.transform(images)


KNOWN, HIDDEN = torch.ones(16, 16, dtype=torch.bool), torch.zeros(16, 16, dtype=torch.bool)


@pytest.mark.parametrize(
    ("size", "mask", "options", "error", "message"),
    [
        ((16, 16), KNOWN, {}, ConfigError, "the mask of image 0 says that every pixel is known"),
        ((16, 18), HIDDEN, {}, ShapeError, r"the mask of image 0 is torch.bool \[16, 16\].*torch.bool \[16, 18\]"),
        ((16, 16), torch.zeros(16, 16), {}, ShapeError, r"the mask of image 0 is torch.float32 \[16, 16\]"),
        ((17, 16), HIDDEN[:1].expand(17, 16), {}, ShapeError, "size = 17x16 pixels is no multiple"),
        ((14, 16), HIDDEN[:14], {}, ShapeError, "size = 14x16 pixels is smaller than the model's"),
        ((16, 18), HIDDEN, {"tile": False}, ConfigError, "a source of 16x18 pixels is larger"),
        ((16, 16), HIDDEN, {"overlap": 2}, ConfigError, "overlap = 2 is for models that draw pixel by pixel"),
        ((16, 16), HIDDEN, {"n": 0}, ConfigError, "n = 0"),
        ((16, 16), HIDDEN, {"steps": 99}, ConfigError, "steps = 99"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_in_is_refused(
    size: tuple[int, int], mask: Tensor, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        make().restore(torch.zeros(1, 3, *size, dtype=torch.uint8), known=[mask], **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": 2}, ConfigError, "candidates = 2, but a diffusion model sees all that is known already"),
        ({"candidates": 0}, ConfigError, "candidates = 0 must be at least 1"),
        ({"parallel": True}, ConfigError, "parallel = True has no meaning here: this is a diffusion model over codes"),
        ({"known": torch.ones(16, 16, dtype=torch.bool)}, ConfigError, "every code of the image is known"),
        ({"known": torch.ones(8, 8, dtype=torch.bool)}, ShapeError, r"known is torch.bool \[8, 8\]"),
        ({"n": 0}, ConfigError, "n = 0 must be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_completed_is_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make().complete(random_images(), **options)


# ---- variations


def test_a_variation_of_next_to_no_strength_is_the_image_as_its_tokenizer_has_it() -> None:
    """Level 1 of 1,000 masks one code in 1,000; of these 128, with this seed, none."""
    system, images = make(num_steps=1000), random_images()
    assert system.tokenizer is not None
    varied = system.vary(images, strength=1e-9, n=1, seed=0, as_tensor=True)
    assert torch.equal(varied[:, 0], system.tokenizer.reconstruct(images))


def test_more_strength_changes_more_and_all_of_it_forgets_the_image() -> None:
    system, images = make(num_steps=20), random_images()
    assert system.tokenizer is not None
    kept = system.tokenizer.reconstruct(images)[:, None]
    changed = [
        float((system.vary(images, strength=strength, n=4, as_tensor=True) != kept).float().mean())
        for strength in (0.1, 0.5, 1.0)
    ]
    assert 0 < changed[0] < changed[1] < changed[2]
    one, other = (system.vary(images[k : k + 1], strength=1.0, n=2, seed=3, as_tensor=True) for k in range(2))
    assert torch.equal(one, other)


def test_variations_do_not_depend_on_the_batch_and_come_in_the_order_of_images() -> None:
    system, images = make(), random_images(3)
    given: list[tuple[int, Tensor]] = []
    varied = system.vary(
        images, n=2, batch_size=4, as_tensor=True, on_images=lambda first, part: given.append((first, part))
    )
    assert varied.shape == (3, 2, 3, SIZE, SIZE) and [first for first, _ in given] == [0, 4]
    assert torch.equal(torch.cat([part for _, part in given]), varied.flatten(0, 1))
    assert torch.equal(system.vary(images, n=2, as_tensor=True), varied)
    assert [len(row) for row in system.vary(images, n=2)] == [2, 2, 2]


def test_more_variations_of_a_picture_change_none_of_another() -> None:
    system, images = make(), random_images(3)
    one, three = (system.vary(images, n=n, seed=6, as_tensor=True) for n in (1, 3))
    assert torch.equal(three[:, :1], one) and not torch.equal(three[:, 1], three[:, 0])
    assert torch.equal(system.vary(images[:2], n=3, seed=6, as_tensor=True), three[:2])
    x0 = system.codec.encode(images[1:2])
    stream = image_generators(stream_seed(6, "picture", 1), 1)
    x = draw_codes(denoiser(system), Cond(), 1, options=DiffusionOptions(), rng=stream, start=(x0, STEPS // 2))
    assert torch.equal(one[1], decoded(system, x))


def test_options_reach_a_variation() -> None:
    system, images = make(classes=("cat", "dog")), random_images(1)
    plain = system.vary(images, strength=0.9, n=4, label="cat", as_tensor=True)
    for options in ({"steps": 2}, {"order": "random"}, {"purity_weight": 4.0}, {"guidance_scale": 4.0}, {"top_k": 1}):
        assert not torch.equal(system.vary(images, strength=0.9, n=4, label="cat", as_tensor=True, **options), plain)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match=rf"strength = {strength} must lie above 0 and not above 1"):
        make().vary(random_images(), strength=strength)


def test_what_cannot_be_varied_is_refused() -> None:
    system = make()
    with pytest.raises(ConfigError, match="n = 0 must be at least 1"):
        system.vary(random_images(), n=0)
    with pytest.raises(ShapeError, match=r"images are torch.uint8 \[2, 3, 8, 8\]"):
        system.vary(random_images(2, 8, 8))
    with pytest.raises(ConfigError, match="steps = 9"):
        system.vary(random_images(), steps=9)


# ---- likelihood


@pytest.mark.parametrize("levels", [None, 1, 3, STEPS])
def test_nats_of_an_image_do_not_depend_on_its_batch(levels: int | None) -> None:
    system, images = make(), random_images(3)
    nats = system.code_nats(images, levels=levels)
    assert nats.shape == (3, 8, 8) and nats.dtype == torch.float32
    for k in range(3):
        torch.testing.assert_close(system.code_nats(images[k : k + 1], levels=levels)[0], nats[k], rtol=1e-4, atol=1e-4)
    assert torch.equal(system.code_nats(images, levels=levels), nats)


def test_fewer_levels_than_twenty_are_all_of_them() -> None:
    system, images = make(), random_images()
    assert torch.equal(system.code_nats(images), system.code_nats(images, levels=STEPS))
    assert not torch.equal(system.code_nats(images), system.code_nats(images, levels=STEPS - 1))


def test_another_condition_meets_the_same_noise() -> None:
    """A network that does not look at the class says the same of every class, to the bit; one that does, does not."""
    system, images = make(classes=("cat", "dog")), random_images()
    labels = [Cond(label=torch.full((2,), k)) for k in range(2)]
    assert not torch.equal(*(system.code_nats(images, cond, levels=2) for cond in labels))
    for name, weight in system.model.named_parameters():
        if name.startswith("class_modulation"):
            torch.nn.init.zeros_(weight)
    assert torch.equal(*(system.code_nats(images, cond, levels=2) for cond in labels))


@pytest.mark.parametrize("levels", [0, -1, STEPS + 1])
def test_levels_out_of_range_are_refused(levels: int) -> None:
    with pytest.raises(ConfigError, match=rf"levels = {levels} leaves 1\.\.{STEPS}"):
        make().code_nats(random_images(), levels=levels)


def test_an_exact_likelihood_has_no_levels() -> None:
    with pytest.raises(ConfigError, match="levels = 3, but this model's likelihood is exact"):
        autoregressive().code_nats(random_images(), levels=3)


def test_a_bound_is_called_one_and_is_none_of_pixels(tmp_path: Path) -> None:
    system = make()
    assert system.likelihood_bound == "upper" and autoregressive().likelihood_bound == "exact"
    with pytest.raises(ConfigError, match="gives one of codes only"):
        system.bits_per_dim(random_images())
    for name, made, said in (("one", system, "an upper bound"), ("other", autoregressive(), "exact")):
        made.save(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text("utf-8")
        assert f"- likelihood: {said}, of 64 codes of 8" in card and "not of pixels" in card


# ---- codes that do not occur, and files

USED = torch.tensor([1, 4, 5])


def test_a_model_of_the_used_codes_numbers_only_those() -> None:
    system, images = make(used=USED), random_images()
    assert denoiser(system).process.num_codes == system.codec.vocab_size == 3
    assert system.tokenizer is not None
    every, mask = torch.arange(CODES), torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    codes, where = code_images.known_codes(system, images, mask)
    whole = system.tokenizer.encode(images)
    assert bool(where.all()) and int(codes.max()) < 3 and len(whole.unique()) > 3
    is_used = torch.isin(whole, USED)
    assert bool(is_used.any()) and torch.equal(USED[codes][is_used], whole[is_used])
    assert torch.equal(code_images.decode(system, codes), system.tokenizer.decode(USED[codes]))
    assert isinstance(system.codec, rasterformer.codecs.vq.codec.CodeCodec)
    assert torch.equal(system.codec.from_tokenizer(system.codec.to_tokenizer(every[:3])), every[:3])
    x = draw_codes(denoiser(system), Cond(), 2, options=DiffusionOptions(), rng=image_generators(0, 2))
    assert torch.equal(system.sample(2, as_tensor=True), decoded(system, USED[x]))
    known = random_mask()
    completed = system.complete(images, known=known, as_tensor=True)[:, 0]
    assert torch.equal(completed[..., known], images[..., known])


@pytest.mark.parametrize("used", [None, USED], ids=["all", "used"])
def test_a_saved_model_needs_nothing_but_its_folder(used: Tensor | None, tmp_path: Path) -> None:
    system = make(used=used, classes=("cat", "dog"), text=BYTES, tokenizer=str(tmp_path / "gone"))
    images, mask = random_images(), random_mask()
    before = system.sample(2, text="a cat", seed=1, as_tensor=True)
    system.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model", device="cpu")
    assert loaded.recipe == system.recipe and loaded.class_names == ("cat", "dog")
    assert denoiser(loaded).process.num_codes == (8 if used is None else 3)
    assert torch.equal(loaded.sample(2, text="a cat", seed=1, as_tensor=True), before)
    ways: list[Callable[[System], Tensor]] = [
        lambda one: one.complete(images, known=mask, text="dogs", as_tensor=True),
        lambda one: one.vary(images, text="dogs", as_tensor=True),
        lambda one: one.code_nats(images, one.with_text(Cond(label=torch.tensor([0, 1])), ["a", "b"], 2)),
    ]
    for way in ways:
        assert torch.equal(way(loaded), way(system))
    loaded.save(tmp_path / "again")
    again = rasterformer.load(tmp_path / "again", device="cpu")
    assert torch.equal(again.sample(2, text="a cat", seed=1, as_tensor=True), before)


@pytest.mark.parametrize(("text", "received"), [(5, "image 0 is 5, a int"), (["a", 2.5], "image 1 is 2.5, a float")])
def test_a_text_that_is_no_string_is_refused_by_its_image(text: Any, received: str) -> None:
    system = make(text=BYTES)
    images = random_images()
    for call in (
        lambda: system.sample(2, text=text),
        lambda: system.complete(images, text=text),
        lambda: system.vary(images, text=text),
        lambda: system.restore(images, known=[BELOW.expand(SIZE, SIZE)] * 2, text=text),
        lambda: system.with_text(Cond(), text, 2),
    ):
        with pytest.raises(ConfigError, match=f"text of {received}. Give a string, or None"):
            call()


def test_one_image_and_a_numpy_mask_are_drawn_as_lists_and_tensors_are() -> None:
    system = make()
    picture, mask = to_pil(random_images(1))[0], BELOW.expand(SIZE, SIZE)
    assert torch.equal(system.vary(picture, as_tensor=True), system.vary([picture], as_tensor=True))
    (found,) = system.restore(picture, known=mask.numpy(), as_tensor=True)
    (expected,) = system.restore([picture], known=[mask], as_tensor=True)
    assert torch.equal(found, expected)
    found = system.complete(picture, known=mask.numpy(), as_tensor=True)
    assert torch.equal(found, system.complete([picture], known=mask, as_tensor=True))
