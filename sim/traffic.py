"""Bytes between the memories: what a grid of blocks pulls from L2, and what of it must come from HBM.

L2 -> SM    every block loads its resident tensors once and streams its key tiles in every sweep.
HBM -> L2   every tensor at least once (`cold`; `warm`: what of the footprint does not stay in L2 between repeats), and
            again for readers that do not run at the same time and whose data do not survive in L2 in between.

Blocks are launched in the family's order of b, g and j, the query tiles of a head last (fastest). Sizes, tiles and results are
arrays over cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from einsight.einsum.ir import Tensor
from einsight.sim.schedule import ONE, Array

OUTER = ("B", "G", "J")
"""The outer ranks, slowest in launch order first."""


@dataclass(frozen=True, slots=True)
class Cache:
    """L2 as a cyclically re-read working set sees it: all hits below `usable` of the capacity, none above usable + ramp.

    An LRU cache goes from all to none at once; the ramp is the set-to-set spread seen by microbenchmarks.
    """

    capacity: float
    usable: float = 0.7
    ramp: float = 0.25

    def miss(self, footprint: Array) -> Array:
        """Share of a re-read of `footprint` bytes that goes to HBM, 0 to 1, growing with the footprint."""
        return np.clip((footprint / self.capacity - self.usable) / self.ramp, 0.0, 1.0)


def elements(tensor: Tensor, sizes: Mapping[str, Array]) -> Array:
    """Number of elements of the whole tensor."""
    if not tensor.ranks:
        return ONE
    total = sizes[tensor.ranks[0]]
    for rank in tensor.ranks[1:]:
        total = total * sizes[rank]
    return total


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks in launch order, and what they read and write.

    extents   the grid's dimensions, slowest first, each named by the rank it walks (the query tiles last)
    moved     every tensor with the bytes of an element
    touched   share of the key rank that any query of the mask needs; `reach`: that the longest block reads, which is all that
              passes by before the next block of the same head comes to a key again
    overlap   query tiles of one head that read the same key, which a mask can leave far below all of them
    slots     blocks that run at the same time
    """

    extents: Sequence[tuple[str, Array]]
    moved: Sequence[tuple[Tensor, float]]
    sizes: Mapping[str, Array]
    touched: Array
    reach: Array
    overlap: Array
    slots: Array


def passing_bytes(tensor: Tensor, level: int, grid: Grid, key: str) -> Array:
    """Bytes of all tensors that pass by between the last reader of an element of `tensor` in one step of the grid's dimension
    `level` and the first in the next: everything faster runs once in between, but for the blocks of a head that read it."""
    ranks = [rank for rank, _ in grid.extents]
    inside, walked = ranks[level + 1 :], set(ranks)
    share = grid.touched if inside else np.minimum(grid.touched, grid.reach)
    reading = np.minimum(1.0, grid.overlap / np.maximum(grid.extents[-1][1], 1.0))
    idle = ONE if any(rank in tensor.ranks for rank in inside) else 1.0 - reading
    total: Array = np.zeros(())
    for other, width in grid.moved:
        size: Array = np.full((), width)
        for rank in other.ranks:
            if rank not in walked or rank in inside:
                size = size * grid.sizes[rank]
        if key in other.ranks:
            total = total + size * share
        elif inside:  # the next block of a head brings few rows of its own beside the keys
            total = total + size * idle
    return total


def fetches(tensor: Tensor, sweeps: float, grid: Grid, key: str, cache: Cache) -> Array:
    """Times that an element comes from HBM, if the first time counts one: readers that run at the same time share a fetch, and
    those that come later find it in L2 unless too much has passed by since.

    From the fastest dimension outwards: within one step of a dimension an element is fetched `times` times; its next reader
    there saves the first of them if the element is still in L2.
    """
    times: Array = ONE + (sweeps - 1.0) * cache.miss(passing_bytes(tensor, len(grid.extents) - 1, grid, key))
    span: Array = ONE
    for level in reversed(range(len(grid.extents))):
        rank, extent = grid.extents[level]
        if rank not in tensor.ranks:
            last = level == len(grid.extents) - 1
            readers = np.minimum(extent, grid.overlap) if last and key in tensor.ranks else extent
            with np.errstate(divide="ignore"):  # a span of 0: a mask without any pair, of which all run at once
                together = grid.slots / span
            apart = readers / np.clip(together, 1.0, np.maximum(readers, 1.0))
            times = times + np.maximum(apart - 1.0, 0.0) * (times - 1.0 + cache.miss(passing_bytes(tensor, level, grid, key)))
        span = span * extent
    return times
