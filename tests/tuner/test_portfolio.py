"""Portfolios against all subsets tried, and the space of a real kernel with its reasons."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.kernels.catalog import KERNELS
from einsight.kernels.spaces import excluded, parse_config
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.workload import Workload
from einsight.tuner import portfolio as module
from einsight.tuner import prior
from einsight.tuner.portfolio import PortfolioError, boundaries, portfolio
from einsight.tuner.space import Problem, SpaceError

ATTENTION = Workload.attention(heads=32, kv_heads=8, seq_q=4096, head_dim=128, mask="causal")


def problem(capability: int = 90, workload: Workload = ATTENTION) -> Problem:
    return Problem(KERNELS["attention"], workload, capability)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_the_best_subset_is_found(seed: int, size: int, exchange: bool) -> None:
    random = np.random.default_rng(seed)
    times = random.random((5, 7)) + 0.1
    times[random.random(times.shape) < 0.2] = np.nan
    times[:, 0] = 2.0  # one configuration that always works
    few, module.FEW = module.FEW, 0 if exchange else module.FEW
    try:
        found = portfolio(times, size)
    finally:
        module.FEW = few
    slow = np.where(np.isfinite(times), times / np.nanmin(times, 1)[:, None], np.inf)
    best = min(slow[:, list(c)].min(1).sum() for c in combinations(range(7), size))
    cost = sum(found.loss) + 5
    assert cost <= best * (1.1 if exchange else 1 + 1e-12) and cost >= best * (1 - 1e-12)
    assert set(found.chosen) == set(found.kept) and len(found.kept) <= size
    assert all(found.loss[s] == pytest.approx(slow[s, c] - 1) for s, c in enumerate(found.chosen))


def test_as_many_as_there_are_shapes_lose_nothing() -> None:
    times = np.array([[1.0, 2.0, 9.0], [3.0, 1.0, 9.0], [9.0, 9.0, 1.0]])
    assert portfolio(times, 3).mean_loss == 0 and portfolio(times, 3).chosen == (0, 1, 2)
    assert portfolio(times, 1, weights=[0, 0, 1]).kept == (2,)
    with pytest.raises(PortfolioError, match="shape c: no configuration has a time"):
        portfolio(np.array([[1.0], [2.0], [np.nan]]), 1, names="abc")
    with pytest.raises(PortfolioError, match="none of 1 configurations is valid for it"):
        portfolio(np.array([[1.0, np.nan], [np.nan, 1.0]]), 1)


def test_a_dispatch_by_one_size_is_its_thresholds() -> None:
    assert boundaries([512, 64, 128, 1024], [3, 1, 1, 3]) == [(64, 1), (512, 3)]


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_a_space_is_what_the_kernel_does_not_exclude(capability: int) -> None:
    at = problem(capability)
    valid = [c for c in at.kernel.space.candidates() if not excluded(at.heads, c, at.limits, 4096)]
    space = at.space()
    assert len(space) == len(valid) <= 160
    assert [space.configuration(r)["block_m"] for r in range(len(space))] == [c.block_m for c in valid]
    assert all((not at.why_excluded(str(c))) == (c in valid) for c in at.kernel.space.candidates())


def test_why_a_configuration_is_out() -> None:
    at = problem()
    assert at.why_excluded("BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2") == ""
    assert "255 exist" in at.why_excluded("BLOCK_M=256,BLOCK_N=128,num_warps=4,num_stages=3")
    assert "is not among the values searched: 1, 2, 3, 4" in at.why_excluded("BLOCK_M=64,BLOCK_N=32,num_warps=4,num_stages=5")
    with pytest.raises(SpaceError, match="num_stages missing"):
        at.why_excluded("BLOCK_M=128,BLOCK_N=64,num_warps=8")
    with pytest.raises(SpaceError, match="dtype: got fp8_e4m3"):
        problem(workload=Workload.attention(heads=4, seq_q=64, head_dim=64, dtype="fp8_e4m3"))
    with pytest.raises(SpaceError, match="compute capability 70"):
        problem(70)


def test_the_simulator_is_a_prior_over_the_whole_space() -> None:
    gpu = load_hardware("h100-sxm")
    assert isinstance(gpu, Gpu)
    at = problem()
    logs = prior.simulated(at, gpu)
    assert logs.shape == (len(at.space()),) and np.isfinite(logs).all() and np.ptp(logs) > 0
    mapping, resources = prior.mapping_of(at, parse_config("BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2"))
    assert (mapping.block_m, mapping.block_n) == (128, 64) and mapping.blocks_per_sm >= 1
    assert resources.shared_bytes == 2 * (128 * 128 + 2 * 64 * (128 + 128))  # Q, and two stages of K and V, 2 bytes each


def test_a_record_of_our_kernel_has_the_simulator_as_prior() -> None:
    from einsight.tuner.gpu import written
    from einsight.tuner.record import Status
    from einsight.tuner.recorded import Outcome, Recorded

    at, gpu = problem(), load_hardware("h100-sxm")
    assert isinstance(gpu, Gpu)
    space = at.space()
    outcomes = (Outcome(Status.OK, (1e-3,)),) * len(space)
    record = Recorded("r", "attention", gpu.devices[0], space, outcomes, written(ATTENTION))
    np.testing.assert_allclose(prior.of_record(record), prior.simulated(at, gpu))
    for other, message in (
        (Recorded("r", "gemm", gpu.devices[0], space, outcomes, written(ATTENTION)), "no record of a kernel of ours"),
        (Recorded("r", "attention", "Unheard Of", space, outcomes, written(ATTENTION)), "no profile lists the device"),
    ):
        with pytest.raises(prior.PriorError, match=message):
            prior.of_record(other)
