"""A Gaussian process over a finite pool of configurations, with its posterior kept for the whole pool at all times.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): eq. 2.25-2.26 (posterior), 5.8-5.9 (marginal
likelihood and its gradient), 4.17 (Matern 5/2), with one length scale per parameter. Written out because no library
keeps the posterior of a pool up to date: adding one observation here costs O(pool x observations), about a millisecond.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

SQRT5 = float(np.sqrt(5.0))
JITTER = 1e-6  # relative to the signal variance, for the Cholesky factor
BOUND = 4.0  # |log| of length scales and of the signal variance
LENGTH_SPREAD, SIGNAL_SPREAD = 1.0, 1.0  # standard deviations of the priors of their logarithms
OWN_SPREAD = 1.5  # likewise, of the variance of the deviation that each configuration has alone


class Surrogate:
    """y(x) = signal x Matern-5/2(x) + a deviation of each configuration's own, for standardised y.

    mean, variance   [N], of what a measurement of each configuration would show, its own deviation included
    """

    def __init__(self, coordinates: Floats, own: float = 0.01) -> None:
        """coordinates [N, P] in [0, 1]; own: the expected share of each configuration's own deviation in the variance."""
        self.coordinates = coordinates
        self._own_centre = float(np.log(own))
        dimensions = coordinates.shape[1]
        # Distances grow with the root of the number of dimensions, and length scales with them (Hvarfner et al. 2024).
        self._length_centre = float(np.log(0.5 * np.sqrt(dimensions)))
        self._theta = np.r_[np.full(dimensions, self._length_centre), 0.0, self._own_centre]
        self._rows: list[int] = []
        self.mean = np.zeros(len(coordinates))
        self.variance = np.ones(len(coordinates))

    def fit(self, rows: Rows, y: Floats, room: int, iterations: int = 20) -> None:
        """Hyperparameters of largest posterior for observations `y` (standardised) at `rows`, then the pool's posterior.

        room         how many observations `add` may append before the next fit
        iterations   of the optimiser; 0 keeps the hyperparameters and only conditions on the observations
        """
        if iterations:
            x = self.coordinates[rows]
            squares = (x.T[:, :, None] - x.T[:, None, :]) ** 2
            bounds = [(-BOUND, BOUND)] * (len(squares) + 1) + [(-12.0, 2.0)]
            found = minimize(
                self._loss, self._theta, args=(squares, y), jac=True, method="L-BFGS-B", bounds=bounds,
                options={"maxiter": iterations},
            )  # fmt: skip
            self._theta = found.x
        self._condition(rows, y, room)

    def add(self, row: int, y: float | None) -> None:
        """Take one more observation into the posterior. None: it is being measured; the mean stays, the doubt goes."""
        n = len(self._rows)
        known = self._half[:n, row]
        own = np.sqrt(max(self._signal * (1 + JITTER) + self._own - float(known @ known), 1e-10))
        kernel = self._signal * _matern(_distances(self._scaled, self._scaled[row : row + 1])[:, 0])
        self._half[n] = (kernel - known @ self._half[:n]) / own
        weight = 0.0 if y is None else (y - float(self._solved[:n] @ known)) / own
        self._solved[n] = weight
        self._rows.append(row)
        self.mean = self.mean + weight * self._half[n]
        self.variance = np.maximum(self.variance - self._half[n] ** 2, self._own + JITTER)

    def _condition(self, rows: Rows, y: Floats, room: int) -> None:
        n, dimensions = len(rows), self.coordinates.shape[1]
        self._signal, self._own = (float(v) for v in np.exp(self._theta[dimensions:]))
        self._scaled = self.coordinates * np.exp(-self._theta[:dimensions])
        covariance = self._signal * _matern(_distances(self._scaled[rows], self._scaled[rows]))
        covariance[np.diag_indices(n)] += self._own + JITTER * self._signal
        factor = np.linalg.cholesky(covariance)
        cross = self._signal * _matern(_distances(self._scaled[rows], self._scaled))
        self._half = np.empty((n + room, len(self.coordinates)))  # L^-1 K(rows, pool), a row per observation
        self._half[:n] = solve_triangular(factor, cross, lower=True, check_finite=False)
        self._solved = np.empty(n + room)  # L^-1 y
        self._solved[:n] = solve_triangular(factor, y, lower=True, check_finite=False)
        self._rows = [int(r) for r in rows]
        self.mean = self._solved[:n] @ self._half[:n]
        explained = np.einsum("ij,ij->j", self._half[:n], self._half[:n])
        self.variance = np.maximum(self._signal - explained, JITTER) + self._own

    def _loss(self, theta: Floats, squares: Floats, y: Floats) -> tuple[float, Floats]:
        """Negative log posterior of the hyperparameters and its gradient."""
        dimensions, n = squares.shape[:2]
        weights = np.exp(-2 * theta[:dimensions])
        signal, own = np.exp(theta[dimensions:])
        r = np.sqrt(np.tensordot(weights, squares, 1))
        shape = _matern(r)
        covariance = signal * shape
        covariance[np.diag_indices(n)] += own + JITTER * signal
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
        solved = inverse @ y
        loss = 0.5 * float(y @ solved) + float(np.log(np.diag(factor)).sum())
        slope = 0.5 * (inverse - np.outer(solved, solved))  # of the loss by the covariance
        by_square = slope * signal * (-5 / 6) * (1 + SQRT5 * r) * np.exp(-SQRT5 * r)
        gradient = np.empty_like(theta)
        gradient[:dimensions] = -2 * weights * (squares.reshape(dimensions, -1) @ by_square.ravel())
        gradient[dimensions] = float((slope * signal * shape).sum())
        gradient[dimensions + 1] = own * float(np.trace(slope))
        centre = np.r_[np.full(dimensions, self._length_centre), 0.0, self._own_centre]
        spread = np.r_[np.full(dimensions, LENGTH_SPREAD), SIGNAL_SPREAD, OWN_SPREAD]
        z = (theta - centre) / spread
        return loss + 0.5 * float(z @ z), gradient + z / spread


def _distances(a: Floats, b: Floats) -> Floats:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    distances: Floats = np.sqrt(np.maximum(squared, 0.0))
    return distances


def _matern(r: Floats) -> Any:
    return (1 + SQRT5 * r + 5 / 3 * r * r) * np.exp(-SQRT5 * r)
