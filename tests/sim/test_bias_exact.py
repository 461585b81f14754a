"""Exact factors against the definitions: scores, attention output, rank by numerical rank, signs, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.sim import bias_exact as exact
from einsight.sim.bias_exact import BiasError, ExactBias
from einsight.sim.bias_examples import absolute_offset, point_cloud

EPS = float(np.finfo(np.float64).eps)
LONG = 8192
RNG = np.random.default_rng(11)


def cloud(n: int, dims: int = 3) -> np.ndarray:
    return point_cloud(n, dims)


KINDS: dict[str, tuple[Callable[[int], ExactBias], int, int]] = {
    "alibi": (lambda n: exact.alibi(16, n, n), 2, 1),
    "alibi, 12 heads": (lambda n: exact.alibi(12, n, n), 2, 1),
    "linear": (lambda n: exact.linear(2, n, n, -0.25), 2, 1),
    "quadratic": (lambda n: exact.polynomial(1, n, n, 2, -1e-4), 3, 2),
    "cubic": (lambda n: exact.polynomial(1, n, n, 3, 1e-10), 4, 3),
    "quartic": (lambda n: exact.polynomial(1, n, n, 4, -1e-13), 5, 4),
    "distance 2-D": (lambda n: exact.distance(cloud(n, 2), scale=[0.5, 3.0]), 4, 3),
    "distance 3-D": (lambda n: exact.distance(cloud(n)), 5, 4),
    "distance 3-D far from the origin": (lambda n: exact.distance(cloud(n) + 1000.0), 5, 4),
    "distance 3-D, a weight per query": (lambda n: exact.distance(cloud(n), weights=RNG.uniform(0.1, 2.0, n)), 5, 4),
    "cosine": (lambda n: exact.cosine(n, n, [1.7, 2.9]), 2, 2),
    "sphere": (lambda n: exact.sphere(cloud(n)), 3, 3),
    "segments": (lambda n: exact.segments(RNG.normal(size=(3, 6, 6)), np.arange(n) % 6), 6, 5),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_those_claimed_and_no_smaller_ones_exist(kind: str) -> None:
    made, whole, rest = KINDS[kind]
    bias = made(48)
    assert (bias.whole.rank, bias.up_to_rows.rank) == (whole, rest)
    for head in bias.rows(np.arange(48)):
        assert np.linalg.matrix_rank(head, tol=1e-9 * np.abs(head).max()) == whole
        centred = head - head.mean(axis=1, keepdims=True)
        assert np.linalg.matrix_rank(centred, tol=1e-9 * np.abs(centred).max()) == rest


def softmax(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights @ values / weights.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("n", [512, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_within_8_eps_and_output_within_1e_12(kind: str, n: int) -> None:
    """Against the definition, fp64, on 24 rows; causal, and on 2 heads at most: row constants count only where kept."""
    bias = KINDS[kind][0](n)
    rng = np.random.default_rng(5)
    rows = np.unique(rng.integers(0, n, 24))
    queries, (keys, values) = rng.normal(size=(len(rows), 64)) / 8, rng.normal(size=(2, n, 64))
    mask = np.where(np.arange(n) <= rows[:, None], 0.0, -np.inf)
    true = bias.rows(rows)[:2]
    scores = queries @ keys.T + true
    for factors, kept in ((bias.whole, True), (bias.up_to_rows, False)):
        made = factors.scores(rows)[:2]
        off = made - true
        if not kept:
            off -= off.mean(axis=-1, keepdims=True)
        assert np.abs(off).max() <= 8 * EPS * np.abs(scores).max()
        wanted = softmax(scores + mask, values)
        np.testing.assert_allclose(softmax(queries @ keys.T + made + mask, values), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frequency", [0.01, 1.3, 2.9, 123.456])
def test_cosines_of_long_angles_are_right_to_a_few_roundings(frequency: float) -> None:
    """Against the angle reduced by a pi of 60 digits: scores, and the definition that other tests compare with."""
    turn = 2 * Fraction("3.14159265358979323846264338327950288419716939937510582097494459")
    bias = exact.cosine(777, 8191, [frequency], 2.0)
    rows, keys = np.array([0, 400, 776]), np.arange(0, 8191, 91)
    angles = [[Fraction(frequency) * int(m + 8191 - 777 - n) for n in keys] for m in rows]
    true = 2.0 * np.cos([[float(a - round(a / turn) * turn) for a in row] for row in angles])
    for made in (bias.whole.scores(rows)[0], bias.rows(rows)[0]):
        assert np.abs(made[:, keys] - true).max() <= 4 * EPS * 2.0
    with pytest.raises(BiasError, match="radians per position"):
        exact.cosine(8, 8, [np.nan])


def test_alibi_punishes_distance() -> None:
    """The true sign: the own position gets 0 and the first key the least, under the causal mask."""
    bias = exact.alibi(8, 16, 16)
    last = bias.whole.scores()[0, -1]
    assert last[-1] == 0.0 and (np.diff(last) > 0).all()
    np.testing.assert_array_equal(last, -0.5 * (15 - np.arange(16)))
    np.testing.assert_array_equal(exact.alibi_slopes(8), [2.0**-h for h in range(1, 9)])


def test_slopes_of_odd_numbers_of_heads_mix_two_series() -> None:
    np.testing.assert_allclose(exact.alibi_slopes(6), [0.25, 0.0625, 2**-6, 2**-8, 0.5, 0.125])


def test_decode_aligns_the_last_query_with_the_last_key() -> None:
    bias = exact.alibi(1, 1, 5)
    np.testing.assert_array_equal(bias.whole.scores()[0, 0], -(2.0**-8) * np.array([4, 3, 2, 1, 0]))


def test_a_causal_bias_with_zeros_or_absolute_offsets_is_not_low_rank() -> None:
    n = 96
    below = np.tril(np.arange(n)[:, None] - np.arange(n)).astype(float)
    assert np.linalg.matrix_rank(below) == n - 1
    assert np.linalg.matrix_rank(absolute_offset(1, n, n)[0]) == n


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.floats(-2, 2))
def test_polynomials_of_any_length(queries: int, keys: int, power: int, scale: float) -> None:
    bias = exact.polynomial(1, queries, keys, power, scale)
    rows = np.arange(queries)
    largest = max(abs(scale) * max(queries, keys) ** power, 1.0)
    np.testing.assert_allclose(bias.whole.scores(), bias.rows(rows), rtol=0, atol=64 * EPS * largest)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: exact.polynomial(1, 4, 4, 0), "power"),
        (lambda: exact.distance(np.zeros(3)), "shape"),
        (lambda: exact.distance(np.full((3, 2), np.nan)), "not finite"),
        (lambda: exact.distance(np.zeros((3, 2)), np.zeros((3, 3))), "coordinates"),
        (lambda: exact.distance(np.zeros((3, 2)), weights=[1.0]), "weights"),
        (lambda: exact.sphere(np.zeros((3, 2))), "length zero"),
        (lambda: exact.segments(np.zeros((2, 2)), [0, 2]), "below 2"),
        (lambda: exact.segments(np.zeros(2), [0, 1]), "heads"),
    ],
)
def test_bad_input(make: Callable[[], object], says: str) -> None:
    with pytest.raises(BiasError, match=says):
        make()
