"""The pool and its surrogate: against a plain Gaussian process, and what a search must never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.tuner.pool import FIRST, Pool
from einsight.tuner.space import Space, SpaceError, enumerated
from einsight.tuner.surrogate import JITTER, Surrogate

GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 6)] * 3), -1).reshape(-1, 3)


def truth(x: np.ndarray) -> np.ndarray:
    return (x[:, 0] - 0.4) ** 2 + 0.5 * (x[:, 1] - 0.8) ** 2 + 0.1 * np.sin(5 * x[:, 2])


def matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r)


def plain_posterior(s: Surrogate, rows: list[int], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rasmussen and Williams, eq. 2.25-2.26, with the surrogate's own hyperparameters, by matrix inversion."""
    signal, own = s._signal, s._own
    x = s._scaled
    inverse = np.linalg.inv(signal * matern(x[rows], x[rows]) + (own + JITTER * signal) * np.eye(len(rows)))
    cross = signal * matern(x, x[rows])
    return cross @ inverse @ y, signal - np.einsum("ij,jk,ik->i", cross, inverse, cross) + own


def test_the_kept_posterior_is_the_plain_one() -> None:
    rows = [int(r) for r in np.random.default_rng(0).choice(len(GRID), 24, replace=False)]
    y = truth(GRID[rows])
    y = (y - y.mean()) / y.std()
    s = Surrogate(GRID)
    s.fit(np.array(rows[:16]), y[:16], room=8)
    for k in range(16, 24):
        s.add(rows[k], float(y[k]))
    mean, variance = plain_posterior(s, rows, y)
    new = np.setdiff1d(np.arange(len(GRID)), rows)
    np.testing.assert_allclose(s.mean[new], mean[new], atol=1e-6)
    np.testing.assert_allclose(s.variance[new], variance[new], atol=1e-5)


def test_a_pending_configuration_leaves_the_mean_and_takes_the_doubt() -> None:
    s = Surrogate(GRID)
    rows = np.arange(0, len(GRID), 11)
    s.fit(rows, truth(GRID[rows]), room=1)
    mean, variance = s.mean.copy(), s.variance.copy()
    s.add(5, None)
    np.testing.assert_allclose(s.mean, mean, atol=1e-9)
    assert np.all(s.variance <= variance + 1e-12) and s.variance[5] < variance[5]


def test_the_gradient_of_the_loss_is_its_slope() -> None:
    s = Surrogate(GRID)
    rows = np.random.default_rng(1).choice(len(GRID), 12, replace=False)
    x = GRID[rows]
    one, other = np.tril_indices(len(rows), -1)
    squares, y = (x[one] - x[other]).T ** 2, truth(x)
    theta = np.array([0.1, -0.3, 0.5, 0.2, -3.0])
    _, gradient = s._loss(theta, squares, y)
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = 1e-5
        slope = (s._loss(theta + step, squares, y)[0] - s._loss(theta - step, squares, y)[0]) / 2e-5
        assert gradient[k] == pytest.approx(slope, rel=1e-4, abs=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.floats(0, 0.6))
def test_every_configuration_once_and_then_none(seed: int, with_prior: bool, failing: float) -> None:
    random = np.random.default_rng(seed)
    x = random.random((30, 2)).round(1)
    pool = Pool(x, random.random(30) if with_prior else None, seed)
    seen = []
    while (row := pool.propose()) is not None:
        seen.append(row)
        pool.observe(row, None if random.random() < failing else float(random.random()))
    assert sorted(seen) == list(range(30))


def test_never_what_is_pending() -> None:
    pool, pending = Pool(GRID, None, 3), []
    for _ in range(60):
        row = pool.propose(pending)
        assert row is not None and row not in pending and row not in pool.seen
        pending.append(row)
        if len(pending) == 4:
            done = pending.pop(1)
            pool.observe(done, float(truth(GRID[done : done + 1])[0]))


def test_it_finds_the_best_of_a_smooth_space_long_before_chance_would() -> None:
    for seed in range(5):
        pool, y = Pool(GRID, None, seed), truth(GRID)
        for _ in range(FIRST + 24):
            row = pool.propose()
            assert row is not None
            pool.observe(row, float(y[row]))
        assert pool.best <= np.sort(y)[2]


def test_a_perfect_prior_is_followed_and_a_wrong_one_is_unlearnt() -> None:
    y = truth(GRID)
    perfect = Pool(GRID, y, 0)
    assert perfect.propose() == int(np.argmin(y))
    wrong = Pool(GRID, -y, 0)
    for _ in range(FIRST + 40):
        row = wrong.propose()
        assert row is not None
        wrong.observe(row, float(y[row]))
    assert wrong.best <= np.sort(y)[4]


def test_the_first_batch_of_a_prior_is_diverse() -> None:
    flat = Pool(GRID, np.arange(len(GRID), dtype=float), 0)  # the order of the grid: neighbours come together
    first = []
    for _ in range(FIRST):
        row = flat.propose()
        assert row is not None
        first.append(row)
        flat.observe(row, 1.0)
    for i, row in enumerate(first):
        assert sum(np.count_nonzero(GRID[row] != GRID[other]) <= 1 for other in first[:i]) <= 2


def test_a_space_knows_its_rows_by_value() -> None:
    listed = [{"tile": t, "warps": w, "swap": s} for t in (32, 16, 64) for w in (4, 8) for s in (False, True) if t * w > 64]
    space = enumerated("k", listed)
    assert [space.configuration(r) for r in range(len(space))] == listed
    assert all(space.row(c) == r for r, c in enumerate(listed))
    assert space.row({"tile": 16, "warps": 4, "swap": True}) is None and space.row({"tile": 5}) is None
    assert space.parameters["tile"] == (16, 32, 64)
    tile = space.coordinates[:, 0]
    assert sorted(set(tile)) == pytest.approx([0.0, 0.5, 1.0])  # doubling is an equal step
    with pytest.raises(SpaceError, match="different parameters"):
        enumerated("k", [{"a": 1}, {"b": 1}])


def test_features_are_products_ratios_and_alignments() -> None:
    listed = [{"x": x, "y": y} for x in (8, 12, 16) for y in (1, 2, 4)]
    features = enumerated("k", listed).features
    expected = np.array([c["x"] * c["y"] for c in listed], dtype=float)
    scaled = (np.log2(expected) - np.log2(8)) / np.log2(8)
    assert any(np.allclose(f, scaled) for f in features.T)
    assert any(np.allclose(f, [{8: 0.5, 12: 0.0, 16: 1.0}[c["x"]] for c in listed], atol=0.51) for f in features.T)
    assert features.min() == 0 and features.max() == 1


def test_a_space_without_points_is_refused() -> None:
    with pytest.raises(SpaceError, match="expected at least one"):
        enumerated("k", [])
    with pytest.raises(SpaceError, match="shape"):
        Space("k", {"a": (1,)}, np.zeros((2, 2), dtype=np.int64))


def test_what_does_not_vary_is_no_feature_and_nothing_is_listed_twice() -> None:
    space = enumerated("k", [{"x": x, "fixed": 3, "name": n} for x in (1, 2, 4) for n in ("a", "b")])
    assert space.features.shape == (6, 2) and space.coordinates.shape == (6, 3)
    assert enumerated("k", [{"x": 1}]).features.shape == (1, 1)
    with pytest.raises(SpaceError, match=r"\{'x': 2\} is listed twice"):
        enumerated("k", [{"x": 2}, {"x": 1}, {"x": 2}])


def test_when_everything_fails_the_prior_goes_on_leading() -> None:
    y = truth(GRID)
    pool = Pool(GRID, y, 0)
    rows = []
    for _ in range(40):
        row = pool.propose()
        assert row is not None
        rows.append(row)
        pool.observe(row, None)
    assert set(np.argsort(y)[:20].tolist()) <= set(rows)
