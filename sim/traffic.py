"""Bytes between the memories: what a grid of blocks pulls from L2, and what of it must come from HBM.

L2 -> SM    every block loads its resident tensors once and streams its key tiles in every sweep.
HBM -> L2   every tensor at least once (`cold`; `warm`: what of the footprint does not stay in L2 between repeats), and
            again for readers that do not run at the same time and whose data do not survive in L2 in between.

Blocks are launched in the order b, g, j, query tile (the last fastest). Sizes, tiles and results are arrays over cases.
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


def concurrency(
    tensor: Tensor, extents: Sequence[tuple[str, Array]], overlap: Array, slots: Array
) -> tuple[Array, Array]:
    """(readers of each element, how many of them run at the same time) on `slots` slots.

    `extents`: the grid's dimensions, slowest first, each named by the rank it walks (the query tiles last); `overlap`:
    query tiles of one head that read the same key, which a mask can leave far below all of them.
    """
    readers: Array = ONE
    together: Array = ONE
    span: Array = ONE
    for k, (rank, extent) in enumerate(reversed(extents)):
        if rank not in tensor.ranks:
            reading = np.minimum(extent, overlap) if k == 0 else extent
            readers = readers * reading
            together = together * np.minimum(reading, np.maximum(1.0, slots / span))
        span = span * extent
    return readers, np.maximum(1.0, np.minimum(together, readers))


def reuse_bytes(tensor: Tensor, extents: Sequence[tuple[str, Array]], sizes: Mapping[str, Array], width: float) -> Array:
    """Bytes of the tensor that pass by between two readings of one element by readers that are not concurrent."""
    inside: list[str] = []
    lacked = [rank for rank, _ in extents if rank not in tensor.ranks]
    if lacked:
        names = [rank for rank, _ in extents]
        inside = names[names.index(lacked[0]) + 1 :]
    total: Array = np.full((), width)
    for rank in tensor.ranks:
        if rank not in OUTER or rank in inside:
            total = total * sizes[rank]
    return total


def hbm_bytes(
    tensor: Tensor, extents: Sequence[tuple[str, Array]], slots: Array, sizes: Mapping[str, Array], width: float,
    sweeps: float, touched: Array, overlap: Array, reach: Array, first_miss: Array, cache: Cache,
) -> Array:  # fmt: skip
    """Bytes of one input that come from HBM.

    `touched`: share of the key rank that any query of the mask needs (1 for tensors without keys); `overlap`: query tiles
    that read the same key; `reach`: share of the key rank that the longest block reads, which is all that passes by
    before the next block comes to a key again; `first_miss`: share of the first reading not in L2 already (1 when cold).
    """
    once = elements(tensor, sizes) * width * touched
    readers, together = concurrency(tensor, extents, overlap, slots)
    again = np.maximum(readers / together - 1.0, 0.0) + (sweeps - 1.0) * readers / together
    return once * (first_miss + again * cache.miss(reuse_bytes(tensor, extents, sizes, width) * np.minimum(touched, reach)))
