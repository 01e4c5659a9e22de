"""The training loop. Everything that decides a step is a function of the recipe and the step's number.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `samples/`, `checkpoints/step-N/`, and, when it has ended,
`model/` and `report.md`. What a step is, a `Learner` says; what makes a checkpoint is in `state.py`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.data.png import write_png
from rasterformer.errors import RasterformerError
from rasterformer.recipe import TrainingConfig
from rasterformer.recipe_file import recipe_hash
from rasterformer.training.averages import ExponentialMovingAverage
from rasterformer.training.interrupt import StopSignals
from rasterformer.training.learner import Learner
from rasterformer.training.log import MetricsLog, ProgressLine, duration
from rasterformer.training.optim import learning_rate_factor
from rasterformer.training.state import Progress, restore, save, shipped_weights

MAX_BAD_STEPS = 3  # in a row


@dataclass
class Run:
    """One training run: what is trained, and where its files lie."""

    learner: Learner
    folder: Path

    @property
    def training(self) -> TrainingConfig:
        return self.learner.recipe.training


def train(run: Run, *, resume: bool, say: Callable[[str], None] = print) -> bool:
    """Trains until the recipe's steps or minutes are used up, or a signal asks to stop.

    Args:
        run: its folder exists and holds recipe.yaml.
        resume: go on from the newest checkpoint of the folder, if it has one.
        say: where sentences for people go.

    Returns:
        True when the run has ended; False when it was stopped and can be resumed.

    Raises:
        RasterformerError: the loss was not finite three times in a row.
        CheckpointError: resuming from other data, or all checkpoints are damaged.
    """
    learner, training = run.learner, run.training
    networks, model = learner.networks, learner.networks["model"]
    optimizers = learner.optimizers()
    ema = ExponentialMovingAverage(model, training.ema_decay) if training.ema_decay is not None else None
    progress = restore(run.folder, learner, optimizers, ema) if resume else Progress()
    if progress.step:
        say(f"resumed at step {progress.step}, {duration(progress.seconds)} of training done")
    else:
        learner.prepare()
        if ema is not None:
            ema.model.load_state_dict(model.state_dict())
    log = MetricsLog(run.folder / "metrics.jsonl", after_step=progress.step)
    line = ProgressLine()
    batches = learner.batches(progress.step)
    peak_rates = _peak_rates(optimizers)
    session_start, session_steps, bad_steps = time.monotonic(), 0, 0
    smooth: dict[str, float] = {}
    measured_at, saved_at = log.measured_at, progress.step

    with StopSignals() as signals:
        while (share := _share_done(training, progress)) < 1.0 and not signals.received:
            began = time.monotonic()
            factor = learning_rate_factor(training, progress.step, share)
            for group, peak in peak_rates:
                group["lr"] = peak * factor
            batch = next(batches)
            for network in networks.values():
                network.train()
            with _random_stream(training.seed, progress.step, learner.device):
                figures = learner.accumulate_gradients(batch, progress.step)
            norms = {
                name: nn.utils.clip_grad_norm_(network.parameters(), training.clip_norm or math.inf)
                for name, network in networks.items()
            }
            is_finite = all(map(math.isfinite, figures.values())) and all(bool(n.isfinite()) for n in norms.values())
            if is_finite:
                bad_steps = 0
                for each in optimizers.values():
                    for optimizer in each:
                        optimizer.step()
            else:  # the weights stay as they were
                bad_steps += 1
                said = {name: str(value) for name, value in figures.items()}
                log.write(
                    step=progress.step, event="not_finite", **said, gradient_norm=str(max(map(float, norms.values())))
                )
                if bad_steps == MAX_BAD_STEPS:
                    raise RasterformerError(
                        f"the loss was not finite in {MAX_BAD_STEPS} steps in a row, the last at step {progress.step}. "
                        f"Lower training.learning_rate = {training.learning_rate}, or train with training.precision = float32. "
                        f"The checkpoints in {run.folder / 'checkpoints'} are from before."
                    )
            for each in optimizers.values():
                for optimizer in each:
                    optimizer.zero_grad(set_to_none=True)
            if is_finite:
                figures |= learner.finish_step(progress.step)
            progress.step += 1
            if ema is not None:
                ema.update_(model, progress.step)
            progress.seconds += time.monotonic() - began
            session_steps += 1

            if is_finite:
                smooth |= {name: _smoothed(smooth.get(name), value) for name, value in figures.items()}
            rate = session_steps * training.batch_size / (time.monotonic() - session_start)
            if is_finite and progress.step % training.log_every == 0:
                log.write(
                    step=progress.step,
                    seconds=round(progress.seconds, 3),
                    **{f"train_{name}": round(value, 5) for name, value in smooth.items()},
                    learning_rate_factor=round(factor, 5),
                    **{_norm_name(name): round(float(norm), 4) for name, norm in norms.items()},
                )
            name, value = next(iter(smooth.items()), ("loss", math.nan))
            line.show(
                f"step {progress.step}  {value:.3f} {in_words(name)} (training)  {rate:.1f} images/s  "
                f"{duration(_seconds_left(training, progress))} left"
            )
            if _is_due(training.eval_every, progress.step):
                measured_at = progress.step
                _measure(run, ema, progress, log, say)
            if _is_due(training.sample_every, progress.step):
                _draw_samples(run, ema, progress.step)
            if _is_due(training.save_every, progress.step):
                saved_at = progress.step
                save(run.folder, learner, optimizers, ema, progress)

    line.close()
    if saved_at != progress.step or not progress.step:
        save(run.folder, learner, optimizers, ema, progress)
    if signals.received:
        say(
            f"stopped by {signals.received} at step {progress.step}; all is saved in {run.folder}. Go on with --resume."
        )
        return False
    model.load_state_dict(shipped_weights(run.folder, learner, ema))
    if measured_at != progress.step or not progress.step or training.average_checkpoints:
        _measure(run, None, progress, log, say)
    _draw_samples(run, None, progress.step)
    model.eval()
    learner.ship(run.folder / "model", progress.step)
    return True


def in_words(figure: str) -> str:
    """The name of a figure for people: `bits_per_dim` -> `bits/dim`."""
    return figure.removeprefix("held_out_").replace("_per_", "/").replace("_", " ")


def _peak_rates(optimizers: dict[str, list[torch.optim.Optimizer]]) -> list[tuple[dict[str, float], float]]:
    """Every group of weights and its peak learning rate, which a resumed optimiser remembers."""
    groups = [group for each in optimizers.values() for optimizer in each for group in optimizer.param_groups]
    return [(group, group.setdefault("initial_lr", group["lr"])) for group in groups]


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else 0.95 * before + 0.05 * value


def _norm_name(network: str) -> str:
    return "gradient_norm" if network == "model" else f"gradient_norm_{network}"


def _share_done(training: TrainingConfig, progress: Progress) -> float:
    by_time = 0.0 if training.minutes is None else progress.seconds / (60 * training.minutes)
    return max(progress.step / training.steps, by_time)


def _seconds_left(training: TrainingConfig, progress: Progress) -> float:
    share = _share_done(training, progress)
    return max(0.0, progress.seconds / share * (1 - share)) if share else math.inf


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


@contextlib.contextmanager
def _random_stream(seed: int, step: int, device: torch.device):  # type: ignore[no-untyped-def]
    """Dropout inside depends on seed and step only, so that a resumed run drops the same units."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", step))
        yield


def _averaged(run: Run, ema: ExponentialMovingAverage | None) -> nn.Module:
    """The model with its averaged weights, if there are any."""
    return (run.learner.networks["model"] if ema is None else ema.model).eval()


def _measure(
    run: Run, ema: ExponentialMovingAverage | None, progress: Progress, log: MetricsLog, say: Callable[[str], None]
) -> None:
    limit, there = run.training.eval_images, len(run.learner.held_out)
    count = there if limit is None else min(limit, there)
    figures = run.learner.measure(_averaged(run, ema), limit)
    rounded = {name: round(value, 5) for name, value in figures.items()}
    log.write(step=progress.step, seconds=round(progress.seconds, 3), **rounded, images=count)
    shown = {name: value for name, value in figures.items() if name.startswith("held_out_")}
    said = ", ".join(f"{value:.4f} {in_words(name)}" for name, value in shown.items())
    say(f"step {progress.step}, {duration(progress.seconds)}: {said} on {count} held-out images")


def _draw_samples(run: Run, ema: ExponentialMovingAverage | None, step: int) -> None:
    sheet = run.learner.sheet(_averaged(run, ema))
    recipe = run.learner.recipe
    metadata = {"recipe": recipe_hash(recipe), "step": step, "seed": recipe.training.seed, "kind": "samples"}
    write_png(run.folder / "samples" / f"step-{step:07d}.png", sheet, metadata=metadata)
