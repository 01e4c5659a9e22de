"""`rasterformer complete`: go on with images of which the first part is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from rasterformer.cli.denoising import Denoising, GuidanceScale, record
from rasterformer.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def complete(
    model: Path,
    images: list[Path],
    /,
    *,
    known: str = "top:0.5",
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 3,
    label: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    out: Path = Path("completions"),
    batch_size: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    parallel: Annotated[bool, Parameter(negative="")] = False,
    candidates: int = 1,
    guidance_scale: GuidanceScale = 1.0,
    text: str | None = None,
    text_folder: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    scale: int = 4,
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Complete images of which the first part is known.

    Args:
        model: run, model folder or checkpoint.
        images: files, fitted to the model's size as in training.
        known: top:0.5 (the upper half), rows:12 (the first 12 rows), or a mask image of the model's size, white where
            the image is known. For a model that draws pixel by pixel what is known must come first in its generation order;
            the others take any mask.
        n: completions of each image.
        label: class of the images, for a model with classes. Default: not said, where the model has learned that (trained with
            model.drop_condition_prob), else one at random.
        temperature: below 1 draws more probable images, 1 draws from the model itself.
        top_k: draw each value from the k most probable ones only.
        top_p: draw each value from the smallest set with this probability only.
        seed: another seed, other completions.
        out: folder for grid.png (known | completions | original) and the single images.
        batch_size: completions drawn at a time. Default: as many as half of the free memory holds, at most 64.
        precision: bfloat16 is faster with many images and draws from a rounded model.
        parallel: draw one completion at a time, several positions per pass; the same images.
        candidates: of a model over codes and a mask that is no prefix: so many fillings are drawn for each completion, and one is
            chosen by how well what is known after it fits. (A diffusion model sees all that is known.)
        guidance_scale: above 1 the class or text counts more; for models over codes and diffusion models trained with
            model.drop_condition_prob.
        text: what to draw, for models trained with captions. Default: not said, where the model has learned that; '' is an empty
            caption.
        text_folder: where the text encoder of the model's training lies now (text.encoder: folder). Default: where it lay then.
        dry_run: say how much memory it takes, and draw nothing; of a diffusion model of pixels also how long, by timing a pass.
        scale: magnification in the grid.
        denoising: options of diffusion models.
    """
    import torch

    from rasterformer import load
    from rasterformer.autoregressive.complete import parse_known
    from rasterformer.cli.progress import step_progress
    from rasterformer.data.decode import decode_file
    from rasterformer.data.png import image_grid, write_png
    from rasterformer.diffusion.image_denoiser import ImageDenoiser
    from rasterformer.drawing.abilities import need_no_source
    from rasterformer.drawing.options import DrawingOptions
    from rasterformer.drawing.timing import time_drawing
    from rasterformer.recipe_file import recipe_hash

    if not images:
        raise ConfigError("no image was given. Give at least one file: rasterformer complete MODEL IMAGE...")
    if n < 1 or scale < 1:
        raise ConfigError(f"-n {n} and --scale {scale} must be at least 1.")
    how: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "parallel": parallel,
        "guidance_scale": guidance_scale,
        **asdict(denoising),
    }
    options = DrawingOptions(**how)
    system = load(model, text_folder=text_folder)
    need_no_source(system, "complete")
    originals = system.to_tensor([decode_file(path).image for path in images])
    size = system.image_size
    mask = _read_mask(Path(known), size) if Path(known).is_file() else parse_known(known, size, size)
    if dry_run:
        if isinstance(system.model, ImageDenoiser):
            plan, seconds = time_drawing(system, n * len(images), options, label=label, text=text, is_filling=True)
            print(f"{plan}\ntime: {seconds}")
        else:
            print(system.plan_sampling(len(images) * n * candidates, **how))
        return 0
    about = {
        "kind": "completion",
        "model": str(model),
        "recipe": recipe_hash(system.recipe),
        "known": known,
        **record(system, options, label=label, text=text, is_filling=True),
    }
    if system.tokenizer is not None:
        about["candidates"] = candidates
    done: list[Tensor] = []

    stems = [path.stem for path in images]
    if len(set(stems)) < len(stems):  # files of the same name from several folders
        stems = [f"{number:03d}-{stem}" for number, stem in enumerate(stems)]

    def keep(start: int, completions: Tensor) -> None:
        for number, image in enumerate(completions, start=start):
            which, k = divmod(number, n)
            facts = {"image": images[which].name, "completion": k}
            write_png(out / f"{stems[which]}-{k}.png", image, metadata={**about, **facts})
        done.append(completions)

    def write_grid() -> int:
        """Of the images whose completions are all there; returns how many completions are there."""
        drawn = torch.cat(done) if done else originals[:0]
        whole = len(drawn) // n
        if whole:
            some = originals[:whole]
            of_each = drawn[: whole * n].unflatten(0, (whole, n))
            rows = torch.cat(
                [torch.where(mask, some, 128)[:, None], of_each, some[:, None]], 1
            )  # [images, 1 + n + 1, ...]
            write_png(out / "grid.png", image_grid(rows.flatten(0, 1), columns=n + 2, scale=scale), metadata=about)
        return len(drawn)

    try:
        with step_progress(f"completing {len(images)} images, {n} times each") as on_step:
            system.complete(
                originals,
                known=mask,
                n=n,
                label=label,
                text=text,
                candidates=candidates,
                as_tensor=True,
                on_step=on_step,
                on_images=keep,
                **how,
            )
    except KeyboardInterrupt:
        print(f"stopped: {write_grid()} of {len(images) * n} completions are in {out}")
        return 130
    write_grid()
    print(
        f"{len(images) * n} completions in {out}, all together in {out / 'grid.png'} (known | completions | original)"
    )
    return 0


def _read_mask(path: Path, size: int) -> Tensor:
    """A mask image -> bool [H, W], True where it is white."""
    import torch

    from rasterformer.data.decode import decode_file

    image = decode_file(path).image.convert("L")
    if image.size != (size, size):
        raise ConfigError(
            f"--known {path}: the mask is {image.width}x{image.height}, the model's images are {size}x{size}."
        )
    return torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(size, size) >= 128
