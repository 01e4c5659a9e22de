"""Mask and replace against dense matrices: products of one-step matrices, Bayes by enumeration, published values."""

import math
from functools import cache

import pytest
import scipy.stats
import torch
from torch import Tensor

from rasterformer.diffusion.discrete import DiscreteProcess, make_process, process_of
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
ROUNDING = 1e-9  # of the references: `release` has b near 1e-6, which they compute as 1 - a - c


def table(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


PROCESSES = {
    "paper": make_process("paper", 3, 4),
    "release": make_process("release", 3, 4),
    "linear": make_process("linear", 4, 4),
    "cosine": make_process("cosine", 2, 5),
    "only replaces": process_of(lambda u: (1 - u) ** 2, lambda u: 0.0, 4, 4),
    # one step masks only, one replaces only, one does nothing, the last one forgets everything
    "by turns": DiscreteProcess(3, table(1, 0.75, 0.6, 0.6, 0), table(0, 0.25, 0.25, 0.25, 0.7)),
}
pytestmark = pytest.mark.parametrize("name", PROCESSES)


def one_step(process: DiscreteProcess, t: int) -> Tensor:
    """Q_t [from, to], from the cumulative tables by the formulas of one step, one entry at a time."""
    codes = process.num_codes
    keep, mask = process.keep.tolist(), process.mask.tolist()
    a = keep[t] / keep[t - 1]
    c = 1 - (1 - mask[t]) / (1 - mask[t - 1])
    b = (1 - a - c) / codes
    matrix = torch.zeros(codes + 1, codes + 1, dtype=F64)
    for i in range(codes):
        for j in range(codes):
            matrix[i, j] = max(b, 0.0) + (a if i == j else 0.0)
        matrix[i, codes] = c
    matrix[codes, codes] = 1.0
    # what is left of 1 - a - c where nothing is replaced: rounding, which must not pass for a possible replacement
    return torch.where(matrix < 1e-14, 0.0, matrix)


@cache
def steps(process: DiscreteProcess, s: int, t: int) -> Tensor:
    """q(x_t | x_s) [from, to], the product of one-step matrices."""
    matrix = torch.eye(process.num_codes + 1, dtype=F64)
    for level in range(s + 1, t + 1):
        matrix = matrix @ one_step(process, level)
    return matrix


def between(process: DiscreteProcess, s: int, t: int) -> Tensor:
    """The matrix that the numbers of `process.between` mean."""
    a, b, c = (float(part) for part in process.between(torch.tensor([s]), torch.tensor([t])))
    codes = process.num_codes
    matrix = torch.full((codes + 1, codes + 1), b, dtype=F64) + a * torch.eye(codes + 1, dtype=F64)
    matrix[:, codes], matrix[codes] = c, 0.0
    matrix[codes, codes] = 1.0
    return matrix


def pairs(process: DiscreteProcess) -> list[tuple[int, int]]:
    return [(s, t) for t in range(1, process.num_steps + 1) for s in range(t)]


def bayes(process: DiscreteProcess, s: int, t: int, x_t: int, x0_probs: Tensor) -> Tensor | None:
    """p(x_s | x_t) [K + 1] by summing over x_0 and x_s. None: x_t cannot occur, from any x_0 of these."""
    to_s, on = steps(process, 0, s), steps(process, s, t)
    total, result = 0.0, torch.zeros(process.num_codes + 1, dtype=F64)
    for x0 in range(process.num_codes):
        joint = to_s[x0] * on[:, x_t]  # over x_s
        if float(joint.sum()) > 0 and float(x0_probs[x0]) > 0:
            result += float(x0_probs[x0]) * joint / joint.sum()
            total += float(x0_probs[x0])
    return result / total if total > 0 else None


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def test_rows_of_every_transition_are_probabilities(name: str) -> None:
    process = PROCESSES[name]
    for s, t in pairs(process):
        matrix = between(process, s, t)
        assert float(matrix.min()) >= 0
        torch.testing.assert_close(matrix.sum(1), torch.ones(process.num_codes + 1, dtype=F64), rtol=0, atol=1e-14)


def test_transitions_are_products_of_single_steps(name: str) -> None:
    process = PROCESSES[name]
    for s, t in pairs(process):
        torch.testing.assert_close(between(process, s, t), steps(process, s, t), rtol=0, atol=1e-14)


def test_two_strides_are_one_longer_stride(name: str) -> None:
    process = PROCESSES[name]
    for s, t in pairs(process):
        for middle in range(s + 1, t):
            composed = between(process, s, middle) @ between(process, middle, t)
            torch.testing.assert_close(composed, between(process, s, t), rtol=0, atol=1e-14)


def test_tables_are_the_marginals_of_the_product_of_single_steps(name: str) -> None:
    process = PROCESSES[name]
    for t in range(process.num_steps + 1):
        marginal = steps(process, 0, t)
        keep, mask, replace = (float(part[t]) for part in (process.keep, process.mask, process.replace))
        for x0 in range(process.num_codes):
            expected = [replace + (keep if code == x0 else 0.0) for code in range(process.num_codes)] + [mask]
            torch.testing.assert_close(marginal[x0], table(*expected), rtol=0, atol=1e-14)


def test_posterior_is_bayes_at_every_pair_of_levels(name: str) -> None:
    process, compared = PROCESSES[name], 0
    for s, t in pairs(process):
        for x_t in range(process.num_codes + 1):
            probs = random_probs(process.num_codes, seed=x_t)
            expected = bayes(process, s, t, x_t, probs)
            if expected is None:
                continue
            got = process.posterior(
                probs.log()[None, None], torch.tensor([[x_t]]), torch.tensor([t]), torch.tensor([s])
            )
            torch.testing.assert_close(got.exp()[0, 0], expected, rtol=0, atol=ROUNDING)
            compared += 1
    assert compared >= 2 * process.num_steps


def test_posterior_is_bayes_where_codes_were_cut_off(name: str) -> None:
    process = PROCESSES[name]
    probs = random_probs(process.num_codes)
    probs[0] = 0.0  # not renormalised: a constant drops out
    for s, t in pairs(process):
        for x_t in range(process.num_codes + 1):
            expected = bayes(process, s, t, x_t, probs)
            if expected is None:
                continue
            got = process.posterior(
                probs.log()[None, None], torch.tensor([[x_t]]), torch.tensor([t]), torch.tensor([s])
            )
            torch.testing.assert_close(got.exp()[0, 0], expected, rtol=0, atol=ROUNDING)


def test_posterior_of_a_batch_takes_each_image_at_its_own_levels(name: str) -> None:
    process = PROCESSES[name]
    levels = pairs(process)
    s, t = torch.tensor(levels).unbind(1)
    x0 = torch.arange(3).expand(len(levels), 3) % process.num_codes
    noise = torch.rand(len(levels), 3, 2, generator=torch.Generator().manual_seed(2))
    x_t = process.diffuse(x0, t, noise)
    log_x0 = random_probs(len(levels), 3, process.num_codes).log()
    together = process.posterior(log_x0, x_t, t, s)
    for row in range(len(levels)):
        one = slice(row, row + 1)
        torch.testing.assert_close(
            together[one], process.posterior(log_x0[one], x_t[one], t[one], s[one]), rtol=0, atol=0
        )


def test_posterior_at_level_0_is_the_prediction_at_a_mask(name: str) -> None:
    process = PROCESSES[name]
    log_x0 = random_probs(1, 1, process.num_codes).log()
    for t in range(1, process.num_steps + 1):
        if float(process.mask[t]) > 0:
            x_t = torch.tensor([[process.mask_index]])
            got = process.posterior(log_x0, x_t, torch.tensor([t]), torch.tensor([0]))
            torch.testing.assert_close(got[..., :-1], log_x0, rtol=0, atol=1e-12)
            assert got[0, 0, -1] == -torch.inf


def test_a_mask_stays_one_with_the_ratio_of_masked_fractions(name: str) -> None:
    process = PROCESSES[name]
    for s, t in pairs(process):
        if float(process.mask[t]) > 0:
            log_x0 = random_probs(1, 1, process.num_codes, seed=s).log()
            x_t = torch.tensor([[process.mask_index]])
            got = process.posterior(log_x0, x_t, torch.tensor([t]), torch.tensor([s]))
            assert float(got.exp()[0, 0, -1]) == pytest.approx(float(process.mask[s] / process.mask[t]), abs=1e-12)


def test_posterior_in_float32_is_that_in_float64(name: str) -> None:
    process = PROCESSES[name]
    levels = pairs(process)
    s, t = torch.tensor(levels).unbind(1)
    x0 = torch.arange(8).expand(len(levels), 8) % process.num_codes
    x_t = process.diffuse(x0, t, torch.rand(len(levels), 8, 2, generator=torch.Generator().manual_seed(3)))
    log_x0 = random_probs(len(levels), 8, process.num_codes).log()
    log_x0[..., 0] -= 200  # beyond the range of float32 as a probability
    got = process.posterior(log_x0.float(), x_t, t, s)
    assert got.dtype == torch.float32
    expected = process.posterior(log_x0, x_t, t, s)
    torch.testing.assert_close(got.exp().double(), expected.exp(), rtol=0, atol=2e-6)
    # relative to numbers near 200 the rounding of float32 is 1e-5
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_true_posterior_is_bayes_at_every_pair_of_levels(name: str) -> None:
    process = PROCESSES[name]
    for s, t in pairs(process):
        for x0 in range(process.num_codes):
            certain = torch.zeros(process.num_codes, dtype=F64)
            certain[x0] = 1.0
            for x_t in range(process.num_codes + 1):
                expected = bayes(process, s, t, x_t, certain)
                if expected is None:
                    continue
                images = torch.tensor([[x0]]), torch.tensor([[x_t]]), torch.tensor([t]), torch.tensor([s])
                got = process.true_posterior(*images, dtype=F64)
                torch.testing.assert_close(got.exp()[0, 0], expected, rtol=0, atol=ROUNDING)
                assert process.true_posterior(*images).dtype == torch.float32


def test_step_nats_are_the_divergence_by_enumeration(name: str) -> None:
    process = PROCESSES[name]
    probs = random_probs(process.num_codes)
    for s, t in pairs(process):
        for x0 in range(process.num_codes):
            certain = torch.zeros(process.num_codes, dtype=F64)
            certain[x0] = 1.0
            for x_t in range(process.num_codes + 1):
                true = bayes(process, s, t, x_t, certain)
                if true is None:
                    continue
                model = bayes(process, s, t, x_t, probs)
                assert model is not None
                expected = sum(q * math.log(q / p) for q, p in zip(true.tolist(), model.tolist(), strict=True) if q > 0)
                images = torch.tensor([[x0]]), torch.tensor([[x_t]]), torch.tensor([t]), torch.tensor([s])
                for dtype, tolerance in ((F64, ROUNDING), (torch.float32, 3e-6)):
                    got = process.step_nats(probs.log().to(dtype)[None, None], *images)
                    assert got.dtype == dtype and got.shape == (1, 1)
                    assert float(got) == pytest.approx(expected, abs=tolerance)
                    if s == 0 and x_t == process.mask_index:
                        assert float(got) == pytest.approx(-math.log(float(probs[x0])), abs=tolerance)


def test_gradients_of_step_nats_are_those_of_finite_differences_and_finite_for_extreme_logits(name: str) -> None:
    process = PROCESSES[name]
    s, t = torch.tensor(pairs(process)[::2]).unbind(1)
    x0 = torch.arange(2).expand(len(t), 2)
    x_t = process.diffuse(x0, t, torch.rand(len(t), 2, 2, generator=torch.Generator().manual_seed(4)))
    logits = random_probs(len(t), 2, process.num_codes).log().requires_grad_()

    def nats(logits: Tensor) -> Tensor:
        return process.step_nats(logits.log_softmax(-1), x0, x_t, t, s).sum()

    assert torch.autograd.gradcheck(nats, (logits,))
    extreme = (logits.detach() * 1e3).float().requires_grad_()
    nats(extreme).backward()
    assert extreme.grad is not None and bool(extreme.grad.isfinite().all())


def test_prior_is_a_distribution_and_its_divergence_that_by_enumeration(name: str) -> None:
    process = PROCESSES[name]
    prior = process.log_prior().exp()
    assert float(prior.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(prior[-1]) == float(process.mask[-1])
    assert float(prior[:-1].max()) == float(prior[:-1].min())
    for x0 in range(process.num_codes):
        last = steps(process, 0, process.num_steps)[x0]
        expected = sum(q * math.log(q / p) for q, p in zip(last.tolist(), prior.tolist(), strict=True) if q > 0)
        assert process.prior_nats() == pytest.approx(expected, abs=1e-13)


def test_diffused_codes_fit_the_marginals(name: str) -> None:
    process, count = PROCESSES[name], 20_000
    noise = torch.rand(1, count, 2, dtype=F64, generator=torch.Generator().manual_seed(5))
    x0 = process.num_codes - 1
    for t in range(1, process.num_steps + 1):
        x_t = process.diffuse(torch.full((1, count), x0), torch.tensor([t]), noise)
        counts = torch.bincount(x_t[0], minlength=process.num_codes + 1)
        expected = steps(process, 0, t)[x0] * count
        assert int(counts[expected == 0].sum()) == 0
        often = expected > 5
        assert float((counts - expected)[~often].abs().sum()) <= 10
        if int(often.sum()) > 1:
            scale = counts[often].sum() / expected[often].sum()
            assert scipy.stats.chisquare(counts[often], expected[often] * scale).pvalue > 1e-4


def test_diffusion_keeps_level_0_and_masks_more_at_higher_levels(name: str) -> None:
    process = PROCESSES[name]
    x0 = torch.arange(500)[None] % process.num_codes
    noise = torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(6))
    levels = [process.diffuse(x0, torch.tensor([t]), noise) for t in range(process.num_steps + 1)]
    assert torch.equal(levels[0], x0)
    masked = [level == process.mask_index for level in levels]
    assert all(bool(later[earlier].all()) for earlier, later in zip(masked, masked[1:], strict=False))
    largest = process.diffuse(x0, torch.tensor([process.num_steps]), torch.full((1, 500, 2), 1 - 2.0**-24))
    assert int(largest.max()) <= process.mask_index


def test_wrong_shapes_and_levels_are_refused(name: str) -> None:
    process = PROCESSES[name]
    x, t, s = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([2, 2]), torch.tensor([1, 2])
    with pytest.raises(ShapeError, match=r"noise has shape \[2, 3\]; expected \[2, 3, 2\]"):
        process.diffuse(x, t, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"noise has shape \[2, 3, 2\]; expected \[2, 3\]"):
        process.diffuse_masked(x, torch.ones(2), torch.zeros(2, 3, 2))
    with pytest.raises(ShapeError, match=rf"log_x0 has shape \[2, 3, 9\]; expected \[2, 3, {process.num_codes}\]"):
        process.posterior(torch.zeros(2, 3, 9), x, t, s)
    with pytest.raises(ConfigError, match=r"s = \[1, 2\] and t = \[2, 2\] are no levels of a step"):
        process.between(s, t)
    with pytest.raises(ConfigError, match=rf"0 <= s < t <= {process.num_steps}"):
        process.between(torch.tensor([0]), torch.tensor([process.num_steps + 1]))
