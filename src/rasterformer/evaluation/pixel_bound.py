"""What scores the images of a model of pixels: the model itself, exactly; or its upper bound, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.stages import conds_of_stages, need_no_first_source, stage_nats, stages_of
from rasterformer.evaluation.likelihood import BoundScorer, Scorer
from rasterformer.interfaces import Cond

if TYPE_CHECKING:
    from rasterformer.system import System


class PixelBound(BoundScorer):
    """The variational bound of a diffusion model of pixels, or of a cascade.

    Args:
        system: the model, with its upscalers.
        levels: of noise, drawn for each image and stage, at least 1.

    Raises:
        ConfigError: a cascade whose first stage has a task.
    """

    def __init__(self, system: System, levels: int) -> None:
        need_no_first_source(system)
        stages = stages_of(system)
        self.system, self.levels = system, levels
        self.stage_sizes = tuple(stage.recipe.data.image_size for stage in stages)
        self.takes_captions = any(stage.takes_text for stage in stages)

    def stage_nats(self, images: Tensor, cond: Cond, captions: Sequence[str] | None) -> Tensor:
        """See `drawing.stages.stage_nats`: uint8 [B, 3, H, W] at the system's size -> nats, float64 [B, stages]."""
        conds = conds_of_stages(self.system, cond, captions, len(images))
        return stage_nats(self.system, images, conds, levels=self.levels)


def scorer_of(system: System, *, levels: int | None = None) -> Scorer | BoundScorer:
    """Returns what `evaluate_likelihood` scores the images of a model by.

    Args:
        system: a model of pixels.
        levels: of a diffusion model: of noise, drawn for each image and stage. None: 20.

    Raises:
        ConfigError: levels are below 1, or given for a model whose likelihood is exact; or a cascade begins from source images.
    """
    levels = system.levels(levels)
    if not isinstance(system.model, ImageDenoiser):
        return system
    assert levels is not None, "a diffusion model draws some"
    return PixelBound(system, levels)
