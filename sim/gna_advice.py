"""Which tiles and which strides: every legal choice of a kernel, predicted at once.

The stride changes neither the window nor the sparsity; a larger one makes more queries share a window, which fills tiles
better and moves away from a sliding window. So the choice is a front: the least time at each number of queries that share.
Dimensions are counted alone (`gna_tiles.axis_tiles`), so all strides cost the sum over dimensions, not the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.family import load_family
from einsight.sim.gna_bounds import block_sparsity, bounds
from einsight.sim.gna_kernel import GnaKernel, TilePair
from einsight.sim.gna_ranges import Ints, pairs_along
from einsight.sim.gna_tiles import Shape, axis_tiles, count_tiles
from einsight.sim.gna_time import (
    Problem,
    RunTiles,
    attention_times,
    dense_seconds,
    masked_dimensions,
    permute_seconds,
    predict_gna,
)
from einsight.sim.hardware import Gpu
from einsight.sim.mask import Gna
from einsight.sim.schedule import Array

NEAR = 3
"""Strides shown as near the asked one."""
ALL_STRIDES = 128
"""Windows up to this length are swept stride by stride; of longer ones powers of two and divisors of the window."""
MOST_STRIDES = 1 << 17
"""Beyond this number of combinations the same holds in every dimension."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One window, stride and pair of tiles with what it gives; times in seconds, kernel alone and with permutation."""

    window: Shape
    stride: Shape
    tiles: TilePair
    flop_speedup: float
    tile_speedup_max: float
    tile_speedup_avg: float
    fully_block_sparse: bool
    time_s: float
    total_s: float
    dense_s: float

    @property
    def speedup(self) -> float:
        return self.dense_s / self.time_s

    @property
    def speedup_total(self) -> float:
        return self.dense_s / self.total_s


@dataclass(frozen=True, slots=True, eq=False)
class Strides:
    """All strides of one window with one pair of tiles. `stride` has shape (strides, rank), the rest (strides,)."""

    tiles: TilePair
    stride: Ints
    worst: Array
    average: Array
    fully: NDArray[np.bool_]
    time_s: Array
    permute_s: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What a user may do instead. Tiles fastest first; strides as `Choice`s with the best pair of tiles of each.

    near      fully block-sparse strides nearest to the asked one (in factors of two per dimension)
    better    the strides with the fewest such queries that are 5 % faster than the asked one: same sparsity, better bound
    front     least time at each number of queries that share a window
    """

    tiles: tuple[Choice, ...]
    near: tuple[Choice, ...]
    better: tuple[Choice, ...]
    front: tuple[Choice, ...]


def legal_pairs(problem: Problem, kernel: GnaKernel, gpu: Gpu | None = None) -> tuple[TilePair, ...]:
    return kernel.legal_tiles(len(problem.gna.layout), problem.head_dim, gpu.architecture.name if gpu else "")


def best_tiles(problem: Problem, gpu: Gpu, kernel: GnaKernel, pairs: Sequence[TilePair]) -> tuple[Choice, ...]:
    """The pairs of tiles for the asked window and stride, fastest first."""
    return tuple(sorted((choice(problem, gpu, kernel, pair) for pair in pairs), key=lambda c: c.total_s))


def choice(problem: Problem, gpu: Gpu, kernel: GnaKernel, pair: TilePair) -> Choice:
    """The problem as asked, with one pair of tiles."""
    gna = problem.gna
    bound = bounds(gna, count_tiles(gna, pair.q, pair.kv, kernel.tiling))
    sparse = block_sparsity(gna, pair.q, pair.kv, kernel.tiling).fully
    time = predict_gna(problem, gpu, kernel, pair.q, pair.kv, kernel.tiling)
    return Choice(
        gna.window, gna.stride, pair, bound.flop, bound.worst, bound.average, sparse, time.time_s, time.total_s, time.dense_s
    )


def advise(problem: Problem, gpu: Gpu, kernel: GnaKernel, pairs: Sequence[TilePair]) -> Advice:
    """Tiles and strides for one problem; see `Advice`."""
    swept = [all_strides(problem, gpu, kernel, pair) for pair in pairs]
    asked = problem.gna.stride
    near = _nearest(problem, gpu, kernel, swept, asked)
    front = _front(problem, gpu, kernel, swept)
    tiles = best_tiles(problem, gpu, kernel, pairs)
    better = tuple(c for c in front if c.total_s < 0.95 * tiles[0].total_s)
    return Advice(tiles, near, better[:NEAR], front)


def every_stride(problem: Problem, gpu: Gpu, kernel: GnaKernel, pairs: Sequence[TilePair]) -> tuple[Choice, ...]:
    """All strides that a sweep tries, each with its fastest pair of tiles, by how many queries share and then by time."""
    swept = [all_strides(problem, gpu, kernel, pair) for pair in pairs]
    stride = swept[0].stride
    pick, least = _fastest_pairs(swept)
    gna = problem.gna
    visible = _outer([
        np.array([float(pairs_along(_with_stride(gna, d, s), d)) for s in choices])
        for d, choices in enumerate(stride_choices(gna))
    ])  # fmt: skip
    dense = dense_seconds(problem, gpu, load_family(kernel.dense))
    made = []
    for i in np.lexsort((least, stride.prod(axis=1))).tolist():
        s = swept[int(pick[i])]
        time = float(s.time_s[i])
        made.append(Choice(
            gna.window, tuple(stride[i].tolist()), s.tiles, float(gna.tokens**2 / visible[i]), float(s.worst[i]),
            float(s.average[i]), bool(s.fully[i]), time, time + s.permute_s, dense,
        ))  # fmt: skip
    return tuple(made)


def _fastest_pairs(swept: Sequence[Strides]) -> tuple[Ints, Array]:
    """Per stride: which pair of tiles is the fastest, and its time with permutation in seconds."""
    total = np.stack([s.time_s + s.permute_s for s in swept])
    return total.argmin(axis=0), total.min(axis=0)


def all_strides(problem: Problem, gpu: Gpu, kernel: GnaKernel, pair: TilePair) -> Strides:
    """Every stride from 1 to the window in every dimension (of long windows a choice), with one pair of tiles."""
    gna = problem.gna
    strides = stride_choices(gna)
    found = [_axis(gna, d, strides[d], pair, kernel.tiling) for d in range(len(gna.layout))]
    axes = [counts for counts, _ in found]
    columns = [_outer([a[name] for a in axes]) for name in _FIELDS]
    q_tiles, total, full, uncut, most, most_full, fewest, fewest_full = columns
    fully = uncut == total
    dims = np.full(total.shape, float(masked_dimensions(gna)))
    masked = [np.where(fully, 0.0, c) for c in (total, most, fewest)]
    if kernel.masks == "cut":
        masked = [total - full, most - most_full, fewest - fewest_full]
        shares = _outer([1.0 - a["full"] / a["total"] for a in axes], np.add)
        dims = total * shares / np.maximum(masked[0], 1.0)
    dense = float(prod(-(-n // k) for n, k in zip(gna.layout, pair.kv, strict=True)))
    run = RunTiles(
        q_tiles, total, masked[0], most, masked[1], fewest, masked[2], dims, total / (q_tiles * dense)
    )  # fmt: skip
    times = attention_times(problem, gpu, kernel, load_family(kernel.family), prod(pair.q), prod(pair.kv), run)
    permute = permute_seconds(problem, gpu, kernel, pair.q, pair.kv)
    alike = np.ix_(*(row for _, row in found))

    def of_all(column: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(column.reshape([len(a["total"]) for a in axes])[alike].ravel())

    worst, average = of_all(dense / most), of_all(q_tiles * dense / total)
    return Strides(pair, _all_of(tuple(map(tuple, strides))), worst, average, of_all(fully), of_all(times.time_s), permute)


@lru_cache(maxsize=8)
def _all_of(choices: tuple[Shape, ...]) -> Ints:
    """Every combination of one stride per dimension, shape (strides, rank): one array for all pairs of tiles."""
    return np.stack([g.ravel() for g in np.meshgrid(*choices, indexing="ij")], axis=1).astype(np.int64)


_FIELDS = ("q_tiles", "total", "full", "uncut", "most", "most_full", "fewest", "fewest_full")


def stride_choices(gna: Gna) -> list[list[int]]:
    """The strides that a sweep tries, per dimension; the asked ones always among them."""
    all_of_them = prod(gna.window) <= MOST_STRIDES
    found = []
    for window, asked in zip(gna.window, gna.stride, strict=True):
        few = {2**k for k in range(window.bit_length())} | {asked, window}
        few |= {window // k for k in range(1, min(window, 1024) + 1) if window % k == 0}
        found.append([*range(1, window + 1)] if all_of_them and window <= ALL_STRIDES else sorted(few))
    return found


def _axis(gna: Gna, d: int, strides: Sequence[int], pair: TilePair, tiling: str) -> tuple[dict[str, Array], Ints]:
    """The counts of one dimension that some stride has, each once, and for every stride which of them are its own."""
    rows = [axis_tiles(_with_stride(gna, d, s), d, pair.q[d], pair.kv[d], tiling) for s in strides]
    places = {row: k for k, row in enumerate(dict.fromkeys(rows))}
    counts = {name: np.array([getattr(row, name) for row in places], dtype=np.float64) for name in _FIELDS}
    return counts, np.array([places[row] for row in rows], dtype=np.int64)


def _with_stride(gna: Gna, d: int, stride: int) -> Gna:
    return replace(gna, stride=(*gna.stride[:d], stride, *gna.stride[d + 1 :]))


def _outer(columns: Sequence[Array], combine: np.ufunc = np.multiply) -> Array:
    """All combinations of one entry per dimension, combined; the last dimension fastest."""
    found = columns[0]
    for column in columns[1:]:
        found = combine.outer(found, column).ravel()
    return found


def _nearest(
    problem: Problem, gpu: Gpu, kernel: GnaKernel, swept: Sequence[Strides], asked: Shape
) -> tuple[Choice, ...]:  # fmt: skip
    """Fully block-sparse strides in order of distance, then of time, each with the fastest pair that makes it so."""
    stride = swept[0].stride
    total = np.stack([np.where(s.fully, s.time_s + s.permute_s, np.inf) for s in swept])
    distance = np.abs(np.log2(stride / np.array(asked))).sum(axis=1)
    distance[np.isinf(total.min(axis=0))] = np.inf
    best = [i for i in np.lexsort((total.min(axis=0), distance))[:NEAR].tolist() if distance[i] < np.inf]
    return tuple(_at(problem, gpu, kernel, tuple(stride[i].tolist()), swept[int(total[:, i].argmin())].tiles) for i in best)


def _front(problem: Problem, gpu: Gpu, kernel: GnaKernel, swept: Sequence[Strides]) -> tuple[Choice, ...]:
    """From sliding windows on: each next entry shares more queries and is faster than all before, by 1 % or more."""
    pick, least = _fastest_pairs(swept)
    stride = swept[0].stride
    shared = stride.prod(axis=1)
    kept: list[tuple[Shape, TilePair]] = []
    order = np.lexsort((least, shared))
    before = np.minimum.accumulate(np.concatenate([[np.inf], least[order][:-1]]))
    best = np.inf
    for i in order[least[order] < before].tolist():  # no other can be faster than all before
        if least[i] < 0.99 * best:
            best = float(least[i])
            kept.append((tuple(stride[i].tolist()), swept[int(pick[i])].tiles))
    return tuple(_at(problem, gpu, kernel, stride, pair) for stride, pair in kept)


def _at(problem: Problem, gpu: Gpu, kernel: GnaKernel, stride: Shape, pair: TilePair) -> Choice:
    return choice(replace(problem, gna=replace(problem.gna, stride=stride)), gpu, kernel, pair)


def over_windows(
    problem: Problem, gpu: Gpu, kernel: GnaKernel, pairs: Sequence[TilePair], steps: int = 8
) -> tuple[Choice, ...]:
    """Windows of k/steps of every dimension, each with stride 1, the asked stride and the fastest one, best tiles."""
    made: list[Choice] = []
    for window in _windows(problem.gna, pairs[0].kv, steps):
        asked = tuple(min(s, w) for s, w in zip(problem.gna.stride, window, strict=True))
        gna = replace(problem.gna, window=window, stride=(1,) * len(window))
        case = replace(problem, gna=gna)
        swept = [all_strides(case, gpu, kernel, pair) for pair in pairs]
        fastest = min(swept, key=lambda s: float(s.time_s.min()))
        best = tuple(fastest.stride[int(fastest.time_s.argmin())].tolist())
        for stride in dict.fromkeys((gna.stride, asked, best)):
            at = replace(case, gna=replace(gna, stride=stride))
            made.append(best_tiles(at, gpu, kernel, pairs)[0])
    return tuple(made)


def _windows(gna: Gna, kv_tile: Shape, steps: int) -> list[Shape]:
    """k/steps of every dimension, in whole KV tiles, at least 2 and within what dilation allows."""
    found = []
    for k in range(1, steps + 1):
        window = []
        for n, d, t in zip(gna.layout, gna.dilation, kv_tile, strict=True):
            most = n // d
            window.append(max(2, min(most, -(-most * k // (steps * t)) * t)))
        found.append(tuple(window))
    return list(dict.fromkeys(found))

