"""Tiles of neighborhood attention: how many (Q tile, KV tile) pairs a kernel runs, and how many need the mask applied.

Token-permuted tiling: every dilation group is a grid of its own, cut into boxes of q_tile queries and kv_tile keys, both
padded to whole tiles. A box of queries sees a box of keys exactly where it does so in every dimension, so each dimension
is counted alone and the counts multiply. Along one dimension the Q tile of queries q0..q1 sees the keys [a, b) =
[start(q0), end(q1)), and every key of [start(q1), end(q0)) is seen by all of its queries:

    static    KV tiles at multiples of their size:      ceil(b / k) - floor(a / k) visited
    dynamic   KV tiles laid from a on:                  ceil((b - a) / k) visited

Starts and ends are zero, at the far border, or grow by S every S queries. Between the few tiles where that changes, the
counts are linear along every period of lcm(Q tile, KV tile, S) queries: two evaluations per tile of one period give the
whole sum. Neither tokens nor tiles are walked (GNA: arXiv 2504.16922, section 3.2 and appendix B.1, for what is counted).

Plain 1-D tiling (tiles of consecutive row-major tokens) is counted by `gna_flat`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import lcm, prod

import numpy as np

from einsight.sim.gna_flat import flat_tiles, whole_at_end
from einsight.sim.gna_ranges import Group, Ints, groups_of
from einsight.sim.mask import Gna, MaskError

TILINGS = ("static", "dynamic")
Shape = tuple[int, ...]
MOST_TILES = 2**62
"""Counts are summed in 64 bits."""


@dataclass(frozen=True, slots=True)
class AxisTiles:
    """One dimension, its dilation groups together. Pairs of a Q tile and a KV tile, both along this dimension.

    q_tiles          Q tiles that hold a query
    total            pairs that are visited
    full             visited pairs whose every key exists and is visible to every query
    uncut            the same, keys beyond the end of the grid not counting
    most, fewest     pairs of the Q tile with the most and the fewest, `_full` of them full
    """

    q_tiles: int
    total: int
    full: int
    uncut: int
    most: int
    most_full: int
    fewest: int
    fewest_full: int


@dataclass(frozen=True, slots=True)
class GnaTiles:
    """Counts for one batch and one head, all dilation groups together.

    q_tiles                    Q tiles that hold a query
    total, full, uncut         (Q tile, KV tile) pairs as in `AxisTiles`
    most, fewest, ..._full     of the Q tile with the most and the fewest
    dense                      KV tiles of dense self attention: what every Q tile would visit
    by_masked_dimensions       visited pairs by the number of dimensions in which they are not full: index 0 counts `full`
    q_padding, kv_padding      tokens after padding to whole tiles in every dilation group, over tokens
    exact                      False where evenly spaced Q tiles stand for all (very long plain 1-D tiling)
    """

    q_tiles: int
    total: int
    full: int
    uncut: int
    most: int
    most_full: int
    fewest: int
    fewest_full: int
    dense: int
    by_masked_dimensions: tuple[int, ...]
    q_padding: float
    kv_padding: float
    exact: bool = True

    @property
    def masked(self) -> int:
        """Visited pairs that need the mask or a bounds check."""
        return self.total - self.full


def count_tiles(gna: Gna, q_tile: Shape, kv_tile: Shape, tiling: str = "static") -> GnaTiles:
    """The tiles of a mask for Q and KV tile shapes with one entry per dimension, or one entry for plain 1-D tiling.

    Raises MaskError for a tile shape that does not fit the grid's rank.
    """
    check_tiles(gna, q_tile, kv_tile, tiling)
    if gna.tokens**2 // (prod(q_tile) * prod(kv_tile)) > MOST_TILES:
        raise MaskError(f"gna: more than 2^62 tiles of {'x'.join(map(str, q_tile))} queries", "larger tiles or a smaller grid")
    if len(q_tile) < len(gna.layout):
        return _flat_tiles(gna, q_tile[0], kv_tile[0])
    axes = [axis_tiles(gna, d, q_tile[d], kv_tile[d], tiling) for d in range(len(gna.layout))]
    return GnaTiles(
        q_tiles=prod(a.q_tiles for a in axes), total=prod(a.total for a in axes), full=prod(a.full for a in axes),
        uncut=prod(a.uncut for a in axes), most=prod(a.most for a in axes), most_full=prod(a.most_full for a in axes),
        fewest=prod(a.fewest for a in axes), fewest_full=prod(a.fewest_full for a in axes),
        dense=prod(-(-n // k) for n, k in zip(gna.layout, kv_tile, strict=True)),
        by_masked_dimensions=_by_masked_dimensions(axes),
        q_padding=prod(padded_shape(gna, q_tile)) / gna.tokens, kv_padding=prod(padded_shape(gna, kv_tile)) / gna.tokens,
    )  # fmt: skip


def check_tiles(gna: Gna, q_tile: Shape, kv_tile: Shape, tiling: str) -> None:
    """Raises MaskError: which tile or word was found, what was expected."""
    rank = len(gna.layout)
    if tiling not in TILINGS:
        raise MaskError(f"gna: tiling {tiling!r}", " or ".join(TILINGS))
    for name, tile in (("Q tile", q_tile), ("KV tile", kv_tile)):
        if len(tile) not in (1, rank):
            raise MaskError(
                f"gna: {name} {'x'.join(map(str, tile))} has {len(tile)} entries",
                f"{rank}, one per dimension, or 1 for plain 1-D tiling of the flattened tokens",
            )
        for d, size in enumerate(tile):
            if size < 1:
                raise MaskError(f"gna: dimension {d} has {name} {size}", "1 or more")
    if len(q_tile) != len(kv_tile):
        raise MaskError(f"gna: Q tile with {len(q_tile)} entries beside KV tile with {len(kv_tile)}", "the same number")
    if len(q_tile) < rank and tiling == "dynamic":
        raise MaskError("gna: dynamic tiling with 1-D tiles", f"tiles with {rank} entries, or static tiling")


def shape_from(text: str) -> Shape | None:
    """2x8x8 as (2, 8, 8); None for anything but positive whole numbers."""
    parts = text.lower().split("x")
    if not all(re.fullmatch("[0-9]{1,40}", part) and int(part) for part in parts):
        return None
    return tuple(map(int, parts))


def padded_shape(gna: Gna, tile: Shape) -> Shape:
    """The grid after padding: every dilation group as long as the longest one, in whole tiles."""
    if len(tile) < len(gna.layout):
        return (-(-gna.tokens // tile[0]) * tile[0],)
    longest = (-(-n // d) for n, d in zip(gna.layout, gna.dilation, strict=True))
    return tuple(-(-n // t) * t * d for n, t, d in zip(longest, tile, gna.dilation, strict=True))


def axis_tiles(gna: Gna, d: int, q_tile: int, kv_tile: int, tiling: str = "static") -> AxisTiles:
    """The counts along dimension d alone."""
    parts = [(_group_tiles(group, q_tile, kv_tile, tiling == "dynamic"), n) for group, n in groups_of(gna, d)]
    most, most_full = max(((p.most, -p.most_full) for p, _ in parts))
    fewest, fewest_full = min((p.fewest, p.fewest_full) for p, _ in parts)
    q_tiles, total, full, uncut = (
        sum(getattr(p, name) * n for p, n in parts) for name in ("q_tiles", "total", "full", "uncut")
    )
    return AxisTiles(q_tiles, total, full, uncut, most, -most_full, fewest, fewest_full)


def _by_masked_dimensions(axes: list[AxisTiles]) -> tuple[int, ...]:
    """Coefficients of the product of (full + masked x) over the dimensions."""
    counts = [1]
    for a in axes:
        counts = [
            (counts[k] * a.full if k < len(counts) else 0) + (counts[k - 1] * (a.total - a.full) if k else 0)
            for k in range(len(counts) + 1)
        ]
    return tuple(counts)


# -- one dilation group of one dimension ---------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def _group_tiles(group: Group, q_tile: int, kv_tile: int, dynamic: bool) -> AxisTiles:
    first, last, count = _progressions(group, q_tile, kv_tile)
    at_first, at_last = (_counts(group, t, q_tile, kv_tile, dynamic) for t in (first, last))
    total, full, uncut = (int((count * (x + y)).sum()) // 2 for x, y in zip(at_first, at_last, strict=True))
    visited, solid = (np.concatenate([x, y]) for x, y in zip(at_first[:2], at_last[:2], strict=True))
    most, fewest = int(visited.max()), int(visited.min())
    return AxisTiles(
        -(-group.length // q_tile), total, full, uncut,
        most, int(solid[visited == most].min()), fewest, int(solid[visited == fewest].min()),
    )  # fmt: skip


def _progressions(group: Group, q_tile: int, kv_tile: int) -> tuple[Ints, Ints, Ints]:
    """(first, last, number) of arithmetic progressions of Q tiles that cover all of them, counts linear along each."""
    tiles = -(-group.length // q_tile)
    period = lcm(q_tile, kv_tile, group.stride) // q_tile
    cuts = {0, tiles, tiles - 1}
    for query in _turns(group):
        cuts |= {-(-query // q_tile), -(-(query - q_tile + 1) // q_tile)}  # where q0 and where q1 gets there
    stops = sorted(c for c in cuts if 0 <= c <= tiles)
    firsts, counts = [], []
    for u, v in pairwise(stops):
        start = np.arange(u, min(v, u + period), dtype=np.int64)
        firsts.append(start)
        counts.append((v - start + period - 1) // period)
    first, count = np.concatenate(firsts), np.concatenate(counts)
    return first, first + period * (count - 1), count


def _turns(group: Group) -> tuple[int, ...]:
    """The first queries whose window start leaves zero and reaches its last value."""
    if group.causal:
        return _first_led_by(group, group.window - 1), group.length // group.stride * group.stride
    left = group.window // 2
    return _first_led_by(group, left), _first_led_by(group, group.length - group.window + left)


def _first_led_by(group: Group, leader: int) -> int:
    """The first query whose stride group's leader stands at `leader` or later."""
    ahead = group.stride - 1 if group.causal else group.stride // 2
    return -(-(leader - ahead) // group.stride) * group.stride


def _counts(group: Group, tile: Ints, q_tile: int, kv_tile: int, dynamic: bool) -> tuple[Ints, Ints, Ints]:
    """(visited, full, uncut) KV tiles of each Q tile."""
    low, high = group.windows(tile * q_tile)
    low_last, high_last = group.windows(np.minimum(tile * q_tile + q_tile - 1, group.length - 1))
    origin = low if dynamic else np.zeros_like(low)
    visited = -(-(high_last - origin) // kv_tile) - (low - origin) // kv_tile
    begin = -(-(low_last - origin) // kv_tile)
    full = np.maximum((high - origin) // kv_tile - begin, 0)
    at_end = high == group.length
    uncut = np.where(at_end, np.maximum(-(-(high - origin) // kv_tile) - begin, 0), full)
    return visited, full, uncut


# -- plain 1-D tiling ------------------------------------------------------------------------------------------------


def _flat_tiles(gna: Gna, q_tile: int, kv_tile: int) -> GnaTiles:
    tokens = gna.tokens
    found = flat_tiles(gna, q_tile, kv_tile)
    total, masked = int(found.total @ found.blocks), int(found.masked @ found.blocks)
    uncut = total - masked + whole_at_end(gna, q_tile, kv_tile, found.exact)
    return GnaTiles(
        q_tiles=int(found.blocks.sum()), total=total, full=total - masked, uncut=uncut,
        most=int(found.total[0]), most_full=int(found.full[0]), fewest=int(found.total[-1]),
        fewest_full=int(found.full[-1]), dense=-(-tokens // kv_tile), by_masked_dimensions=(total - masked, masked),
        q_padding=-(-tokens // q_tile) * q_tile / tokens, kv_padding=-(-tokens // kv_tile) * kv_tile / tokens,
        exact=found.exact,
    )  # fmt: skip
