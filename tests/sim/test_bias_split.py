"""Positions in pieces: every piece a number of the type, and the bias exact near the diagonal of 128k positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.sim.bias_exact import BiasError, alibi_slopes
from einsight.sim.bias_split import FORMATS, accumulated, digits, rounded, split_alibi, ulp

LONG = 131072


@given(st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=30))
def test_rounding_to_fp16_is_numpy_s(values: list[float]) -> None:
    np.testing.assert_array_equal(rounded(values, "fp16"), np.array(values, dtype=np.float16).astype(np.float64))


@given(st.floats(-1e30, 1e30))
def test_rounding_to_bf16_is_that_of_its_bits(value: float) -> None:
    """Round to nearest even on the upper 16 bits of fp32, from an fp32 value so that nothing is rounded twice."""
    single = np.float32(value)
    bits = int(np.array(single).view(np.uint32))
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    expected = float(np.array(upper, dtype=np.uint32).view(np.float32))
    assert rounded(float(single), "bf16") == expected


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.sampled_from(sorted(FORMATS)))
def test_digits_add_up_and_fit(values: list[int], dtype: str) -> None:
    parts = digits(values, dtype)
    base = FORMATS[dtype].base
    np.testing.assert_array_equal(sum(d * base**k for k, d in enumerate(parts)), values)
    for part in parts:
        np.testing.assert_array_equal(rounded(part, dtype), part)


@pytest.mark.parametrize("heads", [8, 16, 12])
@pytest.mark.parametrize("dtype", sorted(FORMATS))
def test_alibi_at_128k_within_one_ulp_near_the_diagonal(dtype: str, heads: int) -> None:
    """fp32 accumulation of the pieces in order, against the true ALiBi, for all pairs with |score| <= 16 of many rows."""
    factors = split_alibi(heads, LONG, LONG, dtype)
    assert factors.rank == 4
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.integers(0, LONG, 300), [0, 1, LONG - 1]])
    back = np.unique(np.concatenate([np.arange(64), np.geomspace(64, 4096, 60).astype(int)]))
    i, j = (a.ravel() for a in np.broadcast_arrays(rows[:, None], rows[:, None] - back))
    i, j = i[j >= 0], j[j >= 0]
    true = -alibi_slopes(heads)[:, None] * (i - j)
    found = accumulated(factors, i, j).astype(np.float64)
    near = np.abs(true) <= 16
    assert near.sum() > 1000
    assert (np.abs(found - true) <= ulp(true, dtype))[near].all()
    assert (np.abs(rounded(found, dtype) - true) <= ulp(true, dtype))[near].all()
    assert (found[:, i == j] == 0).all()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", sorted(FORMATS))
def test_every_piece_is_a_number_of_the_type(dtype: str, softmax: bool) -> None:
    factors = split_alibi(16, LONG, LONG, dtype, softmax)
    for side in (factors.query, factors.key):
        np.testing.assert_array_equal(rounded(side, dtype), side)
        assert np.abs(side).max() <= 65504


def test_without_the_split_the_bias_is_lost() -> None:
    """What the split is for: positions themselves in bf16 are off by half of 512 at 128k."""
    j = np.arange(LONG)
    assert np.abs(rounded(j, "bf16") - j).max() == 256
    assert np.isinf(rounded(j, "fp16")).any()


def test_softmax_halves_the_rank_and_changes_rows_only() -> None:
    whole, rest = (split_alibi(4, 64, 64, "bf16", softmax) for softmax in (False, True))
    assert (whole.rank, rest.rank) == (2, 1)
    difference = whole.scores() - rest.scores()
    np.testing.assert_allclose(difference, np.broadcast_to(difference[..., :1], difference.shape), atol=1e-12)


def test_unknown_types_and_lengths_beyond_them() -> None:
    with pytest.raises(BiasError, match="fp16 or bf16"):
        split_alibi(1, 4, 4, "fp8_e4m3")
    with pytest.raises(BiasError, match="numbers of fp16"):
        split_alibi(1, 4, 4, "fp16", slopes=[1e6])
