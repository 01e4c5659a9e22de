"""What the page says of tiles, restoration and the worth of a source follows from the numbers; seams are counted rightly."""

from typing import Any

import pytest
import torch

from benchmarks.render import restoration, source_gain, tiles
from benchmarks.source_gain import recipe_of
from benchmarks.tiles import borders, seam_ratio

CIRCUMSTANCES = {
    "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
    "torch": "2",
    "python": "3",
    "commit": "abc",
}


def test_a_step_at_a_border_of_tiles_is_a_seam_and_one_at_another_border_is_not() -> None:
    """A picture of 32x32 with a step of 10 at every border of source pixels, and of 30 where tiles meet."""
    place = torch.arange(32)
    steps = torch.where(place == 16, 30, torch.where((place % 4 == 0) & (place > 0), 10, 0)).cumsum(0)
    image = (steps[:, None] + steps[None, :])[None, None].expand(1, 3, -1, -1).to(torch.uint8)
    assert float(seam_ratio(image, [16])[0]) == pytest.approx(3.0)
    assert float(seam_ratio(image, [8])[0]) == pytest.approx(10 / (5 * 10 + 30) * 6)


def test_borders_lie_where_a_kept_part_ends() -> None:
    """16 source pixels: tiles of 8 begin at 0, 4 and 8, and keep all but 2; or they begin at 0 and 8."""
    assert borders(16, 4) == [24, 40]
    assert borders(16, 0) == [32]


def test_the_page_of_tiles() -> None:
    found = {
        "4": {
            "drawn": {"ratio": 1.25, "interval": [1.1, 1.4]},
            "originals": {"ratio": 1.5, "interval": [1.3, 1.7]},
        }
    }
    record = {"data": {"name": "scenes", "image_size": 64, "test_images": 30}, "run": {"minutes": 7.0}, "rows": found}
    said = "\n".join(tiles(record | CIRCUMSTANCES))
    assert "16x16 -> 64x64" in said and "30 whole test images" in said
    assert "| 4 | 1.250 (1.100 .. 1.400) | 1.500 (1.300 .. 1.700) |" in said


@pytest.mark.parametrize(
    ("interval", "verdict"), [([0.1, 0.3], "is better"), ([-0.1, 0.3], "NOT shown"), ([-0.3, -0.1], "NOT shown")]
)
def test_the_worth_of_a_source(interval: list[float], verdict: str) -> None:
    run = {"minutes": 5.0, "parameters": 1000, "steps": 200}
    record = {
        "data": {"name": "cifar10", "test_images": 1017},
        "runs": {"source": run, "alone": run},
        "likelihoods": {
            "source": {"bits_per_dim": 3.25, "interval": [3.2, 3.3]},
            "alone": {"bits_per_dim": 3.5, "interval": [3.4, 3.6]},
        },
        "gain": {"mean": sum(interval) / 2, "interval": interval},
    }
    said = "\n".join(source_gain(record | CIRCUMSTANCES))
    assert "| given the 8x8 source | 3.2500 | 3.2000 .. 3.3000 | 1,000 | 200 |" in said
    assert f"saves {sum(interval) / 2:.4f} bits/dim" in said and verdict in said


def test_both_runs_of_the_worth_of_a_source_differ_in_the_source_alone() -> None:
    with_source, alone = recipe_of("source", "x"), recipe_of("alone", "x")
    assert with_source.task is not None and alone.task is None
    assert with_source.training == alone.training and with_source.data == alone.data
    assert with_source.model.depth + (with_source.model.encoder_depth or 0) == alone.model.depth


def test_the_page_of_restoration() -> None:
    def task(name: str, changed: float | None) -> dict[str, Any]:
        model = {"psnr_db": 20.0, "ssim": 0.5, "fd_efflite0": 90.0, "diversity_grey_levels": 7.0}
        if changed is not None:
            model["known_pixels_changed"] = changed
        likelihood = {"dataset": "heads", "num_images": 400, "bits_per_dim": 1.5, "interval": [1.4, 1.6]}
        return {
            "run": {"minutes": 3.0},
            "likelihood": likelihood | {"unknown_share": 0.5},
            "report": {"rows": {"model": model, "source": {"psnr_db": 10.0, "ssim": 0.25, "fd_efflite0": 120.0}}},
            "images": 30,
            "samples": 3,
        }

    tasks = {"inpaint": task("inpaint", 0.0), "denoise": task("denoise", None)}
    said = "\n".join(restoration({"tasks": tasks} | CIRCUMSTANCES))
    row = "1.5000 (1.4000 .. 1.6000) | 50 % | 20.00 / 10.00 | 0.500 / 0.250 | 90.0 / 120.0 | 7.0 |"
    assert f"| inpaint | {row} 0 |" in said and f"| denoise | {row}  |" in said
    assert "Inpaint: source | four samples" in said
