"""Portfolios against all subsets tried."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.tuner import portfolio as module
from einsight.tuner.portfolio import PortfolioError, portfolio


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_the_best_subset_is_found(seed: int, size: int, exchange: bool) -> None:
    random = np.random.default_rng(seed)
    times = random.random((5, 7)) + 0.1
    times[random.random(times.shape) < 0.2] = np.nan
    times[:, 0] = 2.0  # one configuration that always works
    few, module.FEW = module.FEW, 0 if exchange else module.FEW
    try:
        found = portfolio(times, size)
    finally:
        module.FEW = few
    slow = np.where(np.isfinite(times), times / np.nanmin(times, 1)[:, None], np.inf)
    best = min(slow[:, list(c)].min(1).sum() for c in combinations(range(7), size))
    cost = sum(found.loss) + 5
    assert cost <= best * (1.1 if exchange else 1 + 1e-12) and cost >= best * (1 - 1e-12)
    assert set(found.chosen) == set(found.kept) and len(found.kept) <= size
    assert all(found.loss[s] == pytest.approx(slow[s, c] - 1) for s, c in enumerate(found.chosen))


def test_as_many_as_there_are_shapes_lose_nothing() -> None:
    times = np.array([[1.0, 2.0, 9.0], [3.0, 1.0, 9.0], [9.0, 9.0, 1.0]])
    assert portfolio(times, 3).mean_loss == 0 and portfolio(times, 3).chosen == (0, 1, 2)
    assert portfolio(times, 1, weights=[0, 0, 1]).kept == (2,)
    with pytest.raises(PortfolioError, match="shape c: no configuration has a time"):
        portfolio(np.array([[1.0], [2.0], [np.nan]]), 1, names="abc")
    with pytest.raises(PortfolioError, match="none of 1 configurations is valid for it"):
        portfolio(np.array([[1.0, np.nan], [np.nan, 1.0]]), 1)
