"""Nats per code by hand, from a scorer whose nats are known; what a report says, and what it refuses."""

import io
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.codecs.vq.used import UsedCodes
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.evaluation.code_likelihood import CodeLikelihoodReport, evaluate_codes
from rasterformer.interfaces import Batch, Cond
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer

SIDE, ROWS = 8, 4  # pixels, codes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Untrained, f = 2 and 5 codes, of which several occur."""
    config = Config(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=5, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    made = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=SIDE), TrainingConfig()))
    with torch.no_grad():
        z = made.autoencoder.encode(image_set(4).images(slice(None)).float() / 127.5 - 1)  # [4, 4, h, w]
        made.autoencoder.quantiser.codebook.copy_(z.permute(0, 2, 3, 1).reshape(-1, 4)[::12][:5])  # type: ignore[operator]
    made.autoencoder.eval()
    return made


def image_set(num_images: int, *, labels: bool = False, captions: tuple[str, ...] | None = None) -> ImageSet:
    """Noise; the first value of image k is k, so that a scorer knows which one it sees."""
    pixels = torch.randint(
        0, 256, (num_images, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels[:, 0, 0, 0] = torch.arange(num_images)
    return ImageSet(
        name="toys", split="test", split_origin="every tenth image", preprocessing="none", image_size=SIDE,
        class_names=tuple(map(str, range(num_images))) if labels else (),
        labels=torch.arange(num_images) if labels else None, captions=captions, fingerprint="0123456789abcdef" * 4,
        lossless=True, skipped=(), num_images=num_images, pixels=pixels,
        names=tuple(f"{k}.png" for k in range(num_images)),
    )  # fmt: skip


class Known:
    """Exact nats: image k has k + 1 at each of the codes of its first row and none below; ten more for a class of another."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []  # (image, class, first value of the source or of the text) as asked for

    def code_nats(self, images: Tensor, cond: Cond | None = None, *, levels: int | None = None) -> Tensor:
        assert levels is None, "exact nats have no levels of noise"
        number = images[:, 0, 0, 0].long()
        nats = torch.zeros(len(images), ROWS, ROWS)
        nats[:, 0] = number[:, None] + 1.0
        assert cond is not None
        for part in (cond.label, cond.source, cond.text, cond.text_tokens):
            if part is not None:
                other = part.reshape(len(part), -1)[:, 0].long()
                self.pairs += zip(number.tolist(), other.tolist(), strict=True)
                nats[:, 0] += 10.0 * (other != number)[:, None]
        return nats


class Noisy(Known):
    """What `Known` says, in the mean over noise that belongs to the image; less of it where more levels are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: set[int] = set()

    def code_nats(self, images: Tensor, cond: Cond | None = None, *, levels: int | None = None) -> Tensor:
        assert levels is not None, "an estimate is of some levels of noise"
        self.levels.add(levels)
        streams = [torch.Generator().manual_seed(int(image[0, 0, 0])) for image in images]
        noise = torch.stack([torch.randn(ROWS, ROWS, generator=rng) for rng in streams])
        return super().code_nats(images, cond) + noise / levels


def as_they_are(batch: Batch, first: int) -> Batch:
    return batch


def evaluate(tokenizer: Tokenizer, images: ImageSet, system: Any = None, **more: Any) -> CodeLikelihoodReport:
    options: dict[str, Any] = {"use_labels": False, "task": None, "with_source": as_they_are}
    return evaluate_codes(system or Known(), tokenizer, images, model="toy", **(options | more))


def printed(report: CodeLikelihoodReport) -> str:
    stream = io.StringIO()
    Console(width=300, file=stream).print(report.table())
    return stream.getvalue()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_mean_interval_and_bits_are_those_of_the_images_codes(tokenizer: Tokenizer, batch_size: int) -> None:
    """Images have (k + 1) / 4 nats per code: 0.25, 0.5, 0.75, 1, 1.25; each has 16 codes for 64 pixels."""
    report = evaluate(tokenizer, image_set(5), batch_size=batch_size)
    assert report.nats_per_code == pytest.approx(0.75, abs=1e-12)
    variance = (0.5**2 + 0.25**2) * 2 / 4
    half = 1.96 * math.sqrt(variance / 5)
    assert report.interval == pytest.approx((0.75 - half, 0.75 + half), abs=1e-4)
    assert report.codes_per_image == 16
    assert report.bits_per_pixel == pytest.approx(0.75 / math.log(2) * 16 / 64, abs=1e-12)
    assert report.shuffled_nats_per_code is None


def test_simpler_coders_are_the_entropy_of_single_codes_and_the_logarithm_of_their_number(tokenizer: Tokenizer) -> None:
    images = image_set(5)
    counts = Counter(tokenizer.encode(images.images(slice(None))).flatten().tolist())
    assert len(counts) > 2, "one code only would show nothing"
    entropy = -sum(count / 80 * math.log(count / 80) for count in counts.values())
    report = evaluate(tokenizer, images, batch_size=2)
    assert report.unigram_nats_per_code == pytest.approx(entropy, abs=1e-9)
    assert report.uniform_nats_per_code == pytest.approx(math.log(5), abs=1e-12)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_classes_are_compared_with_those_of_the_image_half_the_set_away(tokenizer: Tokenizer, batch_size: int) -> None:
    scorer = Known()
    report = evaluate(tokenizer, image_set(6, labels=True), scorer, use_labels=True, batch_size=batch_size)
    own, other = [(k, k) for k in range(6)], [(k, (k + 3) % 6) for k in range(6)]
    assert sorted(scorer.pairs) == sorted(own + other)
    assert report.nats_per_code == pytest.approx(21 / 6 / 4, abs=1e-6)
    assert report.shuffled_nats_per_code == pytest.approx(21 / 6 / 4 + 10 / 4, abs=1e-6)


def test_sources_are_compared_too_and_know_the_number_of_their_image(tokenizer: Tokenizer) -> None:
    firsts: list[int] = []

    def with_source(batch: Batch, first: int) -> Batch:
        firsts.append(first)
        return Batch(batch.images, Cond(source=batch.images[:, :, ::2, ::2]))

    scorer = Known()
    report = evaluate(tokenizer, image_set(6), scorer, task="super_resolution", with_source=with_source, batch_size=3)
    assert firsts == [0, 3, 3, 0]
    assert sorted(scorer.pairs) == sorted([(k, k) for k in range(6)] + [(k, (k + 3) % 6) for k in range(6)])
    assert report.task == "super_resolution" and "given the source, super_resolution" in printed(report)


def test_captions_reach_the_system_and_are_compared_with_those_of_others(tokenizer: Tokenizer) -> None:
    def with_text(cond: Cond, texts: list[str]) -> Cond:
        return Cond(text=torch.tensor([[[float(text)]] for text in texts]))

    scorer, images = Known(), image_set(4, captions=("0", "1", "2", "3"))
    report = evaluate(tokenizer, images, scorer, with_text=with_text, batch_size=3)
    assert sorted(scorer.pairs) == sorted([(k, k) for k in range(4)] + [(k, (k + 2) % 4) for k in range(4)])
    assert report.shuffled_nats_per_code == pytest.approx(report.nats_per_code + 2.5, abs=1e-6)
    with pytest.raises(DataError, match="'toys', test, has no captions"):
        evaluate(tokenizer, image_set(4), with_text=with_text)


def test_bytes_of_captions_are_compared_too(tokenizer: Tokenizer) -> None:
    def with_text(cond: Cond, texts: list[str]) -> Cond:
        return Cond(text_tokens=torch.tensor([[int(text)] for text in texts]))

    scorer, images = Known(), image_set(4, captions=("0", "1", "2", "3"))
    report = evaluate(tokenizer, images, scorer, with_text=with_text)
    assert report.shuffled_nats_per_code == pytest.approx(report.nats_per_code + 2.5, abs=1e-6)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_a_bound_is_said_to_be_one_wherever_its_figure_stands(tokenizer: Tokenizer, batch_size: int) -> None:
    scorer, images = Noisy(), image_set(6, labels=True)
    report = evaluate(
        tokenizer, images, scorer, use_labels=True, batch_size=batch_size, bound="upper", levels=7, task="inpaint"
    )
    assert scorer.levels == {7} and (report.bound, report.levels) == ("upper", 7)
    assert report.shuffled_nats_per_code is not None
    difference = report.shuffled_nats_per_code - report.nats_per_code
    assert difference == pytest.approx(10 / 4, abs=1e-6)  # the same noise met both conditions
    words = printed(report)
    meaning = (
        "upper bound, estimated, on the negative log-likelihood of codes given the source, inpaint; none of pixels"
    )
    assert f"({meaning})" in words
    assert "7 levels of noise, drawn for each image" in words and "of two upper bounds under the same noise" in words
    assert "(over images and the noise drawn for them, normal approximation on the mean)" in words
    assert words.count("(upper bound, estimated)") == 2 and "at most" not in words and "exact" not in words
    content = json.loads(json.dumps(report.to_dict()))
    assert content["likelihood_of"] == "codes, upper bound, estimated; not of pixels"
    assert content["interval_over"] == "images and the noise drawn for them"
    assert (content["bound"], content["levels"]) == ("upper", 7)


def test_the_interval_of_a_bound_is_over_what_images_and_noise_make_together(tokenizer: Tokenizer) -> None:
    scorer, images = Noisy(), image_set(9)
    report = evaluate(tokenizer, images, scorer, bound="upper", levels=1)
    each = scorer.code_nats(images.images(slice(None)), Cond(), levels=1).double().mean((1, 2)).tolist()
    mean = sum(each) / 9
    half = 1.96 * math.sqrt(sum((nats - mean) ** 2 for nats in each) / 8 / 9)
    assert report.interval == pytest.approx((mean - half, mean + half), abs=1e-4)
    assert report.interval != pytest.approx(evaluate(tokenizer, images).interval, abs=1e-2)


@pytest.mark.parametrize("more", [{}, {"bound": "upper", "levels": 1_000}])
def test_a_figure_that_knowing_nothing_beats_is_said_to_say_nothing(tokenizer: Tokenizer, more: dict[str, Any]) -> None:
    """Of n images the mean is (n + 1) / 8 nats, and ln 5 is 1.609."""
    verdict = "more than knowing nothing would cost: the model is not trained enough to say anything"
    for count, is_above in ((11, False), (13, True)):
        scorer = Noisy() if more else Known()
        report = evaluate(tokenizer, image_set(count), scorer, **more)
        assert report.nats_per_code == pytest.approx((count + 1) / 8, abs=1e-3)
        assert (verdict in printed(report)) is is_above


def test_an_exact_report_has_no_levels_of_noise(tokenizer: Tokenizer) -> None:
    report = evaluate(tokenizer, image_set(5))
    assert (report.bound, report.levels, report.replaced_share) == ("exact", None, None)
    assert report.to_dict()["interval_over"] == "images"
    words = printed(report)
    assert not any(word in words for word in ("bound", "levels", "replaced", "at most", "noise"))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_codes_that_the_model_does_not_number_are_counted_and_replaced(tokenizer: Tokenizer, batch_size: int) -> None:
    """A model of all codes but the one that occurs most often."""
    images = image_set(5)
    counts = Counter(tokenizer.encode(images.images(slice(None))).flatten().tolist())
    (dropped, times), *_ = counts.most_common()
    used = torch.tensor([code for code in range(5) if code != dropped])
    codec = CodeCodec(tokenizer.autoencoder, SIDE, used=used)
    assert isinstance(codec.used, UsedCodes)
    report = evaluate(tokenizer, images, used=codec.used, batch_size=batch_size)
    assert report.replaced_share == pytest.approx(times / 80, abs=1e-12) and times > 0
    assert report.uniform_nats_per_code == pytest.approx(math.log(4), abs=1e-12)
    scored = Counter(codec.codes(images.images(slice(None))).flatten().tolist())
    entropy = -sum(count / 80 * math.log(count / 80) for count in scored.values())
    assert report.unigram_nats_per_code == pytest.approx(entropy, abs=1e-9)
    words, of_codes = printed(report), f"codes after replacement of {times / 80:.2%} of them"
    assert f"{times / 80:.2%}: those that do not occur in training" in words
    assert f"(exact likelihood of {of_codes}; none of pixels)" in words and words.count(of_codes) == 3
    assert report.to_dict()["likelihood_of"] == f"{of_codes}, exact; not of pixels"


def test_the_first_images_only_are_scored_where_there_is_a_limit(tokenizer: Tokenizer) -> None:
    told: list[tuple[int, int]] = []
    report = evaluate(
        tokenizer, image_set(5), limit=3, batch_size=2, on_progress=lambda done, every: told.append((done, every))
    )
    assert report.nats_per_code == pytest.approx(0.5, abs=1e-12)
    assert (report.num_images, report.split_images) == (3, 5) and told == [(2, 3), (3, 3)]
    assert "3, the first of 5" in printed(report)
    assert evaluate(tokenizer, image_set(5), limit=9).num_images == 5


def test_one_image_has_no_interval_and_no_other_to_be_compared_with(tokenizer: Tokenizer) -> None:
    report = evaluate(tokenizer, image_set(1, labels=True), use_labels=True)
    assert report.interval is None and report.shuffled_nats_per_code is None
    assert "none: one image only" in printed(report)


def test_a_report_says_what_it_is_a_likelihood_of(tokenizer: Tokenizer) -> None:
    report = evaluate(tokenizer, image_set(5, labels=True), use_labels=True)
    words = printed(report)
    assert "0.7500  (exact likelihood of codes; none of pixels)" in words
    assert "as its reconstruction" in words and "every tenth image" in words
    assert "condition of another" in words and "3.2500 nats/code" in words
    assert "fingerprint 0123456789ab; tokenizer " + tokenizer.fingerprint in words
    content = json.loads(json.dumps(report.to_dict()))
    assert content["likelihood_of"] == "codes, exact; not of pixels" and content["interval_level"] == 0.95
    assert content["nats_per_code"] == pytest.approx(0.75, abs=1e-6) and tuple(content["interval"]) == report.interval
    assert content["tokenizer"] == tokenizer.fingerprint and content["dataset"] == "toys"


@pytest.mark.parametrize("option", ["limit", "batch_size", "levels"])
def test_counts_below_one_are_refused(tokenizer: Tokenizer, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} = 0 must be at least 1"):
        evaluate(tokenizer, image_set(2), **{option: 0})


@pytest.mark.parametrize(("bound", "levels"), [("exact", 20), ("upper", None)])
def test_levels_of_noise_belong_to_a_bound(tokenizer: Tokenizer, bound: str, levels: int | None) -> None:
    with pytest.raises(ConfigError, match=f"bound = '{bound}' with levels = {levels}"):
        evaluate(tokenizer, image_set(2), bound=bound, levels=levels)


def test_an_empty_set_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="toys, test: there are no images to score"):
        evaluate(tokenizer, image_set(0))


def test_nats_that_are_not_finite_name_their_image(tokenizer: Tokenizer) -> None:
    class Broken(Known):
        def code_nats(self, images: Tensor, cond: Cond | None = None, *, levels: int | None = None) -> Tensor:
            nats = super().code_nats(images, cond)
            nats[images[:, 0, 0, 0] == 3, 2, 1] = float("nan")
            return nats

    with pytest.raises(CheckpointError, match="toy gives image 3 of toys, test, nan nats per code"):
        evaluate(tokenizer, image_set(5), Broken(), batch_size=2)
