"""The forward process of VQ-Diffusion, mask and replace (Gu et al. 2022, section 4.1), and its exact reverse.

Level 0 is the image's codes, level T nothing or next to nothing of them. No network is here: it enters as log p(x_0 | x_t).
Read `bound.py` next, which adds the levels up to a likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError, did_you_mean

Schedule = Literal["paper", "release", "linear", "cosine"]
SCHEDULES = ("paper", "release", "linear", "cosine")
NEGLIGIBLE = 1e-5  # of all tokens: a process that replaces no more than this is said to mask only
ROUNDING = 1e-12  # of sums of float64 numbers near 1


class DiscreteProcess:
    """Codes 0..K-1 are kept, replaced by a uniform code, or turned into the mask, which stays (Gu et al. 2022, section 4.1).

    Cumulative from level 0 to level t: q(x_t | x_0) = abar_t [x_t = x_0] + bbar_t at a code, cbar_t at the mask, with
    abar_t + K bbar_t + cbar_t = 1. All T + 1 levels are tables in float64.

    Args:
        num_codes: K.
        keep: abar, float64 [T + 1]; starts at 1, never rises, above 0 below level T.
        mask: cbar, float64 [T + 1]; starts at 0, never falls, below 1 below level T.
        continuous: of a process that only masks: time u in (0, 1], float64 [B] -> (masked fraction m(u), m'(u) / m(u)).

    Attributes:
        num_codes: K.
        num_steps: T.
        mask_index: K, the symbol of the mask.
        masks_only: no level replaces more than 1e-5 of the tokens.
        replaces: some level replaces some tokens.
        keep, mask, replace: abar, cbar and bbar, float64 [T + 1].

    Raises:
        ConfigError: tables of another form, or no steps between their levels that are probabilities.
    """

    def __init__(
        self,
        num_codes: int,
        keep: Tensor,
        mask: Tensor,
        *,
        continuous: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        _check_tables(num_codes, keep, mask)
        replaced = 1 - keep - mask  # K bbar
        replaced = torch.where(replaced < ROUNDING, 0.0, replaced)
        self.num_codes = self.mask_index = num_codes
        self.num_steps = len(keep) - 1
        self.keep = keep
        self.mask = mask
        self.replace = replaced / num_codes
        self.masks_only = bool((replaced <= NEGLIGIBLE).all())
        self.replaces = bool((replaced > 0).any())
        self._continuous = continuous

    def between(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The transition q(x_t | x_s) over any number of steps.

        With a, b, c for abar_t / abar_s, (1 - a - c) / K and 1 - (1 - cbar_t) / (1 - cbar_s): a code stays with
        probability a + b, becomes each other code with b and the mask with c. t = s + 1 is the paper's one step.

        Args:
            s, t: int64 [B], 0 <= s < t <= T.

        Returns:
            a, b, c: float64 [B].

        Raises:
            ConfigError: levels that are not in this order and range.
        """
        if not bool(((s >= 0) & (s < t) & (t <= self.num_steps)).all()):
            raise ConfigError(
                f"s = {s.tolist()} and t = {t.tolist()} are no levels of a step. "
                f"Pass 0 <= s < t <= {self.num_steps} for every image."
            )
        keep_s, mask_s, replace_s = self._at(s)
        keep_t, mask_t, replace_t = self._at(t)
        unmasked_s = keep_s + self.num_codes * replace_s
        b = (replace_t * keep_s - replace_s * keep_t) / (unmasked_s * keep_s)  # without the rounding of 1 - a - c
        return keep_t / keep_s, b.clamp_min(0), (mask_t - mask_s) / unmasked_s

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draws x_t from q(x_t | x_0), a function of the noise.

        Args:
            x: x_0, int64 [B, L].
            t: int64 [B], 0..T.
            noise: float [B, L, 2], uniform in [0, 1): what becomes of a token, and the code that replaces it.

        Returns:
            int64 [B, L]. The same noise at a higher level masks the same tokens and more.

        Raises:
            ShapeError: noise of another shape.
        """
        if noise.shape != (*x.shape, 2):
            raise ShapeError(f"noise has shape {list(noise.shape)}; expected {[*x.shape, 2]} for x {list(x.shape)}.")
        keep, mask, _ = (part[:, None] for part in self._at(t))  # [B, 1]
        fate, code = noise.double().unbind(-1)
        x = torch.where(fate < keep, x, (code * self.num_codes).long())
        return torch.where(fate < 1 - mask, x, self.mask_index)

    def posterior(self, log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """log p(x_s | x_t) = log sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), for any s < t, in O(K).

        q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0). With w(x_0) = p(x_0 | x_t) / q(x_t | x_0)
        and its sum W, p(x_s = j | x_t) is q(x_t | j) (abar_s w(j) + bbar_s W) at a code, and q(x_t | mask) cbar_s W at the
        mask. An unmasked token at a level where nothing is replaced is x_0 itself: it stays, whatever log_x0 says.

        Args:
            log_x0: float32 or float64 [B, L, K], log p(x_0 | x_t) up to a constant of each position; -inf where a code was
                cut off.
            x_t: int64 [B, L], codes and masks that can occur at level t.
            t, s: int64 [B], 0 <= s < t <= T.

        Returns:
            log-probabilities [B, L, K + 1] of the dtype of log_x0; the mask is last. At s = 0, log p(x_0 | x_t).

        Raises:
            ShapeError: log_x0 has another shape.
            ConfigError: levels that are not in this order and range.
        """
        if log_x0.shape != (*x_t.shape, self.num_codes):
            raise ShapeError(
                f"log_x0 has shape {list(log_x0.shape)}; expected {[*x_t.shape, self.num_codes]} for x_t "
                f"{list(x_t.shape)} and {self.num_codes} codes."
            )

        def log(prob: Tensor) -> Tensor:  # [B] -> [B, 1, 1]
            return prob.log().to(log_x0.dtype)[:, None, None]

        a, b, c = self.between(s, t)
        keep_s, mask_s, replace_s = self._at(s)
        keep_t, _, replace_t = self._at(t)
        masked = (x_t == self.mask_index)[..., None]  # [B, L, 1]
        certain = ~masked & (replace_t == 0)[:, None, None]  # [B, L, 1]
        here = x_t[..., None].where(~masked, 0)  # [B, L, 1], the one code that is treated apart

        # q(x_t | x_0) is bbar_t but at x_0 = x_t, and at a mask the same everywhere: what all have in common drops out.
        ahead = torch.where(masked | certain, 0.0, log(replace_t / (keep_t + replace_t)))
        log_w = log_x0.scatter_add(-1, here, ahead)  # [B, L, K]
        log_sum = log_w.logsumexp(-1, keepdim=True)  # [B, L, 1]
        pushed = torch.logaddexp(log_w, log(replace_s / keep_s) + log_sum)  # abar_s w + bbar_s W, over abar_s
        stay = torch.where(masked, log(c * keep_s), 0.0)  # q(x_t | j) at `here` and elsewhere; of a code, over a + b
        leave = torch.where(masked, stay, torch.where(certain, -torch.inf, log(b / (a + b))))
        log_here = torch.where(certain, 0.0, pushed.gather(-1, here) + stay)
        codes = (pushed + leave).scatter(-1, here, log_here)
        log_p = torch.cat([codes, torch.where(masked, log(mask_s) + log_sum, -torch.inf)], -1)
        return log_p - log_p.logsumexp(-1, keepdim=True)

    def true_posterior(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """log q(x_s | x_t, x_0) = log q(x_t | x_s) + log q(x_s | x_0) - log q(x_t | x_0), for any s < t.

        Args:
            x0: int64 [B, L], codes.
            x_t: int64 [B, L], codes and masks that can come of x0 at level t.
            t, s: int64 [B], 0 <= s < t <= T.
            dtype: of the result.

        Returns:
            log-probabilities [B, L, K + 1]; the mask is last.
        """
        is_x0 = torch.arange(self.num_codes, device=x0.device) == x0[..., None]  # [B, L, K]
        return self.posterior(torch.where(is_x0, 0.0, -torch.inf).to(dtype), x_t, t, s)

    def log_prior(self) -> Tensor:
        """log p(x_T), float64 [K + 1]: cbar_T at the mask, the rest shared by all codes."""
        mask = self.mask[-1]
        return torch.cat([((1 - mask) / self.num_codes).expand(self.num_codes), mask[None]]).log()

    def prior_nats(self) -> float:
        """KL(q(x_T | x_0) || p(x_T)) of one code in nats, the same for every x_0 (the bound's term L_T)."""
        keep, replace = float(self.keep[-1]), float(self.replace[-1])
        code = (1 - float(self.mask[-1])) / self.num_codes
        same = (keep + replace) * math.log((keep + replace) / code) if keep + replace > 0 else 0.0
        other = replace * math.log(replace / code) if replace > 0 else 0.0
        return same + (self.num_codes - 1) * other

    def step_nats(self, log_x0: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), at s = 0 the same as -log p(x_0 | x_t).

        Args:
            log_x0: float32 or float64 [B, L, K], log p(x_0 | x_t).
            x0: int64 [B, L], codes.
            x_t: int64 [B, L], codes and masks that came of x0 at level t.
            t, s: int64 [B], 0 <= s < t <= T.

        Returns:
            nats of each code, of the dtype of log_x0 [B, L].
        """
        if (
            not self.replaces
        ):  # a mask is lifted with the same probability by both, and then is x_0 or what the network says
            masked_s, masked_t = self.mask.to(t.device)[s], self.mask.to(t.device)[t]
            return self.masked_nats(log_x0, x0, x_t, 1 - masked_s / masked_t)
        log_p = self.posterior(log_x0, x_t, t, s)
        a, b, c = (part[:, None] for part in self.between(s, t))  # [B, 1]
        keep_s, mask_s, replace_s = (part[:, None] for part in self._at(s))
        keep_t, mask_t, replace_t = (part[:, None] for part in self._at(t))
        masked, same = x_t == self.mask_index, x_t == x0  # [B, L]

        # The true posterior is one number for all codes but x_0 and x_t: q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0).
        evidence = torch.where(masked, mask_t, torch.where(same, keep_t + replace_t, replace_t))
        to_x_t = torch.where(masked, c, b)
        q_x0 = torch.where(same, a + b, to_x_t) * (keep_s + replace_s) / evidence
        q_x_t = torch.where(masked | same, 0.0, (a + b) * replace_s / evidence)
        q_other = to_x_t * replace_s / evidence
        q_mask = torch.where(masked, mask_s / evidence, 0.0)

        def divergence(q: Tensor, log_p: Tensor) -> Tensor:
            q = q.to(log_p.dtype)
            return torch.where(q > 0, q * (q.log() - log_p), 0.0)

        at_x0 = log_p.gather(-1, x0[..., None])[..., 0]
        at_x_t = log_p.gather(-1, x_t[..., None])[..., 0]
        apart = masked | same  # x_t is the mask, or counted as x_0
        num_others = self.num_codes - 1 - (~apart).long()
        mean_other = (log_p[..., :-1].sum(-1) - at_x0 - at_x_t.masked_fill(apart, 0)) / num_others.clamp_min(1)
        nats = divergence(q_x0, at_x0) + divergence(q_x_t, at_x_t) + divergence(q_mask, log_p[..., -1])
        return nats + num_others * divergence(q_other, mean_other)

    def masked_at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The masked fraction m(u) and the weight m'(u) / m(u) of a process that only masks, at a time and not a level.

        In the limit of many steps the bound is the mean over u, uniform in (0, 1], of m'(u) / m(u) times the sum over
        masked tokens of -log p(x_0 | x_u) (Sahoo et al. 2024, MDLM; Shi et al. 2024, MD4). A network is told
        the level u T.

        Args:
            u: float [B], in (0, 1].

        Returns:
            fraction and weight, float64 [B].

        Raises:
            ConfigError: the process is neither `linear` nor `cosine`, or a time is out of range.
        """
        if self._continuous is None:
            raise ConfigError("This process has levels and no time between them. Use the schedule linear or cosine.")
        if not bool(((u > 0) & (u <= 1)).all()):
            raise ConfigError(f"u = {u.tolist()} leaves (0, 1]. Pass times above 0 and up to 1.")
        return self._continuous(u.double())

    def diffuse_masked(self, x: Tensor, fraction: Tensor, noise: Tensor) -> Tensor:
        """Masks each token with probability `fraction`, as `diffuse` does of a process that only masks.

        Args:
            x: x_0, int64 [B, L].
            fraction: float [B], of `masked_at`.
            noise: float [B, L], uniform in [0, 1).

        Returns:
            int64 [B, L].

        Raises:
            ShapeError: noise of another shape.
        """
        if noise.shape != x.shape:
            raise ShapeError(f"noise has shape {list(noise.shape)}; expected {list(x.shape)}, that of x.")
        return torch.where(noise.double() < 1 - fraction.double()[:, None], x, self.mask_index)

    def masked_nats(self, log_x0: Tensor, x0: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        """weight times -log p(x_0 | x_t) at masked tokens, 0 elsewhere: its mean over times is the bound of `masked_at`.

        With the weight 1 - cbar_s / cbar_t it is the divergence of a step (`step_nats`) where nothing is replaced.

        Args:
            log_x0: float32 or float64 [B, L, K], log p(x_0 | x_t).
            x0: int64 [B, L].
            x_t: int64 [B, L].
            weight: float [B].

        Returns:
            nats of each code, of the dtype of log_x0 [B, L].
        """
        nats = -log_x0.gather(-1, x0[..., None])[..., 0] * weight.to(log_x0.dtype)[:, None]
        return torch.where(x_t == self.mask_index, nats, 0.0)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """abar_t, cbar_t and bbar_t of levels int64 [B], on their device."""
        keep, mask, replace = torch.stack([self.keep, self.mask, self.replace]).to(t.device)[:, t]
        return keep, mask, replace


def make_process(schedule: Schedule, num_codes: int, num_steps: int) -> DiscreteProcess:
    """The process of a named schedule.

    - `paper`: cbar from 0 to 0.9 and K bbar from 0 to 0.1, linear in t (the paper). At level T nothing is left of x_0.
    - `release`: the authors' published code: abar from 0.99999 at level 1 to 9e-6 at level T, cbar the other way round, both
      linear in t; a millionth is replaced.
    - `linear`: only masks, cbar_t = t / T.
    - `cosine`: only masks, cbar_t = cos(pi / 2 (1 - t / T)), the schedule of Chang et al. 2022 (MaskGIT).

    Args:
        schedule: its name.
        num_codes: K, at least 1.
        num_steps: T, at least 2.

    Raises:
        ConfigError: an unknown schedule, or sizes out of range.
    """
    if num_steps < 2:
        raise ConfigError(f"num_steps = {num_steps} is too few. Use at least 2.")
    if schedule == "paper":
        return process_of(lambda u: 1 - u, lambda u: 0.9 * u, num_codes, num_steps)
    if schedule == "release":
        rising = torch.linspace(9e-6, 0.99999, num_steps, dtype=torch.float64)
        ends = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        return DiscreteProcess(num_codes, torch.cat([ends[0], rising.flip(0)]), torch.cat([ends[1], rising]))
    if schedule in ("linear", "cosine"):
        continuous = _linear if schedule == "linear" else _cosine
        mask = continuous(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)[0]
        mask[0] = 0.0  # the cosine of pi / 2 is 6e-17
        return DiscreteProcess(num_codes, 1 - mask, mask, continuous=continuous)
    raise ConfigError(f"schedule = {schedule!r} is unknown.{did_you_mean(schedule, SCHEDULES)}")


def process_of(
    keep: Callable[[float], float], mask: Callable[[float], float], num_codes: int, num_steps: int
) -> DiscreteProcess:
    """The process of any schedule, given by functions of t / T.

    Args:
        keep: abar, 1 at 0.
        mask: cbar, 0 at 0.
        num_codes: K.
        num_steps: T.

    Raises:
        ConfigError: the functions describe no process.
    """
    times = [t / num_steps for t in range(num_steps + 1)]
    tables = [torch.tensor([of(time) for time in times], dtype=torch.float64) for of in (keep, mask)]
    return DiscreteProcess(num_codes, tables[0], tables[1])


def _linear(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.clone(), 1 / u


def _cosine(u: Tensor) -> tuple[Tensor, Tensor]:
    angle = math.pi / 2 * (1 - u)
    return angle.cos(), math.pi / 2 * angle.tan()


def _check_tables(num_codes: int, keep: Tensor, mask: Tensor) -> None:
    if num_codes < 1:
        raise ConfigError(f"num_codes = {num_codes} is too few. Use at least 1.")
    shapes_fit = keep.dim() == 1 and keep.shape == mask.shape and len(keep) >= 2
    if not shapes_fit or keep.dtype != torch.float64 or mask.dtype != torch.float64:
        raise ConfigError(
            f"keep is {keep.dtype} {list(keep.shape)} and mask {mask.dtype} {list(mask.shape)}. "
            "Pass two float64 tables of T + 1 levels, T at least 1."
        )
    if float(keep[0]) != 1 or float(mask[0]) != 0:
        raise ConfigError(
            f"keep[0] = {float(keep[0])} and mask[0] = {float(mask[0])}. At level 0 they must be 1 and 0."
        )
    inside = keep[:-1].min() > 0 and keep[-1] >= 0 and mask[:-1].max() < 1 and keep.add(mask).max() <= 1 + ROUNDING
    if not bool(inside):
        raise ConfigError(
            f"keep = {keep.tolist()} and mask = {mask.tolist()} leave their range. keep must be above 0 and mask below 1 "
            "before the last level, and their sum at most 1."
        )
    unmasked = 1 - mask
    falls = (keep[1:] * unmasked[:-1] <= keep[:-1] * unmasked[1:] + ROUNDING).all()
    if not bool(falls & (mask.diff() >= 0).all()):
        raise ConfigError(
            f"keep = {keep.tolist()} and mask = {mask.tolist()} give a step that is no probability. mask must never fall, "
            "and keep / (1 - mask), what is kept of the unmasked, never rise."
        )
