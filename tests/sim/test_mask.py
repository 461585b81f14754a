import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.einsum.expression import Number, Symbol
from einsight.sim.mask import CAUSAL, DENSE, Gna, Mask, MaskError, mask_from
from einsight.sim.mask_pairs import live_points, members
from einsight.sim.mask_predicate import predicate
from einsight.sim.tiles import Covered, average_tiles, covered, has_band, tile_histogram


def tiles_by_force(mask, m, n, block_m, block_n, pack=1, splits=1):
    """(total, masked) of every block, in order, from the membership matrix repeated for packed heads."""
    pairs = np.repeat(members(mask, m, n), pack, axis=0)
    out = []
    for top in range(0, m * pack, block_m):
        rows = pairs[top : top + block_m]
        visited = []
        for left in range(0, n, block_n):
            tile = rows[:, left : left + block_n]
            if tile.any():
                visited.append(not (tile.all() and left + block_n <= n))
        run = -(-len(visited) // splits)
        for s in range(splits):
            part = visited[s * run : (s + 1) * run]
            out.append((len(part), sum(part)))
    return out


def merged(blocks):
    return sorted(((t, k, blocks.count((t, k))) for t, k in set(blocks)), reverse=True)


def as_tuples(histogram):
    return list(zip(histogram.total.tolist(), histogram.masked.tolist(), histogram.blocks.tolist(), strict=True))


sizes = st.integers(1, 40)


@st.composite
def interval_masks(draw):
    spec = []
    if draw(st.booleans()):
        spec.append("causal")
        if draw(st.booleans()):
            spec.append({"prefix": draw(st.integers(0, 45))})
    if draw(st.booleans()):
        spec.append({"window": draw(st.integers(1, 45))})
        if draw(st.booleans()):
            spec.append({"sink": draw(st.integers(0, 45))})
    return mask_from(spec)


@st.composite
def block_masks(draw):
    base = draw(interval_masks())
    size = draw(st.integers(1, 9))
    if draw(st.booleans()):
        blocks = {"size": size, "density": draw(st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]))}
    else:
        blocks = {"size": size, "keep": draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))}
    return Mask((*base.restrictions, *mask_from([{"blocks": blocks}]).restrictions))


@st.composite
def gna_masks(draw, most=(40, 9, 5)):
    rank = draw(st.integers(1, 3))
    entries = []
    for _ in range(rank):
        length = draw(st.integers(2, most[rank - 1]))
        window = draw(st.integers(2, length))
        entries.append((length, window, draw(st.integers(1, window)), draw(st.integers(1, length // window)),
                        draw(st.booleans())))  # fmt: skip
    return Mask((Gna(*zip(*entries, strict=True)),))


tilings = st.tuples(st.integers(1, 17), st.integers(1, 17), st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=300, deadline=None)
@given(interval_masks(), sizes, sizes, tilings)
def test_interval_tiles_equal_brute_force(mask, m, n, tiling):
    assert has_band(mask)
    assert as_tuples(tile_histogram(mask, m, n, *tiling)) == merged(tiles_by_force(mask, m, n, *tiling))


@settings(max_examples=150, deadline=None)
@given(block_masks(), sizes, st.integers(25, 45), tilings)
def test_block_tiles_equal_brute_force(mask, m, n, tiling):
    if mask.blocks.keep and max(max(b) for b in mask.blocks.keep) * mask.blocks.size >= n:
        return
    assert as_tuples(tile_histogram(mask, m, n, *tiling)) == merged(tiles_by_force(mask, m, n, *tiling))


@settings(max_examples=150, deadline=None)
@given(gna_masks(), tilings)
def test_grid_tiles_equal_brute_force(mask, tiling):
    n = mask.gna.tokens
    assert as_tuples(tile_histogram(mask, n, n, *tiling)) == merged(tiles_by_force(mask, n, n, *tiling))


def covered_by_force(mask, m, n, block_m, block_n, pack):
    pairs = np.repeat(members(mask, m, n), pack, axis=0)
    tiles = [
        pairs[top : top + block_m, left : left + block_n]
        for top in range(0, m * pack, block_m) for left in range(0, n, block_n)
    ]  # fmt: skip
    shapes = [tile.shape for tile in tiles if tile.any()]
    return Covered(len(shapes), sum(r for r, _ in shapes), sum(k for _, k in shapes), sum(r * k for r, k in shapes))


@settings(max_examples=300, deadline=None)
@given(interval_masks() | block_masks(), sizes, st.integers(25, 45), tilings)
def test_what_the_tiles_cover_equals_brute_force(mask, m, n, tiling):
    """Ragged last rows and columns of tiles with the rows and keys that they have."""
    if mask.blocks and mask.blocks.keep and max(max(b) for b in mask.blocks.keep) * mask.blocks.size >= n:
        return
    assert covered(mask, m, n, *tiling[:3]) == covered_by_force(mask, m, n, *tiling[:3])


@settings(max_examples=100, deadline=None)
@given(gna_masks(), tilings)
def test_what_the_tiles_of_grids_cover_equals_brute_force(mask, tiling):
    n = mask.gna.tokens
    assert covered(mask, n, n, *tiling[:3]) == covered_by_force(mask, n, n, *tiling[:3])


@settings(max_examples=200, deadline=None)
@given(interval_masks() | block_masks(), sizes, st.integers(25, 45))
def test_live_points_equal_brute_force(mask, m, n):
    if mask.blocks and mask.blocks.keep and max(max(b) for b in mask.blocks.keep) * mask.blocks.size >= n:
        return
    assert live_points(mask, m, n) == members(mask, m, n).sum()


@settings(max_examples=100, deadline=None)
@given(gna_masks())
def test_live_points_of_grids_equal_brute_force(mask):
    n = mask.gna.tokens
    assert live_points(mask, n, n) == members(mask, n, n).sum()


@settings(max_examples=200, deadline=None)
@given(interval_masks() | gna_masks(), sizes, sizes)
def test_canonical_keeps_the_pairs(mask, m, n):
    if mask.gna:
        m = n = mask.gna.tokens
    reduced = mask.canonical(m, n)
    assert (members(reduced, m, n) == members(mask, m, n)).all()
    assert reduced.canonical(m, n) == reduced


@settings(max_examples=200, deadline=None)
@given(interval_masks() | block_masks() | gna_masks(most=(20, 6, 4)), sizes, st.integers(25, 45))
def test_predicate_equals_brute_force(mask, m, n):
    if mask.gna:
        m = n = mask.gna.tokens
    if mask.blocks and mask.blocks.keep and max(max(b) for b in mask.blocks.keep) * mask.blocks.size >= n:
        return
    clause = predicate(mask)
    found = np.ones((m, n), bool)
    if clause is not None:
        grid = {"m": np.arange(m)[:, None], "n": np.arange(n)[None, :], "M": m, "N": n}
        found = np.broadcast_to(scalar(clause, grid), (m, n))
    assert (found == members(mask, m, n)).all()


OPERATIONS = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "%": np.mod, "floordiv": np.floor_divide, "max": np.maximum,
    "min": np.minimum, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
    "&&": np.logical_and, "||": np.logical_or,
}  # fmt: skip


def scalar(node, values):
    if isinstance(node, Number):
        return int(node.value)
    if isinstance(node, Symbol):
        return values[node.name]
    return OPERATIONS[node.op](*(scalar(a, values) for a in node.args))


@settings(max_examples=200, deadline=None)
@given(interval_masks(), sizes, sizes, tilings)
def test_average_is_exact_for_few_blocks(mask, m, n, tiling):
    histogram = tile_histogram(mask, m, n, *tiling[:3])
    mean = average_tiles(mask, m, n, *tiling[:3], samples=512)
    blocks = histogram.blocks.sum()
    assert mean.blocks[0] == blocks
    assert mean.total[0] == pytest.approx(histogram.total @ histogram.blocks / blocks)
    assert mean.masked[0] == pytest.approx(histogram.masked @ histogram.blocks / blocks)


def test_average_over_cases_of_long_sequences():
    n = np.array([1 << 14, 1 << 17, 1 << 20])
    mean = average_tiles(CAUSAL, n, n, 128, 128)
    assert mean.total == pytest.approx((n / 128 + 1) / 2)
    assert mean.masked == pytest.approx([1, 1, 1])
    masks = [DENSE, CAUSAL, mask_from(["causal", {"window": 4096}])]
    mixed = average_tiles(masks, n, n, 128, 64)
    for k, mask in enumerate(masks):
        exact = tile_histogram(mask, int(n[k]), int(n[k]), 128, 64)
        assert mixed.total[k] == pytest.approx(exact.tiles / exact.blocks.sum(), rel=0.02)


def test_million_tokens_have_few_kinds_of_blocks():
    n = 1 << 20
    histogram = tile_histogram(mask_from(["causal", {"window": 4096}, {"sink": 4}]), n, n, 128, 128)
    assert len(histogram.total) < 40 and histogram.blocks.sum() == n // 128 and histogram.exact
    dense = tile_histogram(DENSE, n, n, 128, 128)
    assert as_tuples(dense) == [(n // 128, 0, n // 128)]


def test_causal_closed_form():
    n, block = 4096, 128
    histogram = tile_histogram(CAUSAL, n, n, block, block)
    assert histogram.tiles == (n // block) * (n // block + 1) // 2
    assert (histogram.masked == 1).all()
    assert live_points(CAUSAL, n, n) == n * (n + 1) // 2
    assert live_points(CAUSAL, 16, n) == 16 * n - 16 * 15 // 2
    window = mask_from(["causal", {"window": 100}])
    assert live_points(window, n, n) == 100 * n - 100 * 99 // 2


def test_long_block_lists_are_sampled_and_say_so():
    n = 1 << 19
    histogram = tile_histogram(mask_from([{"blocks": {"size": 128, "density": 0.1}}]), n, n, 128, 64)
    assert histogram.blocks.sum() == n // 128
    kept = mask_from([{"blocks": {"size": 128, "density": 0.1}}]).blocks.kept_per_row(n)
    assert not histogram.exact and set(histogram.total.tolist()) == {2 * kept} and not histogram.masked.any()


def test_density_keeps_the_rounded_share_of_every_row():
    blocks = mask_from([{"blocks": {"size": 4, "density": 0.3}}])
    pairs = members(blocks, 40, 40)
    assert (pairs.sum(axis=1) == 4 * 3).all()  # 10 columns of blocks, three kept
    assert all(pairs[i, i] for i in range(40))


def test_neighbourhood_examples():
    """Windows of the reference definition: L = 10, W = 4, S = 2."""
    starts = [0, 0, 1, 1, 3, 3, 5, 5, 6, 6]
    pairs = members(Mask((Gna((10,), (4,), (2,), (1,), (False,)),)), 10, 10)
    assert [row.nonzero()[0].tolist() for row in pairs] == [list(range(s, s + 4)) for s in starts]
    causal = members(Mask((Gna((10,), (4,), (2,), (1,), (True,)),)), 10, 10)
    spans = [(0, 1), (0, 2), (0, 3), (0, 4), (2, 5), (2, 6), (4, 7), (4, 8), (6, 9), (6, 10)]
    assert [row.nonzero()[0].tolist() for row in causal] == [list(range(*s)) for s in spans]


def test_line_neighbourhoods_have_the_tiles_that_natten_prints():
    folder = Path(os.environ.get("EINSIGHT_REFERENCE", Path(__file__).parents[2] / "../shared/reference"))
    path = folder / "gna" / "natten_block_mask_counts.json"
    if not path.exists():
        pytest.skip(f"no reference data: {path}")
    rows = [r for r in json.loads(path.read_text())["rows"] if len(r["input_size"]) == 1 and r["dilation"] == [1]]
    assert rows
    for row in rows:
        names = ("input_size", "window_size", "stride", "dilation", "is_causal")
        mask, n = Mask((Gna(*(tuple(row[name]) for name in names)),)), row["input_size"][0]
        histogram = tile_histogram(mask, n, n, row["q_tile"][0], row["kv_tile"][0])
        assert histogram.tiles == row["natten_total_kv_tiles"], row
        assert histogram.total.max() == row["natten_max_kv_tiles"]
        if n % row["q_tile"][0] == n % row["kv_tile"][0] == 0:
            assert histogram.full @ histogram.blocks == row["natten_full_tiles"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (["causal", "causal"], ["causal", "2 times", "once"]),
        ([{"sink": 4}], ["sink", "no window", "window beside it"]),
        ([{"window": 8}, {"prefix": 4}], ["prefix", "no causal"]),
        ([{"window": 0}], ["window", "0", "1 or more"]),
        ([{"window": True}], ["window", "integer"]),
        ([{"windows": 4}], ["unknown restriction", "'windows'"]),
        ("banded", ["'banded'", "causal"]),
        (7, ["7", "list"]),
        ([{"gna": {"layout": "8x8", "window": "4x9"}}], ["dimension 1", "window 9", "2 to 8"]),
        ([{"gna": {"layout": "8x8", "window": 4, "stride": [5, 1]}}], ["dimension 0", "stride 5", "1 to 4"]),
        ([{"gna": {"layout": "8x8", "window": 4, "dilation": [1, 3]}}], ["dimension 1", "dilation 3", "1 to 2"]),
        ([{"gna": {"layout": "8x8", "window": [4, 4, 4]}}], ["window has 3 entries", "expected 2"]),
        ([{"gna": {"layout": "2x2x2x2", "window": 2}}], ["4 dimensions", "1, 2 or 3"]),
        ([{"gna": {"layout": "8xa", "window": 2}}], ["'8xa'"]),
        ([{"gna": {"layout": "8x8"}}], ["no window"]),
        ([{"gna": {"layout": "8x8", "window": 4, "step": 1}}], ["unknown key 'step'"]),
        (["causal", {"gna": {"layout": 8, "window": 4}}], ["gna", "causal"]),
        ([{"gna": {"layout": "8x8", "window": 4, "causal": 2}}], ["causal is 2", "true or false"]),
        ([{"gna": {"layout": "8x8", "window": 4, "causal": "1x3"}}], ["causal is '1x3'", "true or false"]),
        ([{"blocks": {"size": 64}}], ["neither density nor keep"]),
        ([{"blocks": {"size": 64, "density": 1.5}}], ["1.5", "up to 1"]),
        ([{"blocks": {"size": 64, "keep": [[0]]}}], ["pairs"]),
        ([{"blocks": {"size": 64, "keep": [[0, -1]]}}], ["[0, -1]", "from 0"]),
    ],
)
def test_impossible_masks_say_why(spec, words):
    with pytest.raises(MaskError) as caught:
        mask_from(spec)
    for word in words:
        assert word in str(caught.value)


def test_masks_must_fit_the_sizes():
    with pytest.raises(MaskError, match="8x8 for m = 64 and n = 65; expected both to be its 64 tokens"):
        mask_from([{"gna": {"layout": "8x8", "window": 4}}]).check(64, 65)
    with pytest.raises(MaskError, match=r"block \[0, 4\].*0 to 3"):
        mask_from([{"blocks": {"size": 16, "keep": [[0, 4]]}}]).check(64, 64)


    with pytest.raises(MaskError, match=r"size 16 .* expected 128 or more"):
        mask_from([{"blocks": {"size": 16, "density": 0.1}}]).check(1 << 20, 1 << 20)


def test_written_form_round_trips():
    spec = ["causal", {"prefix": 3}, {"sink": 2}, {"window": 9}]
    assert mask_from(spec).as_json() == spec
    assert mask_from(list(reversed(spec))) == mask_from(spec)
    grid = mask_from([{"gna": {"layout": "30x48x80", "window": "18x24x24", "stride": "16x8x8"}}])
    assert mask_from(grid.as_json()) == grid
