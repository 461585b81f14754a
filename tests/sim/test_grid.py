"""Tile summaries against the histogram and brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.sim.grid import grid_of
from einsight.sim.mask import Causal, Mask, Prefix, Sink, Window
from einsight.sim.mask_pairs import members
from einsight.sim.tiles import touched_keys

MASKS = (
    Mask(), Mask((Causal(),)), Mask((Causal(), Window(5))), Mask((Window(4),)), Mask((Causal(), Window(6), Sink(3))),
    Mask((Causal(), Prefix(7))),
)  # fmt: skip


@given(st.sampled_from(MASKS), st.integers(1, 40), st.integers(1, 40))
def test_touched_keys_are_the_keys_that_some_query_sees(mask: Mask, m: int, n: int) -> None:
    expected = int(members(mask, m, n).any(axis=0).sum())
    assert touched_keys(mask, np.array([float(m)]), np.array([float(n)]))[0] == expected


@settings(max_examples=40)
@given(st.sampled_from(MASKS), st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]), st.sampled_from([16, 32]))
def test_one_case_counts_the_tiles_of_the_mask(mask: Mask, m: int, n: int, bm: int, bn: int) -> None:
    one = [np.array([float(x)]) for x in (m, n, bm, bn, 1)]
    tiles = grid_of(mask, *one)
    seen = members(mask, m, n)
    run = [[seen[i : i + bm, j : j + bn].any() for j in range(0, n, bn)] for i in range(0, m, bm)]
    per_block = np.array([sum(row) for row in run])
    assert tiles.exact
    assert tiles.blocks[0] == (per_block > 0).sum()
    assert tiles.total[0] == per_block.sum()
    assert tiles.longest[0] == per_block.max()


def test_many_cases_agree_with_one_by_one() -> None:
    mask = Mask((Causal(), Window(1000)))
    m = np.arange(100.0, 20000.0, 300.0)
    args = [m, m, np.full_like(m, 128.0), np.full_like(m, 64.0), np.ones_like(m)]
    many = grid_of(mask, *args)
    each = [grid_of(mask, *(a[i : i + 1] for a in args)) for i in range(len(m))]
    exact = np.array([t.total[0] for t in each])
    assert np.max(np.abs(many.total - exact) / exact) < 0.02
    assert np.max(np.abs(many.longest - [t.longest[0] for t in each])) <= 1
    assert np.array_equal(many.blocks, [t.blocks[0] for t in each])
