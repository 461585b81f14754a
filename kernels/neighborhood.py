"""Which keys a query sees in generalized neighborhood attention, per dimension of a token grid. Needs no torch.

Tokens form a grid of one to three dimensions, flattened row-major. Dimensions are independent: a query sees a key if it
does so along every one. Along one, tokens whose coordinates agree modulo the dilation form a group, and inside its group
of length L the query at position i, window W, stride S, sees (GNA: arXiv:2504.16922, section 3.1; borders as in NA:
windows are moved inside, never shortened)

    not causal   start = clamp(leader - W // 2, 0, L - W), end = start + W, leader = min(i // S * S + S // 2, L - 1)
    causal       start = max(leader - W + 1, 0),           end = i + 1,     leader = min(i // S * S + S - 1, L - 1)

Starts and ends never move back as i grows. So a tile of neighbouring queries sees one contiguous range of keys per
dimension, and every one of its queries sees one contiguous part of that range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Shape = tuple[int, ...]
RANKS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """A grid of tokens and, per dimension, the window, its stride, its dilation and whether it looks back only."""

    layout: Shape
    window: Shape
    stride: Shape
    dilation: Shape
    causal: tuple[bool, ...]

    def __post_init__(self) -> None:
        rank = len(self.layout)
        if rank not in RANKS:
            raise ValueError(f"layout: got {self.layout}, expected 1, 2 or 3 lengths")
        for name in ("window", "stride", "dilation", "causal"):
            found = getattr(self, name)
            if len(found) != rank:
                raise ValueError(f"{name}: got {found}, expected one value or {rank}, one per dimension of {self.layout}")
        for d, (length, window) in enumerate(zip(self.layout, self.window, strict=True)):
            _check(f"layout, dimension {d}", length, 1, None, "")
            _check(f"window, dimension {d}", window, 1, length, "its length")
            _check(f"stride, dimension {d}", self.stride[d], 1, window, "its window")
            each = "length // window, so that each dilation group holds a window"
            _check(f"dilation, dimension {d}", self.dilation[d], 1, length // window, each)

    @property
    def rank(self) -> int:
        return len(self.layout)

    @property
    def tokens(self) -> int:
        return prod(self.layout)

    @property
    def groups(self) -> int:
        """Dilation groups: independent grids, an extra batch dimension."""
        return prod(self.dilation)

    def longest(self, d: int) -> int:
        """Length of the longest dilation group along a dimension."""
        return -(-self.layout[d] // self.dilation[d])

    def tiles(self, tile: Shape) -> Shape:
        """Tiles along each dimension of the longest dilation group; shorter groups are padded to as many."""
        return tuple(-(-self.longest(d) // size) for d, size in enumerate(tile))

    def windows(self, d: int, residue: int) -> tuple[Ints, Ints]:
        """[start, end) of each position of the dilation group `residue` along dimension d, in the group's positions."""
        length = (self.layout[d] - residue - 1) // self.dilation[d] + 1
        window, stride = self.window[d], self.stride[d]
        i = np.arange(length, dtype=np.int32)
        ahead = stride - 1 if self.causal[d] else stride // 2
        leader = np.minimum(i // stride * stride + ahead, length - 1)
        if self.causal[d]:
            return np.maximum(leader - window + 1, 0), i + 1
        start = np.clip(leader - window // 2, 0, length - window)
        return start, start + window

    def pairs(self) -> int:
        """Visible (query, key) pairs."""
        along = [sum(int((end - start).sum()) for start, end in self._groups_along(d)) for d in range(self.rank)]
        return prod(along)

    def _groups_along(self, d: int) -> list[tuple[Ints, Ints]]:
        return [self.windows(d, residue) for residue in range(self.dilation[d])]


def neighborhood(
    layout: int | Shape,
    window: int | Shape,
    stride: int | Shape = 1,
    dilation: int | Shape = 1,
    causal: bool | tuple[bool, ...] = False,
) -> Neighborhood:
    """A `Neighborhood` from one value for all dimensions or one per dimension. Raises ValueError naming the dimension."""
    grid = (layout,) if isinstance(layout, int) else tuple(layout)
    windows, strides, dilations = (_per_dimension(x, len(grid)) for x in (window, stride, dilation))
    looks_back = (causal,) * len(grid) if isinstance(causal, bool) else tuple(map(bool, causal))
    return Neighborhood(grid, windows, strides, dilations, looks_back)


def _per_dimension(value: int | Shape, rank: int) -> Shape:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _check(what: str, value: int, low: int, high: int | None, why: str) -> None:
    if value < low or (high is not None and value > high):
        expected = f"{low} or more" if high is None else f"{low} to {high} ({why})"
        raise ValueError(f"{what}: got {value}, expected {expected}")


# -- tiles ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def tile_ranges(mask: Neighborhood, d: int, q_tile: int, kv_tile: int) -> Ints:
    """KV tiles along dimension d that each Q tile sees: [residue, Q tile, (begin, inner_begin, inner_end, end)].

    Tiles [begin, end) hold a key that some query sees; in [inner_begin, inner_end), between them, every key exists and
    every query of the Q tile sees it. A Q tile without queries (a shorter dilation group) has an empty range.
    """
    count = -(-mask.longest(d) // q_tile)
    out = np.zeros((mask.dilation[d], count, 4), np.int32)
    for residue in range(mask.dilation[d]):
        start, end = mask.windows(d, residue)
        first = np.arange(0, len(start), q_tile)
        last = np.minimum(first + q_tile, len(start)) - 1
        begin, stop = start[first] // kv_tile, -(-end[last] // kv_tile)
        inner = np.minimum(-(-start[last] // kv_tile), stop)
        out[residue, : len(first)] = np.stack([begin, inner, np.maximum(end[first] // kv_tile, inner), stop], -1)
    return out


def row_windows(mask: Neighborhood, d: int, q_tile: int) -> Ints:
    """[residue, position, (start, end)], padded to whole Q tiles with copies of the last window of the group.

    A padded row so does what a real one does: nothing divides by zero, and what it computes is not stored.
    """
    padded = -(-mask.longest(d) // q_tile) * q_tile
    out = np.zeros((mask.dilation[d], padded, 2), np.int32)
    for residue in range(mask.dilation[d]):
        start, end = mask.windows(d, residue)
        at = np.minimum(np.arange(padded), len(start) - 1)
        out[residue] = np.stack([start[at], end[at]], -1)
    return out


def visited_tiles(mask: Neighborhood, q_tile: Shape, kv_tile: Shape) -> tuple[int, int]:
    """(Q tile, KV tile) pairs of one head that are computed, and how many of them need no mask."""
    visited = inner = 1
    for d, (q, k) in enumerate(zip(q_tile, kv_tile, strict=True)):
        begin, inner_begin, inner_end, end = np.moveaxis(tile_ranges(mask, d, q, k).astype(np.int64), -1, 0)
        visited *= int((end - begin).sum())
        inner *= int((inner_end - inner_begin).sum())
    return visited, inner
