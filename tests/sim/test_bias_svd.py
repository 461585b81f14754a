"""Ranks by singular values against a plain SVD; what cannot be factorised; bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController, threadpool_info

from einsight.sim import bias_svd
from einsight.sim.bias_analysis import Wanted, of_matrices
from einsight.sim.bias_exact import Array, BiasError, alibi
from einsight.sim.bias_examples import absolute_offset, pair_bias, swin_v2_tables, t5_tables, toeplitz_bias, window_bias
from einsight.sim.bias_svd import WHOLE, Matrix, Probe, decompose, factorise, factorise_to_output

WINDOW = 12
SWIN = window_bias(swin_v2_tables(6, WINDOW), WINDOW, WINDOW)


def least(matrix: np.ndarray, energy: float) -> int:
    """The rank by definition, from all singular values."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), energy - 1e-12)) + 1


@pytest.mark.parametrize("energy", [0.9, 0.99, 0.995, 0.9999])
@pytest.mark.parametrize("centred", [True, False])
def test_rank_and_error_are_those_of_the_whole_decomposition(energy: float, centred: bool) -> None:
    found = factorise(SWIN, energy, centred)
    for matrix, head, rank in zip(SWIN, found.heads, found.ranks, strict=True):
        used = matrix - matrix.mean(axis=1, keepdims=True) if centred else matrix
        assert rank == least(used, energy)
        assert head.rank_with_means(energy) == least(matrix, energy)
        q, k = head.factors(rank)
        error = np.linalg.norm(used - q @ k.T) / np.linalg.norm(used)
        assert error <= np.sqrt(1 - energy) * (1 + 1e-6)
        assert error == pytest.approx(head.residual(rank), rel=1e-3, abs=1e-7)


def test_factors_are_balanced() -> None:
    """Both sides carry the root of each singular value."""
    (head,) = factorise(SWIN[0], 0.99).heads
    q, k = head.factors(5)
    np.testing.assert_allclose(np.linalg.norm(q, axis=0), np.linalg.norm(k, axis=0), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(q, axis=0) ** 2, head.singular[:5], rtol=1e-9)


def test_a_layer_shares_the_largest_rank() -> None:
    found = factorise(SWIN, 0.99)
    assert found.layer_rank == max(found.ranks)
    factors = found.factors()
    assert factors.query.shape == (6, WINDOW**2, found.layer_rank)
    for head, rank in enumerate(found.ranks):
        assert not factors.query[head, :, rank:].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 6), st.integers(0, 99))
def test_products_are_found_whole(m: int, n: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = min(rank, m, n)
    matrix = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n))
    found = factorise(matrix, 1.0, centred=False)
    assert found.ranks == (rank,)
    np.testing.assert_allclose(found.factors().scores()[0], matrix, atol=1e-9 * np.abs(matrix).max())


def test_large_products_without_a_whole_decomposition() -> None:
    rng = np.random.default_rng(2)
    matrix = (rng.normal(size=(2500, 40)) @ rng.normal(size=(40, 2300))).astype(np.float32)
    head = decompose(matrix, 0.9999, centred=True)
    assert not head.complete and head.rank_for(0.9999) in (39, 40)


def test_alibi_as_a_matrix() -> None:
    """The matrix knows what the exact form knows: rank 1 under softmax, 2 without."""
    matrix = alibi(4, 64, 64).rows(np.arange(64))
    assert factorise(matrix, 1.0, centred=True).ranks == (1,) * 4
    assert factorise(matrix, 1.0, centred=False).ranks == (2,) * 4
    assert [h.rank_with_means(1.0) for h in factorise(matrix, 1.0).heads] == [2] * 4


def test_a_mean_hides_the_rank() -> None:
    """With a large mean 99 % of the energy is one triplet; without it the table needs more."""
    table = SWIN + 100.0
    assert all(h == 1 for h in factorise(table, 0.99, centred=False).ranks)
    assert factorise(table, 0.99, centred=True).ranks == factorise(SWIN, 0.99, centred=True).ranks
    assert max(factorise(table, 0.99).ranks) > 2


def test_what_is_full_rank_is_said_so() -> None:
    n = 256
    exact = factorise(absolute_offset(1, n, n), 1.0, centred=False)
    assert exact.ranks == (n,)
    curve = factorise(absolute_offset(1, n, n), 0.999, centred=False).heads[0].curve()
    assert curve == {0.9: 1, 0.95: 2, 0.99: 3, 0.995: 4, 0.999: 5} or curve[0.95] == 2
    noise = np.random.default_rng(0).normal(size=(1, (2 * 24 - 1) ** 2))
    found = factorise(window_bias(noise, 24, 24), 0.995)
    assert found.ranks[0] is not None and found.ranks[0] > 400


def test_a_limit_is_kept_and_the_rank_unknown() -> None:
    noise = np.random.default_rng(0).normal(size=(300, 300))
    found = factorise(noise, 0.999, most=40)
    assert found.ranks == (None,) and found.layer_rank is None and len(found.heads[0].singular) == 40
    with pytest.raises(BiasError, match="head 0"):
        found.factors()


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((5, 7)), np.ones((5, 7)) * np.arange(5)[:, None], np.full((50, 50), 3.3),
        np.ones((9, 50)) * 0.1 * np.arange(9)[:, None],
    ],
)  # fmt: skip
def test_rows_of_constants_need_no_factors_under_softmax(matrix: np.ndarray) -> None:
    assert factorise(matrix, 0.99).ranks == (0,)
    assert factorise(matrix, 0.99).factors().rank == 0


@pytest.mark.parametrize("error", [0.1, 0.01, 1e-3])
def test_rank_for_an_error_of_the_output(error: float) -> None:
    probe = Probe.random(WINDOW**2, WINDOW**2, 32)
    found = factorise_to_output(SWIN, error, probe)
    for matrix, head, rank in zip(SWIN, found.heads, found.ranks, strict=True):
        assert rank is not None
        for kept, meets in ((rank, True), (rank - 1, False)):
            if kept >= 0:
                q, k = head.factors(kept)
                approximate = q @ k.T + head.row_means[:, None]
                off = probe.error(matrix[probe.rows], approximate[probe.rows], len(matrix))
                assert (off <= error) == meets


def test_row_constants_matter_to_sigmoid_only() -> None:
    rng = np.random.default_rng(4)
    bias = rng.normal(size=(20, 30))
    moved = bias + rng.normal(size=(20, 1))
    for normalise in (True, False):
        probe = Probe.random(20, 30, 8, normalise=normalise)
        assert (probe.error(bias, moved, 20) < 1e-12) == normalise


def test_examples_have_the_shapes_of_the_models() -> None:
    assert swin_v2_tables(4, 24).shape == (4, 47**2)
    pair, bias = pair_bias(48, heads=4)
    assert pair.shape == (48, 48, 128) and bias.shape == (4, 48, 48)
    np.testing.assert_allclose(pair.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_array_equal(swin_v2_tables(2, 8, seed=3), swin_v2_tables(2, 8, seed=3))
    assert (swin_v2_tables(2, 8) != swin_v2_tables(2, 8, seed=1)).any()
    buckets = toeplitz_bias(t5_tables(2, 64, 64), 64, 64)
    assert len(np.unique(buckets[0])) <= 32 and (np.diagonal(buckets[0], 3) == buckets[0, 0, 3]).all()


def test_swin_heads_differ_widely_as_trained_ones_do() -> None:
    ranks = factorise(window_bias(swin_v2_tables(16, 24), 24, 24), 0.995).ranks
    assert all(r is not None for r in ranks)
    assert max(ranks) >= 5 * min(ranks)  # type: ignore[operator, type-var]


def test_heads_that_are_multiples_are_decomposed_once() -> None:
    n = 64
    calls: list[int] = []

    def of(h: int) -> np.ndarray:
        calls.append(h)
        return SWIN[0, :n, :n]

    probe = Probe.random(n, n, 16)
    found = of_matrices("one", of, 3, Wanted(0.99), probe, [1.0, 0.5, -2.0])
    alone = of_matrices("each", lambda h: [1.0, 0.5, -2.0][h] * SWIN[0, :n, :n], 3, Wanted(0.99), probe)
    assert calls == [0]
    for a, b in zip(found.heads, alone.heads, strict=True):
        assert (a.rank, a.rank_exact) == (b.rank, b.rank_exact)
        assert a.error_output == pytest.approx(b.error_output, rel=1e-6)


@pytest.mark.parametrize(
    ("bias", "energy", "says"),
    [
        (np.array([[1.0, np.nan]]), 0.9, r"head 0, element \[0, 1\]: found NaN"),
        (np.array([[[0.0, 1.0]], [[-np.inf, 1.0]]]), 0.9, "head 1.*infinity"),
        (np.zeros((2, 2), dtype=complex), 0.9, "complex"),
        (np.zeros(4), 0.9, "shape"),
        (np.zeros((0, 3)), 0.9, "shape"),
        (np.array([["a", "b"]]), 0.9, "elements of type"),
        (np.array([[1.0, -1e61]]), 0.9, r"element \[0, 1\]: found -1e\+61; expected below 1e\+60 in float64"),
        (np.array([[3.4e38, 1.0]], dtype=np.float32), 0.9, "below 1e\\+15 in float32"),
        (np.eye(2), 0.0, r"\(0, 1\]"),
        (np.eye(2), 1.5, r"\(0, 1\]"),
        (np.eye(2), float("nan"), r"\(0, 1\]"),
    ],
)
def test_bad_input(bias: np.ndarray, energy: float, says: str) -> None:
    with pytest.raises(BiasError, match=says):
        factorise(bias, energy)


@pytest.mark.parametrize(("side", "threads"), [(64, 1), (WHOLE + 1, 2)])
def test_small_matrices_take_one_thread_whatever_the_libraries_would(
    side: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every BLAS that is loaded is limited while a small matrix is decomposed, and as before afterwards."""
    seen: list[int] = []

    def recorded(matrix: Matrix, number: int) -> tuple[Matrix, Array, Matrix]:
        seen.extend(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
        return np.ones((side, 1)), np.ones(1), np.ones((1, side))

    monkeypatch.setattr(bias_svd, "_leading", recorded)
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        decompose(np.ones((side, side)) * np.arange(side), 0.5, False, most=1)
        after = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    assert seen and set(seen) == {threads}
    assert set(after) == {2}
