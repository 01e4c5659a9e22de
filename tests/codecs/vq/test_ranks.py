"""Two processes that train one codebook: they agree to the bit, and have the statistics of one process with all images.

Run as a program, this file is one of the two processes: rank, then the folder that both use.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.codecs.vq.ranks import drawn, gathered

NUM_RANKS, NUM_STEPS = 2, 3


def batch(step: int, rank: int) -> Tensor:
    """Rank 1 has a smaller batch."""
    rng = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(3 - rank, 2, 4, 4, generator=rng) + 3 * rank


def codebook(restart_after: int | None) -> VectorQuantiser:
    quantiser = VectorQuantiser(12, 2, update="ema", decay=0.8, restart_after=restart_after)
    start = torch.randn(12, 2, generator=torch.Generator().manual_seed(99))
    quantiser.codebook.copy_(start)
    quantiser.cluster_sums.copy_(start)
    return quantiser


def run_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_RANKS, timeout=timedelta(seconds=60))
    rng = torch.Generator().manual_seed(rank)  # ranks have streams of their own
    plain, restarting = codebook(None), codebook(2)
    kmeans = VectorQuantiser(12, 2, init="kmeans", normalise=True)
    kmeans.initialise_(batch(0, rank), rng=rng)
    num_restarted = torch.zeros(1)
    for step in range(NUM_STEPS):
        z = batch(step, rank)
        plain.update_(z, plain.nearest(z), rng=rng)
        num_restarted += restarting.update_(z, restarting.nearest(z), rng=rng)
    state = {f"plain.{name}": value for name, value in plain.state_dict().items()}
    state |= {f"restarting.{name}": value for name, value in restarting.state_dict().items()}
    state |= {"kmeans.codebook": kmeans.codebook.detach(), "num_restarted": num_restarted}
    rows = torch.arange(3 + rank)[:, None].float() + 100 * rank
    state |= {"gathered": gathered(rows), "drawn": drawn(rows, 5, rng=rng)}
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    return [load_file(folder / f"{rank}.safetensors") for rank in range(NUM_RANKS)]


@pytest.mark.slow
def test_ranks_agree_to_the_bit(states: list[dict[str, Tensor]]) -> None:
    assert states[0].keys() == states[1].keys() and len(states[0]) > 9
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.slow
def test_statistics_are_those_of_one_process_with_all_images(states: list[dict[str, Tensor]]) -> None:
    single = codebook(None)
    for step in range(NUM_STEPS):
        z = torch.cat([batch(step, rank) for rank in range(NUM_RANKS)])
        single.update_(z, single.nearest(z), rng=torch.Generator())
    for name, value in single.state_dict().items():
        torch.testing.assert_close(states[0][f"plain.{name}"], value)


@pytest.mark.slow
def test_restarts_are_vectors_of_any_rank(states: list[dict[str, Tensor]]) -> None:
    assert float(states[0]["num_restarted"]) > 0
    restarted = states[0]["restarting.codebook"][states[0]["restarting.unused_updates"] == 0]
    vectors = torch.cat(
        [batch(s, r).permute(0, 2, 3, 1).reshape(-1, 2) for s in range(NUM_STEPS) for r in range(NUM_RANKS)]
    )
    assert any(torch.equal(entry, vector) for entry in restarted for vector in vectors)


@pytest.mark.slow
def test_vectors_are_gathered_in_order_and_drawn_without_repetition(states: list[dict[str, Tensor]]) -> None:
    everything = [0, 1, 2, 100, 101, 102, 103]
    assert states[0]["gathered"].flatten().tolist() == everything
    chosen = states[0]["drawn"].flatten().tolist()
    assert (
        len(set(chosen)) == 5 and set(chosen) <= set(everything) and {value >= 100 for value in chosen} == {True, False}
    )


def test_one_rank_draws_its_own_vectors_without_repetition() -> None:
    rows = torch.arange(6)[:, None].float()
    assert torch.equal(gathered(rows), rows)
    assert len(drawn(rows, 4, rng=torch.Generator().manual_seed(0)).unique()) == 4
    assert sorted(drawn(rows, 9, rng=torch.Generator().manual_seed(0)).flatten().tolist()) == [0, 1, 2, 3, 4, 5]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
