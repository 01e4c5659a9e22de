"""Bits per dimension from known distributions, the interval's coverage, and what a report says."""

import io
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from rasterformer.evaluation.likelihood import (
    BoundScorer,
    bits_per_dim,
    evaluate_likelihood,
    likelihood_report,
    mean_interval,
    num_dims,
    ratio_interval,
)
from rasterformer.interfaces import Batch, Cond


def image_set(images: Tensor, labels: Tensor | None = None, *, lossless: bool | None = True) -> ImageSet:
    return ImageSet(
        name="toys",
        split="test",
        split_origin="every tenth image",
        preprocessing="reduced to 4 pixels by box averaging",
        image_size=images.shape[2],
        class_names=() if labels is None else ("cat", "dog"),
        labels=labels,
        captions=None,
        fingerprint="0123456789abcdef" * 4,
        lossless=lossless,
        skipped=(),
        num_images=len(images),
        pixels=images,
        names=tuple(f"{k}.png" for k in range(len(images))),
    )


def random_images(num_images: int, *, values: int = 256, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, values, (num_images, 3, 4, 4), dtype=torch.uint8, generator=rng)


class Histogram:
    """Every sub-pixel has the same distribution: `probs` [256]."""

    def __init__(self, probs: Tensor) -> None:
        self.probs = probs
        self.batch_sizes: list[int] = []

    def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
        self.batch_sizes.append(len(images))
        return -self.probs.log()[images.long()]


class KnowsLabels:
    """Nats that depend on the class: label + 1 for each sub-pixel of R, twice and three times that for G and B."""

    def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.label is not None, "no labels came"
        channels = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
        return (cond.label[:, None, None, None] + 1) * channels * torch.ones(images.shape)


class TwoStages(BoundScorer):
    """Stage 0 costs one bit for each image of 2x2 pixels and dimension, stage 1 three for each of 4x4; words cost a bit each."""

    levels, stage_sizes = 7, (2, 4)

    def __init__(self, *, takes_captions: bool = False) -> None:
        self.takes_captions, self.seen = takes_captions, []

    def stage_nats(self, images: Tensor, cond: Cond, captions) -> Tensor:
        self.seen.append(captions)
        words = torch.tensor([len(text.split()) for text in captions or [""] * len(images)])
        return torch.stack([12.0 + words, 3 * 48.0 + 0 * words], 1).double() * math.log(2)


UNIFORM = Histogram(torch.full((256,), 1 / 256, dtype=torch.float64))


def printed(report) -> str:
    stream = io.StringIO()
    Console(width=300, file=stream).print(report.table())
    return stream.getvalue()


def evaluate(system, images: ImageSet, **options):
    return evaluate_likelihood(system, images, model="toy", dtype="float32", **options)


def test_uniform_model_has_exactly_eight_bits_per_dim():
    report = evaluate(UNIFORM, image_set(random_images(5)))
    assert report.bits_per_dim == pytest.approx(8, abs=1e-12)
    assert report.interval == pytest.approx((8, 8), abs=1e-12)
    assert report.per_channel == pytest.approx((8, 8, 8), abs=1e-12)
    assert report.nats_per_image == pytest.approx(48 * math.log(256), abs=1e-9)
    assert report.num_dims == 48


def test_empirical_histogram_gives_the_entropy():
    images = random_images(40, values=7)
    counts = Counter(images.flatten().tolist())
    shares = [counts[value] / images.numel() for value in range(256)]
    entropy = -sum(share * math.log2(share) for share in shares if share > 0)
    report = evaluate(Histogram(torch.tensor(shares, dtype=torch.float64)), image_set(images), batch_size=7)
    assert report.bits_per_dim == pytest.approx(entropy, abs=1e-9)


def test_bits_per_dim_divides_nats_by_dimensions_and_log_two():
    nats = torch.tensor([math.log(2), 10.0], dtype=torch.float64)
    assert bits_per_dim(nats, 5).tolist() == pytest.approx([0.2, 10 / 5 / math.log(2)], abs=1e-15)
    assert bits_per_dim(nats.float(), 5).dtype == torch.float64


def test_channels_are_reported_apart_and_labels_reach_the_model():
    images = image_set(random_images(2), torch.tensor([0, 1]))
    report = evaluate(KnowsLabels(), images, use_labels=True, batch_size=1)
    assert report.per_channel == pytest.approx([1.5 * channel / math.log(2) for channel in (1, 2, 3)], abs=1e-12)
    assert report.bits_per_dim == pytest.approx(sum(report.per_channel) / 3, abs=1e-12)


def test_float32_nats_are_summed_in_float64():
    """A float32 sum of 2^24 + 1 ones would stop at 2^24; here each image's total is exact."""
    images = torch.zeros((1, 3, 4096, 1366), dtype=torch.uint8)[:, :, :1024, :1024]
    odd = torch.ones(images.shape)
    odd[0, 0, 0, 0] = 2**24

    class Odd:
        def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
            return odd

    report = evaluate(Odd(), image_set(images), with_baselines=False)
    assert report.nats_per_image == 2**24 + images.numel() - 1


def test_interval_covers_the_true_mean_in_95_percent_of_experiments():
    rng = torch.Generator().manual_seed(0)
    experiments = 3.0 + 0.5 * torch.randn((4000, 60), dtype=torch.float64, generator=rng)
    intervals = [mean_interval(values) for values in experiments]
    covered = sum(low <= 3.0 <= high for low, high in intervals) / len(intervals)
    # Student's t with 59 degrees of freedom puts 94.5 % within 1.96 standard errors; 4 standard errors of the count.
    assert abs(covered - 0.9453) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_interval_is_the_formula():
    assert mean_interval(torch.tensor([1.0, 2.0, 3.0, 6.0])) == pytest.approx(
        (3 - 1.959963985 * math.sqrt(14 / 3 / 4), 3 + 1.959963985 * math.sqrt(14 / 3 / 4)), abs=1e-6
    )


def test_one_image_has_no_interval():
    report = evaluate(UNIFORM, image_set(random_images(1)))
    assert report.interval is None
    assert "one image only" in printed(report)


def test_only_the_first_images_are_scored_and_progress_is_told():
    images, system, progress = random_images(10), Histogram(UNIFORM.probs), []
    report = evaluate(system, image_set(images), limit=5, batch_size=2, on_progress=lambda *p: progress.append(p))
    assert system.batch_sizes == [2, 2, 1]
    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert (report.num_images, report.split_images) == (5, 10)
    assert "5, the first of 10" in printed(report)


def test_images_seen_in_training_are_counted_among_the_scored_ones():
    images = random_images(6)
    training = image_set(torch.cat([random_images(3, seed=1), images[1:2], images[5:]]))
    assert evaluate(UNIFORM, image_set(images), training_set=training).overlap_with_training == 2
    report = evaluate(UNIFORM, image_set(images), training_set=training, limit=4)
    assert report.overlap_with_training == 1
    assert "1 of the scored images are training images too." in printed(report)
    assert evaluate(UNIFORM, image_set(images)).overlap_with_training is None


@pytest.mark.parametrize(
    ("bound", "system", "figure", "words"),
    [
        ("exact", UNIFORM, "8.0000", "exact likelihood"),
        ("upper", TwoStages(), "3.2500", "upper bound, estimated, on the"),
    ],
)
def test_table_and_json_say_what_the_figure_is(bound, system, figure, words):
    report = evaluate(system, image_set(random_images(3)))
    text = printed(report)
    for part in (words, figure, "48 an image", "every tenth image", "reduced to 4", "normal approximation", "PNG"):
        assert part in text
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (written["bound"], written["num_dims"], written["num_images"]) == (bound, 48, 3)
    assert (written["split"], written["preprocessing"]) == ("test", "reduced to 4 pixels by box averaging")
    assert written["interval_level"] == 0.95
    assert set(written["baselines"]) >= {"PNG", "WebP lossless", "PNG, one sheet"}
    assert written["warnings"] == []


@pytest.mark.parametrize("lossless", [False, None])
def test_lossy_images_are_warned_of_in_table_and_json(lossless):
    report = evaluate(UNIFORM, image_set(random_images(3), lossless=lossless))
    assert "not comparable with published" in printed(report)
    assert ["not comparable with published" in warning for warning in report.to_dict()["warnings"]] == [True]


def test_reduced_precision_is_warned_of():
    report = evaluate(UNIFORM, image_set(random_images(3)))
    assert report.warnings == ()
    assert replace(report, dtype="bfloat16").warnings == ("Scored in bfloat16: a figure to publish needs float32.",)


def test_speed_is_images_over_seconds():
    report = likelihood_report(
        torch.ones(10), image_set(random_images(10)), num_dims=48, model="toy", dtype="float32", seconds=4.0
    )
    assert report.images_per_second == 2.5


@pytest.mark.parametrize("nats", [torch.ones(2, 3), torch.ones(2, dtype=torch.int64)])
def test_nats_of_another_shape_or_dtype_are_refused(nats):
    with pytest.raises(ShapeError, match=rf"{nats.dtype} and shape \[2"):
        bits_per_dim(nats, 48)


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="num_dims = 0"):
        bits_per_dim(torch.ones(1), 0)
    with pytest.raises(ConfigError, match="limit = 0"):
        evaluate(UNIFORM, image_set(random_images(1)), limit=0)
    with pytest.raises(ConfigError, match="batch_size = -1"):
        evaluate(UNIFORM, image_set(random_images(1)), batch_size=-1)


def test_empty_set_is_refused():
    empty = image_set(random_images(1)[:0])
    with pytest.raises(DataError, match="toys, test: there are no images"):
        evaluate(UNIFORM, empty)
    with pytest.raises(DataError, match="toys, test: there are no images"):
        likelihood_report(torch.ones(0), empty, num_dims=48, model="toy", dtype="float32", seconds=1.0)


def test_nats_that_are_not_finite_are_refused_by_image():
    broken = Histogram(UNIFORM.probs.clone())
    images = random_images(3, values=100)
    images[1, 0, 0, 0] = 200
    broken.probs[200] = 0.0
    with pytest.raises(CheckpointError, match="toy gives image 1 of toys, test, inf nats"):
        evaluate(broken, image_set(images))


def test_system_with_another_output_shape_is_refused():
    class Flat:
        def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
            return torch.zeros(len(images), 48)

    with pytest.raises(ShapeError, match=r"symbol_nats gave shape \[3, 48\]"):
        evaluate(Flat(), image_set(random_images(3)))


@pytest.mark.parametrize("channel_nats", [torch.ones(3), torch.ones(2, 3), torch.ones(3, 5)])
def test_channel_nats_of_another_shape_are_refused(channel_nats):
    with pytest.raises(ShapeError, match=rf"channel_nats have shape \[{channel_nats.shape[0]}"):
        likelihood_report(
            torch.ones(3),
            image_set(random_images(3)),
            num_dims=48,
            model="toy",
            dtype="float32",
            seconds=1.0,
            channel_nats=channel_nats,
        )


def test_ratio_interval_is_the_mean_interval_where_all_images_have_as_many_dimensions():
    bits = 100 + 10 * torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ratio_interval(bits, torch.full((30,), 48)) == pytest.approx(mean_interval(bits / 48), abs=1e-12)


def test_ratio_interval_is_the_formula():
    """Totals 2 and 8 over 1 and 3 dimensions: ratio 10 / 4, residuals -1/2 and 1/2, standard error (1/2) / 2 / 1."""
    low, high = ratio_interval(torch.tensor([2.0, 8.0], dtype=torch.float64), torch.tensor([1, 3]))
    assert (low, high) == pytest.approx((2.5 - 1.959963985 / 4, 2.5 + 1.959963985 / 4), abs=1e-9)
    assert ratio_interval(torch.tensor([5.0], dtype=torch.float64), torch.tensor([3])) is None


def test_ratio_interval_covers_the_true_ratio_where_dimensions_differ():
    """Images with more unknown dimensions have more bits on each; a mean over images would be of something else."""
    rng = torch.Generator().manual_seed(0)
    dims = torch.randint(10, 61, (2000, 60), generator=rng)  # mean 35, variance (51^2 - 1) / 12
    each = 2 + 0.02 * dims + 0.5 * torch.randn(dims.shape, dtype=torch.float64, generator=rng)
    true = 2 + 0.02 * (35**2 + (51**2 - 1) / 12) / 35  # E[dims * each] / E[dims]

    def covered(intervals) -> float:
        return sum(low <= true <= high for low, high in intervals) / 2000

    ratio = covered(ratio_interval(row * count, count) for row, count in zip(each, dims, strict=True))
    # Student's t puts 94.5 % within 1.96 standard errors; the ratio's are a little too short for 60 images (of order 1/60)
    assert abs(ratio - 0.9453) < 4 * math.sqrt(0.95 * 0.05 / 2000) + 1 / 60
    assert covered(mean_interval(row) for row in each) < 0.8


def some_known(num_images: int) -> Tensor:
    """bool [N, 4, 4]; another number of known pixels in each image."""
    places = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    return torch.stack([(places < 3 * k + 1).view(4, 4) for k in range(num_images)])


class KnowsSome:
    """Known pixels cost nothing; the others as many nats as their value + 1."""

    def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.known is not None, "no mask came"
        return (images.float() + 1) * ~cond.known[:, None]


def with_mask(batch: Batch, first: int) -> Batch:
    known = some_known(5)[first : first + len(batch.images)]
    return Batch(batch.images, Cond(source=batch.images * known[:, None], known=known))


def test_known_pixels_are_no_dimensions():
    images = random_images(5)
    batch = with_mask(Batch(images), 0)
    counts = [3 * sum(not flag for row in mask for flag in row) for mask in batch.cond.known.tolist()]
    assert num_dims(batch).tolist() == counts == [45, 36, 27, 18, 9]
    assert num_dims(batch).dtype == torch.int64
    assert num_dims(Batch(images)).tolist() == [48] * 5
    assert num_dims(Batch(images, Cond(source=images))).tolist() == [48] * 5


def test_bits_per_dim_given_the_source_are_over_unknown_dimensions_only():
    images, known = random_images(5, values=9), some_known(5)
    nats, dims = [0.0] * 3, 0
    for image, mask in zip(images.tolist(), known.tolist(), strict=True):
        for row in range(4):
            for col in range(4):
                if not mask[row][col]:
                    dims += 3
                    for channel in range(3):
                        nats[channel] += image[channel][row][col] + 1
    report = evaluate(KnowsSome(), image_set(images), task="inpaint", with_source=with_mask, batch_size=2)
    assert report.bits_per_dim == pytest.approx(sum(nats) / dims / math.log(2), rel=1e-12)
    assert report.per_channel == pytest.approx([part / (dims / 3) / math.log(2) for part in nats], rel=1e-12)
    assert report.nats_per_image == pytest.approx(sum(nats) / 5, rel=1e-12)
    assert (report.num_dims, report.unknown_share) == (48, pytest.approx(dims / 5 / 48))
    assert report.interval is not None and report.interval[0] < report.bits_per_dim < report.interval[1]
    said = printed(report)
    assert "exact likelihood given the source, inpaint" in said
    assert "48 an image, of which 56.2 % are unknown and counted" in said
    assert (report.to_dict()["task"], report.to_dict()["unknown_share"]) == ("inpaint", 0.5625)


def test_without_a_source_nothing_is_said_of_one():
    report = evaluate(UNIFORM, image_set(random_images(3)))
    assert report.task is None and report.unknown_share == 1
    assert "given" not in printed(report) and "unknown" not in printed(report)


def test_an_image_of_which_all_is_known_has_no_bits_per_dim():
    images = random_images(2)
    everything = Batch(images, Cond(source=images, known=torch.ones(2, 4, 4, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="num_dims = 0 must be at least 1"):
        evaluate(KnowsSome(), image_set(images), with_source=lambda batch, first: everything)
    with pytest.raises(ConfigError, match="num_dims = 0 must be at least 1"):
        bits_per_dim(torch.ones(2), torch.tensor([3, 0]))


def test_a_bound_is_the_sum_over_stages_and_says_from_what_it_is_estimated():
    report = evaluate(TwoStages(), image_set(random_images(5)), batch_size=2)
    assert report.bits_per_dim == pytest.approx((12 + 3 * 48) / 48)
    assert [(one.image_size, one.bits_per_dim, one.own_bits_per_dim) for one in report.stages] == [
        (2, pytest.approx(0.25), pytest.approx(1)),  # 12 bits: of the 48 dimensions of a 4x4 image, and of its own 12
        (4, pytest.approx(3), pytest.approx(3)),
    ]
    assert (report.bound, report.levels, report.per_channel, report.given) == ("upper", 7, None, ())
    said = printed(report)
    assert "7 levels of noise, drawn for each image and stage, without guidance" in said
    assert "2x2 0.2500  4x4 3.0000  (bits/dim of the 4x4 image; each stage is given the true image before it)" in said
    assert "2x2 1.0000  4x4 3.0000  (bits/dim of its own image)" in said
    assert "over images and the noise drawn for them" in said and "per channel" not in said
    written = json.loads(json.dumps(report.to_dict()))
    assert [one["image_size"] for one in written["stages"]] == [2, 4]
    assert written["interval_method"] == "normal approximation on the mean over images and the noise drawn for them"
    assert written["likelihood_of"] == "pixels, upper bound, estimated, on the negative log-likelihood"


@pytest.mark.parametrize(("bits", "warned"), [(7.99, False), (8.01, True)])
def test_a_model_worse_than_stored_pixels_is_said_to_be(bits: float, warned: bool):
    nats = torch.full((2,), bits * 48 * math.log(2), dtype=torch.float64)
    report = likelihood_report(nats, image_set(random_images(2)), num_dims=48, model="m", dtype="float32", seconds=1.0)
    said = "Worse than storing the pixels as they are (8 bits/dim): hardly trained."
    assert (said in report.warnings) is warned


def test_captions_of_the_images_reach_a_model_that_takes_them_and_no_other():
    texts = ("a", "", "a b c", "a b")
    images = replace(image_set(random_images(4), torch.tensor([0, 1, 0, 1])), captions=texts)
    system = TwoStages(takes_captions=True)
    report = evaluate(system, images, batch_size=3)
    assert system.seen == [["a", "", "a b c"], ["a b"]]
    assert report.bits_per_dim == pytest.approx((4 * 156 + 6) / (4 * 48)) and report.given == ("caption",)
    assert "on the negative log-likelihood given its caption)" in printed(report)
    both = evaluate(system, images, use_labels=True, task="denoise")
    assert both.given == ("class", "caption")
    assert "given its class, its caption and the source, denoise)" in printed(both)
    deaf = TwoStages()
    assert evaluate(deaf, images).given == () and deaf.seen == [None]
    with pytest.raises(DataError, match="has no captions"):
        evaluate(system, image_set(random_images(4)))


def test_json_of_a_bound_and_of_an_exact_likelihood_have_the_same_fields():
    images = image_set(random_images(4))
    exact, bound = evaluate(UNIFORM, images).to_dict(), evaluate(TwoStages(), images).to_dict()
    assert exact.keys() == bound.keys()
    same = (
        "data_fingerprint",
        "num_images",
        "num_dims",
        "baselines",
        "preprocessing",
        "split_origin",
        "task",
        "unknown_share",
    )
    assert {name: exact[name] for name in same} == {name: bound[name] for name in same}
    assert (exact["levels"], exact["stages"], bound["per_channel"]) == (None, None, None)


def test_nats_that_are_not_one_for_each_image_and_stage_are_refused():
    class Whole(TwoStages):
        def stage_nats(self, images: Tensor, cond: Cond, captions) -> Tensor:
            return torch.ones(len(images))

    with pytest.raises(ShapeError, match=r"stage_nats gave shape \[3\]; \[3, 2\], one value for each image and stage"):
        evaluate(Whole(), image_set(random_images(3)))
