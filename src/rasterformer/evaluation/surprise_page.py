"""The page of `rasterformer surprise`: the images that stand out, each beside its heat map, and the most usual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rasterformer.data.png import image_grid
from rasterformer.evaluation import report
from rasterformer.evaluation.heat_map import heat_map, legend
from rasterformer.evaluation.histogram import Histograms
from rasterformer.evaluation.surprise import By, Ranking, Scores

TILE = 112  # pixels of the page that an image takes, about
SMALLEST = 1e-4  # bits/dim; the histogram's axis is logarithmic
FIRST = {
    "both": "need more or fewer bits than usual",
    "high": "need more bits than usual",
    "low": "need fewer bits than usual",
}


def write_surprise_page(
    path: str | Path,
    *,
    images: Callable[[Tensor], Tensor],
    names: Sequence[str],
    scores: Scores,
    reference: Scores,
    ranking: Ranking,
    top_bits: float,
    by: By,
    num_shown: int,
    num_standing_out: int,
    about: Sequence[tuple[str, str | int]],
    remarks: Sequence[str],
) -> None:
    """Writes the page.

    Args:
        path: the file.
        images: int64 [n] -> uint8 [n, 3, H, W], images of the folder.
        names: of the folder's images, fit to print.
        scores: of the folder.
        reference: what they are compared with.
        ranking: of the folder.
        top_bits: bits per pixel of the brightest colour of the heat maps.
        by: the side that was asked for.
        num_shown: images in each part of the page.
        num_standing_out: images farther out than every one of the reference.
        about: what was compared with what, rows of a table.
        remarks: a paragraph each, such as doubtful labels and duplicates.

    Raises:
        DataError: the file cannot be written.
    """
    first, last = ranking.order[:num_shown], ranking.order[num_shown:].flip(0)[:num_shown]
    size = scores.pixel_bits.shape[-1]
    count, usual = len(names), reference.bits_per_dim
    sections: list[report.Section] = [
        report.Cards(
            [
                report.Card("images ranked", f"{count:,}", f"against {len(usual):,} of the reference"),
                report.Card("usual", f"{usual.quantile(0.5):.3f}", "bits/dim, median of the reference"),
                report.Card("this folder", f"{ranking.bits_per_dim.quantile(0.5):.3f}", "bits/dim, median"),
                report.Card("stand out", f"{num_standing_out:,}", "images farther out than every one of the reference"),
            ]
        ),
        report.Text(
            "The model was trained on proper images and says of each image, in bits, how improbable it is. Images whose bits "
            "are far from usual come first: damaged, foreign and mislabelled ones are among them, and so are proper but rare "
            "ones. Look before you delete. An image that is too simple, such as a black one, needs fewer bits than usual."
        ),
        report.Heading(f"The most surprising: they {FIRST[by]}"),
        report.Picture(
            legend(), f"colours: 0 bits per pixel at the left, {top_bits:.1f} and more at the right, for all images"
        ),
        report.Text(
            "Left the image, right its heat map: how many bits each pixel takes, given those generated before "
            "it. Bright pixels are those that the model did not expect."
        ),
        *_pictures(first, images, names, scores, ranking, top_bits, size),
    ]
    if remarks:
        sections += [report.Heading("Also found"), *map(report.Text, remarks)]
    sections += [
        report.Heading("All images"),
        Histograms(
            usual.clamp(min=SMALLEST).tolist(),
            ranking.bits_per_dim.clamp(min=SMALLEST).tolist(),
            "bits/dim (logarithmic)",
            "Share of the images by their bits/dim. What lies to the left or right of the grey area is unusual.",
        ),
    ]
    if len(last):
        sections += [
            report.Heading("The least surprising"),
            *_pictures(last, images, names, scores, ranking, top_bits, size),
        ]
    sections += [
        report.Heading("How it is counted"),
        report.TableSection(["", ""], [(what, str(value)) for what, value in about]),
    ]
    report.write_page(
        path,
        "Surprising images",
        sections,
        summary=f"{count:,} images, ranked by how far their exact likelihood lies from what is usual.",
    )


def _pictures(
    numbers: Tensor,
    images: Callable[[Tensor], Tensor],
    names: Sequence[str],
    scores: Scores,
    ranking: Ranking,
    top_bits: float,
    size: int,
) -> Iterator[report.Picture]:
    heat = heat_map(scores.pixel_bits[numbers], top=top_bits)
    for image, colours, index in zip(images(numbers), heat, numbers.tolist(), strict=True):
        yield report.Picture(
            image_grid(torch.stack([image, colours]), columns=2),
            caption(names[index], index, ranking),
            scale=max(1, round(TILE / size)),
        )


def caption(name: str, index: int, ranking: Ranking) -> str:
    """Says what stands below an image."""
    side = f", {ranking.side(index)}" if ranking.score[index] > 1 else ""
    return (
        f"{name}: {ranking.bits_per_dim[index]:.3f} bits/dim{side}; percentile "
        f"{ranking.percentile[index]:.1f}, z {ranking.z[index]:+.1f}, window z {ranking.patch_z[index]:+.1f}"
    )
