"""The backward passes of FlashBias's micro-benchmark: what its kernels do there that they do not do forward.

Nothing here is fitted on a backward pass. What differs from the forward pass was read off the public code of the kernels:
PyTorch's memory-efficient attention (`kernel_backward.h`) and the Triton kernels of FlashBias's repository.

- A memory-efficient kernel is a chain of products. Each fills its stages from L2 for itself, the tiles of keys and values
  included, and ends at a barrier. A tile's exposed latency is that of its products: two forward, five backward. (It is
  not the matrix's load: fitted with a matrix, it also gives the forward times of factors, which read none.)
- It is compiled for 12 warps to an SM instead of 16: three blocks.
- Blocks of keys add to one query's gradient in turn, under a lock, and each makes the row sums of O * DO anew (`SDPA_TRIPS`).
- Triton compiles an atomic addition with the semantics acquire and release, its default: a fence stands before each and
  the sum comes back, so that a thread's additions follow each other, one trip apart. (Triton 3.7 compiles a loop of this
  shape for compute capability 8.0 to 24 fences and additions with factors, 16 with a matrix.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from einsight.reports.flashbias_kernels import (
    ASSUMED_TARGET,
    HOST_S,
    MICRO,
    PADDED_RANK,
    PUBLISHED,
    RANK,
    SDPA_TILES,
    TRIP_CYCLES,
    Times,
    baseline,
    forward_on_gpu,
    milliseconds,
    packing_ms,
    plain,
    triton_family,
    with_constants,
)
from einsight.sim.family import Family
from einsight.sim.mapping import Mapping as Tiles
from einsight.sim.predict import plan_of
from einsight.sim.tile_cost import LOAD_CYCLES
from einsight.sim.workload import Workload

SDPA_BACKWARD_TILES = replace(SDPA_TILES, blocks_per_sm=3)
"""The tiles of the forward pass; launch bounds of 12 warps to an SM for 16-bit types on compute capability 8.0."""
SDPA_TRIPS = {
    "O and DO for the row sums, which every block of keys makes for all queries": LOAD_CYCLES,
    "the lock of a tile of query gradients": TRIP_CYCLES,
    "the tile's partial sums": LOAD_CYCLES,
    "the fence before the lock is given back": TRIP_CYCLES,
}
"""Cycles that one tile of the memory-efficient backward kernel waits with no product behind: for tiles, and for one word."""
TRITON_BACKWARD_TILES = Tiles(128, 128, blocks_per_sm=1)
"""The largest of the backward kernel's space, of 8 warps: one block fills the registers."""
TRITON_BACKWARD_WARPS = 8
"""All that the kernel's tuning space has backward."""
TRITON_LOADS = ("queries", "factors or the matrix", "log-sum-exp", "gradients of the output", "row sums")
"""Tiles that the Triton backward kernel loads one after the other where it needs them, a trip each: nothing is prefetched."""
WARP = 32


def products(workload: Workload, family: Family) -> int:
    """Matrix products of one tile of the workload's kernel."""
    counts = [c for sweep in plan_of(workload, family).main.sweeps for c in sweep.share.counts]
    return len({c.einsum for c in counts if c.matmul})


@lru_cache(maxsize=4)
def sdpa_family(target: str = ASSUMED_TARGET) -> Family:
    """The baseline's family in the backward pass: its fitted latency once per product, and `SDPA_TRIPS`."""
    forward = baseline(target)
    each = forward.constants["tile_cycles"] / products(plain(1024), forward.family)
    number = products(gradients("backward", 1024), forward.family)
    waits = sum(SDPA_TRIPS.values())
    why = f"{number} products of {each:.0f} cycles, as forward, and {waits:.0f} for row sums, lock, partial sums and fence"
    return with_constants(forward.family, {"tile_cycles": (number * each + waits, why)}, "assumed")


def additions(columns: int) -> int:
    """Atomic additions of one thread for a tile's query gradients of so many columns."""
    return TRITON_BACKWARD_TILES.block_n * columns // (WARP * TRITON_BACKWARD_WARPS)


def triton_backward(columns: int) -> Family:
    """The Triton kernel in the backward pass, whose gradients of queries (and of their factors) have so many columns."""
    trips = len(TRITON_LOADS) + additions(columns)
    why = f"{len(TRITON_LOADS)} exposed loads and {additions(columns)} additions with a fence before each"
    return with_constants(triton_family(TRITON_BACKWARD_WARPS), {"tile_cycles": (trips * TRIP_CYCLES, why)}, "assumed")


STEP_MS: float = (PUBLISHED["eager_256_ms"]["forward and backward"] - PUBLISHED["eager_256_ms"]["forward"]) / (
    PUBLISHED["backward_steps"]["eager with the matrix"]["nodes"]
)
"""Host time of one step of a backward pass: read off the eager implementation at N = 256, where the GPU has next to nothing to
do. No prediction of that row exists, and no row of SDPA or of factors enters."""


def gradients(cascade: str, n: int, columns: int = MICRO["head_dim"], **ranks: int) -> Workload:
    """The backward pass of the benchmark; `columns` of queries and keys."""
    sizes = {"b": MICRO["batch"], "h": MICRO["heads"], "m": n, "n": n, "e": columns, "f": MICRO["head_dim"], **ranks}
    return Workload(f"{cascade} {n}", cascade, sizes, MICRO["dtype"], cache=MICRO["cache"])


def backward_on_gpu(target: str = ASSUMED_TARGET) -> Times:
    """The gradient of the bias included: a matrix as large as the bias, or that of the factors."""
    width = MICRO["head_dim"]
    sdpa, with_factors, with_matrix = sdpa_family(target), triton_backward(width + PADDED_RANK), triton_backward(width)

    def at(workload: Workload, family: Family, tiles: Tiles, what: str, n: int) -> float:
        return milliseconds(workload, family, tiles, target) + packing_ms(what, n, target)

    wide = width + RANK  # concatenated: the factors' gradients are columns of those of queries and keys
    dense, both, two, matrix = "SDPA with the matrix", "SDPA with factors", "Triton with factors", "Triton with the matrix"
    return {
        dense: lambda n: at(gradients("backward_dense_bias", n), sdpa, SDPA_BACKWARD_TILES, dense, n),
        both: lambda n: at(gradients("backward", n, wide), sdpa, SDPA_BACKWARD_TILES, both, n),
        two: lambda n: at(gradients("backward_low_rank", n, r=PADDED_RANK), with_factors, TRITON_BACKWARD_TILES, two, n),
        matrix: lambda n: at(gradients("backward_dense_bias", n), with_matrix, TRITON_BACKWARD_TILES, matrix, n),
    }


def host_ms(what: str) -> float:
    """Host time of one forward and backward pass, which ends in a synchronisation; 0 where its steps are not counted.

    A step is a node of the autograd graph, or for a node written in Python each framework call in it.
    """
    steps = PUBLISHED["backward_steps"].get(what, {"nodes": 0, "python": 0})
    forward = HOST_S * 1e3 if what.startswith("Triton") else 0.0
    return forward + STEP_MS * (int(steps["nodes"]) + int(steps["python"]))


def training_ms(target: str = ASSUMED_TARGET) -> Times:
    """Predicted times of forward and backward together: the longer of GPU and host."""
    there, back = forward_on_gpu(target), backward_on_gpu(target)

    def timed(what: str, n: int) -> float:
        return max(host_ms(what), there[what](n) + back[what](n))

    return {what: lambda n, what=what: timed(what, n) for what in back}  # type: ignore[misc]


def passes(what: str, n: int, target: str = ASSUMED_TARGET) -> float:
    """Predicted backward over forward of one kernel on the GPU."""
    return backward_on_gpu(target)[what](n) / forward_on_gpu(target)[what](n)


CASCADES = {"backward": "backward", "backward with the matrix": "backward_dense_bias", "forward": "one_pass"}


def memory_efficient_ms(measured: Mapping[str, Any], target: str = ASSUMED_TARGET) -> float:
    """Predicted time of a measurement of the memory-efficient kernel that FlashBias has no part in."""
    ranks = {"b": "batch", "h": "heads", "m": "seq", "n": "seq", "e": "head_dim", "f": "head_dim"}
    sizes = {rank: int(measured[name]) for rank, name in ranks.items()}
    workload = Workload(f"memory-efficient {measured['what']}", CASCADES[measured["what"]], sizes, MICRO["dtype"])
    if measured["what"] == "forward":
        return milliseconds(workload, baseline(target).family, SDPA_TILES, target)
    return milliseconds(workload, sdpa_family(target), SDPA_BACKWARD_TILES, target)
