"""What a network over noisy codes is. The process is in `discrete.py`; how images are drawn from a denoiser, in `draw.py`."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from rasterformer.diffusion.discrete import DiscreteProcess
from rasterformer.diffusion.importance import StepSampler
from rasterformer.interfaces import Cond, ImageModel


class CodeDenoiser(ImageModel):
    """p(x_0 | x_t): one network for all levels, which predicts the codes under the noise.

    Attributes:
        process: the forward process; K codes and T levels.
        x_shape: (L, 1).
        step_sampler: which levels are drawn in training; what it has counted belongs to a checkpoint.
    """

    process: DiscreteProcess
    x_shape: tuple[int, int]
    step_sampler: StepSampler

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L], codes and masks; t [B], int64 level 0..T, or float where a time lies between levels.

        Returns logits of x_0, float32 [B, L, K].
        """

    @abstractmethod
    def state_bytes(self, batch_size: int) -> int:
        """Bytes of the largest activations of one forward pass of a batch, roughly."""

    @abstractmethod
    def to_bfloat16(self) -> CodeDenoiser:
        """Returns a copy that computes its layers in bfloat16; its logits stay float32.

        It is a rounded model: its bounds are its own and differ a little from the original's.
        """
