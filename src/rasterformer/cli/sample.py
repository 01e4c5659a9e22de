"""`rasterformer sample`: new images, as a grid and one by one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rasterformer.errors import ConfigError


def sample(
    model: Path,
    *,
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 16,
    label: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    out: Path = Path("samples"),
    batch_size: int = 64,
    scale: int = 4,
) -> None:
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
        out: folder for grid.png and the single images.
        batch_size: images drawn at a time.
        scale: magnification in the grid.
    """
    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.data.png import image_grid, write_png
    from rasterformer.recipe_file import recipe_hash

    if n < 1 or batch_size < 1 or scale < 1:
        raise ConfigError(f"-n {n}, --batch-size {batch_size} and --scale {scale} must be at least 1.")
    system = load(model)
    with step_progress(f"drawing {n} images") as on_step:
        images = system.sample(
            n,
            label=label,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            as_tensor=True,
            on_step=on_step,
        )
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "label": label, "seed": seed}
    about = {
        "kind": "sample",
        "model": str(model),
        "recipe": recipe_hash(system.recipe),
        "steps": system.steps,
        **options,
    }
    write_png(out / "grid.png", image_grid(images, scale=scale), metadata={**about, "images": n})
    for k, image in enumerate(images):
        write_png(out / f"{k:04d}.png", image, metadata={**about, "image": k})
    print(f"{n} images in {out}, all together in {out / 'grid.png'}")
