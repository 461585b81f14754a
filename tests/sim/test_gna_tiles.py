"""Tile counts of neighborhood attention: against pairs counted one by one, formulas, and NATTEN's own block masks."""

from __future__ import annotations

import json
import os
from itertools import product
from math import lcm, prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.sim.gna_bounds import block_sparsity, natten_rule
from einsight.sim.gna_brute import brute_tiles
from einsight.sim.gna_flat import _row_counts
from einsight.sim.gna_ranges import Group, pairs
from einsight.sim.gna_tiles import TILINGS, _group_tiles, count_tiles, padded_shape
from einsight.sim.mask import Gna, Mask, MaskError
from einsight.sim.mask_pairs import live_points, members
from einsight.sim.tiles import tile_histogram

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
HUNYUAN = ((30, 48, 80), (18, 24, 24))


def gna(layout, window, stride=None, dilation=None, causal=None) -> Gna:  # type: ignore[no-untyped-def]
    rank = len(layout)
    return Gna(layout, window, stride or (1,) * rank, dilation or (1,) * rank, causal or (False,) * rank)


@st.composite
def masks(draw: st.DrawFn) -> Gna:
    """Small grids of 1 to 3 dimensions with any legal window, stride, dilation and causality."""
    rank = draw(st.integers(1, 3))
    layout = tuple(draw(st.integers(2, {1: 40, 2: 8, 3: 5}[rank])) for _ in range(rank))
    window = tuple(draw(st.integers(2, n)) for n in layout)
    return Gna(
        layout, window, tuple(draw(st.integers(1, w)) for w in window),
        tuple(draw(st.integers(1, n // w)) for n, w in zip(layout, window, strict=True)),
        tuple(draw(st.booleans()) for _ in layout),
    )  # fmt: skip


TILE = st.sampled_from([1, 2, 3, 4, 5, 8])


@settings(max_examples=150, deadline=None)
@given(masks(), st.lists(TILE, min_size=3, max_size=3), st.lists(TILE, min_size=3, max_size=3), st.sampled_from(TILINGS))
def test_counts_are_those_of_brute_force(mask: Gna, q: list[int], kv: list[int], tiling: str) -> None:
    q_tile, kv_tile = tuple(q[: len(mask.layout)]), tuple(kv[: len(mask.layout)])
    found, brute = count_tiles(mask, q_tile, kv_tile, tiling), brute_tiles(mask, q_tile, kv_tile, tiling)
    visited, full, uncut = ([row[k] for row in brute] for k in range(3))
    assert (found.q_tiles, found.total, found.full, found.uncut) == (len(brute), sum(visited), sum(full), sum(uncut))
    assert (found.most, found.fewest) == (max(visited), min(visited))
    assert found.most_full == min(f for v, f, _ in brute if v == found.most)
    assert sum(found.by_masked_dimensions) == found.total and found.by_masked_dimensions[0] == found.full
    assert block_sparsity(mask, q_tile, kv_tile, tiling).fully == (sum(uncut) == sum(visited))


def test_every_line_of_up_to_ten_tokens() -> None:
    for length in range(2, 11):
        for window in range(2, length + 1):
            for stride, dilation, causal in product(range(1, window + 1), range(1, length // window + 1), (False, True)):
                mask = gna((length,), (window,), (stride,), (dilation,), (causal,))
                for q, kv, tiling in ((2, 3, "static"), (3, 2, "dynamic"), (4, 4, "static")):
                    brute = brute_tiles(mask, (q,), (kv,), tiling)
                    found = count_tiles(mask, (q,), (kv,), tiling)
                    assert (found.q_tiles, found.total) == (len(brute), sum(v for v, _, _ in brute)), mask


@settings(max_examples=60, deadline=None)
@given(masks())
def test_pairs_are_those_of_brute_force(mask: Gna) -> None:
    n = mask.tokens
    assert pairs(mask) == int(members(Mask((mask,)), n, n).sum()) == live_points(Mask((mask,)), n, n)


@settings(max_examples=100, deadline=None)
@given(masks())
def test_windows_keep_their_size_at_the_borders(mask: Gna) -> None:
    if not any(mask.causal):
        assert pairs(mask) == mask.tokens * prod(mask.window)


@settings(max_examples=60, deadline=None)
@given(masks(), TILE, TILE)
def test_plain_tiling_counts_tiles_of_flattened_tokens(mask: Gna, q: int, kv: int) -> None:
    if len(mask.layout) == 1:
        return
    found = count_tiles(mask, (q,), (kv,))
    seen = members(Mask((mask,)), mask.tokens, mask.tokens)
    rows = [seen[a : a + q] for a in range(0, mask.tokens, q)]
    visited = [[bool(r[:, b : b + kv].any()) for b in range(0, mask.tokens, kv)] for r in rows]
    whole = [[bool(r[:, b : b + kv].all()) for b in range(0, mask.tokens, kv)] for r in rows]
    full = [of_row[: mask.tokens // kv] for of_row in whole]  # what reaches past the last key is not full, nor cut for it
    assert (found.full, found.uncut) == (sum(map(sum, full)), sum(map(sum, whole)))
    assert block_sparsity(mask, (q,), (kv,)).fully == (visited == whole)
    assert found.total == sum(map(sum, visited)) and found.most == max(map(sum, visited))
    assert found.q_tiles == len(rows) and found.dense == len(visited[0])


def test_natten_block_masks() -> None:
    file = REFERENCE / "natten_block_mask_counts.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for row in json.loads(file.read_text())["rows"]:
        mask = Gna(*(tuple(row[k]) for k in ("input_size", "window_size", "stride", "dilation", "is_causal")))
        q, kv = tuple(row["q_tile"]), tuple(row["kv_tile"])
        found = count_tiles(mask, q, kv)
        names = ("num_q_tiles", "total_kv_tiles", "max_kv_tiles", "partial_tiles", "full_tiles")
        assert [row[f"natten_{n}"] for n in names] == [found.q_tiles, found.total, found.most, found.masked, found.full]
        assert block_sparsity(mask, q, kv).fully == natten_rule(mask, q, kv) == row["natten_all_visited_tiles_full"]


def test_full_window_is_dense_and_stride_of_a_window_is_block_diagonal() -> None:
    dense = count_tiles(gna((16, 24), (16, 24)), (4, 8), (4, 8))
    assert dense.total == dense.q_tiles * dense.dense == 12 * 12 and dense.masked == 0
    blocks = count_tiles(gna((16, 24), (8, 8), (8, 8)), (4, 8), (4, 8))
    assert blocks.most == blocks.fewest == 2 and blocks.masked == 0


def test_padding_of_dilated_and_ragged_grids() -> None:
    """Every dilation group is padded to the longest: ceil(ceil(L / D) / t) t D."""
    mask = gna((45, 61), (5, 7), dilation=(4, 3))
    assert padded_shape(mask, (8, 8)) == (2 * 8 * 4, 3 * 8 * 3)
    assert count_tiles(mask, (8, 8), (4, 8)).q_padding == 64 * 72 / (45 * 61)


@pytest.mark.parametrize(("q", "kv", "tiling", "message"), [
    ((4, 4), (4, 4), "static", "Q tile 4x4 has 2 entries; expected 3"),
    ((4, 4, 4), (4, 0, 4), "static", "dimension 1 has KV tile 0; expected 1 or more"),
    ((4, 4, 4), (4,), "static", "Q tile with 3 entries beside KV tile with 1"),
    ((4, 4, 4), (4, 4, 4), "moving", "tiling 'moving'; expected static or dynamic"),
    ((64,), (64,), "dynamic", "dynamic tiling with 1-D tiles; expected tiles with 3 entries"),
])  # fmt: skip
def test_wrong_tiles_are_refused_with_the_reason(q: tuple[int, ...], kv: tuple[int, ...], tiling: str, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        count_tiles(gna(*HUNYUAN), q, kv, tiling)


def test_long_lines_and_large_grids_walk_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two Q tiles a period of lcm(Q tile, KV tile, stride) queries, in each of the few stretches between borders."""
    evaluated: list[int] = []
    windows = Group.windows

    def counted(group: Group, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evaluated.append(np.size(i))
        return windows(group, i)

    monkeypatch.setattr(Group, "windows", counted)
    for mask, tile in (
        (gna((512, 512, 512), (100, 90, 80), (6, 8, 8)), (2, 8, 8)), (gna((1 << 33,), (2049,), (257,)), (128,)),
    ):  # fmt: skip
        _group_tiles.cache_clear()
        evaluated.clear()
        count_tiles(mask, tile, tile)
        periods = sum(lcm(t, s) // t for t, s in zip(tile, mask.stride, strict=True))
        assert 0 < sum(evaluated) <= 2 * 2 * 8 * periods
        evaluated.clear()
        assert pairs(mask) == live_points(Mask((mask,)), mask.tokens, mask.tokens) and not evaluated


@settings(max_examples=80, deadline=None)
@given(masks(), st.sampled_from([1, 3, 8, 16, 40]), st.sampled_from([1, 3, 8, 16, 40]))
def test_rows_of_keys_count_what_pairs_of_tiles_count(mask: Gna, q: int, kv: int) -> None:
    """The count that large plain 1-D tilings use, Q tile by Q tile, on grids small enough for the other one."""
    if len(mask.layout) == 1 or max(mask.dilation) > 1:
        return
    n = mask.tokens
    by_pairs = tile_histogram(Mask((mask,)), n, n, q, kv)
    rows = [_row_counts(mask, a, min(a + q, n) - 1, kv) for a in range(0, n, q)]
    assert sorted(v for v, _ in rows) == sorted(np.repeat(by_pairs.total, by_pairs.blocks).tolist())
    assert sum(f for _, f in rows) <= int(by_pairs.full @ by_pairs.blocks)


def test_plain_tiling_of_a_large_grid_is_sampled_or_refused() -> None:
    found = count_tiles(gna((512, 512, 512), (64, 64, 64)), (128,), (128,))
    assert not found.exact and found.q_tiles == 512**3 // 128
    with pytest.raises(MaskError, match="tiles with one entry per dimension"):
        count_tiles(gna((512, 512, 512), (64, 64, 64), dilation=(2, 2, 2)), (128,), (128,))
