"""Drawing, completing and transforming with a model over codes, against loops over cells written from the paper."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import rasterformer
from rasterformer.autoregressive.noise import NoiseStream, image_generators, stream_seed
from rasterformer.conditioning.edges import canny_edges
from rasterformer.conditioning.resize import enlarge
from rasterformer.drawing import code_images
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, SampleOptions
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config as PixelConfig
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.tasks import Edges, SuperResolution
from rasterformer.tokenizer import Tokenizer

PRIOR = Config(tokenizer="run", width=16, depth=1, num_heads=2, mlp_width=16, num_coordinates=9)


def make_tokenizer(vocab_size: int = 8, seed: int = 0, size: int = 16) -> Tokenizer:
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=vocab_size, dim=4, perceptual="none", discriminator="none"
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=size), TrainingConfig(seed=seed)))
    with torch.no_grad():
        tokenizer.autoencoder.before.weight.mul_(5)
        tokenizer.autoencoder.quantiser.codebook.mul_(vocab_size)  # type: ignore[operator]
        tokenizer.autoencoder.decoder.conv_out.weight.mul_(5)
    tokenizer.autoencoder.eval()
    return tokenizer


def make(
    *, size: int = 16, task: Any = None, classes: tuple[str, ...] = (), vocab_size: int = 8,
    condition: Tokenizer | None = None, std: float = 0.4, seed: int = 1, **changes: Any
) -> System:  # fmt: skip
    recipe = Recipe(
        "vqgan_transformer", replace(PRIOR, **changes), DataConfig(image_size=size), TrainingConfig(), task=task
    )
    tokenizers = {"tokenizer": make_tokenizer(vocab_size, size=size)}
    if condition is not None:
        tokenizers["condition_tokenizer"] = condition
    system = System.create(recipe, class_names=classes, tokenizers=tokenizers)
    torch.manual_seed(seed)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=std)
    system.model.eval()
    return system


def random_images(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (batch, 3, height // 2, width // 2), dtype=torch.uint8, generator=rng)
    return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def window_start(cell: int, length: int, window: int) -> int:
    """Paper's code: local_i = i if i <= half; window - (length - i) if length - i < half; else half."""
    half = window // 2
    local = cell if cell <= half else window - (length - cell) if length - cell < half else half
    return cell - local


@torch.no_grad()
def draw_in_a_loop(
    system: System,
    grid: tuple[int, int],
    rng: list[torch.Generator],
    logits_of: Callable[[Tensor, tuple[int, int]], Tensor],
    known: dict[tuple[int, int], int] | None = None,
) -> Tensor:
    """One cell at a time, its window run through as a whole; noise in raster order of the grid: int64 [1, h, w]."""
    window, given = code_images.window_of(system), known or {}
    noise = NoiseStream(rng, system.model.distribution.noise_per_position, grid[0] * grid[1], torch.device("cpu"))
    codes = torch.zeros(1, *grid, dtype=torch.int64)
    for (row, col), value in given.items():
        codes[0, row, col] = value
    for row in range(grid[0]):
        for col in range(grid[1]):
            numbers = noise.at(row * grid[1] + col)[:, 0]
            if (row, col) in given:
                continue
            top, left = window_start(row, grid[0], window[0]), window_start(col, grid[1], window[1])
            seen = codes[:, top : top + window[0], left : left + window[1]].flatten(1)[..., None]
            logits = logits_of(seen, (top, left))[:, (row - top) * window[1] + col - left]
            drawn = system.model.distribution.sample(logits, numbers, options=SampleOptions())
            codes[0, row, col] = drawn[0, 0]
    return codes


def given_part_of(system: System, maps: Tensor) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """The model's logits given the part of a map of codes, int64 [1, h, w], where the window lies."""
    rows, cols = code_images.window_of(system)

    def logits_of(seen: Tensor, at: tuple[int, int]) -> Tensor:
        part = maps[:, at[0] : at[0] + rows, at[1] : at[1] + cols].flatten(1)
        logits: Tensor = system.model(seen, Cond(codes=part))
        return logits

    return logits_of


def decoded(system: System, codes: Tensor) -> Tensor:
    assert system.tokenizer is not None
    return system.tokenizer.decode(codes)


def places(grid: tuple[int, int]) -> Tensor:
    """The mean raster index of each cell's 2x2 pixels, as a share of all pixels, in 9 steps."""
    height, width = 2 * grid[0], 2 * grid[1]
    rows = [[round(((2 * i + 0.5) * width + 2 * j + 0.5) / (height * width) * 9) for j in range(grid[1])]
            for i in range(grid[0])]  # fmt: skip
    return torch.tensor(rows).clamp(max=8)[None]


@pytest.mark.parametrize("changes", [{}, {"order": "spiral_in"}, {"window": (4, 4)}, {"coordinates": True}], ids=str)
def test_an_image_depends_on_its_seed_and_number_only(changes: dict[str, Any]) -> None:
    system = make(**changes)
    images = system.sample(5, seed=3, as_tensor=True)
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(system.sample(5, seed=3, batch_size=2, as_tensor=True), images)
    assert torch.equal(system.sample(2, seed=3, first=3, as_tensor=True), images[3:])
    assert not torch.equal(system.sample(5, seed=4, as_tensor=True), images)
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_parallel_drawing_gives_the_same_images() -> None:
    system = make(order="boustrophedon")
    one_by_one = system.sample(3, batch_size=1, as_tensor=True)
    assert torch.equal(system.sample(3, parallel=True, as_tensor=True), one_by_one)
    images, mask = random_images(), torch.ones(16, 16, dtype=torch.bool)
    mask[4:10, 2:12] = False
    completed = system.complete(images, known=mask, n=2, batch_size=1, as_tensor=True)
    assert torch.equal(system.complete(images, known=mask, n=2, parallel=True, as_tensor=True), completed)


@pytest.mark.parametrize("changes", [{}, {"order": "subsample"}], ids=str)
def test_an_image_of_the_models_size_is_drawn_code_by_code(changes: dict[str, Any]) -> None:
    system = make(classes=("cat", "dog"), **changes)
    images = system.sample(2, label="dog", seed=5, temperature=0.8, as_tensor=True)
    for k in range(2):
        noise = NoiseStream(image_generators(5, 1, first=k), 8, 64, torch.device("cpu"))
        x, order = torch.zeros(1, 64, 1, dtype=torch.int64), code_images.order_of(system)
        codes = torch.zeros(64, dtype=torch.int64)
        for position in range(64):
            with torch.no_grad():
                logits = system.model(x, Cond(label=torch.tensor([1])))[:, position] / 0.8
            x[:, position] = system.model.distribution.sample(logits, noise.at(position)[:, 0], options=SampleOptions())
            codes[order[position]] = x[0, position, 0]
        assert torch.equal(images[k : k + 1], decoded(system, codes.view(1, 8, 8)))


@pytest.mark.parametrize("has_label", [False, True])
def test_larger_images_are_drawn_by_the_papers_sliding_window(has_label: bool) -> None:
    system = make(window=(4, 4), coordinates=True, classes=("cat", "dog") if has_label else ())
    label = torch.tensor([1]) if has_label else None
    images = system.sample(2, label="dog" if has_label else None, size=(14, 22), seed=2, as_tensor=True)
    maps = places((7, 11))
    for k in range(2):
        codes = draw_in_a_loop(
            system, (7, 11), image_generators(2, 1, first=k),
            lambda seen, at: system.model(
                seen, Cond(label=label, codes=maps[:, at[0] : at[0] + 4, at[1] : at[1] + 4].flatten(1))
            ),
        )  # fmt: skip
        assert torch.equal(images[k : k + 1], decoded(system, codes))


def test_a_size_beyond_the_training_size_needs_no_window_in_the_recipe() -> None:
    system = make(size=8)
    image = system.sample(1, size=(10, 12), seed=4, as_tensor=True)
    codes = draw_in_a_loop(system, (5, 6), image_generators(4, 1), lambda seen, at: system.model(seen, Cond()))
    assert torch.equal(image, decoded(system, codes))
    assert torch.equal(system.sample(1, size=(8, 8), as_tensor=True), system.sample(1, as_tensor=True))


def test_larger_images_do_not_depend_on_the_batch() -> None:
    system = make(window=(4, 4))
    images = system.sample(3, size=(12, 18), seed=1, as_tensor=True)
    assert torch.equal(system.sample(3, size=(12, 18), seed=1, batch_size=1, as_tensor=True), images)
    strided = system.sample(3, size=(12, 18), seed=1, window_stride=2, as_tensor=True)
    assert strided.shape == images.shape and not torch.equal(strided, images)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (15, 16)}, ShapeError, "size = 15x16 pixels is no multiple of the tokenizer's factor 2"),
        ({"size": (6, 16)}, ShapeError, "size = 6x16 pixels is smaller than the model's window of 8x8"),
        ({"size": (16, 20), "window_stride": 3}, ConfigError, r"stride = 3 must lie in 1\.\.2"),
        ({"size": (16, 20), "parallel": True}, ConfigError, "parallel draws images of the model's own size only"),
        ({"guidance_scale": 2.0}, ConfigError, r"guidance_scale = 2.0 needs a model.*drop_condition_prob = 0\.1"),
        ({"label": "cat"}, ConfigError, "label = 'cat' was given, but this model has no classes"),
        ({"text": "a cat"}, ConfigError, "text was given, but this model was trained without captions"),
        ({"top_k": 0}, ConfigError, "top_k = 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(window=(4, 4)).sample(1, **options)


def test_an_order_that_no_window_can_slide_in_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="a window that slides in raster order, but this model has model.order = 'morton'"
    ):
        make(order="morton").sample(1, size=(16, 32))


def test_guidance_moves_the_logits_away_from_those_without_the_condition() -> None:
    system = make(classes=("cat", "dog"), drop_condition_prob=0.1, size=8)
    label, dropped = torch.tensor([1]), torch.tensor([True])

    def guided(seen: Tensor, at: tuple[int, int]) -> Tensor:
        null = system.model(seen, Cond(label=label, dropped=dropped))
        return null + 3.0 * (system.model(seen, Cond(label=label)) - null)

    image = system.sample(1, label="dog", guidance_scale=3.0, size=(8, 12), seed=6, as_tensor=True)
    codes = draw_in_a_loop(system, (4, 6), image_generators(6, 1), guided)
    assert torch.equal(image, decoded(system, codes))
    assert not torch.equal(image, system.sample(1, label="dog", size=(8, 12), seed=6, as_tensor=True))


def test_guidance_needs_something_to_be_guided_by() -> None:
    with pytest.raises(ConfigError, match="guidance needs a condition"):
        make(drop_condition_prob=0.1).sample(1, guidance_scale=2.0)


@pytest.mark.parametrize("options", [{"size": (8, 8)}, {"guidance_scale": 2.0}, {"window_stride": 2}])
def test_models_of_pixels_take_no_options_of_codes(options: dict[str, Any]) -> None:
    config = PixelConfig(
        width=8, depth=1, num_heads=2, mlp_width=8, dropout_prob=0.0, block_length=16, memory_length=16
    )
    system = System.create(Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig()))
    ((name, value),) = options.items()
    with pytest.raises(
        ConfigError,
        match=re.escape(f"{name} = {value!r} has no meaning here: this is a model that draws pixel by pixel"),
    ):
        system.sample(1, **options)
    with pytest.raises(ConfigError, match="candidates = 2 is for models over codes"):
        system.complete(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), candidates=2)
    with pytest.raises(ConfigError, match="works on pixels and has no codes"):
        system.code_nats(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("options", [{}, {"size": (16, 24)}, {"batch_size": 2}], ids=str)
@pytest.mark.parametrize("changes", [{}, {"window": (4, 4)}], ids=str)
def test_progress_reaches_its_end_and_no_further(changes: dict[str, Any], options: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    make(**changes).sample(3, on_step=lambda done, every: told.append((done, every)), **options)
    codes = 3 * 8 * (12 if "size" in options else 8)
    assert told[-1] == (codes, codes) and {every for _, every in told} == {codes}
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_progress_of_completions_with_a_window_reaches_its_end() -> None:
    told: list[tuple[int, int]] = []
    make(window=(4, 4)).complete(random_images(), on_step=lambda done, every: told.append((done, every)))
    assert told[-1] == (2 * 64, 2 * 64)


MASKS: dict[str, Callable[[Tensor], object]] = {
    "all but a hole": lambda mask: mask[5:11, 3:9].fill_(False),
    "the left half unknown": lambda mask: mask[:, :8].fill_(False),
    "cut through codes": lambda mask: mask[3:, 5:].fill_(False),
}


@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("changes", [{}, {"order": "spiral_in"}, {"window": (4, 4)}, {"coordinates": True}], ids=str)
def test_completion_keeps_known_pixels_exactly_and_draws_the_others(changes: dict[str, Any], mask_name: str) -> None:
    system, images, mask = make(**changes), random_images(), torch.ones(16, 16, dtype=torch.bool)
    MASKS[mask_name](mask)
    completed = system.complete(images, known=mask, n=3, as_tensor=True)
    assert completed.shape == (2, 3, 3, 16, 16) and completed.dtype == torch.uint8
    assert torch.equal(completed[..., mask], images[:, None].expand(-1, 3, -1, -1, -1)[..., mask])
    assert len({image.numpy().tobytes() for image in completed[0]}) == 3
    assert torch.equal(system.complete(images, known=mask, n=3, batch_size=4, as_tensor=True), completed)


@pytest.mark.parametrize("window", [None, (4, 4)])
def test_completion_keeps_known_codes_and_draws_the_others_given_them(window: tuple[int, int] | None) -> None:
    system, images, mask = make(window=window), random_images(1), torch.ones(16, 16, dtype=torch.bool)
    mask[6:12, 4:12] = False
    codes, where = code_images.known_codes(system, images, mask[None])
    known = {(row, col): int(codes[0, row, col]) for row, col in where[0].nonzero().tolist()}
    assert len(known) == 64 - 3 * 4
    drawn = draw_in_a_loop(
        system, (8, 8), image_generators(7, 1), lambda seen, at: system.model(seen, Cond()), known=known
    )
    expected = torch.where(mask, images, decoded(system, drawn))
    assert torch.equal(system.complete(images, known=mask, seed=7, as_tensor=True)[:, 0], expected)


def test_completion_reads_rows_and_labels_and_gives_pillow_images() -> None:
    system, images = make(classes=("cat", "dog")), random_images()
    completed = system.complete(images, known="top:0.5", label=["dog", "cat"], n=2)
    assert [len(row) for row in completed] == [2, 2] and completed[0][0].size == (16, 16)
    dogs = system.complete(images, known="none", label="dog", n=12, as_tensor=True)
    mixed = system.complete(images, known="none", label=["dog", "cat"], n=12, as_tensor=True)
    assert torch.equal(mixed[0], dogs[0]) and not torch.equal(mixed[1], dogs[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"known": torch.ones(16, 15, dtype=torch.bool)}, ShapeError, r"known is torch.bool \[16, 15\].*\[16, 16\]"),
        ({"known": torch.ones(16, 16)}, ShapeError, "known is torch.float32"),
        ({"known": torch.ones(16, 16, dtype=torch.bool)}, ConfigError, "nothing is left to draw"),
        ({"candidates": 0}, ConfigError, "candidates = 0 must be at least 1"),
        ({"n": 0}, ConfigError, "n = 0 must be at least 1"),
        ({"parallel": True, "batch_size": 2}, ConfigError, "batch_size = 2, but parallel draws one image at a time"),
    ],
)
def test_what_cannot_be_completed_is_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make().complete(random_images(), **options)


def enumerated(system: System, codes: Tensor, free: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """All fillings of the free cells of a 2x2 grid; p(filling | all known codes), and p(filling | known ones before each)."""
    fillings, joint, sequential = [], [], []
    for values in itertools.product(range(3), repeat=len(free)):
        x = codes.clone().flatten()
        x[free] = torch.tensor(values)
        with torch.no_grad():
            log_probs = system.model(x[None, :, None], Cond()).double().log_softmax(-1)[0]
        each = log_probs[torch.arange(4), x]
        fillings.append(x.view(2, 2))
        joint.append(each.sum().exp())
        sequential.append(each[free].sum().exp())
    return torch.stack(fillings), torch.stack(joint) / sum(joint), torch.stack(sequential)


def p_value(counts: Tensor, probs: Tensor) -> float:
    enough = probs * counts.sum() >= 5
    expected = torch.cat([probs[enough], probs[~enough].sum()[None]]) * counts.sum()
    observed = torch.cat([counts[enough], counts[~enough].sum()[None]])
    keep = expected > 1e-9
    chi = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    return float(stats.chi2.sf(float(chi), int(keep.sum()) - 1))


@pytest.mark.parametrize(("candidates", "n"), [(1, 1500), (48, 300)])
def test_candidates_look_at_the_known_codes_that_come_after(candidates: int, n: int) -> None:
    """1: each code given those before it. Many: given all known codes, by enumeration of the 2x2 codes of 3."""
    system = make(size=4, vocab_size=3, std=0.6, seed=7)
    image, mask, free = random_images(1, 4, 4), torch.ones(4, 4, dtype=torch.bool), [1, 2]
    mask[:2, 2:] = mask[2:, :2] = False  # unknown are the cells 1 and 2; 3 comes after them
    codes, where = code_images.known_codes(system, image, mask[None])
    assert where.flatten().tolist() == [True, False, False, True]
    fillings, given_all, given_before = enumerated(system, codes, free)
    assert float((given_all - given_before).abs().sum()) > 0.3  # else there would be nothing to see
    pictures = torch.where(mask, image, code_images.decode(system, fillings))
    number = {picture.numpy().tobytes(): k for k, picture in enumerate(pictures)}
    assert len(number) == 9
    completed = system.complete(image, known=mask, n=n, candidates=candidates, batch_size=1500, as_tensor=True)[0]
    counts = torch.zeros(9, dtype=torch.float64)
    for picture in completed:
        counts[number[picture.numpy().tobytes()]] += 1
    right, wrong = (given_before, given_all) if candidates == 1 else (given_all, given_before)
    assert p_value(counts, right) > 1e-4
    assert p_value(counts, wrong) < 1e-4


def test_candidates_do_not_matter_where_nothing_known_comes_after() -> None:
    """All weights are equal: one of the candidates, each as likely. What was drawn is among them."""
    system, images = make(), random_images(1)
    one = system.complete(images, known="rows:8", n=4, seed=3, as_tensor=True)[0]
    chosen = system.complete(images, known="rows:8", n=2, candidates=2, seed=3, as_tensor=True)[0]
    for k in range(2):
        assert any(torch.equal(chosen[k], one[2 * k + j]) for j in range(2))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 12)])
def test_super_resolution_sees_its_source_enlarged_and_tokenized(height: int, width: int) -> None:
    system = make(task=SuperResolution(2), aligned_condition=True)
    sources, grid = random_images(2, height, width), (height, width)
    results = system.transform(sources, n=2, seed=9, as_tensor=True)
    assert [result.shape for result in results] == [(2, 3, 2 * height, 2 * width)] * 2
    assert system.tokenizer is not None
    maps = system.tokenizer.encode(enlarge(sources, (2 * height, 2 * width), "bicubic"))
    for k in range(2):
        for number in range(2):
            codes = draw_in_a_loop(
                system, grid, image_generators(stream_seed(9, "picture", k), 1, first=number),
                given_part_of(system, maps[k : k + 1])
            )  # fmt: skip
            assert torch.equal(results[k][number], decoded(system, codes)[0])
    assert system.upscale(sources, seed=9)[1][0].size == (2 * width, 2 * height)


def test_edges_of_larger_pictures_guide_a_sliding_window() -> None:
    system = make(task=Edges(), condition=make_tokenizer(vocab_size=11, seed=3), window=(4, 4), drop_condition_prob=0.1)
    picture = random_images(1, 18, 24)
    (result,) = system.transform(picture, seed=1, guidance_scale=2.0, as_tensor=True)
    edges = canny_edges(picture, sigma=2.0, low=0.1, high=0.2)
    maps = system.tokenizers["condition_tokenizer"].encode(edges.expand(-1, 3, -1, -1))
    assert maps.shape == (1, 9, 12) and len(maps.unique()) > 1

    def guided(seen: Tensor, at: tuple[int, int]) -> Tensor:
        cond = Cond(codes=maps[:, at[0] : at[0] + 4, at[1] : at[1] + 4].flatten(1))
        null = system.model(seen, replace(cond, dropped=torch.tensor([True])))
        return null + 2.0 * (system.model(seen, cond) - null)

    codes = draw_in_a_loop(system, (9, 12), image_generators(stream_seed(1, "picture", 0), 1), guided)
    assert torch.equal(result, decoded(system, codes))


def test_results_of_transform_do_not_depend_on_batch_or_number() -> None:
    system, sources = make(task=SuperResolution(2)), random_images(2, 8, 8)
    three = system.transform(sources, n=3, seed=2, as_tensor=True)
    assert all(torch.equal(one, other) for one, other in
               zip(system.transform(sources, n=3, seed=2, batch_size=1, as_tensor=True), three, strict=True))  # fmt: skip
    assert torch.equal(system.transform(sources[:1], n=2, seed=2, as_tensor=True)[0], three[0][:2])
    told: list[tuple[int, int]] = []
    system.transform(sources, n=3, on_step=lambda done, every: told.append((done, every)))
    assert told[-1] == (2 * 3 * 64, 2 * 3 * 64)
    assert torch.equal(system.draw_from(Cond(source=sources), n=3, seed=2), torch.stack(three))


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [((7, 8), ShapeError, "size = 14x16 pixels is smaller"), ((6, 8), ShapeError, "size = 12x16 pixels is smaller")],
)
def test_sources_that_cannot_be_transformed_are_refused(size: tuple[int, int], error: Any, message: str) -> None:
    system = make(task=SuperResolution(2))
    with pytest.raises(error, match=message):
        system.transform(torch.zeros(1, 3, *size, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="a source of 8x12 pixels is larger than the model's 8x8"):
        system.transform(torch.zeros(1, 3, 8, 12, dtype=torch.uint8), tile=False)
    with pytest.raises(
        ConfigError, match="overlap = 2 is for models that draw pixel by pixel; this one slides a window"
    ):
        system.transform(torch.zeros(1, 3, 8, 12, dtype=torch.uint8), overlap=2)
    with pytest.raises(ConfigError, match="n = 0"):
        system.transform(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), n=0)


@pytest.mark.parametrize("size", [8, 32])
def test_nats_are_those_of_images_of_the_models_size(size: int) -> None:
    with pytest.raises(ShapeError, match=rf"images are torch.uint8 \[2, 3, {size}, {size}\].*\[B, 3, 16, 16\]"):
        make().code_nats(random_images(2, size, size))


def test_a_likelihood_of_codes_is_none_of_pixels() -> None:
    system = make()
    with pytest.raises(ConfigError, match="gives one of codes only"):
        system.bits_per_dim(random_images())
    with pytest.raises(ConfigError, match="gives one of codes only"):
        system.symbol_nats(random_images())


@pytest.mark.parametrize("task", [None, Edges()])
def test_a_saved_model_needs_nothing_but_its_folder(task: Any, tmp_path: Path) -> None:
    condition = None if task is None else make_tokenizer(vocab_size=11, seed=3)
    system = make(task=task, condition=condition, classes=("cat", "dog"), tokenizer=str(tmp_path / "gone"))
    if condition is not None:
        config = replace(system.recipe.model, condition_tokenizer=str(tmp_path / "gone too"))
        system.recipe = replace(system.recipe, model=config)
    system.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model", device="cpu")
    assert loaded.recipe == system.recipe and loaded.class_names == ("cat", "dog")
    assert {name: part.fingerprint for name, part in loaded.tokenizers.items()} == {
        name: part.fingerprint for name, part in system.tokenizers.items()
    }
    images = random_images()
    if task is None:
        assert torch.equal(loaded.sample(2, seed=1, as_tensor=True), system.sample(2, seed=1, as_tensor=True))
    else:
        pairs = zip(loaded.transform(images, as_tensor=True), system.transform(images, as_tensor=True), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    cond = Cond(
        label=torch.tensor([0, 1]), source=None if task is None else canny_edges(images, sigma=2.0, low=0.1, high=0.2)
    )
    assert torch.equal(loaded.code_nats(images, cond), system.code_nats(images, cond))


def test_a_tokenizer_is_no_generative_model(tmp_path: Path) -> None:
    make_tokenizer().save(tmp_path / "model")
    with pytest.raises(ConfigError, match="is a tokenizer, which turns images into codes"):
        rasterformer.load(tmp_path / "model")


def test_a_recipe_without_its_tokenizers_is_refused() -> None:
    recipe = Recipe("vqgan_transformer", replace(PRIOR, tokenizer=None), DataConfig(image_size=16), TrainingConfig())
    with pytest.raises(ConfigError, match="model.tokenizer is missing"):
        System.create(recipe)
    with pytest.raises(ConfigError, match="model.condition_tokenizer is missing"):
        System.create(replace(recipe, task=Edges()), tokenizers={"tokenizer": make_tokenizer()})
