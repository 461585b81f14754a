"""Neighborhood attention before it was fused: naive kernels and batched GEMMs (Hassani et al. 2024, arXiv 2403.04690).

Both run Q K^T, softmax and A V as kernels of their own and pass the N x W scores of every head through memory.

    naive  one thread per score (or output element): every multiply-accumulate loads both of its operands, a lane of the
           L1 path each, and its key element comes again from L2 for every query
    gemm   a tile of queries times the keys that any of them sees, on tensor cores; what the tile computes beyond the
           windows is thrown away, and scores are scattered to their window's order, word by word

A plain model to place the generations, not a fitted one: its constants are the architecture's rates and sizes of tiles.
"""

from __future__ import annotations

from math import prod

from einsight.sim.gna_ranges import pairs
from einsight.sim.gna_tiles import Shape, count_tiles
from einsight.sim.gna_time import Problem
from einsight.sim.hardware import DTYPE_BYTES, Gpu

GEMM_TILES: dict[int, Shape] = {1: (64,), 2: (8, 8)}
"""Query tiles of the GEMM-based kernels, which exist in 1-D and 2-D."""
SECTOR_BYTES = 32.0
"""The least that a scattered access moves: the sector of an L2 line."""
LANE_BYTES = 4.0
"""What a load of one element takes of the L1 path, whose 32 lanes serve 4 bytes each."""
SCORE_PASSES = 4
"""Written and read by the softmax, written and read again as weights."""
LAUNCH_S = 3 * 3e-6
"""Three kernels in a row, 3 us each."""


def naive_seconds(problem: Problem, gpu: Gpu) -> float:
    """Two products on fp32 lanes, two loads per multiply-accumulate, keys from L2; scores through memory."""
    scores = pairs(problem.gna) * problem.heads * problem.batch
    products = 2 * scores * problem.head_dim
    lanes = products / gpu.architecture.vector_ops_per_cycle.value
    loads = 2 * products * LANE_BYTES / gpu.architecture.shared_bytes_per_cycle.value
    keys = products * DTYPE_BYTES[problem.dtype] / gpu.architecture.l2_bytes_per_cycle.value
    cycles = max(lanes, loads, keys) / gpu.sms.value
    return cycles / gpu.boost_hz.value + _score_seconds(problem, gpu, 1.0) + LAUNCH_S


def gemm_seconds(problem: Problem, gpu: Gpu, tensor_dtype: str) -> float | None:
    """Tiles on tensor cores at `tensor_dtype`'s rate, scores scattered; None for 3-D grids, which it never covered."""
    rank = len(problem.gna.layout)
    if rank not in GEMM_TILES:
        return None
    tile = GEMM_TILES[rank]
    tiles = count_tiles(problem.gna, tile, tile)
    flops = 4.0 * tiles.total * prod(tile) ** 2 * problem.head_dim * problem.heads * problem.batch
    scattered = SECTOR_BYTES / DTYPE_BYTES[problem.dtype] / tile[-1]  # runs of a tile's last dimension stay together
    memory = _score_seconds(problem, gpu, max(1.0, scattered))
    return flops / gpu.tensor_flops_per_s(tensor_dtype) + memory + LAUNCH_S


def _score_seconds(problem: Problem, gpu: Gpu, amplification: float) -> float:
    """Seconds for the scores' passes through memory; `amplification`: bytes moved per byte used of half of them."""
    size = pairs(problem.gna) * problem.heads * problem.batch * DTYPE_BYTES[problem.dtype]
    return SCORE_PASSES * size * (1 + amplification) / 2 / gpu.hbm_bytes_per_s.value
