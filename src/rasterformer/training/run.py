"""From a recipe to a finished run folder: open the images, build the system, train, report, say what can be done next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from rasterformer import registry
from rasterformer.conditioning.text import load_text_encoder
from rasterformer.conditioning.text_encoder import TextEncoder, check_dim
from rasterformer.data.imageset import ImageSet
from rasterformer.data.source import passed_over
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.errors import ConfigError
from rasterformer.loading import stored_tokenizers, stored_used_codes
from rasterformer.recipe import Recipe, TextConfig
from rasterformer.recipe_file import load_recipe, recipe_hash, recipe_to_dict, recipe_to_yaml
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.tokenizer import Tokenizer, load_tokenizers
from rasterformer.training.codes import CodesLearner, codes_that_occur, make_codes, read_codes
from rasterformer.training.denoising import DenoisingLearner
from rasterformer.training.learner import Learner
from rasterformer.training.likelihood import LikelihoodLearner
from rasterformer.training.log import duration, read_metrics
from rasterformer.training.loop import Run, in_words, train
from rasterformer.training.take_over import take_over
from rasterformer.training.tokenizer import TokenizerLearner

# What may change between a run and its resumption: how long and how often, not what is computed.
FREE_TO_CHANGE = {
    "steps",
    "minutes",
    "log_every",
    "eval_every",
    "sample_every",
    "save_every",
    "eval_images",
    "keep_checkpoints",
}


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    dry_run: bool = False,
    is_last: bool = True,
    say: Callable[[str], None] = print,
) -> bool:
    """Runs a recipe into a run folder.

    Args:
        recipe: with data.path set.
        folder: is made; must be new unless `resume`.
        resume: go on with the run that is there.
        init: a trained model whose fitting weights are taken over.
        dry_run: only check and report.
        is_last: nothing follows by itself, as the next stage of a pipeline does: the command to go on with is said.
        say: where sentences for people go.

    Returns:
        True when the run has ended, False when it was stopped and can be resumed.

    Raises:
        ConfigError: no data, a folder that exists, or a resumed run with another recipe.
        DataError, CheckpointError: images or weights cannot be used.
    """
    recipe_file = folder / "recipe.yaml"
    if resume:
        check_same(recipe, recipe_file)
    elif recipe_file.exists():
        raise ConfigError(f"{folder} already holds a run. Go on with it by --resume, or give another --out.")
    learner = make_learner(recipe, folder, say, resume=resume, dry_run=dry_run)
    if init is not None:
        take_over(learner, init, say)
    networks = ", ".join(
        f"{sum(p.numel() for p in network.parameters()):,} parameters{'' if name == 'model' else f' of the {name}'}"
        for name, network in learner.networks.items()
    )
    say(f"{recipe.system}, {networks}, recipe {recipe_hash(recipe)}, on {learner.device}")
    if dry_run:
        if (cost := learner.cost()) is not None:
            say(cost)
        say(f"dry run: {folder} was not made")
        return True
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    run = Run(learner, folder)
    ended = train(run, resume=resume, say=say)
    if ended:
        _report(run)
        say(f"\nmodel: {folder / 'model'}   report: {folder / 'report.md'}   samples: {folder / 'samples'}")
        if is_last:
            say(f"now:  {learner.next_command(folder)}")
    return ended


def make_learner(
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None] = print,
    *,
    resume: bool = False,
    dry_run: bool = False,
) -> Learner:
    """Opens the images of a recipe and builds what is trained on them, on a CUDA device where there is one.

    Args:
        recipe: with data.path set.
        folder: of the run, where a model over codes keeps the codes of its images.
        say: where sentences for people go.
        resume: the codes that occur are those of the run's newest checkpoint; so are the tokenizers, where those that the recipe
            names are gone.
        dry_run: tokenize nothing: of a new run all codes stay.

    Raises:
        ConfigError, DataError: no images, or they cannot be used.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set, held_out = _open(recipe, "train", say), _open(recipe, "test", say)
    if recipe.system in registry.TOKENIZERS:
        learner = TokenizerLearner(Tokenizer.create(recipe), train_set, held_out).to(device)
        perceptual = learner.loss.perceptual
        say(f"perceptual distance in the loss: {'none' if perceptual is None else perceptual.name}")
        return learner
    class_names: tuple[str, ...] = ()
    if recipe.data.use_labels:
        train_set.require_labels()
        class_names = train_set.class_names
    tokenizers = stored_tokenizers(folder) if resume and _tokenizer_is_gone(recipe) else None
    if tokenizers:
        say("the tokenizer's own folder is gone; the one in the newest checkpoint is used")
    encoder = None
    if recipe.text is not None:  # what is missing is to be said now, not when all images are tokenized
        for images in (train_set, held_out):
            images.captions_of(torch.arange(0))
        encoder = read_text_encoder(recipe.text)
    cache, code_set, used = folder / "codes.safetensors", None, None
    if getattr(recipe.model, "drop_unused_codes", False):
        tokenizers = tokenizers or load_tokenizers(recipe)
        used = stored_used_codes(folder) if resume else None
        if used is None and dry_run:
            say("codes that do not occur in the training images will be dropped; here all of them count")
        elif used is None and "tokenizer" in tokenizers:  # else the system's build says what is missing
            code_set = read_codes(cache, train_set, tokenizers, say)
            if code_set is None:
                code_set = make_codes(recipe, train_set, tokenizers, say=say)
            used = codes_that_occur(code_set, say)
    system = System.create(recipe, class_names=class_names, tokenizers=tokenizers, used_codes=used)
    system.text_encoder = encoder
    system.to(device)
    if system.tokenizer is not None:
        return CodesLearner(system, train_set, held_out, cache=cache, code_set=code_set, say=say)
    if isinstance(system.model, ImageDenoiser):
        return DenoisingLearner(system, train_set, held_out, folder=folder, say=say)
    return LikelihoodLearner(system, train_set, held_out)


def read_text_encoder(config: TextConfig) -> TextEncoder:
    """Loads the text encoder that a recipe names, and checks that it fits the recipe.

    Raises:
        ConfigError: `text.dim` are not its dimensions, or it does not read `text.length` tokens.
        MissingExtraError, DataError: as `load_text_encoder`.
    """
    encoder = load_text_encoder(config.encoder, config.folder)
    check_dim(encoder, config.dim)
    encoder.encode([""], length=config.length)
    return encoder


def _tokenizer_is_gone(recipe: Recipe) -> bool:
    paths = [getattr(recipe.model, name, None) for name in ("tokenizer", "condition_tokenizer")]
    return any(path is not None and not Path(path).exists() for path in paths)


def _open(recipe: Recipe, split: Literal["train", "test"], say: Callable[[str], None]) -> ImageSet:
    images = open_recipe_images(recipe, split)
    count = "1 image" if len(images) == 1 else f"{len(images):,} images"
    say(f"{split}: {count} of {images.name}, {images.split_origin}; {images.preprocessing}")
    if images.skipped:
        say(
            f"{split}: {len(images.skipped):,} skipped: {passed_over(images.skipped)}. `rasterformer scan "
            f"{recipe.data.path}` lists all."
        )
    if recipe.text is not None and images.captions is not None and (missing := images.captions.count("")):
        say(f"{split}: {missing:,} of {len(images):,} images have no caption")
    return images


def check_same(recipe: Recipe, recipe_file: Path) -> None:
    """Refuses to resume a run with another recipe, but for how long and how often.

    Raises:
        ConfigError: there is no run, or it was started with another recipe.
    """
    if not recipe_file.is_file():
        raise ConfigError(f"{recipe_file.parent} holds no run to resume. Start one without --resume.")
    before, now = recipe_to_dict(load_recipe(recipe_file)), recipe_to_dict(recipe)
    sections = (
        (name, before.get(name, {}), now.get(name, {})) for name in ("task", "text", "data", "model", "training")
    )
    changed = [
        f"{section}.{name} was {old.get(name)}, is {new.get(name)}"
        for section, old, new in sections
        for name in {**old, **new}
        if old.get(name) != new.get(name) and not (section == "training" and name in FREE_TO_CHANGE)
    ]
    if changed or before["system"] != now["system"]:
        raise ConfigError(
            f"{recipe_file.parent} was started with another recipe: {'; '.join(changed) or 'another system'}. Resume it with "
            f"its own: rasterformer train {recipe_file} --resume --out {recipe_file.parent}, or give another --out."
        )


def _report(run: Run) -> None:
    learner, lines = run.learner, read_metrics(run.folder / "metrics.jsonl")
    recipe = learner.recipe
    measured = [line for line in lines if "images" in line]
    figures = [name for name in measured[-1] if name not in ("step", "seconds", "images")]
    head = " | ".join(in_words(name) for name in figures)
    rows = "\n".join(
        f"| {line['step']:,} | {duration(line['seconds'])} | {' | '.join(_cell(line.get(name)) for name in figures)} |"
        for line in measured
    )
    newest = sorted((run.folder / "samples").glob("*.png"))[-1]
    training = dataclasses.asdict(recipe.training)
    settings = ", ".join(
        f"{name} {training[name]}" for name in ("optimizer", "learning_rate", "batch_size", "ema_decay")
    )
    last = measured[-1]
    more = "".join(f"\n{markdown}\n" for markdown in learner.write_pictures(run.folder))
    (run.folder / "report.md").write_text(
        f"# {recipe.system}, recipe {recipe_hash(recipe)}\n\n"
        f"{learner.headline(last).replace('RUN', str(run.folder))}\n\n"
        f"Trained on {len(learner.train_set):,} images of {learner.train_set.name}: {last['step']:,} steps, "
        f"{duration(last['seconds'])}; {settings}; torch {torch.__version__}, {torch.get_num_threads()} threads.\n\n"
        f"| step | training time | {head} |\n|---|---|{'---|' * len(figures)}\n{rows}\n\n"
        f"![samples](samples/{newest.name})\n{more}",
        encoding="utf-8",
    )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
