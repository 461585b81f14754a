"""The kernels of FlashBias's micro-benchmark, as families and workloads that the GPU model predicts.

What the benchmark runs is read off its code: fp16, 2 sequences, 4 heads, dimension 32, a bias of its own for every sequence and
head, its gradient asked for, and L2 cleared before every call (triton.testing.do_bench). Two constants of the baseline,
PyTorch's SDPA with an additive mask, are fitted on that baseline's own forward times at N = 4096 and 16384; they hold for its
backward pass too (`flashbias_backward`). Nothing else is fitted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from einsight.sim.bias_times import concatenated, with_factors, with_matrix
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import DTYPE_BYTES, Gpu, Quantity, load_hardware
from einsight.sim.mapping import Mapping as Tiles
from einsight.sim.predict import estimate_of, predict
from einsight.sim.workload import Workload

PUBLISHED: Mapping[str, Any] = json.loads((Path(__file__).parent / "templates" / "flashbias.json").read_text("utf-8"))


def by_length(values: Mapping[str, float]) -> dict[int, float]:
    return {int(n): value for n, value in values.items()}


ASSUMED_TARGET: str = PUBLISHED["assumed_target"]
MICRO: Mapping[str, Any] = {"batch": 2, "heads": 4, "head_dim": 32, "dtype": "fp16", "cache": "cold"}
MATRIX = "dense_bias_unshared"
"""The benchmark's matrix: one per sequence and head."""
RANK = 8
FITTED_ON = (4096, 16384)
"""Sequence lengths whose baseline times two constants are fitted on."""
SDPA_DENSE_MS = by_length(PUBLISHED["sdpa_dense_ms"])

SDPA_TILES = Tiles(64, 64, blocks_per_sm=4)
"""PyTorch's memory-efficient kernel on compute capability 8.0: 64 x 64 tiles of 4 warps, compiled for 16 warps to an SM."""
TRITON_TILES = Tiles(128, 128, blocks_per_sm=2)
"""The largest of the kernel's autotuning space; accumulators in registers leave room for two blocks."""
TRITON_WARPS = 4
"""The most that the kernel's tuning space has forward."""

SDPA_NOTES = (
    "SDPA with a mask, and with operands of 40 and values of 32 columns, runs PyTorch's memory-efficient kernel: one family,"
    " so that what is fitted on the baseline also predicts the concatenated factors"
)
TRIP_CYCLES = 300.0
"""Of a trip to L2 that nothing hides, assumed: some 260 cycles to L2 (A100, Luo et al. 2024, arXiv 2402.13499) and an issue."""
TRITON_CONSTANTS = {
    "unhidden": (1.0, "num_stages = 1: loads, products and softmax of a block follow each other"),
    "unhidden_memory": (1.0, "num_stages = 1: nothing is prefetched"),
    "tile_cycles": (5 * TRIP_CYCLES, "five exposed trips of 300 cycles to L2: keys, factors, values, a scale out and in"),
}
HOST_S = 1e-4
"""Host time of one forward call of the Triton wrapper: ten framework calls (permute, contiguous, casts, allocations) of 5 us
and one launch with an autotuning look-up, 50 us; assumed. The GPU works meanwhile, so that the longer of the two counts."""
HALF_RATE = 2
"""In the forward pass factors are multiplied in TF32, at half the rate of fp16: counted as twice the padded rank."""
PADDED_RANK = 16


def with_constants(family: Family, values: Mapping[str, tuple[float, str]], kind: str) -> Family:
    """The family with some constants replaced; each with its reason."""
    given = {name: Quantity(value, f"{value:g}", kind, why) for name, (value, why) in values.items()}
    return replace(family, constants={**family.constants, **given})


@dataclass(frozen=True, slots=True)
class Baseline:
    """SDPA with a bias matrix, and how it was fitted: `residuals` are predicted over published at `FITTED_ON`."""

    family: Family
    constants: Mapping[str, float]
    residuals: tuple[float, ...]


@lru_cache(maxsize=4)
def baseline(target: str = ASSUMED_TARGET) -> Baseline:
    """Two constants of the SDPA kernel, fitted on its own forward times with the matrix at `FITTED_ON`."""
    from scipy.optimize import least_squares  # half a second of import, only for this report

    def family(x: Sequence[float]) -> Family:
        why = f"fitted on SDPA with a matrix at N = {FITTED_ON[0]} and {FITTED_ON[1]}"
        reason = "no software pipelining before Ampere's asynchronous copies"
        serial = {"unhidden": (1.0, reason), "unhidden_memory": (1.0, reason)}
        first = with_constants(load_family("flash2"), serial, "assumed")
        fitted = {"vector_per_score": (float(x[0]), why), "tile_cycles": (float(x[1]), why)}
        return with_constants(first, fitted, "fitted")

    def off(x: Sequence[float]) -> list[float]:
        return [float(np.log(_sdpa_dense(n, family(x), target) / SDPA_DENSE_MS[n])) for n in FITTED_ON]

    found = least_squares(off, (20.0, 1000.0), bounds=((0.0, 0.0), (60.0, 5000.0)))
    constants = dict(zip(("vector_per_score", "tile_cycles"), map(float, found.x), strict=True))
    return Baseline(family(found.x), constants, tuple(float(np.exp(r)) for r in off(found.x)))


def triton_family(warps: int = TRITON_WARPS) -> Family:
    """The repository's Triton kernel: our Triton family, without software pipelining. Nothing is fitted.

    Its products are chained, so that the compiler gives every warp rows of its own: each reads the other operand for itself.
    """
    rows = TRITON_TILES.block_m // warps
    return replace(with_constants(load_family("triton"), TRITON_CONSTANTS, "assumed"), operand_rows=rows)


def plain(n: int) -> Workload:
    return Workload.attention(seq_q=n, **MICRO)


def milliseconds(workload: Workload, family: Family, tiles: Tiles, target: str) -> float:
    gpu = load_hardware(target)
    assert isinstance(gpu, Gpu)
    return float(estimate_of(workload, gpu, family, tiles).time_s[0]) * 1e3


def _sdpa_dense(n: int, family: Family, target: str) -> float:
    return milliseconds(with_matrix(plain(n), MATRIX), family, SDPA_TILES, target)


def packing_ms(what: str, n: int, target: str) -> float:
    """Framework kernels that lay out what the attention kernel reads: permuted factors, and for SDPA scaled and concatenated
    operands. Launches and bandwidth are those of an unfused kernel."""
    if what not in PUBLISHED["forward_kernels"]:
        return 0.0
    gpu, family, made = load_hardware(target), load_family("unfused"), PUBLISHED["forward_kernels"][what]
    assert isinstance(gpu, Gpu)
    moved = made["elements"] * DTYPE_BYTES[MICRO["dtype"]] * n * MICRO["batch"] * MICRO["heads"]
    moving = moved / (gpu.hbm_bytes_per_s.value * family.constant("hbm_fraction"))
    return float(made["launches"] * family.constant("launch_s") + moving) * 1e3


Times = Mapping[str, Callable[[int], float]]
"""Milliseconds by kernel, as functions of N."""


def forward_on_gpu(target: str = ASSUMED_TARGET) -> Times:
    sdpa, triton = baseline(target).family, triton_family()
    padded = HALF_RATE * PADDED_RANK

    def with_packing(what: str, workload: Workload, family: Family, tiles: Tiles, n: int) -> float:
        return milliseconds(workload, family, tiles, target) + packing_ms(what, n, target)

    both, two = "SDPA with factors", "Triton with factors"
    return {
        "SDPA with the matrix": lambda n: _sdpa_dense(n, sdpa, target),
        both: lambda n: with_packing(both, concatenated(plain(n), RANK), sdpa, SDPA_TILES, n),
        two: lambda n: with_packing(two, with_factors(plain(n), padded), triton, TRITON_TILES, n),
        "Triton with the matrix": lambda n: milliseconds(with_matrix(plain(n), MATRIX), triton, TRITON_TILES, target),
        "eager with the matrix": lambda n: predict(with_matrix(plain(n), MATRIX), f"{target}:unfused").time_s * 1e3,
    }


def micro_ms(target: str = ASSUMED_TARGET) -> Times:
    """Predicted forward times: the GPU's, or the host's where the Triton wrapper takes longer."""
    on_gpu = forward_on_gpu(target)

    def timed(what: str, n: int) -> float:
        return max(HOST_S * 1e3 if what.startswith("Triton") else 0.0, on_gpu[what](n))

    return {what: lambda n, what=what: timed(what, n) for what in on_gpu}  # type: ignore[misc]
