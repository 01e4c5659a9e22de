import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.render import main, verdicts


def record(name: str, bits: float, *, spread: float = 0.01) -> dict[str, Any]:
    """A contestant whose images differ from one another by far more than contestants do."""
    of_images = [bits + (0.5 if k % 2 else -0.5) + (spread if k % 4 < 2 else -spread) for k in range(100)]
    return {
        "contestant": name,
        "bits_per_dim": bits,
        "interval": [bits - 0.1, bits + 0.1],
        "parameters": 1_500_000,
        "minutes": 20.0,
        "images_per_second": 60.0,
        "images_seen": 72_000,
        "steps": 9_000,
        "curve_images": 256,
        "curve": [{"seconds": 60.0 * k, "images_seen": k, "held_out_bits_per_dim": bits + 1 / k} for k in (1, 2, 20)],
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2", "python": "3", "commit": "abc",
        "recipe_name": None if name.startswith("pixelcnn") else name,
        "recipe": {"training": {"batch_size": 8, "optimizer": "muon"}},
        "bits_per_dim_of_images": of_images,
        "data": {"name": "cifar10", "train_images": 7363, "test_images": 100, "test_images_also_in_train": 0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("house", "spread", "sentence"),
    [(3.2, 0.01, "beats"), (3.4, 0.01, "**loses**"), (3.3001, 0.3, "equal within")],
)
def test_the_verdict_follows_from_differences_on_the_same_images(house: float, spread: float, sentence: str) -> None:
    said = " ".join(verdicts({"house": record("house", house, spread=0.0), "pixelcnn": record("pixelcnn", 3.3, spread=spread)}))
    assert sentence in said
    assert sum(word in said for word in ("beats", "**loses**", "equal within")) == 1


def test_page_ranks_by_bits_per_dim_and_refers_to_files_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "cifar10_20_minutes"
    folder.mkdir(parents=True)
    for name, bits in {"house": 4.3, "pixelcnn": 3.3}.items():
        (folder / f"{name}.json").write_text(json.dumps(record(name, bits)))
    (folder / "image-files.json").write_text(json.dumps({"bits_per_dim": {"PNG": 5.87, "WebP lossless": 4.25}}))
    main(["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page.index("| small PixelCNN++, AdamW | **3.3000**") < page.index("| house recipe `house` | **4.3000**")
    assert "House recipe `house` is below PNG but above WebP lossless and JPEG XL." in page
    drawing = (tmp_path / "docs" / "pictures" / "cifar10-20-minutes.svg").read_text()
    assert "(pictures/cifar10-20-minutes.svg)" in page and 'xmlns="http://www.w3.org/2000/svg"' in drawing
