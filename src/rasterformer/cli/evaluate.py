"""`rasterformer evaluate`: bits/dim of held-out images, with all that must be known to compare it; for tasks, samples too.

Of models over codes it is nats/code.
"""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from rasterformer.errors import ConfigError

TABLE_WIDTH = 120  # what ten columns of figures need; a narrower terminal wraps lines instead of cutting figures


def evaluate(
    model: Path,
    *,
    data: str | None = None,
    split: Literal["test", "train", "all"] = "test",
    limit: int | None = None,
    batch_size: int = 16,
    levels: int | None = None,
    json: Path | None = None,
    task: str | None = None,
    images: int = 64,
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 4,
    temperature: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
    frechet: bool = True,
    html: Path | None = None,
    text_folder: Path | None = None,
) -> None:
    """Measure a model on held-out images: bits/dim with an interval.

    The likelihood is computed in float32. PNG and WebP sizes of the same images stand beside it, and images that are
    also in the training split are counted. A model over codes has a likelihood of codes only: nats/code, and bits for the codes.
    Of a diffusion model it is an estimate of an upper bound, given the class and the caption of each image where it takes them;
    of a cascade the sum over its stages.
    With --task, samples are drawn from the sources of the first images as well, and
    judged beside simpler means (extra `eval`).

    Args:
        model: run, model folder or checkpoint.
        data: images to measure on. Default: the data of the model's recipe.
        split: the data's own test split, or the share held out from training.
        limit: only the first so many images.
        batch_size: images scored at a time.
        levels: of a diffusion model: levels of noise drawn for each image and stage; more are slower and narrow the interval.
            Default: 20.
        json: write the report into this file.
        task: the model's task, such as super_resolution: judge samples too.
        images: with --task: sources to draw from.
        n: with --task: samples of each source.
        temperature: with --task: below 1 draws more probable images. Not of diffusion models.
        steps: with --task, of a diffusion model: steps from noise to image. Default: 50.
        seed: with --task: another seed, other samples.
        frechet: with --task: also a Fréchet distance on features of a network (FD-EffLite0).
        html: with --task: write a page with figures and pictures into this file.
        text_folder: where the text encoder of the model's training lies now (text.encoder: folder). Default: where it lay then.
    """
    from rich.console import Console

    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.codecs.vq.codec import CodeCodec
    from rasterformer.drawing.code_images import window_of
    from rasterformer.drawing.options import DrawingOptions, need_options
    from rasterformer.evaluation.code_likelihood import evaluate_codes
    from rasterformer.evaluation.judge import judge_samples
    from rasterformer.evaluation.likelihood import evaluate_likelihood
    from rasterformer.evaluation.pixel_bound import scorer_of
    from rasterformer.evaluation.report import write_page
    from rasterformer.evaluation.similarity import SSIM_SIDE, require_torchmetrics
    from rasterformer.nn.efficientnet_lite import load_efficientnet_lite0
    from rasterformer.recipe_images import open_images_of
    from rasterformer.tasks import task_name

    system = load(model, text_folder=text_folder)
    recipe = system.recipe
    trained = None if recipe.task is None else task_name(recipe.task)
    if task is not None and task != trained:
        raise ConfigError(f"--task {task}: {model} was trained for {trained or 'images alone'}. Leave --task out.")
    if task is not None and system.tokenizer is not None:
        raise ConfigError(
            f"--task {task}: samples of models over codes are not judged yet; without --task their likelihood is measured."
        )
    if task is None and html is not None:
        raise ConfigError("--html shows samples of a task: give --task too.")
    levels = system.levels(levels)
    if images < 2 or n < 1:
        raise ConfigError(f"--images {images} must be at least 2 and -n {n} at least 1.")
    if task is not None:  # what is missing is to be said now, not after an hour
        need_options(system, DrawingOptions(temperature=temperature, steps=steps))
        require_torchmetrics()
        if frechet:
            load_efficientnet_lite0()
        if system.image_size < SSIM_SIDE:
            raise ConfigError(
                f"--task {task}: similarity needs images of at least {SSIM_SIDE} pixels; {model} makes {system.image_size}."
            )
    held_out = open_images_of(system, split, path=data)
    if system.tokenizer is not None:
        assert isinstance(system.codec, CodeCodec), "a model over codes"
        window = window_of(system)
        with step_progress("scoring") as on_progress:
            of_codes = evaluate_codes(
                system,
                system.tokenizer,
                held_out,
                model=str(model),
                use_labels=recipe.data.use_labels,
                task=trained,
                window=None if window == system.codec.grid else window,
                bound=system.likelihood_bound,
                levels=levels,
                used=system.codec.used,
                with_source=lambda b, first: system.with_source(b, first=first, purpose="held-out source", seed=0),
                with_text=system.with_captions if system.takes_text else None,
                limit=limit,
                batch_size=batch_size,
                on_progress=on_progress,
            )
        Console().print(of_codes.table())
        _write_json(json, of_codes.to_dict())
        return
    scorer = scorer_of(system, levels=levels)
    training = open_images_of(system, "train", path=data) if split == "test" else None
    with step_progress("scoring") as on_progress:
        report = evaluate_likelihood(
            scorer,
            held_out,
            model=str(model),
            dtype="float32",
            use_labels=recipe.data.use_labels,
            task=trained,
            with_source=lambda batch, first: system.with_source(batch, first=first, purpose="held-out source", seed=0),
            training_set=training,
            limit=limit,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    Console().print(report.table())
    content: dict[str, Any] = report.to_dict()
    if task is not None:
        if training is None:
            training = open_images_of(system, "train", path=data)
        with step_progress("drawing") as on_step:
            judged = judge_samples(
                system,
                held_out,
                training,
                report,
                num_images=images,
                n=n,
                temperature=temperature,
                steps=steps,
                seed=seed,
                with_frechet=frechet,
                on_step=on_step,
            )
        Console(width=max(TABLE_WIDTH, Console().width)).print(judged.table())
        content["samples"] = judged.to_dict()
        if html is not None:
            write_page(html, f"{model}: {trained}", judged.html_sections(), summary=f"on {held_out.name}, {split}")
            print(f"{html} written")
    _write_json(json, content)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_format.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{path} written")
