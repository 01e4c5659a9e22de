"""diffusers has our weights and draws our images; unequal work is refused; the page follows the numbers."""

import copy
import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import imagen_speed
from benchmarks.imagen_opponents import SAME_METHOD, Form, LibrarySchedule, Text, default_unet, our_unet
from benchmarks.imagen_speed import (
    QUICK,
    TrainingStep,
    at_once,
    check,
    checked_difference,
    examples,
    flops,
    images_difference,
    main,
    networks,
    null_state,
    one_by_one,
    our_loss,
    our_network,
    step_difference,
    texts,
    work,
)
from benchmarks.render_imagen_speed import imagen_speed as page
from rasterformer.diffusion.gaussian import make_gaussian
from rasterformer.nn.live_memory import peak_bytes
from rasterformer.nn.unet import Unet

filterwarnings = pytest.mark.filterwarnings("ignore")  # opponents warn of what is theirs
FORM = QUICK.form
DEEP = Form(
    width=8, multipliers=(1, 2, 3), res_blocks=2, attention_levels=(0, 2), head_dim=4, text_dim=12, norm_groups=4
)


def opponent() -> None:
    """Skips the test where the extra `bench` is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        importlib.import_module("diffusers").UNet2DConditionModel  # noqa: B018 (imported on first use)


def network() -> Unet:
    """Ours, with weights that say something."""
    torch.manual_seed(0)
    made = our_unet(FORM)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


@filterwarnings
@pytest.mark.parametrize("form", [FORM, DEEP], ids=["quick", "deep"])
def test_diffusers_has_our_weights_and_another_weight_is_seen(form: Form) -> None:
    opponent()
    ours, library, _ = networks(form)
    batch = examples(3, 8, QUICK)
    before = step_difference(ours, copy.deepcopy(library), batch)
    assert set(before) == {"output", "loss", "gradient"} and max(before.values()) < 1e-4
    library.mid_block.attentions[0].add_v_proj.weight.data.add_(1.0)
    ours.zero_grad()
    after = step_difference(ours, library, batch)
    assert min(after["output"], after["gradient"]) > 1e-4


@filterwarnings
@pytest.mark.parametrize("sampler", SAME_METHOD)
def test_schedulers_of_diffusers_draw_our_images_and_another_schedule_is_seen(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opponent()
    assert images_difference(FORM, sampler, 2, 8, QUICK) < 1e-5
    other = make_gaussian("linear")
    monkeypatch.setattr(
        imagen_speed, "LibrarySchedule", lambda sampler, process, steps: LibrarySchedule(sampler, other, steps)
    )
    assert images_difference(FORM, sampler, 2, 8, QUICK) > 1e-2


@filterwarnings
def test_the_same_layers_have_the_same_work_and_default_blocks_have_more() -> None:
    opponent()
    found = work(FORM, QUICK)
    count, null = found["parameters"], FORM.text_dim
    assert count["ours"] == count["diffusers"] + null < count["diffusers, default blocks"]
    by_name = found["flops"]["8"]
    assert 0 < by_name["ours"] == by_name["diffusers"] < by_name["diffusers, default blocks"]


@filterwarnings
def test_default_blocks_see_the_text() -> None:
    opponent()
    torch.manual_seed(0)
    model, null = default_unet(FORM).eval(), torch.zeros(1, FORM.text_dim)
    z, text = torch.randn(2, 3, 8, 8), texts(2, QUICK)
    with torch.no_grad():
        given = model(z, torch.zeros(2), **text.with_null(null)).sample
        other = model(z, torch.zeros(2), **Text(text.states + 1, text.known).with_null(null)).sample
    assert torch.allclose(given[0], other[0]), "the first has no text"
    assert not torch.allclose(given[1], other[1])


@filterwarnings
def test_unequal_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    opponent()
    monkeypatch.setattr(imagen_speed, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(SystemExit, match="U-Net, 2 groups: .* differs by .*, at most 0.0 wanted. Nothing is timed"):
        checked_difference(FORM, QUICK)


def test_a_difference_that_is_no_number_is_refused() -> None:
    with pytest.raises(SystemExit, match="here: output differs by nan"):
        check("here", {"output": float("nan")})


def test_flops_are_two_for_each_product_of_attention_too() -> None:
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    assert flops(lambda: left @ right) == 2 * 3 * 4 * 5
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 7, 8)
    assert flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)) == 2 * (2 * 2 * 6 * 7 * 8)


def test_one_batch_and_two_passes_are_the_same_guidance() -> None:
    model, z = network(), torch.randn(3, 3, 8, 8)
    text, log_snr = texts(3, QUICK), torch.zeros(3)
    with torch.no_grad():
        expected = one_by_one(model, z, log_snr, text)
        given, null = model(z, log_snr, text=text.states, text_known=text.known), model(z, log_snr)
        torch.testing.assert_close(at_once(model, z, log_snr, text), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected, null + 5 * (given - null), rtol=1e-4, atol=1e-5)
    assert (given - null)[1:].abs().max() > 1e-3


def test_a_training_step_learns_and_its_memory_is_less_with_checkpointing() -> None:
    batch, memory = examples(2, 8, QUICK), {}
    for light in (False, True):
        torch.manual_seed(0)
        model = our_unet(dataclasses.replace(FORM, multipliers=(1, 2, 2)), gradient_checkpointing=light)
        step = TrainingStep(model, lambda model=model: our_loss(our_network(model, batch.text), batch), "float32")  # type: ignore[misc]
        before = step.loss().item()
        memory[light] = step.peak_bytes()
        for _ in range(3):
            step()
        assert step.loss().item() < before
    assert 0 < memory[True] < memory[False]


def test_memory_counts_what_lives_at_once() -> None:
    """On tensors with numbers, too: two of 4000 bytes at once, then one."""

    def run() -> None:
        for _ in range(3):
            torch.zeros(1000) + 1

    assert peak_bytes(run) == 8000


def test_texts_have_all_lengths() -> None:
    text = texts(3, QUICK)
    assert text.known.sum(1).tolist() == [0, 2, 5] and texts(1, QUICK).known.all()
    state = null_state(network())
    given = text.with_null(state)
    assert torch.equal(given["encoder_hidden_states"][1, 0], state[0]) and given["encoder_attention_mask"][:, 0].all()


@filterwarnings
def test_quick_run_writes_what_the_page_reads(tmp_path: Path) -> None:
    opponent()
    main(["--quick", "--pairs", "1", "--out", str(tmp_path / "imagen_speed.json")])
    record = json.loads((tmp_path / "imagen_speed.json").read_text())
    assert record["quick"] and set(record["opponents"]) == {"diffusers"}
    passes = {row["sampler"]: row["passes"] for row in record["samplers"]}
    assert {name: found["ours"] for name, found in passes.items()} == {
        "ancestral": 4,
        "ddim": 4,
        "dpmpp_2m": 4,
        "heun": 7,
    }
    assert all(found["ours"] == found["diffusers"] for found in passes.values())
    assert "| heun | `HeunDiscreteScheduler` | 2 of 8x8 | 7, 7 |" in "\n".join(page(record))


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


def made_record(*, step: float, drawing: float, sampler: float) -> dict[str, Any]:
    """Ratios as they would be measured; ours takes 2 s, and 1 ms a step of a sampler."""
    images = {"batch_size": 4, "image_size": 64}

    def timed(value: float) -> dict[str, Any]:
        seconds = {"ours": around(2.0), "diffusers": around(2 * value), "diffusers, default blocks": around(8.0)}
        ratios = {"diffusers": around(value), "diffusers, default blocks": around(4.0)}
        return {"norm_groups": 32, "dtype": "float32", **images, "seconds": seconds, "ratio": ratios}

    return {
        "pairs": 5,
        "work": {
            "parameters": {"ours": 6_351_171, "diffusers": 6_350_787},
            "flops": {"64": {"ours": 11_821_744_128, "diffusers": 11_821_744_128}},
        },
        "difference": [{"norm_groups": 32, "output": 2e-6}, {"norm_groups": 8, "output": 1e-6}],
        "training": [timed(step)],
        "drawing": [timed(drawing)],
        "samplers": [
            {
                "sampler": "dpmpp_2m",
                "scheduler": "DPMSolverMultistepScheduler",
                **images,
                "passes": {"ours": 20, "diffusers": 20},
                "seconds_per_step": {"ours": around(1e-3), "diffusers": around(1e-3 * sampler)},
                "ratio": {"diffusers": around(sampler)},
            }
        ],
        "guidance": [
            {
                **images,
                "dtype": "float32",
                "seconds": {"one batch": around(0.5), "two passes": around(0.75)},
                "ratio": {"two passes": around(1.5)},
            }
        ],
        "checkpointing": [
            {
                **images,
                "peak_bytes": {"ours": 400 * 2**20, "ours, checkpointing": 100 * 2**20},
                "memory_ratio": {"ours": 0.25},
                "ratio": {"ours": around(1.3)},
            }
        ],
        "sizes": dataclasses.asdict(QUICK),
        "equal": "all this",
        "not_equal": {"networks": "this", "samplers": "that", "checkpointing": "more"},
        "opponents": {"diffusers": "0"},
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2",
        "python": "3",
        "commit": "abc",
    }


def test_the_page_lists_where_ours_is_slower() -> None:
    said = "\n".join(page(made_record(step=0.8, drawing=1.5, sampler=0.5)))
    assert "| ours | 6,351,171 | 11.82 |" in said and "| diffusers | 6,350,787 | 11.82 |" in said
    assert "Largest differences from diffusers in float32: output 2e-06." in said
    assert "| 32 | 4 of 64x64 | float32 | 2,000 | 1,600: 0.80 (0.72 to 0.88) | 8,000: 4.00 (3.60 to 4.40) |" in said
    assert "| 32 | 4 of 64x64 | float32 | 0.5 | 0.75: 1.50 (1.35 to 1.65) | 2: 4.00 (3.60 to 4.40) |" in said
    assert "at most 0.1% of a step of drawing above" in said, "3 steps of 1 ms in 2 s"
    assert "| 4 of 64x64 | 20, 20 | 1.00 | 0.50 | 0.50 (0.45 to 0.55) |" in said
    assert "| 4 of 64x64 | float32 | 500.0 | 750.0 | 1.50 (1.35 to 1.65) |" in said
    assert "| 4 of 64x64 | ours | 400 | 100 | 0.25 | 1.30 (1.17 to 1.43) |" in said
    slower = said.partition("Ours is slower in: ")[2]
    assert slower == (
        "training step against diffusers, 32 groups, 4 of 64x64, float32: 0.80 (0.72 to 0.88); sampler dpmpp_2m alone, 4 of "
        "64x64: 0.50 (0.45 to 0.55)."
    )
    for part in ("Equal: all this.", "Not equal: this.", "Not equal: that.", "Not equal: more."):
        assert part in said


def test_the_page_lists_nothing_where_ours_is_slower_nowhere() -> None:
    assert "Ours is slower in none of these." in "\n".join(page(made_record(step=1.1, drawing=1.2, sampler=1.0)))
    said = "\n".join(page(made_record(step=1.1, drawing=0.9, sampler=1.0)))
    assert "Ours is slower in: drawing against diffusers, 32 groups, 4 of 64x64, float32: 0.90" in said
