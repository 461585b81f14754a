"""Tiles of neighborhood attention, counted pair by pair from `mask_pairs.members`: the reference of `gna_tiles`."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from einsight.sim.gna_tiles import Shape
from einsight.sim.mask import Gna, Mask
from einsight.sim.mask_pairs import members


def brute_tiles(gna: Gna, q_tile: Shape, kv_tile: Shape, tiling: str = "static") -> list[tuple[int, int, int]]:
    """(visited, full, uncut) KV tiles of every Q tile of every dilation group. For small grids only."""
    seen = members(Mask((gna,)), gna.tokens, gna.tokens)
    number = np.arange(gna.tokens).reshape(gna.layout)
    found = []
    for residues in product(*map(range, gna.dilation)):
        group = number[tuple(slice(r, None, d) for r, d in zip(residues, gna.dilation, strict=True))]
        for corner in product(*(range(0, n, t) for n, t in zip(group.shape, q_tile, strict=True))):
            queries = group[tuple(slice(c, c + t) for c, t in zip(corner, q_tile, strict=True))]
            visible = seen[np.ix_(queries.ravel(), group.ravel())].reshape(queries.size, *group.shape)
            found.append(_visit(visible, kv_tile, tiling))
    return found


def _visit(visible: NDArray[np.bool_], kv_tile: Shape, tiling: str) -> tuple[int, int, int]:
    """`visible`: which keys of the group each query of a Q tile sees, shape (queries, *group)."""
    some, every = np.asarray(visible.any(axis=0)), np.asarray(visible.all(axis=0))
    origin = [0] * some.ndim
    last = list(some.shape)
    if tiling == "dynamic":
        origin = [int(places.min()) for places in np.nonzero(some)]
        last = [int(places.max()) + 1 for places in np.nonzero(some)]
    visited = full = uncut = 0
    for corner in product(*(range(o, n, t) for o, n, t in zip(origin, last, kv_tile, strict=True))):
        box = tuple(slice(c, c + t) for c, t in zip(corner, kv_tile, strict=True))
        inside = all(c + t <= n for c, t, n in zip(corner, kv_tile, some.shape, strict=True))
        visited += bool(some[box].any())
        uncut += bool(every[box].all())
        full += bool(every[box].all()) and inside
    return visited, full, uncut
