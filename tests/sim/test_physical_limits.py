"""Limits that probes of the physics found broken: sharing without neighbours, sizes past 2^63, odd targets, packed rows."""

from __future__ import annotations

import numpy as np
import pytest

from einsight.sim.array import run
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import load_array
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.predict import estimate_of, family_on, predict
from einsight.sim.workload import Workload


@pytest.mark.parametrize("family", ["trtllm_blackwell", "flashinfer_tcgen05"])
@pytest.mark.parametrize("rows", [64, 128, 129, 1024])
def test_what_comes_from_hbm_passes_through_l2(family: str, rows: int) -> None:
    """Blocks of a cluster share keys where a head has several blocks; a lone block loads all of its own."""
    gpu = load_hardware("b200")
    assert isinstance(gpu, Gpu)
    workload = Workload.attention(batch=256, heads=1, seq_q=rows, head_dim=256, dtype="bf16")
    fitted, made, _ = family_on(workload, gpu, family)
    (kernel,) = estimate_of(workload, gpu, fitted, None, made).kernels
    whole = 4 * 256 * rows * 256 * 2
    assert kernel.l2_bytes[0] >= whole
    assert kernel.l2_bytes[0] >= kernel.hbm_bytes[0] * (1 - 1e-12)


@pytest.mark.parametrize("mask", [None, "causal"])
def test_the_longest_sequence_that_a_workload_may_have(mask: str | None) -> None:
    """Four times the time for twice the length, up to 2^40 positions."""
    times = [predict(Workload.attention(heads=1, seq_q=2**k, head_dim=128, mask=mask), "h100-sxm").time_s for k in (38, 39, 40)]
    assert np.diff(np.log2(times)) == pytest.approx([2.0, 2.0], abs=0.01)


@pytest.mark.parametrize("family", ["triton", "triton_two_stage", "triton_unified", "triton_extend"])
def test_a_family_fitted_elsewhere_runs_on_a_gpu_without_compute_capability(family: str) -> None:
    found = predict(Workload.attention(heads=8, seq_q=1024, head_dim=64), f"mi300x:{family}")
    assert found.time_s > 0.0


@pytest.mark.parametrize("queries", [40, 63, 64])
def test_packed_heads_fill_the_lanes_of_a_vector_array(queries: int) -> None:
    """Seven heads of a group are 7 m rows, more than the 64 features that a step could take instead."""
    array, design = load_array("fusemax"), load_design("flat-fused")
    shape = {"heads": 56, "kv_heads": 8, "seq_kv": 64, "head_dim": 64, "dtype": "fp16", "cascade": "linear"}
    here, more = (run(Workload.attention(seq_q=m, **shape), array, design) for m in (queries, queries + 5))  # type: ignore[arg-type]
    assert here.time_s <= more.time_s


def test_a_head_that_no_block_can_hold_is_called_so() -> None:
    fits, not_at_all = (predict(Workload.attention(heads=1, seq_q=4096, head_dim=e), "h100-sxm") for e in (1024, 16384))
    assert not [a for a in fits.assumptions if "Not even that fits" in a]
    assert [a for a in not_at_all.assumptions if "Not even that fits" in a]
