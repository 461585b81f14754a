"""A small GPU with round numbers and a prediction on it, so that expected values are formulas in the head."""

from __future__ import annotations

import pytest

from einsight.reports.report import Results
from einsight.sim.hardware import Architecture, Gpu, Quantity
from einsight.sim.prediction import Bound, Prediction


def quantity(value: float) -> Quantity:
    return Quantity(value, f"{value:g}", "assumed", f"source of {value:g}")


@pytest.fixture
def gpu() -> Gpu:
    """10 SMs at 1 GHz: 10 TFLOP/s, 1 TB/s of HBM, 0.64 TB/s of L2, 1.28 TB/s of shared memory."""
    architecture = Architecture(
        name="round", compute_capability="0.0", instructions="wgmma", vector_ops_per_cycle=quantity(128),
        special_ops_per_cycle=quantity(16), shared_bytes_per_cycle=quantity(128), l2_bytes_per_cycle=quantity(64),
        shared_bytes=quantity(2e5), shared_bytes_per_block=quantity(2e5), registers=quantity(65536),
        registers_per_thread=quantity(255), warps=quantity(64), blocks=quantity(32), warp_threads=32,
        operators={"exp": {"special": 1.0}, "max": {"vector": 1.0}}, operators_kind="assumed", operators_source="",
    )  # fmt: skip
    return Gpu(
        name="small", title="A small GPU", architecture=architecture, devices=("Small <1>",), family={},
        sms=quantity(10), boost_hz=quantity(1e9), tdp_w=quantity(100), hbm_bytes=quantity(1e9),
        hbm_bytes_per_s=quantity(1e12), l2_bytes=quantity(1e6),
        tensor_flops_per_cycle={"bf16": quantity(1000), "fp16": quantity(1000), "fp8_e4m3": quantity(2000)},
        peak_flops_per_s={},
    )  # fmt: skip


@pytest.fixture
def prediction() -> Prediction:
    """8e12 FLOP in 2 s with 1e12 B of HBM traffic and 2e10 exps: 4 TFLOP/s, 8 FLOP/B, 400 FLOP per exp."""
    bound = Bound("tensor cores", 0.8, "8e12 FLOP at 10 TFLOP/s (assumed)")
    return Prediction(
        workload="<script>alert(1)</script>", key="0" * 16, target="small", family="f", cascade="one_pass",
        time_s=2.0, time_low_s=1.5, time_high_s=2.5, bound=bound, bounds=(bound, Bound("HBM", 1.0, "1 TB at 1 TB/s")),
        flops_matmul=8e12, flops_by_class={"macc": 4e12, "exp": 2e10}, bytes_by_memory={"HBM": 1e12, "L2": 4e12},
        passes={"K": 1, "V": 1}, peak_flops_per_s=1e13, speedup={"over_dense_fused": 2.0}, mapping={"block_m": 128},
        assumptions=("cold caches",), energy_pj=2e14, energy_note="upper bound TDP x time",
    )  # fmt: skip


@pytest.fixture
def results(gpu: Gpu, prediction: Prediction) -> Results:
    return Results((prediction,), {"small": gpu}, {})
