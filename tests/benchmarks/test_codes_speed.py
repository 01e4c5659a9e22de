"""Opponents of codes have our weights and compute what ours does; unequal work is refused; the page follows the numbers."""

import copy
import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import codes_speed
from benchmarks.codes_opponents import LibraryGPT, PlainGPT, autoencoders, library_quantiser
from benchmarks.codes_speed import (
    QUICK,
    LibraryStep,
    QuantiserStep,
    autoencoder_difference,
    main,
    prior_difference,
    spread_out_,
    step_difference,
)
from benchmarks.render_codes_speed import codes_speed as page
from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.interfaces import Cond
from rasterformer.systems.vqgan_transformer.model import CodeTransformer, Vocabulary

filterwarnings = pytest.mark.filterwarnings("ignore")  # opponents warn of what is theirs


def opponent(name: str) -> None:
    """Skips the test where the extra `bench` is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name)
        if name == "diffusers":
            importlib.import_module("diffusers").VQModel  # noqa: B018 (imported on first use)


def small_prior() -> CodeTransformer:
    torch.manual_seed(0)
    made = CodeTransformer(QUICK.prior, code_order("raster", QUICK.grid), QUICK.grid, Vocabulary(codes=QUICK.codes))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


def test_plain_gpt_says_of_the_next_code_what_our_model_says() -> None:
    ours = small_prior()
    plain = PlainGPT(ours)
    x = torch.randint(QUICK.codes, (3, 16))
    logits = ours(x[..., None], Cond())
    tokens = torch.zeros(3, 1, dtype=torch.int64)
    for i in range(16):
        torch.testing.assert_close(plain(tokens)[:, -1], logits[:, i])
        tokens = torch.cat([tokens, x[:, i : i + 1]], 1)


def test_plain_gpt_adds_one_code_of_the_vocabulary_and_keeps_the_others() -> None:
    tokens = torch.randint(QUICK.codes, (4, 5))
    longer = PlainGPT(small_prior()).next(tokens)
    assert longer.shape == (4, 6) and torch.equal(longer[:, :5], tokens)
    assert bool(((longer[:, 5] >= 0) & (longer[:, 5] < QUICK.codes)).all())


@filterwarnings
def test_gpt2_has_our_weights_and_draws_whole_images() -> None:
    opponent("transformers")
    ours = small_prior()
    library = LibraryGPT(ours)
    assert max(prior_difference(ours, PlainGPT(ours), library).values()) < 1e-5
    library.model.transformer.wpe.weight.data.add_(torch.randn_like(library.model.transformer.wpe.weight))
    assert prior_difference(ours, PlainGPT(ours), library)["GPT-2"] > 1e-2
    drawn = library.generate(2)
    assert drawn.shape == (2, 16) and int(drawn.max()) < QUICK.codes


@filterwarnings
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_step_of_the_library_moves_its_codebook_as_ours_moves(estimator: Any, normalise: bool) -> None:
    opponent("vector_quantize_pytorch")
    torch.manual_seed(0)
    ours = VectorQuantiser(32, 4, update="ema", normalise=normalise, estimator=estimator)
    spread_out_(ours)
    theirs, before = library_quantiser(ours), ours.codebook.clone()
    z, pull = torch.randn(2, 2, 4, 8, 8)
    found = step_difference(QuantiserStep(ours, z, pull), LibraryStep(theirs, z, pull))
    assert found.pop("equal_codes") == 1.0
    assert set(found) == {"values", "gradient", "codebook"} and max(found.values()) < 1e-5
    assert (ours.codebook - before).abs().max() > 1e-3


@filterwarnings
def test_a_difference_of_a_step_is_seen() -> None:
    opponent("vector_quantize_pytorch")
    torch.manual_seed(0)
    ours = VectorQuantiser(32, 4, update="ema")
    spread_out_(ours)
    z, pull = torch.randn(2, 2, 4, 8, 8)
    other = VectorQuantiser(32, 4, update="ema", decay=0.5)
    other.load_state_dict(ours.state_dict())
    assert (
        step_difference(QuantiserStep(ours, z, pull), LibraryStep(library_quantiser(other), z, pull))["codebook"] > 1e-3
    )


@filterwarnings
def test_diffusers_has_our_weights_and_another_weight_is_seen() -> None:
    opponent("diffusers")
    torch.manual_seed(0)
    ours, theirs = autoencoders(dataclasses.replace(QUICK.autoencoder, norm_groups=4))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    found = autoencoder_difference(ours, copy.deepcopy(theirs), images)
    assert found.pop("equal_codes") == 1.0 and max(found.values()) < 1e-4
    theirs.decoder.conv_out.bias.data.add_(0.01)
    ours.zero_grad()
    assert autoencoder_difference(ours, theirs, images)["decoded"] == pytest.approx(0.01, rel=0.1)


@filterwarnings
def test_unequal_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    opponent("vector_quantize_pytorch")
    monkeypatch.setattr(codes_speed, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(
        SystemExit, match="nearest, gradients: values differs by .*, at most 0.0 wanted. Nothing is timed"
    ):
        codes_speed.quantisers(QUICK, 2, 8, 1)


@filterwarnings
def test_quick_run_writes_what_the_page_reads(tmp_path: Path) -> None:
    for name in ("vector_quantize_pytorch", "diffusers", "transformers"):
        opponent(name)
    main(["--quick", "--pairs", "1", "--out", str(tmp_path / "codes_speed.json")])
    record = json.loads((tmp_path / "codes_speed.json").read_text())
    assert record["quick"] and set(record["opponents"]) == {"vector-quantize-pytorch", "diffusers", "transformers"}
    assert [row["batch_size"] for row in record["prior"]["rows"]] == [1, 2]
    assert "| FSQ | 1,000 | [2, 4, 8, 8] |" in "\n".join(page(record))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--quick"], "must not replace the results"), (["--pairs", "0"], "--pairs 0 must be at least 1")],
)
def test_what_main_refuses(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def around(value: float) -> dict[str, Any]:
    return {"median": value, "lowest": 0.9 * value, "highest": 1.1 * value, "all": [0.9 * value, value, 1.1 * value]}


def made_record(*, quantiser: float, step: float, encode: float, drawing: float) -> dict[str, Any]:
    """Ratios as they would be measured; ours takes 2 ms, and 0.5 s an image."""

    def timed(value: float) -> dict[str, Any]:
        return {"seconds": {"ours": around(2e-3), "opponent": around(2e-3 * value)}, "ratio": around(value)}

    image = {"batch_size": 4, "image_size": 64, "dtype": "float32"}
    return {
        "pairs": 5,
        "quantisers": [
            {
                "batch_size": 16,
                "side": 8,
                "dtype": "float32",
                "kinds": {"FSQ": timed(quantiser) | {"dim": 4, "vocab_size": 1000, "equal_codes": 0.9893}},
            }
        ],
        "autoencoder": [
            {
                "norm_groups": 32,
                "parameters": 2_500_000,
                "steps": [timed(step) | image],
                "alone": [timed(encode) | image | {"way": "encode"}],
            }
        ],
        "prior": {
            "dtype": "float32",
            "length": 256,
            "parameters": 5_000_000,
            "rows": [
                {
                    "batch_size": 1,
                    "seconds_per_image": {"ours": around(0.5), "GPT-2": around(0.5 * drawing)},
                    "ratio": {"GPT-2": around(drawing)},
                }
            ],
        },
        "sizes": {
            "autoencoder": {"base_width": 64, "multipliers": [1, 2, 2], "res_blocks": 1, "vocab_size": 1024, "dim": 8},
            "prior": {"depth": 6, "width": 256, "num_heads": 8, "mlp_width": 1024},
            "codes": 1024,
        },
        "equal": "all this",
        "not_equal": {"quantisers": "this", "autoencoder": "that", "prior": "more"},
        "opponents": {"diffusers": "0"},
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2",
        "python": "3",
        "commit": "abc",
    }


def test_the_page_lists_where_ours_is_slower() -> None:
    said = "\n".join(page(made_record(quantiser=3.0, step=0.8, encode=1.25, drawing=2.0)))
    assert "| FSQ | 1,000 | [16, 4, 8, 8] | 98.93% | 2.00 | 6.00 | 3.00 (2.70 to 3.30) |" in said
    assert "| training step | 32 | 64x64 | 4 | float32 | 2.00 | 1.60 | 0.80 (0.72 to 0.88) |" in said
    assert "| encode | 32 | 64x64 | 4 | float32 | 2.00 | 2.50 | 1.25 (1.12 to 1.38) |" in said
    assert "| GPT-2 | 1 | 0.500 | 1.000 | 2.00 (1.80 to 2.20) |" in said
    assert "Ours is slower in: training step, 32 groups, 64x64, float32: 0.80 (0.72 to 0.88)." in said
    assert (
        "Equal: all this." in said
        and "Not equal: this." in said
        and "Not equal: that." in said
        and "Not equal: more." in said
    )


def test_the_page_lists_nothing_where_ours_is_slower_nowhere() -> None:
    said = "\n".join(page(made_record(quantiser=1.5, step=1.1, encode=1.2, drawing=2.0)))
    assert "Ours is slower in none of these." in said
    said = "\n".join(page(made_record(quantiser=0.5, step=1.1, encode=0.5, drawing=0.5)))
    for part in (
        "FSQ, z of 8x8: 0.50",
        "encode, 32 groups, 64x64, float32: 0.50",
        "drawing against GPT-2, batch 1: 0.50",
    ):
        assert part in said
