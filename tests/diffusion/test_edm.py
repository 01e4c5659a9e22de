"""EDM's coefficients and levels by hand, unit variances, and its agreement with v-prediction at a deviation of 1."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.edm import EdmPreconditioning, make_edm
from rasterformer.diffusion.gaussian import make_gaussian
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
PROCESSES = {"edm": make_edm(), "cosine": make_gaussian("cosine")}
every_process = pytest.mark.parametrize("name", PROCESSES)


def times(*t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_evenly_spaced_times_are_the_papers_levels() -> None:
    """Karras et al. 2022, equation 5, with N = 6."""
    for low, high, rho in ((0.002, 80.0, 7.0), (0.01, 5.0, 1.0)):
        process = make_edm(sigma_min=low, sigma_max=high, rho=rho)
        for i in range(6):
            level = (high ** (1 / rho) + i / 5 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
            t = times(1 - i / 5)
            assert float(process.sigma(t) / process.alpha(t)) == pytest.approx(level, rel=1e-9)


def test_coefficients_by_hand() -> None:
    edm = EdmPreconditioning(PROCESSES["edm"])
    expected = {  # sigma: skip, out, in, noise of sigma_data = 0.5
        0.5: (0.5, 0.5 / math.sqrt(2), math.sqrt(2), math.log(0.5) / 4),
        1.2: (0.25 / 1.69, 0.6 / 1.3, 1 / 1.3, math.log(1.2) / 4),
        80.0: (0.25 / 6400.25, 40 / math.sqrt(6400.25), 1 / math.sqrt(6400.25), math.log(80) / 4),
    }
    for sigma, numbers in expected.items():
        t = edm.process.time(times(-2 * math.log(sigma)))
        got = edm.coefficients(t)
        assert [float(part) for part in (got.skip, got.out, got.into, got.noise)] == pytest.approx(numbers, rel=1e-9)
        assert float(got.noise) == pytest.approx(float(edm.process.log_snr(t)) / -8, rel=1e-12)


@every_process
@pytest.mark.parametrize("sigma_data", [0.2, 0.5])
def test_input_and_target_of_the_network_have_unit_variance_at_every_level(name: str, sigma_data: float) -> None:
    edm = EdmPreconditioning(PROCESSES[name], sigma_data=sigma_data)
    x, noise = sigma_data * normal(5, 1, 64, 64), normal(5, 1, 64, 64, seed=1)
    t = times(0.0, 0.2, 0.5, 0.8, 1.0)
    given = edm.network_input(edm.process.diffuse(x, t, noise), t)
    wanted = edm.target(x, noise, t)
    error = 4.5 * math.sqrt(2 / 64**2)  # of the variance of as many normal numbers
    for part in (given, wanted):
        assert part.flatten(1).var(1).tolist() == pytest.approx([1.0] * 5, abs=error)
    # what is wanted is what the input does not say: their product is 0 in the mean
    assert (given * wanted).flatten(1).mean(1).tolist() == pytest.approx([0.0] * 5, abs=4.5 / 64)


@every_process
def test_denoiser_is_its_definition_and_gives_back_the_image(name: str) -> None:
    edm, x, noise = EdmPreconditioning(PROCESSES[name], sigma_data=0.4), normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    t = times(0.3, 0.9)
    z = edm.process.diffuse(x, t, noise)
    skip, out, into, _ = (part[:, None, None, None] for part in edm.coefficients(t))
    sigma = (edm.process.sigma(t) / edm.process.alpha(t))[:, None, None, None]
    noisy = x + sigma * noise
    torch.testing.assert_close(edm.network_input(z, t), into * noisy, rtol=0, atol=1e-12)
    torch.testing.assert_close(edm.target(x, noise, t), (x - skip * noisy) / out, rtol=0, atol=1e-9)
    torch.testing.assert_close(edm.to_x0(noise, z, t), skip * noisy + out * noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(edm.to_x0(edm.target(x, noise, t), z, t), x, rtol=0, atol=1e-12)


@every_process
def test_weight_of_the_networks_error_is_one(name: str) -> None:
    """EDM weighs |D - x|^2 by (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1)."""
    edm, x, noise, output = EdmPreconditioning(PROCESSES[name]), *(normal(2, 3, 2, 2, seed=seed) for seed in range(3))
    t = times(0.3, 0.9)
    z = edm.process.diffuse(x, t, noise)
    sigma = edm.process.sigma(t) / edm.process.alpha(t)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    error = (edm.to_x0(output, z, t) - x).square().sum((1, 2, 3))
    torch.testing.assert_close(
        (output - edm.target(x, noise, t)).square().sum((1, 2, 3)), weight * error, rtol=1e-9, atol=0
    )


@every_process
def test_of_images_with_unit_variance_it_is_v_prediction(name: str) -> None:
    edm, x, noise = EdmPreconditioning(PROCESSES[name], sigma_data=1.0), normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    t = times(0.0, 0.5, 1.0)
    z = edm.process.diffuse(x, t, noise)
    torch.testing.assert_close(edm.target(x, noise, t), -edm.process.target(x, noise, t, "v"), rtol=0, atol=1e-12)
    torch.testing.assert_close(edm.network_input(z, t), z, rtol=0, atol=1e-12)
    torch.testing.assert_close(edm.to_x0(-noise, z, t), edm.process.to_x0(noise, z, t, "v"), rtol=0, atol=1e-12)


@every_process
def test_everything_is_finite_in_float32_at_both_ends(name: str) -> None:
    edm, x, noise = EdmPreconditioning(PROCESSES[name]), normal(2, 1, 2, 2).float(), normal(2, 1, 2, 2, seed=1).float()
    t = torch.tensor([0.0, 1.0])
    z = edm.process.diffuse(x, t, noise)
    for part in (edm.network_input(z, t), edm.target(x, noise, t), edm.to_x0(noise.bfloat16(), z, t)):
        assert part.dtype == torch.float32 and bool(part.isfinite().all())
    torch.testing.assert_close(
        edm.to_x0(edm.target(x, noise, t), z, t), x, rtol=0, atol=1e-3
    )  # z / alpha is 80 and more


def test_training_times_have_log_normal_levels_within_the_ends() -> None:
    edm = EdmPreconditioning(PROCESSES["edm"], p_mean=-1.0, p_std=0.8)
    t = edm.training_times(times(-1.0, 0.0, 2.5))
    sigma = edm.process.sigma(t) / edm.process.alpha(t)
    assert sigma.log().tolist() == pytest.approx([-1.8, -1.0, 1.0], abs=1e-9)
    assert edm.training_times(times(-9.0, 9.0)).tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_tensors_with_an_axis_off_and_times_out_of_range_are_refused() -> None:
    edm, good, t = EdmPreconditioning(PROCESSES["edm"]), torch.zeros(2, 3, 4, 4), torch.tensor([0.5, 0.6])
    for bad in (good[0], good[:1], good[..., :1]):
        for call in (
            lambda bad=bad: edm.target(good, bad, t),
            lambda bad=bad: edm.target(bad, good, t),
            lambda bad=bad: edm.to_x0(good, bad, t),
            lambda bad=bad: edm.to_x0(bad, good, t),
        ):
            with pytest.raises(ShapeError, match=r"do not fit\. Pass images \[B, C, H, W\] of one shape and t \[B\]"):
                call()
    with pytest.raises(ShapeError, match=r"z \[3, 4, 4\] and t \[2\] do not fit"):
        edm.network_input(good[0], t)
    for call in (
        lambda: edm.network_input(good, t + 1),
        lambda: edm.target(good, good, t + 1),
        lambda: edm.to_x0(good, good, t + 1),
    ):
        with pytest.raises(ConfigError, match=r"t = \[1\.5, 1\.6.*\] leaves 0\.\.1"):
            call()


def test_numbers_out_of_range_are_refused() -> None:
    for sigma_min, sigma_max, rho in ((0.0, 80.0, 7.0), (1.0, 1.0, 7.0), (0.1, 1.0, 0.0), (0.1, math.inf, 7.0)):
        with pytest.raises(ConfigError, match=rf"sigma_max = {sigma_max} and rho = {rho} are no noise levels"):
            make_edm(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    with pytest.raises(ConfigError, match=r"sigma_data = 0\.0 must be a finite number above 0"):
        EdmPreconditioning(PROCESSES["edm"], sigma_data=0.0)
    with pytest.raises(ConfigError, match=r"p_std = -1\.0 must be a finite number above 0"):
        EdmPreconditioning(PROCESSES["edm"], p_std=-1.0)
    with pytest.raises(ConfigError, match="p_mean = nan must be a finite number"):
        EdmPreconditioning(PROCESSES["edm"], p_mean=math.nan)
