"""The named schedules: their published values, what they do at their ends, and the times between levels."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.discrete import DiscreteProcess, make_process, process_of
from rasterformer.errors import ConfigError

F64 = torch.float64


def one_step(process: DiscreteProcess, t: int) -> tuple[float, float, float]:
    """a_t, K b_t, c_t."""
    a, b, c = (float(part) for part in process.between(torch.tensor([t - 1]), torch.tensor([t])))
    return a, process.num_codes * b, c


@pytest.mark.parametrize("num_codes", [8, 2886])
def test_release_has_the_published_values(num_codes: int) -> None:
    process = make_process("release", num_codes, 100)
    for t, a, c, digits in ((1, 0.99999, 9e-6, 1e-12), (50, 0.980392, 0.0196, 1e-4), (100, 8.9e-4, 0.99901, 1e-5)):
        assert one_step(process, t)[0] == pytest.approx(a, abs=digits)
        assert one_step(process, t)[2] == pytest.approx(c, abs=digits)
    assert one_step(process, 50)[0] == pytest.approx(0.980392, abs=1e-6)
    for t in range(1, 101):  # a millionth is replaced, at every level
        assert num_codes * float(process.replace[t]) == pytest.approx(1e-6, rel=1e-6)
    assert process.masks_only


def test_paper_has_the_published_values() -> None:
    process = make_process("paper", 2886, 100)
    for t, a, c in ((1, 0.990, 0.009), (50, 0.980392, 0.0161), (100, 0.0, 0.0826)):
        assert one_step(process, t)[0] == pytest.approx(a, abs=1e-6)
        assert one_step(process, t)[2] == pytest.approx(c, abs=5e-5)
    assert one_step(process, 100)[1] == pytest.approx(0.917, abs=5e-4)
    assert float(process.keep[100]) == 0 and float(process.mask[100]) == 0.9
    assert 2886 * float(process.replace[100]) == pytest.approx(0.1, abs=1e-15)
    assert process.prior_nats() == 0 and not process.masks_only


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", math.sqrt(0.5))])
def test_processes_that_only_mask_replace_nothing_and_end_in_masks(schedule: str, middle: float) -> None:
    for num_steps in (2, 10, 100, 1000):
        process = make_process(schedule, 7, num_steps)  # type: ignore[arg-type]
        assert float(process.mask[0]) == 0 and float(process.mask[-1]) == 1
        assert float(process.mask[num_steps // 2]) == pytest.approx(middle, abs=1e-12)
        assert torch.equal(process.keep, 1 - process.mask) and not bool(process.replace.any())
        assert process.masks_only and process.prior_nats() == 0
        noise = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0))
        last = process.diffuse(torch.zeros(1, 50, dtype=torch.int64), torch.tensor([num_steps]), noise)
        assert bool((last == process.mask_index).all())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_times_agree_with_levels_and_their_weight_with_a_difference_quotient(schedule: str) -> None:
    process = make_process(schedule, 3, 8)  # type: ignore[arg-type]
    u = torch.arange(1, 9, dtype=F64) / 8
    fraction, weight = process.masked_at(u)
    torch.testing.assert_close(fraction, process.mask[1:], rtol=0, atol=1e-15)
    inner, step = torch.tensor([0.1, 0.35, 0.5, 0.8], dtype=F64), 1e-6
    rise = (process.masked_at(inner + step)[0] - process.masked_at(inner - step)[0]) / (2 * step)
    at, weight = process.masked_at(inner)
    torch.testing.assert_close(weight, rise / at, rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_masking_at_a_time_is_diffusion_to_its_level(schedule: str) -> None:
    process = make_process(schedule, 3, 8)  # type: ignore[arg-type]
    x = torch.arange(200).expand(8, 200) % 3
    noise = torch.rand(8, 200, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    by_level = process.diffuse(x, torch.arange(1, 9), noise)
    fraction, _ = process.masked_at(torch.arange(1, 9) / 8)
    assert torch.equal(process.diffuse_masked(x, fraction, noise[..., 0]), by_level)
    assert 0 < int((by_level[0] == 3).sum()) < 100 and bool((by_level[-1] == 3).all())


@pytest.mark.parametrize("schedule", ["paper", "release"])
def test_processes_that_replace_have_no_times(schedule: str) -> None:
    process = make_process(schedule, 3, 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Use the schedule linear or cosine"):
        process.masked_at(torch.tensor([0.5]))


@pytest.mark.parametrize("u", [0.0, -0.25, 1.5])
def test_times_out_of_range_are_refused(u: float) -> None:
    with pytest.raises(ConfigError, match=rf"u = \[{u}\] leaves \(0, 1\]"):
        make_process("linear", 3, 8).masked_at(torch.tensor([u]))


def test_any_schedule_can_be_given_by_functions() -> None:
    process = process_of(lambda u: 1 - u, lambda u: 0.9 * u, 5, 10)
    paper = make_process("paper", 5, 10)
    for ours, theirs in ((process.keep, paper.keep), (process.mask, paper.mask), (process.replace, paper.replace)):
        assert torch.equal(ours, theirs)


def test_an_unknown_schedule_and_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule = 'cosin' is unknown\. Did you mean 'cosine'\?"):
        make_process("cosin", 3, 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_steps = 1 is too few"):
        make_process("paper", 3, 1)
    with pytest.raises(ConfigError, match="num_codes = 0 is too few"):
        make_process("paper", 0, 8)


def table(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


@pytest.mark.parametrize(
    ("keep", "mask", "says"),
    [
        (table(1, 0.5, 0), table(0, 0.5), r"keep is torch.float64 \[3\] and mask torch.float64 \[2\]"),
        (table(1, 0.5, 0).float(), table(0, 0.5, 1), r"keep is torch.float32 \[3\]"),
        (table(1), table(0), r"keep is torch.float64 \[1\]"),
        (table(0.9, 0.5), table(0, 0.5), r"keep\[0\] = 0.9 and mask\[0\] = 0.0"),
        (table(1, 0.5), table(0.1, 0.5), r"keep\[0\] = 1.0 and mask\[0\] = 0.1"),
        (table(1, 0, 0), table(0, 0.5, 1), r"keep = \[1.0, 0.0, 0.0\] .* leave their range"),
        (table(1, 0.5, -0.1), table(0, 0.5, 1), r"keep = \[1.0, 0.5, -0.1\] .* leave their range"),
        (table(1, 0.1, 0), table(0, 1, 1), r"mask = \[0.0, 1.0, 1.0\] leave their range"),
        (table(1, 0.6, 0), table(0, 0.5, 1), r"keep = \[1.0, 0.6, 0.0\] .* leave their range"),
        (table(1, 0.5, 0.4), table(0, 0.5, 0.4), r"mask = \[0.0, 0.5, 0.4\] give a step that is no probability"),
        (table(1, 0.5, 0.5), table(0, 0.1, 0.5), r"keep = \[1.0, 0.5, 0.5\] .* give a step that is no probability"),
        (table(1, 0.5, 0.6), table(0, 0, 0), r"keep = \[1.0, 0.5, 0.6\] .* give a step that is no probability"),
    ],
)
def test_tables_that_are_no_process_are_refused(keep: Tensor, mask: Tensor, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DiscreteProcess(3, keep, mask)
