"""`rasterformer join`: diffusion models of pixels that were trained one by one, as one model."""

from __future__ import annotations

from pathlib import Path

from rasterformer.errors import ConfigError


def join(base: Path, upscaler: Path, *more: Path, out: Path) -> None:
    """Join models that were trained one by one to a cascade: each upscaler enlarges what the one before has drawn.

    The folder holds all of it: the ones that were joined may be removed.

    Args:
        base: run, model folder or checkpoint that draws the smallest images; or an upscaler, and then the cascade is one.
        upscaler: one with the task super_resolution, of sources as large as those images.
        more: upscalers of what it draws.
        out: the model folder to write.

    Raises:
        ConfigError: the models do not fit one another, or OUT exists.
        CheckpointError: a model cannot be loaded, or OUT cannot be written.
    """
    from rasterformer import cascade, load
    from rasterformer.drawing.stages import stages_of
    from rasterformer.training.system_learner import draw_more

    if out.exists():
        raise ConfigError(f"--out {out} exists already and is left as it is. Give another folder.")
    joined = cascade.join(load(base), [load(place) for place in (upscaler, *more)])
    joined.save(out)
    stages = stages_of(joined)
    sides = " -> ".join(f"{stage.recipe.data.image_size}x{stage.recipe.data.image_size}" for stage in stages)
    weights = sum(weight.numel() for stage in stages for weight in stage.model.parameters())
    print(f"{out} written: {len(stages)} stages, {sides} pixels, {weights:,} parameters")
    print(f"now:  {draw_more(joined.recipe, out)}")
