"""Tiles of a mask: which of them a kernel must run and which of those need the mask applied, without walking tokens.

The visible keys of one query under causal, prefix, window and sink (and 1-D undilated neighborhoods) are two intervals,
[0, sink) and [low, high), whose ends never move back from one query to the next. The union and the intersection over a
tile's rows then follow from its first and last row, so a block of rows costs O(1) (`_band_tiles`). Blocks and grids of
tokens are tested tile by tile with the same intervals (`_matrix_tiles`).

A tile is *full* when every key of it exists and is visible to every query of its rows; any other visited tile is
*masked*: it runs the mask's instructions. Rows past the last query do not count, keys past the last key do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.gna_ranges import grid_tiles, group_of
from einsight.sim.mask import Blocks, Mask

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

UNBOUNDED = 1 << 40
PAIR_BUDGET = 1 << 22
"""Tile pairs tested one by one (block lists, grids); beyond it evenly spaced query blocks stand for the rest."""
BLOCK_BUDGET = 1 << 20
"""Query blocks that are counted one by one (128 million queries at 128 a block); beyond it evenly spaced ones."""
_CHUNK = 1 << 20
_AVERAGE_CHUNK = 1 << 16  # what the caches of a core hold


@dataclass(frozen=True, slots=True, eq=False)
class TileHistogram:
    """Thread blocks of one head with equal work merged, most work first. All arrays have shape (kinds,).

    total, masked   key tiles that such a block runs, and how many of them need the mask
    blocks          how many such blocks there are
    exact           False when evenly spaced blocks were taken for all (see `PAIR_BUDGET`)
    """

    total: Ints
    masked: Ints
    blocks: Ints
    exact: bool = True

    @property
    def full(self) -> Ints:
        return self.total - self.masked

    @property
    def tiles(self) -> int:
        """Tiles run by all blocks together."""
        return int(self.total @ self.blocks)


@dataclass(frozen=True, slots=True, eq=False)
class TileAverage:
    """Over the blocks of each case (one split), shape (cases,): means, their number, and (tiles, masked tiles) of the
    blocks with the most and with the fewest tiles among those looked at, which include the first and the last."""

    total: NDArray[np.float64]
    masked: NDArray[np.float64]
    blocks: Ints
    longest: tuple[Ints, Ints]
    shortest: tuple[Ints, Ints]


@dataclass(frozen=True, slots=True)
class Covered:
    """Of all tiles that are visited: how many, the rows they have, the keys they have, their points; none past the ends."""

    tiles: float
    rows: float
    keys: float
    points: float


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Visible keys per query: [0, sink) and [low, high). No end moves back from one query to the next."""

    sink: Ints
    low: Ints
    high: Ints


@dataclass(frozen=True, slots=True, eq=False)
class _Intervals:
    """Tile indices per block: visited [0, a) and [b, c); full [0, d) and [e, f). Always b >= a and e >= d."""

    a: Ints
    b: Ints
    c: Ints
    d: Ints
    e: Ints
    f: Ints

    @property
    def total(self) -> Ints:
        return np.asarray(self.a + self.c - self.b)

    def full_within(self, start: Ints, end: Ints) -> Ints:
        """Full tiles among the visited ones numbered start to end - 1."""
        shift = self.b - self.a  # visited tile t of the second interval is number t - shift
        first = np.maximum(0, np.minimum(self.d, end) - start)
        second = np.maximum(0, np.minimum(self.f - shift, end) - np.maximum(self.e - shift, start))
        return np.asarray(first + second)


def tile_histogram(
    mask: Mask, m: int, n: int, block_m: int, block_n: int, pack: int = 1, splits: int = 1
) -> TileHistogram:
    """Key tiles per thread block for m queries and n keys of one head (of one KV head when packed).

    pack    query heads whose rows share a tile: row r is query r // pack, so a block covers block_m / pack queries
    splits  each block's visited tiles are cut into this many runs of ceil(visited / splits) tiles, each a block of its
            own (the last may be shorter or empty), as in FlashAttention's split-KV
    """
    if min(m, n, block_m, block_n, pack, splits) < 1:
        raise ValueError(f"tile_histogram needs sizes of at least 1, got m={m} n={n} block_m={block_m} "
                         f"block_n={block_n} pack={pack} splits={splits}")  # fmt: skip
    mask.check(m, n)
    number = -(-m * pack // block_m)
    if has_band(mask):
        picked, weight = _strata(number, BLOCK_BUDGET)
        first, last = _rows_of(picked, m, block_m, pack)
        runs = _band_tiles(edges(mask, first, m, n), edges(mask, last, m, n), block_n)
        return _merge(*_split(runs, splits), weight, len(picked) == number)
    tiles = -(-n // block_n)
    picked, weight = _strata(number, max(1, PAIR_BUDGET // tiles))
    first, last = _rows_of(picked, m, block_m, pack)
    parts = []
    step = max(1, _CHUNK // tiles)
    for at in range(0, len(picked), step):
        live, full = _matrix_tiles(mask, m, n, first[at : at + step], last[at : at + step], block_n)
        parts.append(_split_matrix(live, full, splits))
    total = np.concatenate([p[0] for p in parts], axis=1)
    masked = np.concatenate([p[1] for p in parts], axis=1)
    return _merge(total, masked, weight, len(picked) == number)


def covered(mask: Mask, m: int, n: int, block_m: int, block_n: int, pack: int = 1) -> Covered:
    """What the visited tiles of one head cover, summed over them; the last row and column of tiles with their true extent.

    Sizes as in `tile_histogram`, a dense mask's sums when every tile is visited. Beyond the budgets evenly spaced blocks
    of rows stand for the rest.
    """
    mask.check(m, n)
    number, columns = -(-m * pack // block_m), -(-n // block_n)
    picked, weight = _strata(number, BLOCK_BUDGET if has_band(mask) else max(1, PAIR_BUDGET // columns))
    first, last = _rows_of(picked, m, block_m, pack)
    if has_band(mask):
        runs = _band_tiles(edges(mask, first, m, n), edges(mask, last, m, n), block_n)
        tiles, at_end = runs.total, np.where(runs.c > runs.b, runs.c, runs.a) == columns
    else:
        step = max(1, _CHUNK // columns)
        parts = [
            _matrix_tiles(mask, m, n, first[at : at + step], last[at : at + step], block_n)[0]
            for at in range(0, len(picked), step)
        ]
        tiles = np.concatenate([live.sum(axis=1) for live in parts])
        at_end = np.concatenate([live[:, -1] for live in parts])
    rows = np.minimum(block_m, m * pack - picked * block_m).astype(float)
    keys = tiles * float(block_n) - at_end * (columns * block_n - n)
    return Covered(*(float(weight @ each) for each in (tiles.astype(float), rows * tiles, keys, rows * keys)))


def band_blocks(mask: Mask, m: int, n: int, block_m: int, block_n: int, pack: int) -> tuple[Ints, Ints]:
    """(tiles, masked tiles) of every block of rows of one head, in order; masks made of intervals only."""
    first, last = _rows_of(np.arange(-(-m * pack // block_m), dtype=np.int64), m, block_m, pack)
    runs = _band_tiles(edges(mask, first, m, n), edges(mask, last, m, n), block_n)
    total = runs.total
    return total, total - runs.full_within(np.zeros_like(total), total)


def average_tiles(
    mask: Mask | Sequence[Mask],
    m: Ints | int,
    n: Ints | int,
    block_m: Ints | int,
    block_n: Ints | int,
    pack: Ints | int = 1,
    samples: int = 64,
) -> TileAverage:
    """Mean tiles per block for many cases at once (one mask, or one per case); masks made of bands only.

    Cases with up to `samples` blocks are exact; longer ones take that many, spread evenly and symmetrically, which is
    exact where the count is linear in the block (causal with block_m a multiple of block_n) and close elsewhere.
    """
    sizes = [np.asarray(x, dtype=np.int64).reshape(-1, 1) for x in (m, n, block_m, block_n, pack)]
    columns = np.broadcast_arrays(*sizes, *_limits(mask))
    step = max(1, _AVERAGE_CHUNK // samples)
    parts = [
        _sampled(tuple(c[at : at + step] for c in columns), max(1, samples // 2))
        for at in range(0, len(columns[0]), step)
    ]
    total, masked, number, *ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TileAverage(total, masked, number, (ends[0], ends[1]), (ends[2], ends[3]))


def _sampled(columns: tuple[Ints, ...], half: int) -> tuple[NDArray[Any], ...]:
    """The columns of a `TileAverage` from 2 * half blocks of each case; all inputs have shape (cases, 1)."""
    M, N, BM, BN, P, *band = columns
    number = -(-M * P // BM)
    k = np.arange(half, dtype=np.int64)
    near = (2 * k + 1) * number // (4 * half)  # middles of `half` strata of the first half of the blocks
    picked = np.concatenate([near, number - 1 - near], axis=1)
    short = number <= 2 * half
    everyone = np.arange(2 * half, dtype=np.int64)
    picked = np.where(short, np.minimum(everyone, number - 1), picked)
    weight = np.where(short, everyone < number, True) / np.minimum(number, 2 * half)
    picked = np.concatenate([picked, np.zeros_like(number), number - 1], axis=1)  # the extremes count for nothing else
    weight = np.concatenate([weight, np.zeros_like(weight[:, :1]), np.zeros_like(weight[:, :1])], axis=1)
    first, last = _rows_of(picked, M, BM, P)
    limits = (band[0], band[1], band[2])
    runs = _band_tiles(_band_edges(limits, first, M, N), _band_edges(limits, last, M, N), BN)
    total = runs.total
    masked = total - runs.full_within(np.zeros_like(total), total)
    ends = [
        np.take_along_axis(x, pick[:, None], axis=1)[:, 0]
        for pick in (total.argmax(axis=1), total.argmin(axis=1))
        for x in (total, masked)
    ]
    return (total * weight).sum(axis=1), (masked * weight).sum(axis=1), number[:, 0], *ends


def touched_keys(mask: Mask, m: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys that at least one query sees, per case; all of them for block lists and grids of tokens."""
    if mask.gna is not None or mask.blocks is not None:
        return n
    M, N = (np.asarray(x, dtype=np.int64).reshape(-1, 1) for x in np.broadcast_arrays(m, n))
    first, last = _band_edges(_limits(mask), np.zeros_like(M), M, N), _band_edges(_limits(mask), M - 1, M, N)
    seen = last.sink + np.maximum(last.high - np.maximum(first.low, last.sink), 0)
    return seen[:, 0].astype(np.float64).reshape(np.shape(n))


def has_band(mask: Mask) -> bool:
    """Whether each query sees [0, sink) and [low, high) only, so that blocks have closed forms."""
    gna = mask.gna
    return mask.blocks is None and (gna is None or (len(gna.layout) == 1 and gna.dilation[0] == 1))


def edges(mask: Mask, query: Ints, m: Ints | int, n: Ints | int) -> Edges:
    """Visible keys of each query under the mask's interval restrictions (a block list is not one)."""
    if mask.gna is not None:
        low, high = group_of(mask.gna, 0).windows(query)
        return Edges(np.zeros_like(low), low, high)
    intervals = mask if mask.blocks is None else Mask(tuple(r for r in mask.restrictions if not isinstance(r, Blocks)))
    return _band_edges(_limits(intervals), query, m, n)


def _limits(mask: Mask | Sequence[Mask]) -> tuple[Ints, Ints, Ints]:
    """Window, sink and prefix as columns, shape (cases, 1); absent ones as the value that changes nothing."""
    return _columns((mask,) if isinstance(mask, Mask) else tuple(mask))


@lru_cache(maxsize=1024)
def _columns(masks: tuple[Mask, ...]) -> tuple[Ints, Ints, Ints]:
    for each in masks:
        if each.gna is not None or each.blocks is not None:
            raise ValueError("average_tiles takes dense, causal, window, sink and prefix masks; use tile_histogram")
    window = [each.window or UNBOUNDED for each in masks]
    sink = [each.sink for each in masks]
    prefix = [each.prefix if each.causal else UNBOUNDED for each in masks]
    window_, sink_, prefix_ = (np.array(x, dtype=np.int64).reshape(-1, 1) for x in (window, sink, prefix))
    return window_, sink_, prefix_


def _band_edges(limits: tuple[Ints, Ints, Ints], query: Ints, m: Ints | int, n: Ints | int) -> Edges:
    window, sink, prefix = limits if np.ndim(query) == 2 else tuple(x[0, 0] for x in limits)
    position = query + n - m
    allowed = np.minimum(np.maximum(np.maximum(position + 1, prefix), 0), n)  # keys that causality leaves
    low = np.maximum(0, position - window + 1)
    high = np.maximum(0, np.minimum(position + window, allowed))
    return Edges(np.minimum(sink, allowed), low, high)


def _rows_of(block: Ints, m: Ints | int, block_m: Ints | int, pack: Ints | int) -> tuple[Ints, Ints]:
    """First and last query of each block of rows."""
    return block * block_m // pack, np.minimum(((block + 1) * block_m - 1) // pack, np.asarray(m) - 1)


def _band_tiles(first: Edges, last: Edges, block_n: Ints | int) -> _Intervals:
    """Visited and full tiles of blocks whose first and last rows have these edges."""
    a = -(-last.sink // block_n)
    b = np.maximum(first.low // block_n, a)
    c = np.maximum(-(-last.high // block_n), b)
    joined = first.sink >= last.low  # sink and band of all rows overlap: one interval
    reach: Ints = np.where(joined, np.maximum(first.sink, first.high), first.sink)
    d = reach // block_n
    e = np.maximum(-(-last.low // block_n), d)
    f = np.where(joined, e, np.maximum(first.high // block_n, e))
    return _Intervals(a, b, c, d, e, f)


def _split(runs: _Intervals, splits: int) -> tuple[Ints, Ints]:
    """Tiles and masked tiles of every split of every block, shape (splits, blocks)."""
    total = runs.total
    run = -(-total // splits)
    part = np.arange(splits, dtype=np.int64)[:, None]
    start, end = np.minimum(part * run, total), np.minimum((part + 1) * run, total)
    return end - start, end - start - runs.full_within(start, end)


def _split_matrix(live: Flags, full: Flags, splits: int) -> tuple[Ints, Ints]:
    """The same from flags per tile, shape (blocks, tiles)."""
    number = np.cumsum(live, axis=1, dtype=np.int64)
    run = np.maximum(-(-number[:, -1:] // splits), 1)
    part = (number - 1) // run
    total, masked = (
        np.stack([np.asarray(flags & (part == s)).sum(axis=1) for s in range(splits)]) for flags in (live, live & ~full)
    )
    return total, masked


def _merge(total: Ints, masked: Ints, weight: Ints, exact: bool) -> TileHistogram:
    """Equal blocks merged; `total` and `masked` of shape (splits, blocks), `weight` of shape (blocks,)."""
    counts, rank = np.unique(masked.ravel(), return_inverse=True)  # ranks, since tiles times tiles can pass 2^63
    totals, order = np.unique(total.ravel(), return_inverse=True)
    code, inverse = np.unique(order * len(counts) + rank, return_inverse=True)
    blocks = np.bincount(inverse, weights=np.broadcast_to(weight, total.shape).ravel()).astype(np.int64)
    return TileHistogram(totals[code[::-1] // len(counts)], counts[code[::-1] % len(counts)], blocks[::-1], exact)


def _strata(number: int, most: int) -> tuple[Ints, Ints]:
    """At most `most` blocks, each the middle of a run of neighbours, and the length of its run."""
    bounds = np.arange(min(number, most) + 1, dtype=np.int64) * number // min(number, most)
    return (bounds[:-1] + bounds[1:] - 1) // 2, np.diff(bounds)


def _matrix_tiles(mask: Mask, m: int, n: int, first: Ints, last: Ints, block_n: int) -> tuple[Flags, Flags]:
    """Visited and full flags, shape (blocks, tiles), for blocks with these first and last queries."""
    start = np.arange(0, n, block_n, dtype=np.int64)
    end = np.minimum(start + block_n, n) - 1
    if mask.gna is not None:
        live, full = grid_tiles(mask.gna, first, last, start, end)
    else:
        assert mask.blocks is not None
        live, full = _list_tiles(mask, mask.blocks, m, n, first, last, start, end)
    full[:, n // block_n :] = False  # a ragged last tile masks the keys that do not exist
    return live, full


def _list_tiles(
    mask: Mask, blocks: Blocks, m: int, n: int, first: Ints, last: Ints, start: Ints, end: Ints
) -> tuple[Flags, Flags]:
    """Each tile is cut along the mask's own blocks; every piece is a rectangle inside one of them."""
    size, offset, keeps = blocks.size, n - m, keeper(blocks, n)
    live = np.zeros((len(first), len(start)), bool)
    full = np.ones_like(live)
    row0, column0 = (first + offset) // size, start // size
    for a in range(int(((last + offset) // size - row0).max()) + 1):
        row = row0 + a
        top, bottom = np.maximum(first, row * size - offset), np.minimum(last, (row + 1) * size - offset - 1)
        above, below = edges(mask, np.minimum(top, last), m, n), edges(mask, bottom, m, n)
        for b in range(int((end // size - column0).max()) + 1):
            column = column0 + b
            left, right = np.maximum(start, column * size), np.minimum(end, (column + 1) * size - 1)
            there = (top <= bottom)[:, None] & (left <= right)[None, :]
            kept = keeps(row[:, None], column[None, :])
            some, every = _rectangle(above, below, left, right)
            live |= there & kept & some
            full &= ~there | (kept & every)
    return live, full


def _rectangle(above: Edges, below: Edges, left: Ints, right: Ints) -> tuple[Flags, Flags]:
    """Whether some and whether every pair is visible, for rows from `above` to `below` and keys from left to right."""
    s0, s1, lo0, lo1, hi0, hi1 = (
        x[:, None] for x in (above.sink, below.sink, above.low, below.low, above.high, below.high)
    )
    some = (left < s1) | ((left < hi1) & (right >= lo0) & (lo0 < hi1))
    in_sink = right < s0
    in_band = (left >= lo1) & (right < hi0)
    across = (s0 >= lo1) & (right < np.maximum(s0, hi0))
    return some, in_sink | in_band | across


def keeper(blocks: Blocks, n: int) -> Callable[[Ints, Ints], Flags]:
    """Which blocks of the mask are kept over n keys, as a function of row and column; arrays broadcast."""
    if blocks.keep is None:
        columns, count = -(-n // blocks.size), blocks.kept_per_row(n)
        return lambda row, column: np.asarray(((column - row) * count) % columns < count)
    edge = max((max(pair) for pair in blocks.keep), default=-1) + 1
    table = np.zeros((edge + 1, edge + 1), bool)  # the last row and column stay empty
    for row, column in blocks.keep:
        table[row, column] = True
    return lambda row, column: table[np.clip(row, -1, edge), np.clip(column, -1, edge)]
