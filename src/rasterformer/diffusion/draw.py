"""Drawing codes from a diffusion model: from the noise of the last level to codes, in any number of steps.

`posterior` goes down the reverse chain of the process, in exact strides; the other orders reveal masked codes (`reveal.py`).
Known codes are put back after every step, so that the network always sees them as they are. Each random choice is a race
of exponential clocks (`distributions/pmf.py`) from the image's own generator: image k does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import exponential
from rasterformer.conditioning.guidance import combine, with_and_without
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.options import DiffusionOptions, check_diffusion_options, diffusion_options
from rasterformer.diffusion.reveal import masked_after, nearest_level, rank_of, reveal, sharpen
from rasterformer.distributions.pmf import race, truncate
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known, OnStep, SampleOptions


def levels_of(num_steps: int, steps: int) -> list[int]:
    """Returns T = l_0 > l_1 > ... > l_n = 0, as evenly as whole levels allow; `num_steps` is T, `steps` is n, 1..T."""
    assert 1 <= steps <= num_steps, f"{steps} steps do not divide {num_steps} levels"
    return [(2 * num_steps * (steps - k) + steps) // (2 * steps) for k in range(steps + 1)]


def predict(model: CodeDenoiser, x_t: Tensor, t: Tensor, cond: Cond, options: DiffusionOptions) -> Tensor:
    """Returns log p(x_0 | x_t) [B, L, K] under guidance, temperature and truncation.

    Codes that truncation drops are -inf, and the others stay as they were: neither the posterior nor a race minds the sum.
    Purity and confidence are thus probabilities under guidance and temperature, before truncation.

    Args:
        model: one pass of B images, of 2 B with guidance.
        x_t: int64 [B, L], codes and masks.
        t: int64 [B], levels.
        cond: of the B images.
        options: `guidance_scale`, then `temperature`, then `top_k` and `top_p`.

    Raises:
        ConfigError: guidance without a condition.
    """
    if options.guidance_scale == 1:
        logits = model(x_t, t, cond)
    else:
        both = model(torch.cat([x_t, x_t]), torch.cat([t, t]), with_and_without(cond, len(x_t)))
        logits = combine(both.log_softmax(-1), options.guidance_scale)
    log_x0: Tensor = (logits / options.temperature).log_softmax(-1)
    top_p = None if options.top_p is None or options.top_p >= 1 else options.top_p
    if options.top_k is None and top_p is None:
        return log_x0
    return log_x0.masked_fill(truncate(log_x0.exp(), replace(options, top_p=top_p)) == 0, -torch.inf)


@torch.inference_mode()
def draw_codes(
    model: CodeDenoiser,
    cond: Cond,
    batch_size: int,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    start: tuple[Tensor, int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws the codes of images, keeping what is known.

    Args:
        model: at most one pass of `forward` per step: images in which a step decides nothing are left out of it.
        cond: of every image of the batch.
        batch_size: B.
        options: `DiffusionOptions`, or plain ones for their defaults. Steps are from level T to 0.
        rng: B generators, on the CPU. An image whose codes are all known takes nothing from its own.
        known: codes that stay. The network is shown them as they are at every step.
        start: codes int64 [B, L, 1] and a level 0..T: begin from a draw of q(x_level | codes) in place of the process's prior,
            for variations, and take the steps below that level. Level 0 returns the codes, level T forgets them as far as the
            process does.
        on_step: told (codes done, B * L) after each step, as if all steps did the same number.

    Returns:
        int64 [B, L, 1].

    Raises:
        ShapeError: not one generator per image; known or start of another shape or dtype.
        ConfigError: options that describe no way to draw; codes that are none of the model's; a level out of range; guidance
            without a condition.
    """
    chosen = diffusion_options(options)
    check_diffusion_options(chosen, model.process)
    _check(model, batch_size, rng=rng, known=known, start=start)
    device = next(model.parameters()).device
    shape = batch_size, model.x_shape[0]
    x = torch.zeros(shape, dtype=torch.int64, device=device) if start is None else start[0][..., 0].to(device).clone()
    where = torch.zeros(shape, dtype=torch.bool, device=device)
    if known is not None:
        where = known.where.to(device)
        x = torch.where(where, known.x[..., 0].to(device), x)
    level = model.process.num_steps if start is None else start[1]
    index = (~where).any(1).nonzero()[:, 0].cpu()
    if level > 0 and len(index):
        part = _Part(model, cond, chosen, list(rng), x, where).rows(index)
        x_t = part.noise() if start is None else part.diffused(level)
        chain = _posterior if chosen.order == "posterior" else _reveal
        x[index] = chain(part, x_t, level, _counter(on_step, *shape))
    return x[..., None]


@dataclass(frozen=True)
class _Part:
    """Some images of a batch, b of them.

    Args:
        x: int64 [b, L], what is known, or begun from.
        known: bool [b, L].
    """

    model: CodeDenoiser
    cond: Cond
    options: DiffusionOptions
    rng: list[torch.Generator]
    x: Tensor
    known: Tensor

    def rows(self, index: Tensor) -> _Part:
        rng = [self.rng[image] for image in index.tolist()]
        return replace(self, cond=self.cond.rows(index), rng=rng, x=self.x[index], known=self.known[index])

    def levels(self, level: int) -> Tensor:
        return torch.full((len(self.x),), level, device=self.x.device)

    def keep(self, drawn: Tensor) -> Tensor:
        """int64 [b, L] -> the same with what is known."""
        return torch.where(self.known, self.x, drawn)

    def clocks(self) -> Tensor:
        """Standard exponential numbers [b, L, K + 1], the noise of one step."""
        return exponential(self.rng, (self.x.shape[1], self.model.process.num_codes + 1), self.x.device)

    def noise(self) -> Tensor:
        """A draw of p(x_T), int64 [b, L]; for the orders that reveal masks nothing but masks, which it all but is."""
        process = self.model.process
        if self.options.order != "posterior":
            return self.keep(torch.full_like(self.x, process.mask_index))
        return self.keep(race(process.log_prior().exp().to(self.x.device), self.clocks()))

    def diffused(self, level: int) -> Tensor:
        """A draw of q(x_level | x), int64 [b, L]."""
        shape = self.x.shape[1], 2
        noise = torch.stack([torch.rand(shape, dtype=torch.float64, generator=generator) for generator in self.rng])
        return self.keep(self.model.process.diffuse(self.x, self.levels(level), noise.to(self.x.device)))

    def told(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The level the network is told, int64 [b]: t, or the one of as many masks, for an image of which something is known.

        Known codes are at odds with t: at level T there are none in training. Of a process of nothing but masks, the true
        p(x_0 | x_t) is the same at all levels.
        """
        process = self.model.process
        if not process.masks_only:
            return t
        return torch.where(self.known.any(1), nearest_level(process, x_t), t)

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        return predict(self.model, x_t, t, self.cond, self.options)

    def sharpened(self, x_t: Tensor, level: int) -> Tensor:
        """log p(x_0 | x_t) [b, L, K] at a level of the reverse chain, sharpened."""
        return sharpen(self.predict(x_t, self.told(x_t, self.levels(level))), self.options.purity_weight)


def _posterior(part: _Part, x_t: Tensor, level: int, on_step: Callable[[float], None]) -> Tensor:
    """x_t -> x_s ~ sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), from level to level, each code by itself."""
    process, options = part.model.process, part.options
    below = [s for s in levels_of(process.num_steps, options.steps or process.num_steps) if s < level]
    for k, s in enumerate(below):
        if process.replaces:
            log_x0 = part.sharpened(x_t, level)
            p_s = process.posterior(log_x0, x_t, part.levels(level), part.levels(s)).exp()
            x_t = part.keep(race(p_s, part.clocks()))
        else:
            x_t = _unmasked(part, x_t, level, s)
        level = s
        on_step((k + 1) / len(below))
    return x_t


def _unmasked(part: _Part, x_t: Tensor, level: int, s: int) -> Tensor:
    """The same draw where nothing is ever replaced: a mask stays one with the same probability everywhere, whatever is predicted.

    So it is drawn first which masks are revealed. What they become is a draw of p(x_0 | x_t): only they need noise, and only
    images that have some need the network.
    """
    process, length = part.model.process, part.x.shape[1]
    fate = torch.stack([torch.rand(length, dtype=torch.float64, generator=generator) for generator in part.rng])
    stays_masked = float(process.mask[s] / process.mask[level])
    revealed = (x_t == process.mask_index) & (fate.to(x_t.device) >= stays_masked)  # [b, L]
    index = revealed.any(1).nonzero()[:, 0].cpu()
    if not len(index):
        return x_t
    some, x, now = part.rows(index), x_t[index], revealed[index]
    counts = now.sum(1).tolist()
    clocks = [
        exponential([one], (count, process.num_codes), x.device)[0] for one, count in zip(some.rng, counts, strict=True)
    ]
    drawn = race(some.sharpened(x, level)[now].exp(), torch.cat(clocks))
    return x_t.index_copy(0, index.to(x_t.device), x.masked_scatter(now, drawn))


def _reveal(part: _Part, x_t: Tensor, level: int, on_step: Callable[[float], None]) -> Tensor:
    """Replaces as many masks per step as `masked_after` says by draws of p(x_0 | x_t), and leaves what is no mask."""
    process, options = part.model.process, part.options
    is_mask = x_t == process.mask_index
    unknown = (~part.known).sum(1)
    steps = options.steps or process.num_steps
    plan = masked_after(process, is_mask.sum(1), unknown, steps=steps, level=level)
    for k, after in enumerate(plan):
        index = is_mask.any(1).nonzero()[:, 0].cpu()  # the other images are done, and take no more noise
        rest, x = part.rows(index), x_t[index]
        log_x0 = rest.predict(x, nearest_level(process, x))
        clocks = rest.clocks()
        drawn = race(sharpen(log_x0, options.purity_weight).exp(), clocks[..., :-1])
        rank = rank_of(options.order, log_x0, drawn, clocks[..., -1])
        x_t[index] = reveal(x, drawn, rank, is_mask[index], count=is_mask[index].sum(1) - after[index])
        is_mask = x_t == process.mask_index
        on_step((k + 1) / len(plan))
    return x_t


def _counter(on_step: OnStep | None, batch_size: int, length: int) -> Callable[[float], None]:
    """The share of steps done -> codes done."""
    return lambda share: None if on_step is None else on_step(round(length * share) * batch_size, length * batch_size)


def _check(
    model: CodeDenoiser,
    batch_size: int,
    *,
    rng: Sequence[torch.Generator],
    known: Known | None,
    start: tuple[Tensor, int] | None,
) -> None:
    length, top, num_codes = model.x_shape[0], model.process.num_steps, model.process.num_codes
    if len(rng) != batch_size:
        raise ShapeError(f"rng has {len(rng)} generators for batch_size = {batch_size}. Pass one per image.")
    if known is not None:
        if (
            known.x.shape != (batch_size, length, 1)
            or known.where.shape != (batch_size, length)
            or known.where.dtype != torch.bool
        ):
            raise ShapeError(
                f"known has x {list(known.x.shape)} and where {known.where.dtype} {list(known.where.shape)}; expected "
                f"{[batch_size, length, 1]} and torch.bool {[batch_size, length]}."
            )
        _check_codes("known", known.x[known.where], num_codes)
    if start is not None:
        codes, level = start
        if codes.shape != (batch_size, length, 1) or codes.dtype != torch.int64:
            raise ShapeError(
                f"start has codes {codes.dtype} {list(codes.shape)}; expected torch.int64 {[batch_size, length, 1]}."
            )
        if not 0 <= level <= top:
            raise ConfigError(f"start has level {level}; the levels of the process are 0..{top}.")
        _check_codes("start", codes, num_codes)


def _check_codes(name: str, codes: Tensor, num_codes: int) -> None:
    for code in codes[(codes < 0) | (codes >= num_codes)][:1].tolist():
        raise ConfigError(f"{name} has the code {code}; those of the model are 0..{num_codes - 1}.")
