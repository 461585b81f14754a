"""Elements that attention with a bias moves between memory and chip: the theorem, and the tile loop with its constants.

Two models that are never mixed. The *theorem* (FlashBias, arXiv 2505.12044; FlashAttention, arXiv 2205.14135, theorem 2) gives
orders of growth with an on-chip capacity of S elements and is good for a ratio only. The *tile loop* counts what a kernel with
tiles of rows loads and stores when nothing stays in L2. Times of `predict` come from neither: they know the L2.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """One head: M queries, N keys, score dimension E, value dimension F, tiles of `block_m` queries."""

    queries: int
    keys: int
    head_dim: int
    value_dim: int
    block_m: int

    @property
    def blocks(self) -> int:
        return -(-self.queries // self.block_m)


def unbiased_elements(shape: Shape, rank: int = 0) -> int:
    """M (E + R) + M F + ceil(M / block_m) N (E + R + F): queries once, results once, keys and values for every block."""
    wide = shape.head_dim + rank
    swept = shape.blocks * shape.keys * (wide + shape.value_dim)
    return shape.queries * (wide + shape.value_dim) + swept


def low_rank_elements(shape: Shape, rank: int) -> int:
    """The bias as factors: both sides are wider by the rank."""
    return unbiased_elements(shape, rank)


def dense_elements(shape: Shape, width: float = 1.0) -> float:
    """The bias as a matrix: every element of it once. `width`: its bytes per element over those of Q, K and V."""
    return unbiased_elements(shape) + shape.queries * shape.keys * width


def loop_elements(shape: Shape, rank: int = 0, dense: bool = False, width: float = 1.0, block_n: int = 64) -> float:
    """The same by walking the loops, a tile at a time: the reference of the closed forms."""
    moved = 0.0
    for m in range(0, shape.queries, shape.block_m):
        rows = min(shape.block_m, shape.queries - m)
        moved += rows * (shape.head_dim + rank)
        for n in range(0, shape.keys, block_n):
            columns = min(block_n, shape.keys - n)
            moved += columns * (shape.head_dim + rank + shape.value_dim)
            moved += rows * columns * width if dense else 0
        moved += rows * shape.value_dim
    return moved


def tile_ratio(shape: Shape, rank: int, width: float = 1.0) -> float:
    """Dense over low-rank elements in the tile loop."""
    return dense_elements(shape, width) / low_rank_elements(shape, rank)


def tile_break_even(shape: Shape, width: float = 1.0) -> float:
    """The rank at which the tile loop moves as much for factors as for the matrix: R (1 + block_m / N) = block_m when
    block_m divides M. A real number; the factors win below it."""
    per_rank = shape.queries + shape.blocks * shape.keys
    return shape.queries * shape.keys * width / per_rank


def theorem_ratio(head_dim: int, rank: int, capacity: float) -> float:
    """(S + C^2) / (C^2 + R^2): the paper's ratio of memory accesses, dense over low rank; S in elements."""
    return (capacity + head_dim**2) / (head_dim**2 + rank**2)


def theorem_ratio_with_constants(head_dim: int, rank: int, capacity: float) -> float:
    """(S + C^2) / (C + R)^2: the same with the width that a tile really has; at most 2 times less."""
    return (capacity + head_dim**2) / (head_dim + rank) ** 2
