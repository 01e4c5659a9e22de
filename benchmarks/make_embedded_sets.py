"""Makes the embedded sets of `src/rasterformer/data/embedded/` from larger ones. Its README says what they are.

    python benchmarks/make_embedded_sets.py SOURCE [--out FOLDER]

SOURCE holds `toonheads64/{train,test}.{webp,jsonl}`, `emoji64/google.webp` and `emoji64/emoji.jsonl`: contact sheets
of 64x64 tiles, 40 a row, and one JSON object a tile. Under a minute on one core. The result is the same every time.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

COLUMNS = 40
SOURCE_SIZE, SIZE = 64, 32
TOON_ATTRIBUTES = (
    "hair", "rear_hair", "beard", "eyes", "eyebrows", "mouth", "clothes", "skin",
    "hair_color", "clothes_color", "background",
)  # fmt: skip
TOON_CLASS = "hair_color"
EMOJI_TEST_SHARE = 0.1
Images = npt.NDArray[np.uint8]


def tiles(sheet: Path, count: int) -> Images:
    """Returns the first `count` tiles on a white ground: uint8 [N, 64, 64, 3]."""
    layered = Image.open(sheet).convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    white.alpha_composite(layered)
    pixels = np.asarray(white.convert("RGB"))
    rows = pixels.shape[0] // SOURCE_SIZE
    cut = pixels.reshape(rows, SOURCE_SIZE, COLUMNS, SOURCE_SIZE, 3).swapaxes(1, 2)
    return cut.reshape(-1, SOURCE_SIZE, SOURCE_SIZE, 3)[:count]


def halved(images: Images) -> Images:
    """Box averaging, rounded: uint8 [N, 64, 64, 3] -> [N, 32, 32, 3]."""
    blocks = images.reshape(len(images), SIZE, 2, SIZE, 2, 3).astype(np.uint16).sum((2, 4))
    means: Images = ((blocks + 2) // 4).astype(np.uint8)
    return means


def write_part(folder: Path, split: str, images: Images, annotations: dict[str, npt.NDArray[Any]]) -> None:
    """Writes `SPLIT.webp` (lossless, then read back and compared) and `SPLIT.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = -(-len(images) // COLUMNS)
    padded = np.zeros((rows * COLUMNS, SIZE, SIZE, 3), np.uint8)
    padded[: len(images)] = images
    sheet = padded.reshape(rows, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 3)
    target = folder / f"{split}.webp"
    Image.fromarray(sheet).save(target, "WEBP", lossless=True, quality=100, method=6)
    if not np.array_equal(np.asarray(Image.open(target).convert("RGB")), sheet):
        raise SystemExit(f"{target} does not give back the pixels that were written.")
    np.savez_compressed(folder / f"{split}.npz", **annotations)  # type: ignore[arg-type]
    print(f"{target}: {len(images)} images, {target.stat().st_size + target.with_suffix('.npz').stat().st_size} bytes")


def make_toonheads(source: Path, out: Path) -> None:
    """Keeps the set's own split, all captions, and all attributes as numbers into their sorted values."""
    rows = {
        split: [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }
    values = {name: sorted({row[name] or "none" for part in rows.values() for row in part}) for name in TOON_ATTRIBUTES}
    for split, part in rows.items():
        numbers = np.array(
            [[values[name].index(row[name] or "none") for name in TOON_ATTRIBUTES] for row in part], np.uint8
        )
        annotations: dict[str, npt.NDArray[Any]] = {
            "labels": numbers[:, TOON_ATTRIBUTES.index(TOON_CLASS)],
            "classes": np.array(values[TOON_CLASS]),
            "captions": np.array([row["caption"] for row in part]),
            "attributes": numbers,
            "attribute_names": np.array(TOON_ATTRIBUTES),
        }
        for name in TOON_ATTRIBUTES:
            annotations[f"values_{name}"] = np.array(values[name])
        write_part(out, split, halved(tiles(source / f"{split}.webp", len(part))), annotations)


def make_emoji(source: Path, out: Path) -> None:
    """Splits by base emoji, so that an emoji and its skin tones stay together. Test pictures equal to a training one go."""
    rows = [json.loads(line) for line in (source / "emoji.jsonl").read_text().splitlines()]
    images = halved(tiles(source / "google.webp", len(rows)))
    classes = sorted({row["category"] for row in rows})
    in_test = np.array([_place(row["base"]) < EMOJI_TEST_SHARE for row in rows])
    known = {image.tobytes() for image in images[~in_test]}
    is_copy = np.array([image.tobytes() in known for image in images])
    for split, chosen in (("train", ~in_test), ("test", in_test & ~is_copy)):
        part = [row for row, take in zip(rows, chosen, strict=True) if take]
        write_part(
            out,
            split,
            images[chosen],
            {
                "labels": np.array([classes.index(row["category"]) for row in part], np.uint8),
                "classes": np.array(classes),
                "captions": np.array([row["caption"] for row in part]),
                "unified": np.array([row["unified"] for row in part]),
            },
        )


def _place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "src/rasterformer/data/embedded")
    arguments = parser.parse_args()
    make_toonheads(arguments.source / "toonheads64", arguments.out / "toonheads")
    make_emoji(arguments.source / "emoji64", arguments.out / "emoji")
