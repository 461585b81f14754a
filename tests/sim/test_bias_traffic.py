"""The closed forms of the tile loop equal the loop; the theorem is another model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.sim import bias_traffic as traffic
from einsight.sim.bias_traffic import Shape

SIZE = st.integers(1, 300)


@given(SIZE, SIZE, st.integers(1, 64), st.integers(1, 64), st.integers(1, 128), st.integers(0, 64), st.integers(1, 128))
def test_the_formula_is_the_loop(m: int, n: int, e: int, f: int, block_m: int, rank: int, block_n: int) -> None:
    shape = Shape(m, n, e, f, block_m)
    assert traffic.low_rank_elements(shape, rank) == traffic.loop_elements(shape, rank, block_n=block_n)
    assert traffic.dense_elements(shape, 2.0) == traffic.loop_elements(shape, dense=True, width=2.0, block_n=block_n)


@pytest.mark.parametrize(("rank", "ratio"), [(2, 1.94), (8, 1.85), (16, 1.75), (64, 1.31), (128, 0.98)])
def test_published_example(rank: int, ratio: float) -> None:
    """N = M = 4096, C = 64, tiles of 128."""
    assert traffic.tile_ratio(Shape(4096, 4096, 64, 64, 128), rank) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("block_m", [64, 128, 256])
def test_break_even_is_the_tile(block_m: int) -> None:
    """R (1 + block_m / N) = block_m; on it both move the same."""
    n = 4096
    shape = Shape(n, n, 64, 64, block_m)
    rank = traffic.tile_break_even(shape)
    assert rank == pytest.approx(block_m / (1 + block_m / n))
    assert traffic.tile_ratio(shape, int(rank)) >= 1 > traffic.tile_ratio(shape, int(rank) + 1)


@pytest.mark.parametrize(
    ("c", "r", "s", "ratio", "constants"),
    [(64, 64, 51200, 6.75, 3.38), (64, 8, 51200, 13.3, 10.7), (32, 96, 51200, 5.1, 3.2), (64, 64, 116224, 14.7, 7.3)],
)
def test_the_theorem_s_ratios(c: int, r: int, s: int, ratio: float, constants: float) -> None:
    assert traffic.theorem_ratio(c, r, s) == pytest.approx(ratio, rel=0.01)
    assert traffic.theorem_ratio_with_constants(c, r, s) == pytest.approx(constants, rel=0.02)
