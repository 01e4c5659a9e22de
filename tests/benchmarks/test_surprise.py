import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.render import surprise
from benchmarks.surprise import DAMAGES, RULES, auroc, average_precision, compare


def image() -> Tensor:
    return torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_changes_the_image_and_keeps_its_shape(kind: str) -> None:
    original = image()
    damaged = DAMAGES[kind](original)
    assert damaged.dtype == torch.uint8 and damaged.shape == original.shape
    assert not torch.equal(damaged, original) and torch.equal(original, image())
    assert torch.equal(damaged, DAMAGES[kind](original))


def test_auroc_counts_pairs() -> None:
    bad, clean = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 5.0, 1.5])
    pairs = [1.0 if b > c else 0.5 if b == c else 0.0 for b, c in itertools.product(bad.tolist(), clean.tolist())]
    assert auroc(bad, clean) == pytest.approx(sum(pairs) / len(pairs))


def test_average_precision_of_known_orders() -> None:
    assert average_precision([True, True, False, False]) == 1
    assert average_precision([False, False, True]) == pytest.approx(1 / 3)
    assert average_precision([True, False, True]) == pytest.approx((1 + 2 / 3) / 2)


def test_a_perfect_score_finds_all_and_a_reversed_one_none() -> None:
    kind_of = ["clean"] * 60 + ["black"] * 5 + ["foreign"] * 5
    score = torch.cat([torch.zeros(60), torch.ones(10)])
    counts = {"black": 2, "foreign": 3}
    perfect, reversed_ = (compare(sign * score, kind_of, counts, 40) for sign in (1, -1))
    assert perfect["first"]["5"] == {"bad": 5, "by_kind": {"black": 2, "foreign": 3}}
    assert perfect["first"]["20"]["bad"] == 5 and perfect["average_precision"] == 1 and perfect["num_bad"] == 5
    assert reversed_["first"]["20"]["bad"] == 0
    assert perfect["kinds"]["black"]["auroc"] == 1 and reversed_["kinds"]["foreign"]["auroc"] == 0


def record(best: str) -> dict[str, object]:
    found = {"bad": 2.0, "by_kind": {"black": 2.0}}
    rules = {
        name: {
            "kinds": {"black": {"auroc": 0.5}},
            "first": {"10": found, "20": found},
            "num_bad": 2,
            "average_precision": 0.9 if name == best else 0.4,
        }
        for name in RULES
    }
    return {
        "model": {"distribution": "dmol", "image_size": 32, "steps": 1000},
        "clean": {"name": "heads", "reference_images": 100},
        "damages": {"black": "Nothing left."},
        "mix": {"clean": 200, "black": 2, "mixes": 10},
        "bits_per_dim": {"clean": 1.0, "black": 0.1},
        "rules": rules,
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2", "python": "3", "commit": "abc",
    }  # fmt: skip


def test_the_page_says_whether_the_default_is_the_best_rule() -> None:
    said = " ".join(surprise(record("both, image and window")))
    assert "The best of these is both, image and window, which is the command's default" in said
    said = " ".join(surprise(record("high, image only")))
    assert "The best of these is high, image only, while the command's default is both, image and window" in said
