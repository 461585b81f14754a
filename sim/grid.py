"""What a mask leaves to run, as the few numbers per case that a schedule needs: `Tiles`, for one case or for many."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from einsight.sim.mask import Mask
from einsight.sim.schedule import Array
from einsight.sim.tiles import Ints, average_tiles, band_blocks, has_band, tile_histogram

SHORT = 4096
"""Up to this many blocks of rows are simply listed; merging equal ones pays off beyond."""
FEW = 32
"""Up to this many cases every block of every case is counted; longer sweeps over band masks take evenly spaced blocks."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Per case and replica of the grid (one head, or one KV head when heads are packed); arrays over cases.

    blocks             thread blocks that have anything to do
    total, masked      key tiles that they run together, and how many of these need the mask applied
    longest, shortest  key tiles of the block with the most and with the fewest, `_masked` of these with the mask
    exact              whether every block was counted
    """

    blocks: Array
    total: Array
    masked: Array
    longest: Array
    longest_masked: Array
    shortest: Array
    shortest_masked: Array
    exact: bool = True


_NONE: Array = np.zeros(())
NO_TILES = Tiles(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE)


def grid_of(mask: Mask, m: Array, n: Array, block_m: Array, block_n: Array, pack: Array) -> Tiles:
    """Tiles of each case. `pack`: query heads that share a tile's rows (1 when they do not)."""
    sizes = np.broadcast_arrays(m, n, block_m, block_n, pack)
    cases = np.stack([np.ravel(x) for x in sizes], axis=1).astype(np.int64)
    if len(cases) == 1:
        return _each(mask, cases)
    distinct, inverse = np.unique(cases, axis=0, return_inverse=True)
    found = _each(mask, distinct) if len(distinct) <= FEW or mask.gna or mask.blocks else _many(mask, distinct)
    at, shape = inverse.ravel(), sizes[0].shape
    values = {f.name: getattr(found, f.name) for f in fields(Tiles)}
    return Tiles(**{k: v if k == "exact" else v[at].reshape(shape) for k, v in values.items()})


def _each(mask: Mask, cases: Ints) -> Tiles:
    rows, exact = [], True
    for m, n, block_m, block_n, pack in cases.tolist():
        if has_band(mask) and m * pack <= SHORT * block_m:
            rows.append(_summary(*band_blocks(mask, m, n, block_m, block_n, pack)))
            continue
        h = tile_histogram(mask, m, n, block_m, block_n, pack)
        live = h.total > 0
        exact &= h.exact
        most, least = (0, int(np.flatnonzero(live)[-1])) if live.any() else (0, 0)
        rows.append((
            h.blocks[live].sum(), h.total @ h.blocks.astype(float), h.masked @ h.blocks.astype(float),
            h.total[most], h.masked[most], h.total[least], h.masked[least],
        ))  # fmt: skip
    a, b, c, d, e, f, g = np.array(rows, dtype=np.float64).T
    return Tiles(a, b, c, d, e, f, g, exact)


def _summary(total: Ints, masked: Ints) -> tuple[Any, ...]:
    """The numbers of `Tiles` from every block's tiles."""
    live = np.flatnonzero(total)
    if not len(live):
        return (0.0,) * 7
    most, least = int(total.argmax()), int(live[total[live].argmin()])
    return len(live), total.sum(), masked.sum(), total[most], masked[most], total[least], masked[least]


def _many(mask: Mask, cases: Ints) -> Tiles:
    """Means and extremes over evenly spaced blocks; exact where a case has no more than these."""
    m, n, block_m, block_n, pack = cases.T
    mean = average_tiles(mask, m, n, block_m, block_n, pack)
    blocks = mean.blocks.astype(np.float64)
    total = np.maximum(mean.total * blocks, mean.longest[0])
    ends = [x.astype(np.float64) for x in (*mean.longest, *mean.shortest)]
    return Tiles(blocks, total, mean.masked * blocks, ends[0], ends[1], ends[2], ends[3], exact=False)
