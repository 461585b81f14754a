"""The pairs of a mask: membership by brute force (the reference of every fast form) and their exact number."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from einsight.sim.gna_ranges import pairs
from einsight.sim.mask import Blocks, Gna, Mask
from einsight.sim.tiles import Edges, Flags, Ints, edges, keeper


def members(mask: Mask, m: int, n: int) -> NDArray[np.bool_]:
    """Which pairs exist, shape (m, n), pair by pair from the definitions. For small sizes only."""
    mask.check(m, n)
    return np.array([[_visible(mask, q, k, m, n) for k in range(n)] for q in range(m)], dtype=bool).reshape(m, n)


def _visible(mask: Mask, q: int, k: int, m: int, n: int) -> bool:
    position = q + n - m
    if mask.causal and k > position and k >= mask.prefix:
        return False
    if mask.window is not None and abs(position - k) >= mask.window and k >= mask.sink:
        return False
    if mask.blocks is not None and not _block_kept(mask.blocks, position // mask.blocks.size, k // mask.blocks.size, n):
        return False
    return mask.gna is None or _neighbours(mask.gna, q, k)


def _block_kept(blocks: Blocks, i: int, j: int, n: int) -> bool:
    """Row by row: c * t of the J blocks, rounded up, for t = 0, 1, ... counted from the diagonal block."""
    if blocks.keep is not None:
        return (i, j) in blocks.keep
    columns = -(-n // blocks.size)
    count = max(1, int(blocks.fraction() * columns + blocks.fraction().__class__(1, 2)))
    inverse = [t for t in range(columns) if (t * count) % columns < count]
    return (j - i) % columns in inverse


def _neighbours(gna: Gna, q: int, k: int) -> bool:
    """Coordinate by coordinate: the window of the query's stride group, moved inside the grid where it would leave."""
    for d in reversed(range(len(gna.layout))):
        (q, x), (k, y) = divmod(q, gna.layout[d]), divmod(k, gna.layout[d])
        if x % gna.dilation[d] != y % gna.dilation[d]:
            return False
        group = range(x % gna.dilation[d], gna.layout[d], gna.dilation[d])
        i, j, length = group.index(x), group.index(y), len(group)
        window, stride = gna.window[d], gna.stride[d]
        peers = range(i - i % stride, min(i - i % stride + stride, length))
        if gna.causal[d]:
            if not max(0, peers[-1] - window + 1) <= j <= i:
                return False
        else:
            first = min(peers[0] + stride // 2, length - 1) - window // 2
            while first < 0:
                first += 1
            while first + window > length:
                first -= 1
            if not first <= j < first + window:
                return False
    return True


def live_points(mask: Mask, m: int, n: int) -> int:
    """The number of (query, key) pairs that exist. Closed form without a block list, else one step per query."""
    mask.check(m, n)
    if mask.gna is not None:
        return pairs(mask.gna)
    if mask.blocks is not None:
        return _listed_points(mask, mask.blocks, m, n)
    return _band_points(mask, m, n)


def _band_points(mask: Mask, m: int, n: int) -> int:
    """Keys per query are linear between the positions where two of the ends meet: sum each stretch as a trapezium."""
    window, ends = mask.window or n + m, (0, n, mask.prefix, mask.sink)
    meets = {end - shift for end in ends for shift in (1, window, 1 - window)}  # ends that move: p+1, p+w, p-w+1
    cuts = {0, m} | {q for meet in meets for q in (meet + m - n, meet + m - n + 1) if 0 < q < m}
    total = 0
    stops = sorted(cuts)
    for start, stop in pairwise(stops):
        both = _keys_of(edges(mask, np.array([start, stop - 1], dtype=np.int64), m, n))
        total += (int(both[0]) + int(both[1])) * (stop - start) // 2
    return total


def _keys_of(band: Edges) -> Ints:
    return np.asarray(band.sink + np.maximum(0, band.high - np.maximum(band.low, band.sink)))


def _listed_points(mask: Mask, blocks: Blocks, m: int, n: int) -> int:
    """Per row of blocks: kept keys before a position, by prefix sums, taken at the ends of each query's intervals."""
    total = 0
    keeps, columns = keeper(blocks, n), np.arange(-(-n // blocks.size) + 1, dtype=np.int64)
    for row in _rows_with_blocks(blocks, m, n):
        kept = keeps(np.array(row), columns)
        before = np.concatenate([[0], np.cumsum(kept)])[:-1] * blocks.size

        def keys_before(position: Ints, kept: Flags = kept, before: Ints = before) -> Ints:
            block, rest = np.divmod(position, blocks.size)
            return np.asarray(before[block] + np.where(kept[block], rest, 0))

        first, last = max(0, row * blocks.size - n + m), min(m, (row + 1) * blocks.size - n + m)
        band = edges(mask, np.arange(first, max(first, last), dtype=np.int64), m, n)
        low = np.maximum(band.low, band.sink)
        in_band = keys_before(np.maximum(band.high, low)) - keys_before(low)
        total += int((keys_before(band.sink) + in_band).sum())
    return total


def _rows_with_blocks(blocks: Blocks, m: int, n: int) -> list[int]:
    """Rows of blocks that queries stand in and that may hold kept blocks."""
    rows = range((n - m) // blocks.size, (n - 1) // blocks.size + 1)
    return [*rows] if blocks.keep is None else sorted({i for i, _ in blocks.keep if i in rows})
