import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.render import main, sampling, verdicts


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
    said = " ".join(
        verdicts({"house": record("house", house, spread=0.0), "pixelcnn": record("pixelcnn", 3.3, spread=spread)})
    )
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


def around(value: float) -> dict[str, Any]:
    return {"median": value, "lowest": 0.9 * value, "highest": 1.1 * value, "all": [0.9 * value, value, 1.1 * value]}


def sampling_record(*, speedup: float, flat: float, memory: float) -> dict[str, Any]:
    return {
        "form": {"depth": 4, "width": 256, "num_heads": 4, "mlp_width": 512, "block_length": 256, "memory_length": 256},
        "places": 5,
        "pairs": 5,
        "opponents": {"transformers": "5"},
        "image_gpt": [
            {
                "dtype": "float32",
                "batch_size": batch,
                "seconds_per_step": {"ours": around(1e-3), "opponent": around(speedup * 1e-3)},
                "ratio": around(speedup),
            }
            for batch in (1, 16)
        ],
        "whole_images": {
            "seconds": {name: around(2.0) for name in ("ours", "loop", "generate")},
            "ratio": {"loop": around(speedup), "generate": around(speedup)},
        },
        "naive": [{"batch_size": 1, "ratio": around(150.0)}],
        "grouped_heads": [{"dtype": "float32", "batch_size": 1, "ratio": around(1.5)}],
        "by_image_size": [
            {
                "batch_size": 1,
                "seconds_per_step": {"32": around(1e-3), "128": around(flat * 1e-3)},
                "ratio": around(flat),
            }
        ],
        "memory": [
            {"kind": "drawing", "image_size": 32, "dtype": "float32"}
            | {"bytes": 2**20 * memory, "keys_and_values": 2**20, "ratio": memory}
        ],
        "trained": [
            {
                "model": {"distribution": "categorical"},
                "positions": 3072,
                "data": "faces",
                "steps": 7,
                "scored_images": 100,
                "bits_per_dim": 0.5,
                "bits_per_dim_bfloat16": 0.51,
                "windows": [
                    {
                        "window": 16,
                        "images": 10,
                        "identical": 9,
                        "positions_per_pass": around(4.0),
                        "seconds_per_image": {"steps": around(3.0), "parallel": around(1.0)},
                        "ratio": around(3.0),
                    }
                ],
            }
        ],
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2",
        "python": "3",
        "commit": "abc",
    }


def test_what_was_wanted_of_sampling_is_called_met_or_missed_by_its_numbers(tmp_path: Path) -> None:
    said = "\n".join(sampling(sampling_record(speedup=10.0, flat=1.1, memory=1.3), tmp_path / "none.md"))
    assert "ImageGPT, float32, batch 1: 10.00 (9.00 to 11.00) times as fast (at least 5 wanted: met)" in said
    assert "ImageGPT, float32, batch 16: 10.00 (9.00 to 11.00) times as fast (at least 15 wanted: MISSED)" in said
    assert "batch 1: 150.00 (135.00 to 165.00) times as fast (at least 300 wanted: MISSED)" in said
    assert "1.10 (0.99 to 1.21) (at most 1.15 wanted: met)" in said and "drawing 1.30 (MISSED)" in said
    assert "| 16 | 9 of 10 | 4.00 (3.60 to 4.40) | 3.00, 1.00 |" in said and "(+0.0100)" in said
    other = "\n".join(sampling(sampling_record(speedup=15.0, flat=1.2, memory=1.1), tmp_path / "none.md"))
    assert other.count("MISSED") == 2 and "(at most 1.15 wanted: MISSED)" in other


def test_remarks_by_hand_stand_below_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "remarks.md").write_text("Remarks, written by hand: so and so.\n")
    said = list(sampling(sampling_record(speedup=10.0, flat=1.1, memory=1.3), tmp_path / "remarks.md"))
    assert said[-1] == "Remarks, written by hand: so and so."
