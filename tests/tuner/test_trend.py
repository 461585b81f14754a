"""The trend of a prior: against leaving each point out in truth, and what a search must gain from it."""

from __future__ import annotations

import numpy as np
import pytest

from einsight.tuner.pool import FIRST, Pool, spread_order
from einsight.tuner.prior import noisy
from einsight.tuner.trend import believed, left_out, trend

GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 8)] * 3), -1).reshape(-1, 3)


def log_time(x: np.ndarray) -> np.ndarray:
    return 2 * (x[:, 0] - 0.4) ** 2 + (x[:, 1] - 0.8) ** 2 + 0.2 * np.sin(5 * x[:, 2]) + 0.3 * (x[:, 0] > 0.9)


def matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r = np.sqrt(5 * ((a[:, None] - b[None]) ** 2).sum(-1))
    return (1 + r + r**2 / 3) * np.exp(-r)


@pytest.mark.parametrize("projected", [False, True])
def test_each_point_is_left_out_in_truth(projected: bool) -> None:
    """With every point as base it is the plain Gaussian process, and with fewer the same linear model, fitted N times."""
    random = np.random.default_rng(0)
    x, y = random.random((40, 2)), random.normal(size=40)
    lengths, signal, own = np.array([0.4, 0.7]), 1.5, 0.2
    theta = np.log([*lengths, signal, own])
    base = random.permutation(40)[: 12 if projected else 40]
    found = left_out(x, y, theta, base)
    covariance = signal * matern(x / lengths, x / lengths)
    for i in range(40):
        others = np.delete(np.arange(40), i)
        across, among = covariance[np.ix_(base, others)], covariance[np.ix_(base, base)]
        plain = covariance[i, others] @ np.linalg.solve(covariance[np.ix_(others, others)] + own * np.eye(39), y[others])
        mean = covariance[i, base] @ np.linalg.solve(across @ across.T + own * among, across @ y[others])
        assert found[i] == pytest.approx(mean if projected else plain, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_trend_is_nearer_to_the_truth_than_a_noisy_prior(seed: int) -> None:
    """Of the noise, whose deviation is 0.48 of the truth's, little is left; half of it stays in what is believed."""
    y = log_time(GRID)
    fast = y <= np.median(y)
    prior = noisy(np.exp(y), 0.9, seed)

    def error(of: np.ndarray) -> float:
        return float((of - y)[fast].std())

    assert error(trend(GRID, prior)) < 0.6 * error(prior) and error(believed(GRID, prior)) < 0.8 * error(prior)


def test_a_prior_without_noise_is_believed() -> None:
    y = log_time(GRID)
    found = believed(GRID, y)
    assert np.abs(found - y)[y <= np.median(y)].mean() < 0.02 * y.std() and np.argmin(found) == np.argmin(y)


def test_how_slow_the_slow_half_is_changes_nothing_of_the_trend() -> None:
    prior = noisy(np.exp(log_time(GRID)), 0.9, 0)
    slow = prior > np.sort(prior)[len(prior) // 2]
    np.testing.assert_array_equal(trend(GRID, np.where(slow, prior + 7, prior)), trend(GRID, prior))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_smallest_pools_have_a_trend(count: int) -> None:
    assert np.isfinite(believed(GRID[:count], np.arange(float(count)))).all()
    assert believed(GRID[:count], np.full(count, 3.0)) == pytest.approx(3.0)


def test_the_first_batch_of_a_noisy_prior_is_faster_than_the_prior_s_own() -> None:
    """Mean true log time of the first ones, over seeds: what the noise made look fast is passed over."""
    y, ours, order = log_time(GRID), [], []
    for seed in range(8):
        prior = noisy(np.exp(y), 0.9, seed)
        ours.append(y[list(Pool(GRID, prior, seed).first)].mean())
        order.append(y[spread_order(GRID, prior, FIRST)].mean())
    assert np.mean(ours) < np.mean(order) - 0.05 * y.std()
