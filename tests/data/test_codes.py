"""The codes file comes back as it was written or not at all; its batches are a pure function of seed and step."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rasterformer.data.codes import CodeBatch, CodeSet, code_batches, load_codes, save_codes
from rasterformer.errors import ConfigError, DataError

# image k, variant v, row r, column c has the code 1000 k + 100 v + 10 r + c; the condition has its negative, shifted
GRID = 100 * torch.arange(4)[:, None, None] + 10 * torch.arange(6)[:, None] + torch.arange(8)
CODES = 1000 * torch.arange(5)[:, None, None, None] + GRID  # [5, 4, 6, 8]


def code_set(**changes: Any) -> CodeSet:
    made = CodeSet(
        codes=CODES,
        condition=9999 - CODES,
        labels=torch.tensor([0, 2, 1, 0, 2]),
        class_names=("a", "ä", "c"),
        names=tuple(f"{k}.png" for k in range(5)),
        captions=("one", "", "three", "", "ö"),
        vocab_size=5000,
        condition_vocab_size=10_000,
        tokenizer="ab12cd",
        condition_tokenizer="77ee",
        images="f" * 64,
        preprocessing="none (stored at 64x64)",
    )
    return replace(made, **changes)


PLAIN: dict[str, Any] = {"condition": None, "condition_vocab_size": None, "condition_tokenizer": None}
PLAIN |= {"labels": None, "class_names": (), "captions": None}


def batches(codes: CodeSet, count: int, **options: Any) -> list[CodeBatch]:
    values = {"batch_size": 3, "seed": 0, "start_step": 0, "flip_prob": 0.5, "use_labels": True} | options
    return list(islice(code_batches(codes, **values), count))


def joined(found: list[CodeBatch], part: int) -> Tensor:
    tensors = [batch[part] for batch in found]
    assert all(isinstance(tensor, Tensor) and tensor.dtype == torch.int64 for tensor in tensors)
    return torch.cat(tensors)


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["everything", "codes alone"])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = code_set(**changes)
    save_codes(tmp_path / "new" / "x.safetensors", saved)
    loaded = load_codes(tmp_path / "new" / "x.safetensors", tokenizer="ab12cd")
    for field in fields(CodeSet):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after
    assert len(loaded) == 5 and [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(5000, torch.int16), (32_768, torch.int16), (32_769, torch.int32), (70_000, torch.int32)]
)
def test_codes_are_stored_as_short_as_the_vocabulary_allows(
    tmp_path: Path, vocab_size: int, dtype: torch.dtype
) -> None:
    codes = CODES.clone()
    codes[0, 0, 0, 0] = vocab_size - 1
    save_codes(tmp_path / "x", code_set(codes=codes, vocab_size=vocab_size))
    stored = load_codes(tmp_path / "x").codes
    assert stored.dtype == dtype and torch.equal(stored.long(), codes)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    save_codes(tmp_path / "x", code_set())
    save_codes(tmp_path / "x", code_set(tokenizer="other"))
    assert load_codes(tmp_path / "x").tokenizer == "other"


def test_codes_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    save_codes(tmp_path / "x.codes", code_set())
    with pytest.raises(
        DataError, match=r"x.codes was made by tokenizer ab12cd, but this model has cd34: tokenize the images again\."
    ):
        load_codes(tmp_path / "x.codes", tokenizer="cd34")


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    save_codes(tmp_path / "x", code_set())
    content = (tmp_path / "x").read_bytes()
    for length in (0, 1, 7, 8, 50, 500, len(content) // 2, len(content) - 1):
        (tmp_path / "x").write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read as a codes file"):
            load_codes(tmp_path / "x")


def test_every_changed_code_is_noticed(tmp_path: Path) -> None:
    save_codes(tmp_path / "x", code_set())
    content = bytearray((tmp_path / "x").read_bytes())
    content[-9] ^= 1
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="x is damaged: it is not what was written"):
        load_codes(tmp_path / "x")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none cannot be read as a codes file"):
        load_codes(tmp_path / "none")
    save_file({"codes": CODES}, tmp_path / "weights")
    with pytest.raises(DataError, match="weights is no codes file of this version"):
        load_codes(tmp_path / "weights")


def test_a_file_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rasterformer.data.codes._ABOUT", ("names", "tokenizer"))  # as if it had fewer fields
    save_codes(tmp_path / "x", code_set())
    with pytest.raises(DataError, match=r"x is no codes file of this version \(.*missing .* required"):
        load_codes(tmp_path / "x")


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"vocab_size": 4357}, r"codes are 0\.\.4357, but must be 0\.\.4356"),
        ({"codes": CODES - 1}, r"codes are -1\.\.4356, but must be 0\.\.4999"),
        ({"condition": CODES, "condition_vocab_size": 4000}, r"condition are 0\.\.4357, but must be 0\.\.3999"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0])}, r"labels are 0\.\.3, but must be 0\.\.2"),
        ({"codes": CODES.float()}, r"codes are torch.float32 \[5, 4, 6, 8\], not whole numbers \[N, V, h, w\]"),
        ({"codes": CODES[0]}, r"codes are torch.int64 \[4, 6, 8\], not whole"),
        ({"codes": CODES[:0]}, r"codes are torch.int64 \[0, 4, 6, 8\], not whole"),
        ({"codes": CODES[:, :3]}, "codes have 3 variants. There must be 1 of each image, or an even number"),
        ({"condition": CODES[:4]}, r"condition \[4, 4, 6, 8\] is not of codes \[5, 4, 6, 8\]"),
        ({"condition": CODES[:, :2]}, r"condition \[5, 2, 6, 8\] is not of codes"),
        ({"condition_tokenizer": None}, "tokenizer of the condition must all be there, or none"),
        ({"condition": None}, "tokenizer of the condition must all be there, or none"),
        ({"names": ("a", "b")}, "2 names for 5 images"),
        ({"captions": ()}, "0 captions for 5 images"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels are torch.int64 \[4\], not int64 \[5\]"),
        ({"labels": torch.zeros(5)}, r"labels are torch.float32 \[5\], not int64 \[5\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], received: str
) -> None:
    with pytest.raises(DataError, match=r"x\.codes: .*" + received):
        save_codes(tmp_path / "x.codes", code_set(**changes))
    assert not (tmp_path / "x.codes").exists()
    monkeypatch.setattr("rasterformer.data.codes._check", lambda *_: None)
    monkeypatch.setattr("rasterformer.data.codes._narrow", lambda codes, _: codes.clone().contiguous())
    save_codes(tmp_path / "x.codes", code_set(**changes))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"x\.codes: .*" + received):
        load_codes(tmp_path / "x.codes")


def test_a_description_of_the_wrong_types_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was not written by us, but whose digest is right."""
    save_codes(tmp_path / "x", code_set())
    tensors = load_file(tmp_path / "x")
    monkeypatch.setattr("rasterformer.data.codes._digest", lambda *_: "right")
    for about in ("[]", "no JSON", json.dumps({"vocab_size": 1}), json.dumps({"names": 3, "vocab_size": "many"})):
        save_file(tensors, tmp_path / "y", {"format": "rasterformer codes 1", "about": about, "sha256": "right"})
        with pytest.raises(DataError, match="y is no codes file of this version"):
            load_codes(tmp_path / "y")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/x cannot be written: (Not a directory|File exists)"):
        save_codes(tmp_path / "file" / "x", code_set())


def test_every_image_comes_once_an_epoch() -> None:
    codes, labels = code_set(), joined(batches(code_set(), 10), 2)
    images = joined(batches(codes, 10), 0)[:, 0, 0] // 1000  # 30 samples: six epochs
    assert torch.equal(images.view(6, 5).sort(1).values, torch.arange(5).expand(6, 5))
    assert codes.labels is not None and torch.equal(labels, codes.labels[images])


def test_codes_and_condition_are_of_one_image_and_one_variant() -> None:
    found = batches(code_set(), 10)
    assert torch.equal(joined(found, 1), 9999 - joined(found, 0))
    assert torch.equal(joined(found, 3), torch.zeros(30, 2, dtype=torch.int64))
    for codes in joined(found, 0):
        image, variant = int(codes[0, 0]) // 1000, int(codes[0, 0]) // 100 % 10
        assert torch.equal(codes, CODES[image, variant])


@pytest.mark.parametrize(("flip_prob", "variants"), [(0.0, {0, 2}), (1.0, {1, 3}), (0.5, {0, 1, 2, 3})])
def test_mirrored_variants_are_the_odd_ones(flip_prob: float, variants: set[int]) -> None:
    codes = joined(batches(code_set(), 20, flip_prob=flip_prob), 0)
    assert set((codes[:, 0, 0] // 100 % 10).tolist()) == variants


def test_crops_are_equally_probable() -> None:
    codes = joined(batches(code_set(), 10, batch_size=1000, flip_prob=0.5), 0)
    counts = torch.bincount(codes[:, 0, 0] // 100 % 10)
    assert float(((counts - 2500.0) ** 2 / 2500).sum()) < 21.1  # 3 degrees of freedom, p = 1e-4


def test_an_image_without_variants_is_never_mirrored() -> None:
    alone = code_set(codes=CODES[:, :1], condition=None, condition_vocab_size=None, condition_tokenizer=None)
    found = batches(alone, 2, flip_prob=0.0, use_labels=False)
    assert all(condition is None and labels is None for _, condition, labels, _ in found)
    assert set((joined(found, 0)[:, 0, 0] // 100 % 10).tolist()) == {0}
    with pytest.raises(ConfigError, match="flip_prob = 0.5, but the codes file has no mirrored images"):
        batches(alone, 1, use_labels=False)


@pytest.mark.parametrize("start_step", [1, 2, 7])
def test_resuming_gives_the_same_batches(start_step: int) -> None:
    options: dict[str, Any] = {"window": (3, 5), "seed": 4}
    whole = batches(code_set(), 10, **options)[start_step:]
    for expected, resumed in zip(
        whole, batches(code_set(), 10 - start_step, start_step=start_step, **options), strict=True
    ):
        for a, b in zip(expected, resumed, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_batches_do_not_depend_on_how_the_samples_are_cut() -> None:
    threes, twos = batches(code_set(), 10, window=(2, 2)), batches(code_set(), 15, window=(2, 2), batch_size=2)
    for part in range(4):
        assert torch.equal(joined(threes, part), joined(twos, part))


def test_seeds_have_orders_and_windows_of_their_own() -> None:
    found = {tuple(joined(batches(code_set(), 5, seed=seed, window=(3, 3)), 3).flatten().tolist()) for seed in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize("window", [(1, 1), (3, 5), (6, 2), (6, 8)])
def test_a_window_shows_the_same_part_of_codes_and_condition(window: tuple[int, int]) -> None:
    found = batches(code_set(), 20, window=window)
    for codes, condition, (row, col) in zip(joined(found, 0), joined(found, 1), joined(found, 3).tolist(), strict=True):
        assert codes.shape == window and 0 <= row <= 6 - window[0] and 0 <= col <= 8 - window[1]
        image, variant = int(codes[0, 0]) // 1000, int(codes[0, 0]) // 100 % 10
        expected = CODES[image, variant, row : row + window[0], col : col + window[1]]
        assert torch.equal(codes, expected) and torch.equal(condition, 9999 - expected)


def test_every_place_of_a_window_is_equally_probable() -> None:
    corners = joined(batches(code_set(), 8, batch_size=1000, window=(5, 6)), 3).tolist()
    counts = Counter(map(tuple, corners))
    assert set(counts) == {(row, col) for row in (0, 1) for col in (0, 1, 2)}
    assert sum((n - 8000 / 6) ** 2 / (8000 / 6) for n in counts.values()) < 25.7  # 5 degrees of freedom, p = 1e-4


def test_a_coarser_condition_is_cut_at_its_own_codes() -> None:
    """Along rows 6 codes lie beside 3 of the condition, along columns 8 beside 12."""
    condition = 100 * torch.arange(5)[:, None, None, None] + 20 * torch.arange(3)[:, None] + torch.arange(12)
    coarse = code_set(condition=condition.expand(5, 4, 3, 12))
    found = batches(coarse, 20, window=(4, 4))
    places = set()
    for codes, part, (row, col) in zip(joined(found, 0), joined(found, 1), joined(found, 3).tolist(), strict=True):
        image = int(codes[0, 0]) // 1000
        assert codes[0, 0] % 100 == 10 * row + col
        assert torch.equal(part, condition[image, 0, row // 2 : row // 2 + 2, col * 3 // 2 : col * 3 // 2 + 6])
        places.add((row, col))
    assert places == {(row, col) for row in (0, 2) for col in (0, 2, 4)}
    with pytest.raises(
        ConfigError, match="window of 3 codes along a side of 6: .* multiple of 2, as 2 of them lie beside 1"
    ):
        batches(coarse, 1, window=(3, 4))


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"start_step": -1}, "start_step = -1"),
        ({"flip_prob": 1.5}, "flip_prob = 1.5"),
        ({"window": (7, 8)}, "window of 7 codes along a side of 6"),
        ({"window": (6, 0)}, "window of 0 codes along a side of 8"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], received: str) -> None:
    values = {"batch_size": 3, "seed": 0, "start_step": 0, "flip_prob": 0.0, "use_labels": False} | options
    with pytest.raises(ConfigError, match=received):
        code_batches(code_set(), **values)


def test_labels_are_refused_at_once_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="the codes file has no classes"):
        code_batches(code_set(labels=None), batch_size=1, seed=0, start_step=0, flip_prob=0.0, use_labels=True)
