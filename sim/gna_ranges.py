"""Neighborhood attention by ranges: which tokens of a row-major range of keys a row-major range of queries sees.

Semantics per dimension as in the NATTEN library (arXiv 2504.16922): dilation groups are residues; inside its group of
length L a query i with window W and stride S follows the leader of its stride group, clamped to the group,

    not causal  leader = min(S * floor(i / S) + floor(S / 2), L - 1), start = clamp(leader - floor(W / 2), 0, L - W),
                end = start + W
    causal      leader = min(S * floor(i / S) + S - 1, L - 1), start = max(leader - W + 1, 0), end = i + 1

Starts and ends never move back with i, and neighbouring windows touch (S <= W), so a range of queries sees a range of
keys. Dimensions are independent: a box of queries sees a pair in a box of keys if it does so in every dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from einsight.sim.mask import Gna

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Span = tuple[Ints, Ints]
"""First and last coordinate (inclusive) per block; empty where first > last."""


@dataclass(frozen=True, slots=True)
class Group:
    """One dilation group of one dimension, in coordinates inside the group."""

    length: int
    window: int
    stride: int
    causal: bool

    def windows(self, i: Ints) -> tuple[Ints, Ints]:
        """[start, end) of the keys that query i sees."""
        ahead = self.stride - 1 if self.causal else self.stride // 2
        leader = np.minimum(i // self.stride * self.stride + ahead, self.length - 1)
        if self.causal:
            return np.maximum(leader - self.window + 1, 0), np.asarray(i) + 1
        start = np.clip(leader - self.window // 2, 0, self.length - self.window)
        return start, start + self.window

    @property
    def pairs(self) -> int:
        """Not causal: every query sees a whole window. Causal: i + 1 keys less those before the start, stride by stride."""
        if not self.causal:
            return self.length * self.window
        whole, rest = divmod(self.length, self.stride)
        begin = min(max(-(-(self.window - self.stride) // self.stride), 0), whole)  # first stride with a start above zero
        steps = whole - begin
        first = begin * self.stride + self.stride - self.window
        skipped = self.stride * (steps * first + self.stride * steps * (steps - 1) // 2)
        return self.length * (self.length + 1) // 2 - skipped - rest * (self.length - self.window)


def group_of(gna: Gna, dimension: int, residue: int = 0) -> Group:
    """The tokens of a dimension whose coordinate is `residue` modulo the dilation."""
    d = dimension
    length = -(-(gna.layout[d] - residue) // gna.dilation[d])
    return Group(length, gna.window[d], gna.stride[d], gna.causal[d])


def groups_of(gna: Gna, dimension: int) -> list[tuple[Group, int]]:
    """The distinct dilation groups of a dimension and how many of each there are: at most two lengths."""
    dilation = gna.dilation[dimension]
    longer = gna.layout[dimension] % dilation
    return [(group_of(gna, dimension, residue), n) for residue, n in ((0, longer), (longer, dilation - longer)) if n]


def pairs_along(gna: Gna, dimension: int) -> int:
    """Visible (query, key) pairs of one dimension alone."""
    return sum(number * group.pairs for group, number in groups_of(gna, dimension))


def pairs(gna: Gna) -> int:
    """Visible (query, key) pairs of the mask: the product over dimensions."""
    return prod(pairs_along(gna, d) for d in range(len(gna.layout)))


def grid_tiles(gna: Gna, first: Ints, last: Ints, start: Ints, end: Ints) -> tuple[Flags, Flags]:
    """Whether some, and whether every, pair of each (query range, key range) is visible; shape (queries, keys).

    Ranges are of flattened tokens, both ends included. Each is cut into at most 2^rank - 1 boxes of the grid.
    """
    live = np.zeros((len(first), len(start)), bool)
    full = np.ones_like(live)
    for queries in token_boxes(first, last, gna.layout):
        rows = np.flatnonzero(_present(queries))
        for keys in token_boxes(start, end, gna.layout):
            columns = np.flatnonzero(_present(keys))
            if len(rows) and len(columns):
                some = np.ones((len(rows), len(columns)), bool)
                every = some.copy()
                for d, (q, k) in enumerate(zip(queries, keys, strict=True)):
                    s, e = _along(gna, d, (q[0][rows], q[1][rows]), (k[0][columns], k[1][columns]))
                    some &= s
                    every &= e
                live[np.ix_(rows, columns)] |= some
                full[np.ix_(rows, columns)] &= every
    return live, full


def _along(gna: Gna, d: int, queries: Span, keys: Span) -> tuple[Flags, Flags]:
    """Some and every, for spans of one dimension."""
    dilation = gna.dilation[d]
    some = np.zeros((len(queries[0]), len(keys[0])), bool)
    every = some.copy()
    for residue in range(dilation):
        group = group_of(gna, d, residue)
        (qa, qb), (ka, kb) = _inside(queries, residue, dilation), _inside(keys, residue, dilation)
        there = (qa <= qb)[:, None] & (ka <= kb)[None, :]
        low0, high0 = group.windows(np.minimum(qa, group.length - 1))
        low1, high1 = group.windows(np.maximum(qb, 0))
        some |= there & (low0[:, None] <= kb) & (high1[:, None] > ka)
        every |= there & (low1[:, None] <= ka) & (high0[:, None] > kb)
    if dilation > 1:  # two neighbours are never in one group
        every &= (queries[0] == queries[1])[:, None] & (keys[0] == keys[1])[None, :]
    return some, every


def _inside(span: Span, residue: int, dilation: int) -> Span:
    """The span in the coordinates of one dilation group."""
    return -((residue - span[0]) // dilation), (span[1] - residue) // dilation


def token_boxes(first: Ints, last: Ints, layout: tuple[int, ...]) -> list[tuple[Span, ...]]:
    """Row-major ranges as boxes: the rest of the first line, whole lines between, the beginning of the last line."""
    if len(layout) == 1:
        return [((first, last),)]
    inner = int(np.prod(layout[1:]))
    top, head = np.divmod(first, inner)
    bottom, tail = np.divmod(last, inner)
    same = top == bottom
    zero = np.zeros_like(first)
    between: tuple[Span, ...] = ((top + 1, bottom - 1), *((zero, zero + length - 1) for length in layout[1:]))
    begins = token_boxes(head, np.where(same, tail, inner - 1), layout[1:])
    ends = token_boxes(zero, tail, layout[1:])
    closing = (np.where(same, bottom + 1, bottom), bottom)  # empty when the first line was the last
    return [((top, top), *box) for box in begins] + [between] + [(closing, *box) for box in ends]


def _present(box: tuple[Span, ...]) -> Flags:
    return np.asarray(np.logical_and.reduce([low <= high for low, high in box]))
