"""Regimes: the shortest interval that holds its share of the rows, cut by how much of the time each resource explains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.sim.regime import COVERED, CUTS, FEWEST, LEAST, MOST, RESOURCES, Regime, Regimes, regimes, shortest

SPLIT = 0.45


def test_the_shortest_interval_holds_its_share_and_no_shorter_one_does() -> None:
    rng = np.random.default_rng(0)
    miss = np.concatenate([rng.exponential(0.1, 900), -rng.exponential(0.02, 100)])  # measured is slower, mostly
    below, above = shortest(miss)
    low, high = -np.log1p(below), np.log1p(above)
    assert np.mean((miss >= low - 1e-9) & (miss <= high + 1e-9)) >= COVERED
    assert above > 2 * below
    everything = np.sort(miss)
    held = int(np.ceil(COVERED * (len(miss) + 1)))  # of the rows seen and the one to come
    brute = min(everything[i + held - 1] - everything[i] for i in range(len(miss) - held + 1))
    assert high - low == pytest.approx(brute, rel=1e-9)


def test_an_interval_contains_the_prediction_even_where_every_row_lies_above() -> None:
    miss = np.geomspace(0.1, 0.2, 100)  # densest at its beginning
    below, above = shortest(miss)
    assert below == pytest.approx(np.expm1(LEAST)) and above == pytest.approx(np.expm1(miss[int(np.ceil(COVERED * 101)) - 1]))


def test_rows_are_cut_where_their_misses_change() -> None:
    rng = np.random.default_rng(1)
    assert SPLIT in CUTS
    share = rng.uniform(0.0, 1.0, 4000)
    miss = rng.normal(0.0, np.where(share >= SPLIT, 0.02, 0.2))
    found = regimes(miss, {"HBM": share, "launch": rng.uniform(0.0, 1.0, 4000)})
    for regime in found.listed:
        low, high = regime.shares["HBM"]
        assert high <= SPLIT or low >= SPLIT
        assert (max(regime.below, regime.above) < 0.08) == (low >= SPLIT)


def test_chance_cuts_cost_few_points_of_the_rows_that_are_held() -> None:
    rng = np.random.default_rng(2)

    def rows() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return rng.normal(0.0, 0.1, 3000), {name: rng.uniform(0.0, 1.0, 3000) for name in RESOURCES}

    seen, fresh = rows(), rows()
    found = regimes(*seen)
    assert _inside(found, *seen) >= COVERED and _inside(found, *fresh) >= 0.85


def _inside(found: Regimes, miss: np.ndarray, shares: dict[str, np.ndarray]) -> float:
    """Share of rows in their interval."""
    below, above = found.sides(shares, 0.0)
    return float(np.mean((miss >= -np.log1p(below) - 1e-9) & (miss <= np.log1p(above) + 1e-9)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(FEWEST, 3000))
def test_every_case_lies_in_exactly_one_regime_of_enough_rows(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    shares = {name: np.clip(rng.normal(0.3, 0.4, rows), 0.0, 1.0) for name in RESOURCES[:4]}
    miss = rng.normal(shares[RESOURCES[0]] - 0.3 * shares[RESOURCES[1]], 0.01 + 0.2 * shares[RESOURCES[2]])
    found = regimes(miss, shares)
    held = np.stack([np.isfinite(Regimes((r,)).sides(shares, np.nan)[0]) for r in found.listed])
    assert 1 <= len(found.listed) <= MOST and (held.sum(axis=0) == 1).all()
    assert (held.sum(axis=1) >= min(FEWEST, rows)).all()
    assert _inside(found, miss, shares) >= COVERED
    assert min(min(r.below, r.above) for r in found.listed) >= LEAST


def test_the_first_regime_that_holds_a_case_counts_and_others_are_left_to_the_half_width() -> None:
    listed = Regimes((Regime({"HBM": (0.5, 1.0)}, 0.1, 0.2), Regime({"HBM": (0.2, 1.0), "launch": (0.0, 0.5)}, 0.3, 0.4)))
    shares = {"HBM": np.array([1.0, 0.5, 0.3, 0.3, 0.1]), "launch": np.array([0.0, 0.9, 0.2, 0.5, 0.0])}
    below, above = listed.sides(shares, 0.7)
    assert below.tolist() == [0.1, 0.1, 0.3, 0.7, 0.7] and above.tolist() == [0.2, 0.2, 0.4, 0.7, 0.7]
    assert Regimes().sides(shares, 0.7)[0].tolist() == [0.7] * 5
    wider, _ = listed.widened(0.5).sides(shares, 0.7)
    assert wider.tolist() == pytest.approx([0.6, 0.6, 0.8, 0.7, 0.7])


def test_a_resource_that_a_kernel_does_not_use_explains_nothing() -> None:
    listed = Regimes((Regime({"tensor cores": (0.0, 0.3)}, 0.1, 0.2), Regime({"tensor cores": (0.3, 1.0)}, 0.3, 0.4)))
    below, _ = listed.sides({"HBM": np.array([0.9, 0.1])}, 0.7)
    assert below.tolist() == [0.1, 0.1]
