"""From a recipe to a finished run folder: open the images, build the system, train, report, say what can be done next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError
from rasterformer.loading import load
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe, recipe_hash, recipe_to_dict, recipe_to_yaml
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.tasks import Colourise, Denoise, Inpaint, SuperResolution, task_name
from rasterformer.training.log import duration, read_metrics
from rasterformer.training.loop import Run, train

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
    say: Callable[[str], None] = print,
) -> bool:
    """Runs a recipe into a run folder.

    Args:
        recipe: with data.path set.
        folder: is made; must be new unless `resume`.
        resume: go on with the run that is there.
        init: a trained model whose fitting weights are taken over.
        dry_run: only check and report.
        say: where sentences for people go.

    Returns:
        True when the run has ended, False when it was stopped and can be resumed.

    Raises:
        ConfigError: no data, a folder that exists, or a resumed run with another recipe.
        DataError, CheckpointError: images or weights cannot be used.
    """
    recipe_file = folder / "recipe.yaml"
    if resume:
        _check_same(recipe, recipe_file)
    elif recipe_file.exists():
        raise ConfigError(f"{folder} already holds a run. Go on with it by --resume, or give another --out.")
    train_set, held_out = _open(recipe, "train", say), _open(recipe, "test", say)
    class_names: tuple[str, ...] = ()
    if recipe.data.use_labels:
        train_set.require_labels()
        class_names = train_set.class_names
    system = System.create(recipe, class_names=class_names)
    if init is not None:
        _take_over(system, init, say)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    system.model.to(device)
    weights = sum(p.numel() for p in system.model.parameters())
    say(f"{recipe.system}, {weights:,} parameters, recipe {recipe_hash(recipe)}, on {device}")
    if dry_run:
        say(f"dry run: {folder} was not made")
        return True
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    run = Run(system, train_set, held_out, folder)
    ended = train(run, resume=resume, say=say)
    if ended:
        _report(run)
        say(f"\nmodel: {folder / 'model'}   report: {folder / 'report.md'}   samples: {folder / 'samples'}")
        say(f"draw more:  {draw_more(recipe, folder)}")
    return ended


def _open(recipe: Recipe, split: Literal["train", "test"], say: Callable[[str], None]) -> ImageSet:
    images = open_recipe_images(recipe, split)
    say(f"{split}: {len(images):,} images of {images.name}, {images.split_origin}; {images.preprocessing}")
    if images.skipped:
        name, reason = images.skipped[0]
        say(
            f"{split}: {len(images.skipped)} skipped, first {name}: {reason}. `rasterformer scan {recipe.data.path}` "
            "lists all."
        )
    return images


def _check_same(recipe: Recipe, recipe_file: Path) -> None:
    if not recipe_file.is_file():
        raise ConfigError(f"{recipe_file.parent} holds no run to resume. Start one without --resume.")
    before, now = recipe_to_dict(load_recipe(recipe_file)), recipe_to_dict(recipe)
    changed = [
        f"{section}.{name} was {before.get(section, {}).get(name)}, is {value}"
        for section in ("task", "data", "model", "training")
        for name, value in now.get(section, {}).items()
        if before.get(section, {}).get(name) != value and not (section == "training" and name in FREE_TO_CHANGE)
    ]
    if changed or before["system"] != now["system"]:
        raise ConfigError(
            f"{recipe_file.parent} was started with another recipe: {'; '.join(changed) or 'another system'}. Resume it with "
            f"its own: rasterformer train {recipe_file} --resume --out {recipe_file.parent}, or give another --out."
        )


def _take_over(system: System, init: Path, say: Callable[[str], None]) -> None:
    """Copies every weight of a trained model that has the same name and shape, and says which were left."""
    source = load(init).model.state_dict()
    own = system.model.state_dict()
    fitting = {name: weight for name, weight in source.items() if name in own and own[name].shape == weight.shape}
    if not fitting:
        raise ConfigError(
            f"--init {init}: no weight of it has the name and shape of one in this recipe. Use its own recipe."
        )
    system.model.load_state_dict({**own, **fitting})
    fresh, left = [n for n in own if n not in fitting], [n for n in source if n not in fitting]
    say(f"--init {init}: {len(fitting)} of {len(own)} weights taken over")
    if fresh:
        say(f"  starting fresh: {', '.join(fresh)}")
    if left:
        say(f"  not used: {', '.join(left)}")


def _of_what(recipe: Recipe) -> str:
    return "" if recipe.task is None else f" of images given their sources ({task_name(recipe.task)})"


def _dimensions(run: Run) -> str:
    dims = f"{run.system.num_dims:,} dimensions"
    return f"the unknown of {dims}" if isinstance(run.system.recipe.task, Inpaint) else dims


def draw_more(recipe: Recipe, folder: Path) -> str:
    """Returns the command that uses the run's model."""
    if recipe.task is None:
        return f"rasterformer sample {folder} -n 16 --seed 1"
    command = {SuperResolution: "upscale", Inpaint: "restore", Colourise: "colourise", Denoise: "denoise"}
    mask = " --mask MASK.png" if isinstance(recipe.task, Inpaint) else ""
    return f"rasterformer {command.get(type(recipe.task), 'transform')} {folder} IMAGE.png{mask} -n 4"


def _report(run: Run) -> None:
    lines = read_metrics(run.folder / "metrics.jsonl")
    measured = [line for line in lines if "held_out_bits_per_dim" in line]
    recipe, last = run.system.recipe, measured[-1]
    rows = "\n".join(
        f"| {line['step']:,} | {duration(line['seconds'])} | {line['held_out_bits_per_dim']:.4f} |" for line in measured
    )
    newest = sorted((run.folder / "samples").glob("*.png"))[-1]
    training = dataclasses.asdict(recipe.training)
    settings = ", ".join(
        f"{name} {training[name]}" for name in ("optimizer", "learning_rate", "batch_size", "ema_decay")
    )
    (run.folder / "report.md").write_text(
        f"# {recipe.system}, recipe {recipe_hash(recipe)}\n\n"
        f"Exact likelihood{_of_what(recipe)}: **{last['held_out_bits_per_dim']:.4f} bits/dim** over "
        f"{_dimensions(run)}, on the "
        f"first {last['images']:,} of {len(run.held_out):,} held-out images ({run.held_out.split_origin}; "
        f"{run.held_out.preprocessing}). `rasterformer evaluate {run.folder} --data {recipe.data.path}` measures all of them.\n\n"
        f"Trained on {len(run.train_set):,} images of {run.train_set.name}: {last['step']:,} steps, "
        f"{duration(last['seconds'])}; {settings}; torch {torch.__version__}, {torch.get_num_threads()} threads.\n\n"
        f"| step | training time | held-out bits/dim |\n|---|---|---|\n{rows}\n\n"
        f"![samples](samples/{newest.name})\n",
        encoding="utf-8",
    )
