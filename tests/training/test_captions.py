"""Captions as a condition: each stays with its image, changes what is drawn, and must be there."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.cli.main import main
from rasterformer.conditioning.text import MiniLMEncoder
from rasterformer.conditioning.text_encoder import TextEncoder
from rasterformer.data.imageset import ImageSet
from rasterformer.data.opening import open_images
from rasterformer.data.order import sample_index
from rasterformer.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from rasterformer.interfaces import Cond
from rasterformer.nn.minilm import MODEL_PACKAGE
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.tasks import SuperResolution, Task
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.captions import Captions
from rasterformer.training.codes import CodesLearner
from rasterformer.training.loop import Run, train
from rasterformer.training.run import train_recipe

MISSING = [name for name in (MODEL_PACKAGE, "tokenizers") if importlib.util.find_spec(name) is None]
needs_encoder = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
SIDE, DIM = 8, 384


class Numbers(TextEncoder):
    """In place of the text encoder: the number in a caption, in every dimension; no number is -1. Keeps what it was given."""

    dim: int

    def __init__(self, dim: int = DIM, fingerprint: str = "numbers") -> None:
        self.dim, self.fingerprint = dim, fingerprint
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        self.calls.append(list(texts))
        found = [re.search(r"\d+", text) for text in texts]
        numbers = torch.tensor([-1.0 if match is None else float(match[0]) for match in found])
        return numbers[:, None, None].expand(-1, 2, self.dim), torch.ones(len(texts), 2, dtype=torch.bool)

    def to(self, device: str | torch.device) -> None:
        assert torch.device(device).type in ("cpu", "cuda")


def tokenizer_of() -> Tokenizer:
    """Untrained, f = 2, its 6 codes spread over what it sees."""
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=6, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    made = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=SIDE), TrainingConfig()))
    with torch.no_grad():
        z = made.autoencoder.encode(noise(4).float() / 127.5 - 1)  # [4, 4, h, w]
        made.autoencoder.quantiser.codebook.copy_(z.permute(0, 2, 3, 1).reshape(-1, 4)[::10][:6])  # type: ignore[operator]
    made.autoencoder.eval().requires_grad_(False)
    return made


def noise(num_images: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)


def captioned(num_images: int = 7, *, captions: bool = True, split: str = "train") -> ImageSet:
    """Image k is called "picture k"."""
    return ImageSet(
        name="toys", split=split, split_origin="all", preprocessing="none", image_size=SIDE, class_names=(), labels=None,
        captions=tuple(f"picture {k}" for k in range(num_images)) if captions else None, fingerprint="0" * 64,
        lossless=True, skipped=(), num_images=num_images, pixels=noise(num_images),
        names=tuple(f"{k}.png" for k in range(num_images)),
    )  # fmt: skip


def system_of(
    *,
    encoder: TextEncoder | None = None,
    text: TextConfig | None = None,
    task: Task | None = None,
    model: dict[str, Any] | None = None,
    **training: Any,
) -> System:
    """With `Numbers` as its text encoder, or that of `text`."""
    config = Config(**{"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 16} | (model or {}))
    fields: dict[str, Any] = {
        "steps": 4,
        "batch_size": 3,
        "warmup_steps": 0,
        "eval_images": 5,
        "precision": "float32",
        "save_every": 1,
    }
    recipe = Recipe(
        "vqgan_transformer", config, DataConfig(image_size=SIDE, flip_prob=0.5),
        TrainingConfig(**fields | {"schedule": "constant", "learning_rate": 0.01} | training), task=task,
        text=text or TextConfig(dim=DIM, length=4),
    )  # fmt: skip
    system = System.create(recipe, tokenizers={"tokenizer": tokenizer_of()})
    system.text_encoder = None if text is not None else encoder or Numbers()
    return system


def quiet(text: str) -> None:
    """Says nothing."""


def weights_of(system: System) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in system.model.parameters()])


def numbers_of(learner: CodesLearner, batches: Iterable[tuple[Tensor, Cond]], count: int) -> list[list[int]]:
    """Which images the next batches are of, by their codes; each must have the caption of that image."""
    images, tokenizer = learner.train_set.images(slice(None)), learner.system.tokenizers["tokenizer"]
    ways = [tokenizer.encode(images), tokenizer.encode(images.flip(-1))]
    found = []
    for _, (codes, cond) in zip(range(count), batches, strict=False):
        own = [[k for k in range(len(images)) if any(torch.equal(row, way[k]) for way in ways)] for row in codes]
        assert all(len(each) == 1 for each in own), "images with equal codes would show nothing"
        found.append([each[0] for each in own])
        assert cond.text is not None and cond.text[:, 0, 0].tolist() == found[-1]
        assert cond.text_known is not None and bool(cond.text_known.all())
    return found


def test_captions_stay_with_their_images_over_epochs_and_from_any_step_on(tmp_path: Path) -> None:
    """Seven images in batches of three: batches run across the ends of epochs."""
    learner = CodesLearner(system_of(), captioned(), captioned(5), cache=tmp_path / "codes.safetensors", say=quiet)
    whole = numbers_of(learner, learner.batches(0), 7)
    assert sorted(sum(whole, [])) == sorted(list(range(7)) * 3) and whole[0] != [0, 1, 2]
    again = CodesLearner(system_of(), captioned(), captioned(5), cache=tmp_path / "codes.safetensors", say=quiet)
    assert numbers_of(again, again.batches(4), 3) == whole[4:]


def test_held_out_images_are_measured_with_their_own_captions(tmp_path: Path) -> None:
    system = system_of()
    with torch.no_grad():
        system.model.get_parameter("text_input.project.weight").normal_(std=0.1)
        system.model.get_parameter("text_input.project.bias").normal_()  # or the norm would hide the number
    learner = CodesLearner(system, captioned(), captioned(5, split="test"), say=quiet)
    images = captioned(5).images(slice(None))
    nats = [
        float(system.code_nats(images[k : k + 1], system.with_text(Cond(), f"picture {k}", 1)).mean()) for k in range(5)
    ]
    assert len({round(value, 4) for value in nats}) == 5
    assert learner.measure(system.model, None)["held_out_nats_per_code"] == pytest.approx(sum(nats) / 5, rel=1e-5)
    other = float(system.code_nats(images[:1], system.with_text(Cond(), "picture 4", 1)).mean())
    assert abs(other - nats[0]) > 1e-4, "the caption is not looked at"


@pytest.mark.parametrize("prob", [0.0, 0.2])
def test_images_without_a_caption_are_trained_and_measured_as_images_without_a_condition(prob: float) -> None:
    """Where the model hides conditions at all; else they have the empty text."""
    captions = tuple("" if k % 2 else f"picture {k}" for k in range(7))
    some = dataclasses.replace(captioned(), captions=captions)
    system = system_of(model={"drop_condition_prob": prob}, batch_size=7)
    learner = CodesLearner(system, some, some, say=quiet)
    _, cond = next(learner.batches(0))
    assert cond.text is not None
    nothing = cond.text[:, 0, 0] == -1.0  # of an empty text
    assert int(nothing.sum()) == 3
    assert (None if cond.dropped is None else cond.dropped.tolist()) == (nothing.tolist() if prob else None)
    images = some.images(slice(None))
    hidden = None if prob == 0 else torch.tensor([not caption for caption in captions])
    given = dataclasses.replace(system.with_text(Cond(), list(captions), 7), dropped=hidden)
    expected = float(system.code_nats(images, given).double().mean())
    assert learner.measure(system.model, None)["held_out_nats_per_code"] == pytest.approx(expected, rel=1e-5)


def test_an_image_without_a_caption_keeps_what_else_it_is_conditioned_on() -> None:
    some = dataclasses.replace(captioned(), captions=("", *(f"picture {k}" for k in range(1, 7))))
    system = system_of(model={"drop_condition_prob": 0.2}, task=SuperResolution(factor=2), batch_size=7)
    _, cond = next(CodesLearner(system, some, some, say=quiet).batches(0))
    assert cond.codes is not None and cond.dropped is None


@pytest.mark.parametrize("task", [None, SuperResolution(factor=2)])
def test_a_resumed_run_with_captions_ends_with_the_tensors_of_an_uninterrupted_one(
    task: Task | None, tmp_path: Path
) -> None:
    def trained(name: str, *step_counts: int) -> Tensor:
        folder = tmp_path / name
        folder.mkdir()
        for number, steps in enumerate(step_counts):
            system = system_of(task=task, steps=steps, model={"drop_condition_prob": 0.2, "keep_prob": 0.9})
            learner = CodesLearner(system, captioned(), captioned(5), cache=folder / "codes.safetensors", say=quiet)
            assert train(Run(learner, folder), resume=number > 0, say=quiet) is True
        return weights_of(system)

    assert torch.equal(trained("whole", 4), trained("parts", 2, 4))


def test_samples_for_the_log_are_drawn_from_held_out_captions(tmp_path: Path) -> None:
    encoder = Numbers()
    learner = CodesLearner(system_of(encoder=encoder), captioned(), captioned(5), say=quiet)
    learner.sheet(learner.system.model)
    assert encoder.calls[-1] == [f"picture {k}" for k in range(5)]  # each once, for 16 samples


def test_every_image_has_its_own_text_or_all_have_the_same() -> None:
    encoder = Numbers()
    system = system_of(encoder=encoder)
    system.sample(2, text=["one 1", "two 2"], as_tensor=True)
    system.sample(2, text="three 3", as_tensor=True)
    system.sample(2, as_tensor=True)
    assert encoder.calls == [["one 1", "two 2"], ["three 3"], [""]]  # the same one is read once


def spread(system: System) -> System:
    """With weights that make captions count: for one result in five or so."""
    torch.manual_seed(0)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    system.model.eval()
    return system


def test_completions_are_drawn_for_the_text_of_their_image() -> None:
    system, images = spread(system_of(model={"qk_norm": True})), noise(2)
    both = system.complete(images, known="rows:2", n=12, text=["picture 1", "other"], as_tensor=True)
    assert torch.equal(
        both, system.complete(images, known="rows:2", n=12, text=["picture 1", "other"], batch_size=1, as_tensor=True)
    )
    same = system.complete(images, known="rows:2", n=12, text="picture 1", as_tensor=True)
    assert torch.equal(both[0], same[0]) and not torch.equal(both[1], same[1])


def test_what_a_task_draws_depends_on_the_text_too() -> None:
    system, sources = spread(system_of(task=SuperResolution(factor=2))), noise(2)[:, :, ::2, ::2]
    both = system.transform(sources, n=12, text=["picture 1", "other"], as_tensor=True)
    same = system.transform(sources, n=12, text="picture 1", as_tensor=True)
    assert torch.equal(both[0], same[0]) and not torch.equal(both[1], same[1])


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"], []])
def test_another_number_of_texts_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"text has {len(texts)} entries for 2 images. Give one, or one for each"):
        system_of().sample(2, text=texts)


def test_a_text_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"text\.dim = 384, but the text encoder's states have 6"):
        CodesLearner(system_of(encoder=Numbers(dim=6)), captioned(), captioned(5), say=quiet)


def test_a_model_knows_which_text_encoder_it_was_trained_with(tmp_path: Path) -> None:
    system = system_of()
    CodesLearner(system, captioned(), captioned(5), say=quiet)
    system.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model")
    loaded.text_encoder = Numbers(fingerprint="letters")
    with pytest.raises(CheckpointError, match="trained with text encoder numbers, but letters is installed"):
        loaded.sample(1, text="picture 1")
    loaded.text_encoder = Numbers()
    expected = system.sample(2, text="picture 1", as_tensor=True)
    assert torch.equal(loaded.sample(2, text="picture 1", as_tensor=True), expected)


def test_the_folder_of_a_text_encoder_may_have_moved(tmp_path: Path) -> None:
    system_of(text=TextConfig("folder", "old place", dim=6, length=4)).save(tmp_path / "model")
    moved = rasterformer.load(tmp_path / "model", text_folder=tmp_path / "new place")
    for loaded, place in ((rasterformer.load(tmp_path / "model"), "old place"), (moved, "new place")):
        with pytest.raises(DataError, match=f"{place}': there is no such folder.*text_folder"):
            loaded.sample(1, text="picture 1")
    system_of().save(tmp_path / "other")
    with pytest.raises(ConfigError, match="text_folder = 'there'.*reads texts by no folder"):
        rasterformer.load(tmp_path / "other", text_folder="there")


def test_no_step_waits_for_the_text_encoder(tmp_path: Path) -> None:
    """All captions are read once before the first step, with those of held-out images, and never again."""
    encoder, said = Numbers(), list[str]()
    learner = CodesLearner(
        system_of(encoder=encoder), captioned(), captioned(5, split="test"), cache=tmp_path / "codes", say=said.append
    )
    encoder.calls.clear()
    batches = learner.batches(0)
    assert sorted(sum(encoder.calls, [])) == ["", *(f"picture {k}" for k in range(7))]
    encoder.calls.clear()
    assert len(numbers_of(learner, batches, 5)) == 5
    learner.measure(learner.system.model, None)
    assert encoder.calls == [] and "reading 8 texts once" in said
    again = CodesLearner(
        system_of(encoder=encoder), captioned(), captioned(5), cache=tmp_path / "codes", say=said.append
    )
    encoder.calls.clear()
    assert numbers_of(again, again.batches(0), 2) and encoder.calls == []


def test_bytes_are_learnt_with_the_model(tmp_path: Path) -> None:
    """Without any text encoder: the trained embedding is in the model folder, and the captions change what is drawn."""
    system = system_of(text=TextConfig("bytes", dim=8, length=16))
    before = system.model.get_parameter("text_input.bytes.words.weight").clone()
    folder = tmp_path / "run"
    folder.mkdir()
    assert train(Run(CodesLearner(system, captioned(), captioned(5), say=quiet), folder), resume=False, say=quiet)
    moved = (system.model.get_parameter("text_input.bytes.words.weight") - before).abs().amax(1)
    assert bool(moved[ord("p")] > 0) and not moved[ord("z")], "of the bytes that occur"
    system = spread(system)
    system.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model", device="cpu")
    one, other = (loaded.sample(12, text=text, as_tensor=True) for text in ("picture 1", "other"))
    assert not torch.equal(one, other) and torch.equal(one, system.sample(12, text="picture 1", as_tensor=True))


def test_captions_are_added_by_the_numbers_of_a_steps_images_and_read_once() -> None:
    """Step 5 of three images each has those that are 15th, 16th and 17th in the order of training."""
    encoder = Numbers()
    system = system_of(encoder=encoder)
    captions = Captions(system, captioned(), captioned(5, split="test"), folder=None)
    captions.read(device=torch.device("cpu"), say=quiet)
    encoder.calls.clear()
    index = sample_index(15, 3, num_images=7, seed=0)
    found = captions.added(Cond(), 5)
    assert found.text is not None and found.text[:, 0, 0].tolist() == index.tolist() and encoder.calls == []


def test_the_fingerprint_of_training_images_is_that_of_captions_and_encoder_too() -> None:
    other = dataclasses.replace(captioned(), captions=tuple(f"picture {k + 1}" for k in range(7)))
    makers = ((captioned(), "numbers"), (other, "numbers"), (captioned(), "others"), (captioned(), "numbers"))
    found = [
        Captions(system_of(encoder=Numbers(fingerprint=name)), images, captioned(5), folder=None).fingerprint_with("0")
        for images, name in makers
    ]
    assert found[0] == found[3] and len(set(found)) == 3


@pytest.mark.parametrize("without", ["train", "test"])
def test_missing_captions_are_refused_before_anything_is_done(without: str, tmp_path: Path) -> None:
    sets = [captioned(captions=without != split, split=split) for split in ("train", "test")]
    cache = tmp_path / "codes.safetensors"
    with pytest.raises(
        DataError, match=rf"the recipe has a section text, but 'toys', {without}, has no captions.*\.txt file"
    ):
        CodesLearner(system_of(), *sets, cache=cache, say=quiet)
    assert not cache.exists()


def test_captions_that_are_all_empty_are_refused_as_such() -> None:
    empty = dataclasses.replace(captioned(captions=False), empty_captions=7)
    with pytest.raises(DataError, match=r"'toys', train, has no captions: its \.txt files, 7, are all empty\. Write a"):
        CodesLearner(system_of(), empty, captioned(5), say=quiet)


def test_a_missing_text_encoder_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> MiniLMEncoder:
        raise MissingExtraError("pip install 'rasterformer[text]'")

    monkeypatch.setattr(MiniLMEncoder, "load", missing)
    system = system_of()
    system.text_encoder = None
    with pytest.raises(MissingExtraError, match="pip install"):
        CodesLearner(system, captioned(), captioned(5), say=quiet)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures in two colours, and a .txt beside each that says which."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(30):
        colour = (220, 40, 30) if k % 2 else (20, 60, 210)
        values = np.clip(np.array(colour) + rng.integers(-20, 21, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a red square" if k % 2 else "a blue square", encoding="utf-8")
    return folder


def prior_recipe(folder: Path, pictures: Path) -> Recipe:
    """Of a prior with captions, on a tokenizer that is made here."""
    tokenizer_of().save(folder / "tokenizer")
    texts = {
        "model.tokenizer": f'"{folder / "tokenizer"}"', "text.length": "8",
        "data.path": f'"{pictures}"', "data.image_size": str(SIDE), "training.steps": "20", "training.eval_every": "20",
        "training.save_every": "20",
    }  # fmt: skip
    return rasterformer.load_recipe("vqgan-prior-tiny", list(texts.items()))


def test_a_folder_without_captions_is_refused_and_leaves_no_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in pictures.glob("*.png"):
        (bare / path.name).write_bytes(path.read_bytes())
    (tmp_path / "recipe.yaml").write_text(
        rasterformer.recipe_file.recipe_to_yaml(prior_recipe(tmp_path, bare)), encoding="utf-8"
    )
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "has no captions. Put a .txt file beside each image" in capsys.readouterr().err
    for path in list(bare.glob("*.png")):
        path.with_suffix(".txt").write_text(" \n", encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "are all empty. Write a caption into each" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_encoder
def test_a_prior_learns_from_captions_and_draws_what_a_text_says(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_images(str(pictures), image_size=SIDE, split="all").captions is not None
    run = tmp_path / "run"
    assert train_recipe(prior_recipe(tmp_path, pictures), run, say=quiet) is True
    system = rasterformer.load(run)
    red, blue = (system.sample(4, text=f"a {colour} square", seed=1, as_tensor=True) for colour in ("red", "blue"))
    assert not torch.equal(red, blue)
    both = system.sample(4, text=["a red square"] * 2 + ["a blue square"] * 2, seed=1, as_tensor=True)
    assert torch.equal(both, torch.cat([red[:2], blue[2:]]))
    guided = system.sample(4, text="a red square", guidance_scale=3.0, seed=1, as_tensor=True)
    assert not torch.equal(guided, red)
    system.save(tmp_path / "copy")
    copy = rasterformer.load(tmp_path / "copy")
    assert copy.takes_text and torch.equal(copy.sample(4, text="a red square", seed=1, as_tensor=True), red)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "nats/code" in shown and "condition of another" in shown
    assert main(["sample", str(run), "-n", "1", "--text", "a red square", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "0000.png").is_file()
