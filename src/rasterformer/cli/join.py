"""`rasterformer join`: diffusion models of pixels that were trained one by one, as one model."""

from __future__ import annotations

from pathlib import Path

from rasterformer.errors import ConfigError


def join(base: Path, *upscalers: Path, out: Path) -> None:
    """Join models that were trained one by one to a cascade: each upscaler enlarges what the one before has drawn.

    The folder holds all of it: the ones that were joined may be removed.

    Args:
        base: run, model folder or checkpoint that draws the smallest images; or an upscaler, and then the cascade is one.
        upscalers: one or more with the task super_resolution, the first of sources as large as those images, each other one of
            sources as large as what the one before draws.
        out: the model folder to write.

    Raises:
        ConfigError: there is no upscaler, the models do not fit one another, or OUT exists. (Images that were reduced in other
            ways are a warning.)
        CheckpointError: a model cannot be loaded, or OUT cannot be written.
    """
    if not upscalers:
        raise ConfigError(
            f"join needs a base and at least one upscaler, and {base} stands alone. Give: rasterformer join {base} UPSCALER "
            f"--out {out}."
        )
    from rasterformer import cascade, load
    from rasterformer.drawing.stages import stages_of
    from rasterformer.training.system_learner import draw_more

    if out.exists():
        raise ConfigError(f"--out {out} exists already and is left as it is. Give another folder.")
    joined = cascade.join(load(base), [load(place) for place in upscalers])
    joined.save(out)
    stages = stages_of(joined)
    sides = " -> ".join(f"{stage.recipe.data.image_size}x{stage.recipe.data.image_size}" for stage in stages)
    weights = sum(weight.numel() for stage in stages for weight in stage.model.parameters())
    print(f"{out} written: {len(stages)} stages, {sides} pixels, {weights:,} parameters")
    print(f"now:  {draw_more(joined.recipe, out)}")
