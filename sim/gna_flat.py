"""Plain 1-D tiling of a grid: tiles of consecutive row-major tokens, which neighborhoods of several dimensions scatter over.

A Q tile is at most 2^rank - 1 boxes of the grid, and its keys are rows of the boxes that they see. `tiles` tests every
pair of tiles; of grids too large for that, evenly spaced Q tiles are counted row by row of their keys.
"""

from __future__ import annotations

import numpy as np

from einsight.sim.gna_ranges import Ints, grid_tiles, group_of, token_boxes
from einsight.sim.mask import Gna, Mask, MaskError
from einsight.sim.tiles import PAIR_BUDGET, TileHistogram, tile_histogram

SAMPLES = 64
"""Q tiles that stand for all of a large grid, the first and the last among them."""


def flat_tiles(gna: Gna, q_tile: int, kv_tile: int) -> TileHistogram:
    """KV tiles of every Q tile. Raises MaskError for dilated grids that are too large to test pair by pair."""
    tokens = gna.tokens
    number = -(-tokens // q_tile)
    if len(gna.layout) == 1 or number * -(-tokens // kv_tile) <= PAIR_BUDGET:
        return tile_histogram(Mask((gna,)), tokens, tokens, q_tile, kv_tile)
    if max(gna.dilation) > 1:
        raise MaskError(
            f"gna: 1-D tiles of {q_tile} and {kv_tile} on a dilated grid of {tokens} tokens",
            f"a product of the tiles of at least {tokens**2 // PAIR_BUDGET}, or tiles with one entry per dimension",
        )
    picked, share = _picked(number)
    counts = np.array([_row_counts(gna, t * q_tile, min((t + 1) * q_tile, tokens) - 1, kv_tile) for t in picked.tolist()])
    order = np.argsort(-counts[:, 0], kind="stable")
    return TileHistogram(counts[order, 0], counts[order, 0] - counts[order, 1], share[order], exact=False)


def whole_at_end(gna: Gna, q_tile: int, kv_tile: int, exact: bool) -> int:
    """Q tiles whose queries all see every key of the last KV tile, where that one reaches past the grid: pairs that are not
    full, and not cut either. `exact`: of every Q tile, as in `flat_tiles`, or of those that stand for all."""
    tokens = gna.tokens
    if tokens % kv_tile == 0:
        return 0
    number = -(-tokens // q_tile)
    picked, share = (np.arange(number, dtype=np.int64), np.ones(number, dtype=np.int64)) if exact else _picked(number)
    first, last = picked * q_tile, np.minimum((picked + 1) * q_tile, tokens) - 1
    start, end = np.array([tokens // kv_tile * kv_tile]), np.array([tokens - 1])
    return int(share @ grid_tiles(gna, first, last, start, end)[1][:, 0])


def _picked(number: int) -> tuple[Ints, Ints]:
    """Evenly spaced Q tiles that stand for all, and for how many each stands."""
    picked = np.unique(np.linspace(0, number - 1, SAMPLES).round().astype(np.int64))
    return picked, np.diff(np.arange(len(picked) + 1, dtype=np.int64) * number // len(picked))


def _row_counts(gna: Gna, first: int, last: int, kv_tile: int) -> tuple[int, int]:
    """(visited, full) KV tiles of the queries first..last."""
    starts, ends = [], []
    rank = len(gna.layout)
    low = np.zeros(rank, dtype=np.int64)  # of the keys that every query sees
    high = np.array(gna.layout, dtype=np.int64)
    for box in token_boxes(np.array([first]), np.array([last]), gna.layout):
        if any(a[0] > b[0] for a, b in box):
            continue
        spans = []
        for d, (a, b) in enumerate(box):
            (some_low, every_high), (every_low, some_high) = (group_of(gna, d).windows(x) for x in (a, b))
            spans.append((int(some_low[0]), int(some_high[0])))
            low[d], high[d] = max(low[d], every_low[0]), min(high[d], every_high[0])
        start, end = _rows(gna.layout, spans)
        starts.append(start // kv_tile)
        ends.append((end - 1) // kv_tile)
    begin, stop = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(begin, kind="stable")
    begin, stop = begin[order], np.maximum.accumulate(stop[order])
    fresh = np.maximum(begin, np.concatenate([[-1], stop[:-1]]) + 1)  # what no earlier row has touched
    visited = int(np.maximum(stop - fresh + 1, 0).sum())
    if np.any(low >= high):
        return visited, 0
    start, end = _rows(gna.layout, [(int(a), int(b)) for a, b in zip(low, high, strict=True)])
    return visited, int(np.maximum(end // kv_tile - -(-start // kv_tile), 0).sum())


def _rows(layout: tuple[int, ...], spans: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """The rows of a box as half-open ranges of flattened tokens."""
    at = np.zeros(1, dtype=np.int64)
    for length, (a, b) in zip(layout[:-1], spans[:-1], strict=True):
        at = (at[:, None] * length + np.arange(a, b, dtype=np.int64)).ravel()
    a, b = spans[-1]
    return at * layout[-1] + a, at * layout[-1] + b
