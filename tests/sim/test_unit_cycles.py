"""Operations weighted for a target, against formulas in the sizes and the profile's own rates."""

from __future__ import annotations

import pytest

from einsight.einsum.counts import count
from einsight.einsum.library import load
from einsight.einsum.resolve import bind
from einsight.sim.hardware import load_gpu
from einsight.sim.predict import predict
from einsight.sim.unit_cycles import unit_cycles
from einsight.sim.workload import Workload

M, N, E, F = 128, 256, 64, 32
SIZES = {"m": M, "n": N, "e": E, "f": F}


@pytest.mark.parametrize("target", ["h100-sxm", "b200", "mi300x"])
def test_stable_softmax_by_hand(target: str) -> None:
    gpu, cascade = load_gpu(target), load("stable")
    costs, arch = gpu.architecture.operators, gpu.architecture
    found = unit_cycles(count(cascade), bind(cascade, SIZES), gpu)
    assert found["tensor cores"] == 2 * M * N * (E + F) / gpu.tensor_flops_per_cycle["bf16"].value
    applied = {"max": M * (N - 1), "sub": M * N, "exp": M * N, "add": M * (N - 1), "div": M * N}
    for title, unit, rate in (
        ("fp32 pipe", "vector", arch.vector_ops_per_cycle), ("special functions", "special", arch.special_ops_per_cycle)
    ):  # fmt: skip
        expected = sum(n * costs[klass].get(unit, 0.0) for klass, n in applied.items()) / rate.value
        assert found[title] == pytest.approx(expected, rel=1e-12)


def test_matrix_products_agree_with_the_tiles_of_a_prediction() -> None:
    """Where tiles divide the sizes, a dense prediction's bound is these cycles on all SMs at the boost clock."""
    gpu, cascade, heads = load_gpu("h100-sxm"), load("one_pass"), 8
    made = predict(Workload.attention(heads=heads, seq_q=4096, head_dim=128), "h100-sxm")
    sizes = bind(cascade, {"m": 4096, "n": 4096, "e": 128, "f": 128, "n0": 128})
    cycles = heads * unit_cycles(count(cascade), sizes, gpu)["tensor cores"]
    (bound,) = [b.time_s for b in made.bounds if b.name == "tensor cores"]
    assert bound == pytest.approx(cycles / gpu.sms.value / gpu.boost_hz.value, rel=1e-9)


