"""Quantisers against their formulas: nearest entries by loops, gradients by autograd of the equation, averages by hand."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.codecs.vq import quantise
from rasterformer.codecs.vq.quantise import (
    FiniteScalarQuantiser,
    Quantiser,
    SimVectorQuantiser,
    VectorQuantiser,
    rotated,
)
from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.errors import ConfigError, ShapeError


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoded(batch: int = 2, dim: int = 3, rows: int = 4, cols: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(batch, dim, rows, cols, generator=stream(seed))


def filled(quantiser: VectorQuantiser, seed: int = 9) -> VectorQuantiser:
    """With a codebook as wide as `encoded`, so that several entries are used; moving averages begin at it."""
    entries = torch.randn(quantiser.vocab_size, quantiser.dim, generator=stream(seed))
    with torch.no_grad():
        quantiser.codebook.copy_(F.normalize(entries, dim=-1) if quantiser.normalise else entries)
        if quantiser.update == "ema":
            quantiser.cluster_sums.copy_(quantiser.codebook)
    return quantiser


def vectors_of(z: Tensor) -> list[Tensor]:
    """The vectors of z [B, D, h, w] in raster order."""
    return [z[b, :, i, j] for b in range(len(z)) for i in range(z.shape[2]) for j in range(z.shape[3])]


def nearest_by_loop(z: Tensor, codebook: Tensor) -> list[int]:
    def of(vector: Tensor) -> int:
        distances = [float(((vector.double() - entry.double()) ** 2).sum()) for entry in codebook]
        return distances.index(min(distances))

    return [of(vector) for vector in vectors_of(z)]


QUANTISERS: dict[str, Callable[[], Quantiser]] = {
    "gradient": lambda: filled(VectorQuantiser(7, 3)),
    "gradient, restarts": lambda: filled(VectorQuantiser(7, 3, restart_after=2)),
    "ema, restarts": lambda: filled(VectorQuantiser(7, 3, update="ema", restart_after=2)),
    "normalised": lambda: filled(VectorQuantiser(7, 3, normalise=True)),
    "normalised ema": lambda: filled(VectorQuantiser(7, 3, normalise=True, update="ema")),
    "rotation": lambda: filled(VectorQuantiser(7, 3, estimator="rotation")),
    "kmeans": lambda: filled(VectorQuantiser(7, 3, init="kmeans")),
    "sim": lambda: SimVectorQuantiser(7, 3),
    "finite scalar": lambda: FiniteScalarQuantiser([3, 4, 5]),
}


# What all quantisers have in common


@pytest.mark.parametrize("name", QUANTISERS)
def test_values_are_the_lookup_of_the_nearest_codes_to_the_bit(name: str) -> None:
    quantiser, z = QUANTISERS[name](), 100 * encoded()
    quantised = quantiser(z)
    assert quantised.codes.dtype == torch.int64 and quantised.codes.shape == (2, 4, 5)
    assert quantised.values.dtype == torch.float32 and quantised.values.shape == z.shape
    assert torch.equal(quantised.codes, quantiser.nearest(z))
    assert torch.equal(quantised.values, quantiser.lookup(quantised.codes))
    assert len(quantised.codes.unique()) > 1


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", QUANTISERS)
def test_forward_changes_no_state(name: str, is_training: bool) -> None:
    quantiser = QUANTISERS[name]().train(is_training)
    before = {key: value.clone() for key, value in quantiser.state_dict().items()}
    for seed in range(3):
        quantiser(encoded(seed=seed))
        quantiser.nearest(encoded(seed=seed))
    after = quantiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", QUANTISERS)
def test_bfloat16_autocast_changes_nothing(name: str) -> None:
    quantiser, z = QUANTISERS[name](), encoded(8, rows=16, cols=16)
    expected = quantiser(z)
    with torch.autocast("cpu", torch.bfloat16):
        received = quantiser(z)
        assert torch.equal(quantiser.nearest(z), expected.codes)
        assert torch.equal(quantiser.lookup(expected.codes), expected.values)
    assert torch.equal(received.codes, expected.codes) and torch.equal(received.values, expected.values)
    assert torch.equal(received.loss, expected.loss) and received.loss.dtype == torch.float32


def test_bfloat16_distances_would_change_codes() -> None:
    """That the test above can fail."""
    quantiser, z = filled(VectorQuantiser(64, 3)), encoded(8, rows=16, cols=16)
    assert not torch.equal(quantiser.nearest(z.bfloat16()), quantiser.nearest(z))


@pytest.mark.parametrize("name", QUANTISERS)
def test_terms_sum_to_the_loss_and_carry_no_gradient(name: str) -> None:
    quantised = QUANTISERS[name]()(encoded().requires_grad_())
    assert float(quantised.loss.detach()) == pytest.approx(sum(float(term) for term in quantised.terms.values()))
    assert not any(term.requires_grad for term in quantised.terms.values())


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 2, 4, 5), (3, 4, 5), (2, 3, 4, 5, 1), (2, 4, 5, 3)])
def test_other_shapes_of_z_are_refused(name: str, shape: tuple[int, ...]) -> None:
    quantiser, z = QUANTISERS[name](), torch.zeros(shape)
    for call in (quantiser, quantiser.nearest):
        with pytest.raises(ShapeError) as caught:
            call(z)
        assert str(list(shape)) in str(caught.value) and "[B, 3, h, w]" in str(caught.value)


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize(
    "codes",
    [torch.zeros(2, 20).long(), torch.zeros(2, 4, 5, 1).long(), torch.zeros(2, 4, 5)],
    ids=lambda codes: codes.ndim,
)
def test_other_shapes_and_dtypes_of_codes_are_refused(name: str, codes: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        QUANTISERS[name]().lookup(codes)
    assert f"{codes.dtype} {list(codes.shape)}" in str(caught.value)


@pytest.mark.parametrize("name", ["gradient", "sim", "finite scalar"])
def test_update_has_nothing_to_do_where_gradients_do_it_all(name: str) -> None:
    quantiser, z = QUANTISERS[name](), encoded()
    before = {key: value.clone() for key, value in quantiser.state_dict().items()}
    assert quantiser.update_(z, quantiser.nearest(z), rng=stream()) == 0
    assert all(torch.equal(before[key], value) for key, value in quantiser.state_dict().items())
    assert not quantiser.needs_initialising


# Codebook lookup and its losses


@pytest.mark.parametrize("vocab_size", [1, 2, 11])
def test_nearest_is_the_entry_of_least_distance_by_a_double_loop(vocab_size: int) -> None:
    quantiser, z = filled(VectorQuantiser(vocab_size, 3)), encoded()
    assert quantiser.nearest(z).flatten().tolist() == nearest_by_loop(z, quantiser.codebook.detach())


def test_distances_in_chunks_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser, z = filled(VectorQuantiser(11, 3)), encoded()
    expected = quantiser.nearest(z)
    for at_once in (1, 11 * 7):
        monkeypatch.setattr(quantise, "DISTANCES_AT_ONCE", at_once)
        assert torch.equal(quantiser.nearest(z), expected)


def test_a_tie_goes_to_the_first_entry() -> None:
    quantiser = VectorQuantiser(3, 2)
    with torch.no_grad():
        quantiser.codebook.copy_(torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0]]))
    assert quantiser.nearest(torch.ones(1, 2, 1, 1)).tolist() == [[[1]]]


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize(
    ("beta_on", "on_commitment", "on_codebook"), [("commitment", 0.3, 1.0), ("codebook", 1.0, 0.3)]
)
def test_loss_and_gradients_are_those_of_the_written_formula(
    beta_on: Any, on_commitment: float, on_codebook: float, is_normalised: bool
) -> None:
    quantiser = filled(VectorQuantiser(7, 3, beta=0.3, beta_on=beta_on, normalise=is_normalised))
    z = encoded().requires_grad_()
    quantised = quantiser(z)
    quantised.loss.backward()

    z_again, codebook = z.detach().clone().requires_grad_(), quantiser.codebook.detach().clone().requires_grad_()
    vectors, entries = torch.stack(vectors_of(z_again)), codebook
    if is_normalised:
        vectors, entries = vectors / vectors.norm(dim=1, keepdim=True), entries / entries.norm(dim=1, keepdim=True)
    chosen = entries[quantised.codes.flatten()]
    commitment = ((chosen.detach() - vectors) ** 2).sum() / vectors.numel()
    codebook_loss = ((chosen - vectors.detach()) ** 2).sum() / vectors.numel()
    loss = on_commitment * commitment + on_codebook * codebook_loss
    loss.backward()
    torch.testing.assert_close(quantised.loss, loss)
    torch.testing.assert_close(z.grad, z_again.grad)
    torch.testing.assert_close(quantiser.codebook.grad, codebook.grad)


def test_loss_of_a_moving_average_codebook_is_beta_commitment_alone() -> None:
    quantiser, z = filled(VectorQuantiser(7, 3, beta=0.3, update="ema")), encoded()
    quantised = quantiser(z)
    chosen = torch.stack([quantiser.codebook[code] for code in quantised.codes.flatten()])
    torch.testing.assert_close(quantised.loss, 0.3 * ((torch.stack(vectors_of(z)) - chosen) ** 2).mean())
    assert quantised.terms.keys() == {"commitment"} and not list(quantiser.parameters())


def test_uniform_init_is_within_one_over_vocab_size() -> None:
    codebook = VectorQuantiser(50, 100).codebook.detach()
    assert float(codebook.abs().max()) <= 1 / 50
    assert float(codebook.std()) == pytest.approx(1 / 50 / math.sqrt(3), rel=0.05)


# Estimators


def test_straight_through_gives_z_the_gradient_of_the_values_and_the_codebook_none() -> None:
    quantiser, z, weight = filled(VectorQuantiser(7, 3)), encoded().requires_grad_(), encoded(seed=1)
    to_z, to_codebook = torch.autograd.grad(
        (quantiser(z).values * weight).sum(), [z, quantiser.codebook], allow_unused=True
    )
    assert torch.equal(to_z, weight) and to_codebook is None


def rotation_matrix(z: Tensor, q: Tensor) -> Tensor:
    """float64 [D, D]: turns in the plane of z and q by their angle, and leaves the rest; from an orthonormal basis of it."""
    u = z / z.norm()
    v = q - (q @ u) * u
    v = v / v.norm()
    cos = (z @ q) / z.norm() / q.norm()
    sin = (1 - cos**2).sqrt()
    identity = torch.eye(len(z), dtype=z.dtype)
    along, across = torch.outer(u, u) + torch.outer(v, v), torch.outer(v, u) - torch.outer(u, v)
    turned: Tensor = identity + (cos - 1) * along + sin * across
    return turned


def test_rotation_gives_z_the_gradient_turned_back_and_scaled() -> None:
    quantiser = filled(VectorQuantiser(7, 5, estimator="rotation"))
    z, weight = encoded(dim=5).requires_grad_(), encoded(dim=5, seed=1)
    quantised = quantiser(z)
    to_z, to_codebook = torch.autograd.grad(
        (quantised.values * weight).sum(), [z, quantiser.codebook], allow_unused=True
    )
    assert to_codebook is None
    for vector, value, upstream, received in zip(
        *map(vectors_of, (z.detach(), quantised.values.detach(), weight, to_z)), strict=True
    ):
        vector, value = vector.double(), value.double()
        matrix = rotation_matrix(vector, value)
        scale = value.norm() / vector.norm()
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(5).double())
        torch.testing.assert_close(scale * matrix @ vector, value)
        torch.testing.assert_close(received.double(), scale * matrix.T @ upstream.double(), atol=2e-5, rtol=2e-5)


def test_rotated_is_q_and_keeps_the_angle_between_gradient_and_vector() -> None:
    z, q, weight = (torch.randn(50, 8, generator=stream(seed), dtype=torch.float64) for seed in range(3))
    z.requires_grad_()
    result = rotated(z, q)
    torch.testing.assert_close(result.detach(), q)
    (gradient,) = torch.autograd.grad((result * weight).sum(), z)
    torch.testing.assert_close(F.cosine_similarity(gradient, z.detach()), F.cosine_similarity(weight, q))


def test_rotation_of_the_zero_vector_is_finite() -> None:
    quantiser, z = filled(VectorQuantiser(7, 3, estimator="rotation")), torch.zeros(1, 3, 1, 1, requires_grad=True)
    quantised = quantiser(z)
    (gradient,) = torch.autograd.grad(quantised.values.sum(), z)
    assert torch.isfinite(gradient).all() and torch.equal(quantised.values, quantiser.lookup(quantised.codes))


# Normalised codes


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_normalised_values_have_length_one_and_the_largest_cosine(update: Any) -> None:
    quantiser, z = filled(VectorQuantiser(7, 3, normalise=True, update=update)), 30 * encoded()
    quantised = quantiser(z)
    for vector, value, code in zip(
        vectors_of(z), vectors_of(quantised.values.detach()), quantised.codes.flatten(), strict=True
    ):
        assert float(value.norm()) == pytest.approx(1, abs=1e-6)
        cosines = [float(F.cosine_similarity(vector, entry, dim=0)) for entry in quantiser.codebook.detach()]
        assert cosines.index(max(cosines)) == int(code)


def test_normalised_codes_ignore_lengths() -> None:
    quantiser, z = filled(VectorQuantiser(7, 3, normalise=True)), encoded()
    assert torch.equal(quantiser.nearest(z), quantiser.nearest(50 * z))
    with torch.no_grad():
        quantiser.codebook.mul_(torch.arange(1, 8)[:, None])
    torch.testing.assert_close(
        torch.linalg.vector_norm(quantiser.lookup(torch.arange(7).view(1, 1, 7)), dim=1), torch.ones(1, 1, 7)
    )


# Moving averages


@pytest.mark.parametrize("is_normalised", [False, True])
def test_moving_averages_after_several_updates_are_those_of_a_loop(is_normalised: bool) -> None:
    decay, epsilon, num_codes = 0.9, 1e-5, 5
    quantiser = filled(VectorQuantiser(num_codes, 3, update="ema", decay=decay, normalise=is_normalised))
    entries = [entry.double() for entry in quantiser.codebook]
    sizes, sums = [1.0] * num_codes, [entry.clone() for entry in entries]
    for seed in range(6):
        z = encoded(seed=seed) + seed
        codes = quantiser.nearest(z)
        assert quantiser.update_(z, codes, rng=stream()) == 0
        vectors = [vector.double() / (vector.double().norm() if is_normalised else 1) for vector in vectors_of(z)]
        for k in range(num_codes):
            mine = [vector for vector, code in zip(vectors, codes.flatten().tolist(), strict=True) if code == k]
            sizes[k] = decay * sizes[k] + (1 - decay) * len(mine)
            sums[k] = decay * sums[k] + (1 - decay) * sum(mine, torch.zeros(3).double())
        total = sum(sizes)
        for k in range(num_codes):
            entries[k] = sums[k] / ((sizes[k] + epsilon) / (total + num_codes * epsilon) * total)
            entries[k] = entries[k] / (entries[k].norm() if is_normalised else 1)
        torch.testing.assert_close(quantiser.codebook.double(), torch.stack(entries), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quantiser.cluster_sizes.double(), torch.tensor(sizes).double(), rtol=1e-4, atol=1e-5)


def test_entries_come_to_lie_at_the_means_of_their_vectors() -> None:
    quantiser, z = filled(VectorQuantiser(3, 2, update="ema", decay=0.5)), encoded(dim=2)
    codes = torch.arange(40).view(2, 4, 5) % 3
    for _ in range(40):
        quantiser.update_(z, codes, rng=stream())
    vectors = torch.stack(vectors_of(z))
    means = torch.stack([vectors[k::3].mean(0) for k in range(3)])
    torch.testing.assert_close(quantiser.codebook, means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_normalised", [False, True])
def test_an_entry_unused_for_very_long_stays_finite_and_where_it_was_going(is_normalised: bool) -> None:
    quantiser = filled(VectorQuantiser(3, 2, update="ema", decay=0.5, normalise=is_normalised))
    direction = F.normalize(quantiser.codebook[2], dim=0).clone()
    for _ in range(200):  # 0.5^200 is 0 in float32
        quantiser.update_(encoded(dim=2), torch.arange(40).view(2, 4, 5) % 2, rng=stream())
    torch.testing.assert_close(F.normalize(quantiser.codebook[2], dim=0), direction)
    assert not is_normalised or float(quantiser.codebook[2].norm()) == pytest.approx(1)


def test_state_carries_everything_that_a_resumed_run_needs() -> None:
    def build() -> VectorQuantiser:
        return VectorQuantiser(7, 3, update="ema", restart_after=2, init="kmeans")

    straight, resumed = build(), build()
    straight.initialise_(encoded(), rng=stream())
    z = [0.1 * encoded(seed=seed) for seed in range(4)]
    for step in range(4):
        straight.update_(z[step], straight.nearest(z[step]), rng=stream(step))
        if step == 1:
            resumed.load_state_dict({key: value.clone() for key, value in straight.state_dict().items()})
    assert not resumed.needs_initialising
    restarted = [resumed.update_(z[step], resumed.nearest(z[step]), rng=stream(step)) for step in (2, 3)]
    assert sum(restarted) > 0
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


# Restarts


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_an_entry_is_restarted_after_exactly_so_many_unused_updates(update: Any, is_normalised: bool) -> None:
    quantiser = filled(VectorQuantiser(5, 3, update=update, restart_after=3, normalise=is_normalised))
    z = encoded()
    used = torch.arange(40).view(2, 4, 5) % 3  # 3 and 4 are never used
    assert [quantiser.update_(z, used, rng=stream(step)) for step in range(7)] == [0, 0, 2, 0, 0, 2, 0]


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_restarted_entry_is_a_vector_of_the_batch_and_the_used_ones_are_not_touched(
    update: Any, is_normalised: bool
) -> None:
    options: dict[str, Any] = {"update": update, "normalise": is_normalised}
    quantiser, without = (
        filled(VectorQuantiser(5, 3, restart_after=1, **options)),
        filled(VectorQuantiser(5, 3, **options)),
    )
    z, used = encoded(), torch.arange(40).view(2, 4, 5) % 3
    assert quantiser.update_(z, used, rng=stream()) == 2
    without.update_(z, used, rng=stream())
    assert torch.equal(quantiser.codebook[:3], without.codebook[:3])
    vectors = [F.normalize(vector, dim=0) if is_normalised else vector for vector in vectors_of(z)]
    for entry in quantiser.codebook[3:].detach():
        assert sum(torch.equal(entry, vector) for vector in vectors) == 1
    assert not torch.equal(quantiser.codebook[3], quantiser.codebook[4])


def test_a_restart_resets_the_moving_averages() -> None:
    """If only the entry were replaced, the next update would move it back to its old averages."""
    quantiser = filled(VectorQuantiser(4, 3, update="ema", restart_after=2))
    z, used = encoded(), torch.arange(40).view(2, 4, 5) % 3
    for step in range(2):
        quantiser.update_(z, used, rng=stream(step))
    fresh = quantiser.codebook[3].clone()
    assert float(quantiser.cluster_sizes[3]) == 1 and torch.equal(quantiser.cluster_sums[3], fresh)
    assert int(quantiser.unused_updates[3]) == 0
    quantiser.update_(z, used, rng=stream(2))
    torch.testing.assert_close(quantiser.codebook[3], fresh, rtol=1e-4, atol=1e-5)


def test_restarts_are_a_function_of_the_random_stream() -> None:
    def restarted(seed: int) -> Tensor:
        quantiser = filled(VectorQuantiser(6, 3, restart_after=1))
        quantiser.update_(encoded(), torch.zeros(2, 4, 5, dtype=torch.int64), rng=stream(seed))
        return quantiser.codebook.detach()

    assert torch.equal(restarted(3), restarted(3)) and not torch.equal(restarted(3), restarted(4))


def test_more_dead_entries_than_vectors_are_restarted_in_turns() -> None:
    quantiser, z = filled(VectorQuantiser(9, 3, restart_after=1)), encoded(1, rows=1, cols=3)
    codes = torch.zeros(1, 1, 3, dtype=torch.int64)
    before = quantiser.codebook.detach().clone()
    assert quantiser.update_(z, codes, rng=stream()) == 3
    moved = (quantiser.codebook.detach() != before).any(1)
    assert moved.tolist() == [False, True, True, True, False, False, False, False, False]


def test_all_codes_of_a_collapsed_codebook_come_into_use() -> None:
    quantiser, z = VectorQuantiser(8, 3, restart_after=2), encoded(8) + 5
    before, after = CodeUsage(8), CodeUsage(8)
    before.add(quantiser.nearest(z))
    for step in range(10):
        quantiser.update_(z, quantiser.nearest(z), rng=stream(step))
    after.add(quantiser.nearest(z))
    assert before.num_dead >= 5 and after.num_dead == 0


def test_a_restarted_parameter_is_the_same_parameter() -> None:
    quantiser = filled(VectorQuantiser(6, 3, restart_after=1))
    (parameter,) = quantiser.parameters()
    quantiser.update_(encoded(), torch.zeros(2, 4, 5, dtype=torch.int64), rng=stream())
    assert quantiser.codebook is parameter and parameter.requires_grad and parameter.is_leaf


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 5, 5), (2, 4, 4)])
def test_update_refuses_codes_of_another_batch_or_grid(shape: tuple[int, ...]) -> None:
    quantiser = VectorQuantiser(7, 3, update="ema")
    with pytest.raises(ShapeError) as caught:
        quantiser.update_(encoded(), torch.zeros(shape, dtype=torch.int64), rng=stream())
    assert "[2, 3, 4, 5]" in str(caught.value) and str(list(shape)) in str(caught.value)


# k-means


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_kmeans_of_one_cluster_per_code_finds_their_means(update: Any) -> None:
    centres = 20 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    z = 0.1 * encoded(8) + centres[torch.arange(20) % 5].T.reshape(3, 4, 5)
    quantiser = VectorQuantiser(5, 3, update=update, init="kmeans")
    assert quantiser.needs_initialising
    best = min((distortion_after_kmeans(quantiser, z, seed) for seed in range(8)), key=lambda pair: pair[0])
    assert not quantiser.needs_initialising
    means = sorted(torch.stack(vectors_of(z))[k::5].mean(0).tolist() for k in range(5))
    torch.testing.assert_close(torch.tensor(sorted(best[1].tolist())), torch.tensor(means), rtol=0, atol=1e-4)


def distortion_after_kmeans(quantiser: VectorQuantiser, z: Tensor, seed: int) -> tuple[float, Tensor]:
    """Lloyd's iterations end in a local optimum: of several starts, one finds the clusters."""
    quantiser.initialise_(z, rng=stream(seed))
    return float((quantiser(z).values - z).detach().square().mean()), quantiser.codebook.detach().clone()


def test_kmeans_leaves_no_code_unused_and_lowers_the_distortion() -> None:
    z = encoded(4) + 3
    uniform, kmeans = VectorQuantiser(8, 3), VectorQuantiser(8, 3, init="kmeans")
    kmeans.initialise_(z, rng=stream())
    assert len(kmeans.nearest(z).unique()) == 8
    assert kmeans(z).loss < uniform(z).loss / 10


def test_kmeans_of_directions_has_entries_of_length_one_and_starts_the_averages() -> None:
    quantiser = VectorQuantiser(8, 3, init="kmeans", normalise=True, update="ema")
    quantiser.initialise_(encoded(), rng=stream())
    torch.testing.assert_close(quantiser.codebook.norm(dim=1), torch.ones(8))
    assert torch.equal(quantiser.cluster_sums, quantiser.codebook) and bool((quantiser.cluster_sizes == 1).all())


def test_kmeans_with_fewer_vectors_than_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="'kmeans' was given 40 vectors for 41 codes"):
        VectorQuantiser(41, 3, init="kmeans").initialise_(encoded(), rng=stream())


# SimVQ


def test_sim_looks_up_the_mapped_frozen_codebook() -> None:
    quantiser, z = SimVectorQuantiser(7, 3), encoded()
    entries = torch.stack([quantiser.map.weight.detach() @ entry for entry in quantiser.codebook])
    assert quantiser.nearest(z).flatten().tolist() == nearest_by_loop(z, entries)
    codes = torch.arange(7).view(1, 1, 7)
    torch.testing.assert_close(quantiser.lookup(codes)[0, :, 0].T.detach(), entries)
    assert [name for name, _ in quantiser.named_parameters()] == ["map.weight"]
    assert set(quantiser.state_dict()) == {"codebook", "map.weight"}


def test_sim_gradients_are_those_of_the_written_formula() -> None:
    quantiser, z = SimVectorQuantiser(7, 3, beta=0.3), encoded().requires_grad_()
    quantised = quantiser(z)
    quantised.loss.backward()
    z_again, weight = z.detach().clone().requires_grad_(), quantiser.map.weight.detach().clone().requires_grad_()
    vectors = torch.stack(vectors_of(z_again))
    chosen = quantiser.codebook[quantised.codes.flatten()] @ weight.T
    loss = ((vectors.detach() - chosen) ** 2).mean() + 0.3 * ((vectors - chosen.detach()) ** 2).mean()
    loss.backward()
    torch.testing.assert_close(quantised.loss, loss)
    torch.testing.assert_close(z.grad, z_again.grad)
    torch.testing.assert_close(quantiser.map.weight.grad, weight.grad)


def test_sim_is_straight_through() -> None:
    z, weight = encoded().requires_grad_(), encoded(seed=1)
    (gradient,) = torch.autograd.grad((SimVectorQuantiser(7, 3)(z).values * weight).sum(), z)
    assert torch.equal(gradient, weight)


# Finite scalars

LEVELS = [[3], [2], [5, 4], [8, 5, 5], [2, 3, 4, 7]]


def centred_levels(count: int) -> list[int]:
    """What rounding can give: 3 -> -1, 0, 1; 4 -> -2, -1, 0, 1."""
    return list(range(-(count // 2), count - count // 2))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_finite_scalar_codes_enumerate_all_products_of_levels(levels: list[int]) -> None:
    quantiser = FiniteScalarQuantiser(levels)
    assert quantiser.vocab_size == math.prod(levels) and quantiser.dim == len(levels)
    values = quantiser.lookup(torch.arange(quantiser.vocab_size).view(1, 1, -1))[0, :, 0].T
    # The first channel is the fastest digit, as `product` has the last.
    products = itertools.product(*(centred_levels(count) for count in reversed(levels)))
    expected = [
        [level / (count // 2) for level, count in zip(product[::-1], levels, strict=True)] for product in products
    ]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_each_finite_scalar_code_is_that_of_the_z_bounded_to_its_values(levels: list[int]) -> None:
    """The inverse of the bound, solved by bisection, leads every code back to itself."""
    quantiser = FiniteScalarQuantiser(levels)
    codes = torch.arange(quantiser.vocab_size).view(1, 1, -1)
    wanted = quantiser.lookup(codes).permute(0, 2, 3, 1) * torch.tensor([count // 2 for count in levels])
    low, high = torch.full_like(wanted, -20), torch.full_like(wanted, 20)
    for _ in range(40):
        middle = (low + high) / 2
        is_below = quantiser.bound(middle) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    z = low.permute(0, 3, 1, 2)
    assert torch.equal(quantiser.nearest(z), codes)
    assert torch.equal(quantiser(z).values, quantiser.lookup(codes))


@pytest.mark.parametrize("count", range(2, 17))
def test_finite_scalar_levels_are_all_reached_in_order_and_no_other(count: int) -> None:
    quantiser = FiniteScalarQuantiser([count])
    z = torch.linspace(-20, 20, 4001)
    codes = quantiser.nearest(z.view(1, 1, 1, -1)).flatten()
    assert codes.unique_consecutive().tolist() == list(range(count))
    half = (count - 1) * 0.999 / 2
    offset = 0 if count % 2 else 0.5
    expected = [round(half * math.tanh(float(x) + math.tan(offset / half)) - offset) + count // 2 for x in z]
    assert codes.tolist() == expected


def test_finite_scalar_gradient_is_that_of_the_bound() -> None:
    quantiser = FiniteScalarQuantiser([4, 7])
    z, weight = encoded(dim=2).requires_grad_(), encoded(dim=2, seed=1)
    (received,) = torch.autograd.grad((quantiser(z).values * weight).sum(), z)
    expected = torch.empty_like(z)
    for channel, (half, offset, half_width) in enumerate([(1.5 * 0.999, 0.5, 2), (3 * 0.999, 0.0, 3)]):
        slope = half / torch.cosh(z[:, channel] + math.tan(offset / half)) ** 2 / half_width
        expected[:, channel] = weight[:, channel] * slope
    torch.testing.assert_close(received, expected.detach())


def test_finite_scalar_has_nothing_to_learn() -> None:
    quantiser = FiniteScalarQuantiser([3, 4, 5])
    quantised = quantiser(encoded())
    assert float(quantised.loss) == 0 and quantised.terms == {}
    assert not quantiser.state_dict() and not list(quantiser.parameters())


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size = 0 codes"),
        ({"dim": 0}, "dim = 0"),
        ({"beta": -0.5}, "beta = -0.5 is negative"),
        ({"decay": 1.0}, r"decay = 1.0 is not in \[0, 1\)"),
        ({"decay": -0.1}, r"decay = -0.1 is not in \[0, 1\)"),
        ({"restart_after": 0}, "restart_after = 0 updates"),
        ({"beta_on": "comitment"}, "beta_on = 'comitment' is not known. Did you mean 'commitment'"),
        ({"update": "emma"}, "update = 'emma' is not known. Did you mean 'ema'"),
        ({"estimator": "rotate"}, "estimator = 'rotate' is not known. Did you mean 'rotation'"),
        ({"init": "normal"}, "init = 'normal' is not known. Did you mean 'uniform'[?] Allowed: kmeans, uniform"),
        (
            {"update": "ema", "beta_on": "codebook"},
            "beta_on = 'codebook' weighs a loss that update = 'ema' does not have",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VectorQuantiser(**{"vocab_size": 4, "dim": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"dim": 0}, "dim = 0"),
        ({"beta": -1.0}, "beta = -1.0"),
    ],
)
def test_sim_refuses_the_same(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimVectorQuantiser(**{"vocab_size": 4, "dim": 2, **options})


@pytest.mark.parametrize("levels", [[], [4, 1], [0]], ids=str)
def test_too_few_levels_are_refused(levels: list[int]) -> None:
    with pytest.raises(ConfigError) as caught:
        FiniteScalarQuantiser(levels)
    assert f"levels = {levels}" in str(caught.value)
