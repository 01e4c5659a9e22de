"""The training loop. Everything that decides a step is a function of the recipe and the step's number.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `samples/`, `checkpoints/step-N/`, and, when it has ended,
`model/` and `report.md`. What makes a checkpoint is in `state.py`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import training_batches
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.likelihood import num_dims
from rasterformer.image_to_image import source_sheet
from rasterformer.interfaces import Batch
from rasterformer.recipe import TrainingConfig
from rasterformer.recipe_file import recipe_hash
from rasterformer.system import System
from rasterformer.training.averages import ExponentialMovingAverage
from rasterformer.training.interrupt import StopSignals
from rasterformer.training.log import MetricsLog, ProgressLine, duration
from rasterformer.training.optim import learning_rate_factor, make_optimizers
from rasterformer.training.state import Progress, restore, save, shipped_weights

MAX_BAD_STEPS = 3  # in a row


@dataclass
class Run:
    """One training run: what is trained, on what, and where its files lie."""

    system: System
    train_set: ImageSet
    held_out: ImageSet
    folder: Path

    @property
    def training(self) -> TrainingConfig:
        return self.system.recipe.training


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
    training, model = run.training, run.system.model
    device = run.system.device
    optimizers = make_optimizers(model, training)
    ema = ExponentialMovingAverage(model, training.ema_decay) if training.ema_decay is not None else None
    progress = restore(run.folder, run.system, optimizers, ema, run.train_set) if resume else Progress()
    if progress.step:
        say(f"resumed at step {progress.step}, {duration(progress.seconds)} of training done")
    log = MetricsLog(run.folder / "metrics.jsonl", after_step=progress.step)
    line = ProgressLine()
    use_labels = run.system.recipe.data.use_labels
    batches = training_batches(
        run.train_set,
        batch_size=training.batch_size,
        seed=training.seed,
        start_step=progress.step,
        flip_prob=run.system.recipe.data.flip_prob,
        use_labels=use_labels,
    )
    peak_rates = [[group["initial_lr"] for group in optimizer.param_groups] for optimizer in _with_peaks(optimizers)]
    session_start, session_images, bad_steps, smooth = time.monotonic(), 0, 0, math.nan
    measured_at = saved_at = progress.step

    with StopSignals() as signals:
        while (share := _share_done(training, progress)) < 1.0 and not signals.received:
            began = time.monotonic()
            factor = learning_rate_factor(training, progress.step, share)
            for optimizer, peaks in zip(optimizers, peak_rates, strict=True):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
            batch = run.system.with_source(
                next(batches), first=progress.step * training.batch_size, purpose="training source", seed=training.seed
            )
            model.train()
            with _dropout_stream(training.seed, progress.step, device):
                bits = accumulate_gradients(run.system, batch)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm or math.inf)
            is_finite = math.isfinite(bits) and bool(norm.isfinite())
            if is_finite:
                bad_steps = 0
                for optimizer in optimizers:
                    optimizer.step()
            else:  # the weights stay as they were
                bad_steps += 1
                log.write(
                    step=progress.step, event="not_finite", bits_per_dim=str(bits), gradient_norm=str(float(norm))
                )
                if bad_steps == MAX_BAD_STEPS:
                    raise RasterformerError(
                        f"the loss was not finite in {MAX_BAD_STEPS} steps in a row, the last at step {progress.step}. "
                        f"Lower training.learning_rate = {training.learning_rate}, or train with training.precision = float32. "
                        f"The checkpoints in {run.folder / 'checkpoints'} are from before."
                    )
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            if ema is not None:
                ema.update_(model, progress.step)
            progress.seconds += time.monotonic() - began
            session_images += len(batch.images)

            if is_finite:
                smooth = bits if math.isnan(smooth) else 0.95 * smooth + 0.05 * bits
            rate = session_images / (time.monotonic() - session_start)
            if is_finite and progress.step % training.log_every == 0:
                log.write(
                    step=progress.step,
                    seconds=round(progress.seconds, 3),
                    train_bits_per_dim=round(smooth, 5),
                    learning_rate_factor=round(factor, 5),
                    gradient_norm=round(float(norm), 4),
                )
            line.show(
                f"step {progress.step}  {smooth:.3f} bits/dim (training)  {rate:.1f} images/s  "
                f"{duration(_seconds_left(training, progress))} left"
            )
            if _is_due(training.eval_every, progress.step):
                measured_at = progress.step
                _measure(run, ema, progress, log, say)
            if _is_due(training.sample_every, progress.step):
                _draw_samples(run, ema, progress.step)
            if _is_due(training.save_every, progress.step):
                saved_at = progress.step
                save(run.folder, run.system, optimizers, ema, run.train_set, progress)

    line.close()
    if saved_at != progress.step or not progress.step:
        save(run.folder, run.system, optimizers, ema, run.train_set, progress)
    if signals.received:
        say(
            f"stopped by {signals.received} at step {progress.step}; all is saved in {run.folder}. Go on with --resume."
        )
        return False
    shipped = shipped_weights(run.folder, run.system, ema)
    model.load_state_dict(shipped)
    if measured_at != progress.step or not progress.step or training.average_checkpoints:
        _measure(run, None, progress, log, say)
    _draw_samples(run, None, progress.step)
    run.system.steps = progress.step
    model.eval()
    run.system.save(run.folder / "model")
    return True


def accumulate_gradients(system: System, batch: Batch) -> float:
    """Adds the gradients of a batch, part by part; returns its bits/dim."""
    training, device = system.recipe.training, system.device
    size = len(batch.images) // training.accumulation_steps
    all_dims, nats = int(num_dims(batch).sum()), 0.0
    for first in range(0, len(batch.images), size):
        rows = slice(first, first + size)
        x, cond = system.codec.encode(batch.images[rows]).to(device), batch.cond.rows(rows).to(device)
        with autocast(training, device):
            loss = system.model.loss(x, cond, rng=None)
        (loss.total * (loss.dims.sum() / all_dims)).backward()  # a part counts by its dimensions
        nats += float(loss.nats.sum())
    return nats / all_dims / math.log(2)


def autocast(training: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the recipe wants it and, with `auto`, where the hardware has matrix units for it."""
    wanted = training.precision == "bfloat16" or (training.precision == "auto" and has_bfloat16_units(device))
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware: AMX or AVX-512 BF16 on a processor, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def held_out_bits_per_dim(system: System, images: ImageSet, limit: int | None, *, batch_size: int = 32) -> float:
    """Exact bits/dim of the first `limit` held-out images, in float32."""
    count = len(images) if limit is None else min(limit, len(images))
    nats, dims = [], []
    for index in torch.arange(count).split(batch_size):
        batch = images.batch(index, use_labels=system.recipe.data.use_labels)
        batch = system.with_source(batch, first=int(index[0]), purpose="held-out source", seed=0)
        nats.append(system.symbol_nats(batch.images, batch.cond).double().sum((1, 2, 3)))
        dims.append(num_dims(batch))
    return float(torch.cat(nats).sum() / torch.cat(dims).sum() / math.log(2))


def _with_peaks(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
    return optimizers


def _share_done(training: TrainingConfig, progress: Progress) -> float:
    by_time = 0.0 if training.minutes is None else progress.seconds / (60 * training.minutes)
    return max(progress.step / training.steps, by_time)


def _seconds_left(training: TrainingConfig, progress: Progress) -> float:
    share = _share_done(training, progress)
    return max(0.0, progress.seconds / share * (1 - share)) if share else math.inf


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


@contextlib.contextmanager
def _dropout_stream(seed: int, step: int, device: torch.device):  # type: ignore[no-untyped-def]
    """Random numbers inside depend on seed and step only, so that a resumed run drops the same units."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", step))
        yield


def _averaged(run: Run, ema: ExponentialMovingAverage | None) -> System:
    """The system with its averaged weights, if there are any."""
    model = run.system.model if ema is None else ema.model
    model.eval()
    return replace(run.system, model=model)  # type: ignore[arg-type]


def _measure(
    run: Run, ema: ExponentialMovingAverage | None, progress: Progress, log: MetricsLog, say: Callable[[str], None]
) -> None:
    limit = run.training.eval_images
    bits = held_out_bits_per_dim(_averaged(run, ema), run.held_out, limit)
    count = len(run.held_out) if limit is None else min(limit, len(run.held_out))
    log.write(
        step=progress.step, seconds=round(progress.seconds, 3), held_out_bits_per_dim=round(bits, 5), images=count
    )
    say(f"step {progress.step}, {duration(progress.seconds)}: {bits:.4f} bits/dim on {count} held-out images")


def _draw_samples(run: Run, ema: ExponentialMovingAverage | None, step: int) -> None:
    system, seed = _averaged(run, ema), run.training.seed
    if run.system.recipe.task is None:
        sheet = image_grid(system.sample(16, seed=seed, as_tensor=True), scale=3)
    else:
        batch = run.held_out.batch(
            torch.arange(min(8, len(run.held_out))), use_labels=run.system.recipe.data.use_labels
        )
        batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
        samples = system.draw_from(batch.cond, n=3, seed=seed)
        sheet = source_sheet(batch, samples, scale=3)
    metadata = {"recipe": recipe_hash(run.system.recipe), "step": step, "seed": seed, "kind": "samples"}
    write_png(run.folder / "samples" / f"step-{step:07d}.png", sheet, metadata=metadata)
