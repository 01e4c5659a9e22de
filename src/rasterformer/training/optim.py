"""Optimisers and learning-rate schedules, by the recipe's names."""

from __future__ import annotations

import math

import torch
from torch import nn

from rasterformer.recipe import TrainingConfig


def make_optimizers(model: nn.Module, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Returns the optimisers whose steps together move every parameter once.

    `adam` is the paper's; `adamw` decays matrices only; `muon` gives the matrices inside a module called `layers` to Muon
    and everything else to AdamW.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    betas, epsilon = (training.beta1, training.beta2), training.epsilon
    if training.optimizer == "adam":
        return [
            torch.optim.Adam([w for _, w in named], lr=training.learning_rate, betas=betas, eps=epsilon, fused=True)
        ]
    by_muon = [w for name, w in named if training.optimizer == "muon" and w.ndim == 2 and "layers." in name]
    taken = {id(w) for w in by_muon}
    rest = [w for _, w in named if id(w) not in taken]
    groups = [
        {"params": [w for w in rest if w.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [w for w in rest if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, eps=epsilon, fused=True)
    ]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(by_muon, lr=training.muon_learning_rate, weight_decay=training.weight_decay, momentum=0.95)
        )
    return optimizers


def learning_rate_factor(training: TrainingConfig, step: int, progress: float) -> float:
    """Share of the peak learning rate to use.

    Args:
        training: names the schedule.
        step: optimiser steps done.
        progress: share of the run that is done, 0..1.
    """
    warmup = min(1.0, (step + 1) / max(training.warmup_steps, 1))
    if training.schedule == "transformer":
        return min(warmup, math.sqrt(max(training.warmup_steps, 1) / (step + 1)))
    if training.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if training.schedule == "linear":
        return warmup * min(1.0, max(0.0, 1 - progress) / training.decay_fraction)
    return warmup
