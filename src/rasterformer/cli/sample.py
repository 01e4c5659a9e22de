"""`rasterformer sample`: new images, as a grid and one by one."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from rasterformer.cli.denoising import Denoising, GuidanceScale, record
from rasterformer.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    model: Path,
    *,
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 16,
    label: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    first: int = 0,
    out: Path = Path("samples"),
    batch_size: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    parallel: Annotated[bool, Parameter(negative="")] = False,
    size: str | None = None,
    guidance_scale: GuidanceScale = 1.0,
    window_stride: int | None = None,
    text: str | None = None,
    text_folder: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    scale: int = 4,
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw new images.

    Image k of a seed is the same for every number of images and every batch size.

    Args:
        model: run, model folder or checkpoint.
        n: number of images.
        label: class to draw, by name or index. Default: a model with classes draws one at random for each image.
        temperature: below 1 draws more probable images, 1 draws from the model itself.
        top_k: draw each value from the k most probable ones only.
        top_p: draw each value from the smallest set with this probability only.
        seed: another seed, other images.
        first: number of the first image: --first 64 goes on where -n 64 ended.
        out: folder for grid.png and the single images.
        batch_size: images drawn at a time. Default: as many as half of the free memory holds, at most 64.
        precision: bfloat16 is faster with many images and draws from a rounded model; there another batch size or
            --parallel may change some images.
        parallel: draw one image at a time, several positions per pass; the same images. Faster for a few images of a
            categorical model.
        size: HEIGHTxWIDTH in pixels, such as 512x1024, or one number for a square, for a model over codes, which draws larger
            images than it was trained on by a sliding window, or a diffusion model of pixels, which draws them at once. Default:
            as trained.
        guidance_scale: above 1 the class or text counts more; for models over codes and diffusion models trained with
            model.drop_condition_prob.
        window_stride: with --size, the window moves on by so many codes; more is faster. Default: 1, the paper's rule; of a
            diffusion model half a window.
        text: what to draw, for models trained with captions. Default: not said, where the model has learned that (trained with
            model.drop_condition_prob); '' is an empty caption.
        text_folder: where the text encoder of the model's training lies now (text.encoder: folder). Default: where it lay then.
        dry_run: say how much memory it takes, and draw nothing; of a diffusion model of pixels also how long, by timing a pass.
        scale: magnification in the grid.
        denoising: options of diffusion models.
    """
    import torch

    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.cli.sizes import parse_size
    from rasterformer.data.png import image_grid, write_png
    from rasterformer.diffusion.image_denoiser import ImageDenoiser
    from rasterformer.drawing.abilities import need_no_source
    from rasterformer.drawing.code_images import is_told_places
    from rasterformer.drawing.options import DrawingOptions
    from rasterformer.drawing.timing import time_drawing
    from rasterformer.recipe_file import recipe_hash

    if n < 1 or scale < 1 or first < 0:
        raise ConfigError(f"-n {n} and --scale {scale} must be at least 1, --first {first} at least 0.")
    how: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "parallel": parallel,
        "size": None if size is None else parse_size(size),
        "guidance_scale": guidance_scale,
        "window_stride": window_stride,
        **asdict(denoising),
    }
    options = DrawingOptions(**how)
    system = load(model, text_folder=text_folder)
    need_no_source(system, "sample")
    is_of_pixels = isinstance(system.model, ImageDenoiser)
    if dry_run:
        if is_of_pixels:
            plan, seconds = time_drawing(system, n, options, label=label, text=text)
            print(f"{plan}\ntime: {seconds}")
        else:
            print(system.plan_sampling(n, **how))
        return 0
    side = system.image_size
    if options.size is not None and max(options.size) > side:
        if is_of_pixels:
            print(
                f"note: this model has seen images of {side}x{side} pixels only; in larger ones it may repeat things.",
                file=sys.stderr,
            )
        elif system.tokenizer is not None and not is_told_places(system):
            print(
                f"note: this model has seen images of {side}x{side} pixels only and is told nothing about places. Larger ones "
                "that know their places need a prior (system vqgan_transformer) trained with model.window and model.coordinates.",
                file=sys.stderr,
            )
    about = {
        "kind": "sample",
        "model": str(model),
        "recipe": recipe_hash(system.recipe),
        "steps": system.steps,
        **record(system, options, label=label, text=text),
    }
    if is_of_pixels or system.tokenizer is not None:
        about["size"] = size
    done: list[Tensor] = []

    def keep(start: int, images: Tensor) -> None:
        for k, image in enumerate(images, start=first + start):
            write_png(out / f"{k:04d}.png", image, metadata={**about, "image": k})
        done.append(images)

    def write_grid() -> None:
        if done:
            grid, facts = torch.cat(done), {"first": first, "images": sum(map(len, done))}
            write_png(out / "grid.png", image_grid(grid, scale=scale), metadata={**about, **facts})

    try:
        with step_progress(f"drawing {n} images") as on_step:
            system.sample(
                n,
                label=label,
                text=text,
                first=first,
                as_tensor=True,
                on_step=on_step,
                on_images=keep,
                **how,
            )
    except KeyboardInterrupt:
        write_grid()
        finished = sum(map(len, done))
        others = f"; the others: --first {first + finished} -n {n - finished}" if finished < n else ""
        print(f"stopped: {finished} of {n} images are in {out}{others}")
        return 130
    write_grid()
    print(f"{n} image{'s' if n > 1 else ''} in {out}, all together in {out / 'grid.png'}")
    own = {f"{k:04d}.png" for k in range(first, first + n)}
    if earlier := [path for path in out.glob("*.png") if path.stem.isdigit() and path.name not in own]:
        print(f"{out} holds {len(earlier)} more of earlier calls, such as {min(earlier).name}; they are not in grid.png")
    return 0
