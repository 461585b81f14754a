"""A Gaussian process over a finite pool of configurations, with its posterior kept for the whole pool at all times.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): eq. 2.25-2.26 (posterior), 5.8-5.9 (marginal
likelihood and its gradient), 4.17 (Matern 5/2), with one length scale per parameter. Written out because no library
keeps the posterior of a pool up to date: adding one observation here costs O(pool x observations), about a millisecond;
and because a new fit can be made in pieces, beside the old posterior, so that no single ask waits for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

SQRT5 = float(np.sqrt(5.0))
JITTER = 1e-6  # relative to the signal variance, for the Cholesky factor
BOUND = 4.0  # |log| of length scales and of the signal variance
LENGTH_SPREAD, SIGNAL_SPREAD = 1.0, 1.0  # standard deviations of the priors of their logarithms
OWN_SPREAD = 1.5  # likewise, of the variance of the deviation that each configuration has alone
COLUMNS = 512  # of the pool in one step: what a step touches stays in the processor's cache

# Work is counted in multiply-adds of a matrix product; what else there is costs as much as so many of them.
PIECE = 2e8  # work between two pauses of a fit: about 10 ms on one core
AT_ONCE = 2.5e8  # most work of the optimiser, which makes no pause
PER_KERNEL_VALUE = 200  # an exponential and a root, in memory
PER_LOSS_VALUE = 600  # the same and their derivatives by every hyperparameter
LOSSES = 1.5  # evaluations of the loss in one iteration of the optimiser


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
        self._y: list[float | None] = []  # None: the place of a configuration that is being measured
        self.mean = np.zeros(len(coordinates))
        self.variance = np.ones(len(coordinates))

    @property
    def rows(self) -> Sequence[int]:
        """What it has taken in, pending ones included."""
        return self._rows

    @property
    def pending(self) -> list[int]:
        return [row for row, y in zip(self._rows, self._y, strict=True) if y is None]

    @property
    def full(self) -> bool:
        """Whether nothing can be added before the next fit."""
        return bool(self._rows) and len(self._rows) == len(self._half)

    def fit(self, rows: Rows, y: Floats, room: int, iterations: int = 20) -> None:
        """Hyperparameters of largest posterior for observations `y` (standardised) at `rows`, then the pool's posterior.

        room         how many observations `add` may append before the next fit
        iterations   of the optimiser; 0 keeps the hyperparameters and only conditions on the observations
        """
        for _ in self.fit_in_pieces(rows, y, room, iterations):
            pass

    def fit_in_pieces(self, rows: Rows, y: Floats, room: int, iterations: int = 20) -> Iterator[None]:
        """The same with a pause after every `PIECE` of work. Until it ends, the old posterior serves and can be added to.

        Where one evaluation of the loss is much work, the optimiser gets fewer iterations: it starts where it last ended.
        """
        n, theta, work = len(rows), self._theta, 0.0
        if iterations:
            iteration = LOSSES * n * n * (n + PER_LOSS_VALUE)
            iterations = max(1, min(iterations, int(AT_ONCE / iteration)))
            theta, work = self.optimum(rows, y, iterations), iterations * iteration
        made = _Posterior(self.coordinates, theta, rows, room)
        for begin in range(0, len(self.coordinates), COLUMNS):
            if work >= PIECE:
                work = 0.0
                yield
            made.solve(begin, y)
            work += n * (n + PER_KERNEL_VALUE) * COLUMNS
        self._theta, self._rows, self._y = theta, [int(r) for r in rows], [float(v) for v in y]
        self._signal, self._own, self._scaled, self._norms = made.signal, made.own, made.scaled, made.norms
        self._half, self._solved = made.half, made.solved
        self.mean, self.variance = made.mean, np.maximum(made.signal - made.explained, JITTER) + made.own

    def add(self, row: int, y: float | None) -> None:
        """Take one more observation into the posterior. None: it is being measured; the mean stays, the doubt goes."""
        n = len(self._rows)
        known = self._half[:n, row]
        own = self._own_root(known)
        one = slice(row, row + 1)
        kernel = self._signal * matern(distances(self._scaled, self._scaled[one], self._norms, self._norms[one])[:, 0])
        self._half[n] = (kernel - known @ self._half[:n]) / own
        weight = 0.0 if y is None else (y - float(self._solved[:n] @ known)) / own
        self._solved[n] = weight
        self._rows.append(row)
        self._y.append(y)
        self.mean = self.mean + weight * self._half[n]
        self.variance = np.maximum(self.variance - self._half[n] ** 2, self._own + JITTER)

    def resolve(self, row: int, y: float) -> None:
        """What was being measured has come out: the doubt went when it was added, the mean follows now."""
        place = self._rows.index(row)
        self._y[place] = y
        for n in range(place, len(self._rows)):  # forward substitution, from the first equation that changed
            told, known = self._y[n], self._half[:n, self._rows[n]]
            self._solved[n] = 0.0 if told is None else (told - float(self._solved[:n] @ known)) / self._own_root(known)
        self.mean = self._solved[: len(self._rows)] @ self._half[: len(self._rows)]

    def _own_root(self, known: Floats) -> float:
        """The diagonal of the Cholesky factor that belongs to an observation, from the rest of its line."""
        return float(np.sqrt(max(self._signal * (1 + JITTER) + self._own - float(known @ known), 1e-10)))

    def optimum(self, rows: Rows, y: Floats, iterations: int) -> Floats:
        x = self.coordinates[rows]
        one, other = np.tril_indices(len(rows), -1)
        squares = np.ascontiguousarray(((x[one] - x[other]) ** 2).T)
        bounds = [(-BOUND, BOUND)] * (len(squares) + 1) + [(-12.0, 2.0)]
        found = minimize(
            self._loss, self._theta, args=(squares, y), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": iterations},
        )  # fmt: skip
        theta: Floats = found.x
        return theta

    def _loss(self, theta: Floats, squares: Floats, y: Floats) -> tuple[float, Floats]:
        """Negative log posterior of the hyperparameters and its gradient.

        squares [P, n (n - 1) / 2]: for each parameter the squared differences of the pairs below the diagonal.
        """
        dimensions, n = len(squares), len(y)
        below = np.tril_indices(n, -1)
        weights = np.exp(-2 * theta[:dimensions])
        signal, own = np.exp(theta[dimensions:])
        r = SQRT5 * np.sqrt(weights @ squares)
        decay = np.exp(-r)
        shape = (1 + r + r * r / 3) * decay
        covariance = np.zeros((n, n), order="F")
        covariance[below] = signal * shape
        covariance[np.diag_indices(n)] = signal + own + JITTER * signal
        factor, failed = lapack.dpotrf(covariance, lower=1, overwrite_a=1)
        if failed:
            return 1e10, np.zeros_like(theta)
        solved = lapack.dpotrs(factor, y, lower=1)[0]
        loss = 0.5 * float(y @ solved) + float(np.log(np.diag(factor)).sum())
        inverse = lapack.dpotri(factor, lower=1, overwrite_c=1)[0]
        slope = inverse[below] - solved[below[0]] * solved[below[1]]  # of the loss by the covariance, both halves
        diagonal = 0.5 * float((np.diag(inverse) - solved * solved).sum())
        gradient = np.empty_like(theta)
        gradient[:dimensions] = -2 * weights * (squares @ (slope * signal * (-5 / 6) * (1 + r) * decay))
        gradient[dimensions] = signal * (float(slope @ shape) + diagonal)
        gradient[dimensions + 1] = own * diagonal
        centre = np.r_[np.full(dimensions, self._length_centre), 0.0, self._own_centre]
        spread = np.r_[np.full(dimensions, LENGTH_SPREAD), SIGNAL_SPREAD, OWN_SPREAD]
        z = (theta - centre) / spread
        return loss + 0.5 * float(z @ z), gradient + z / spread


class _Posterior:
    """The posterior of a pool in the making, some columns at a time.

    half [n + room, N]   L^-1 K(rows, pool), a line per observation, L the Cholesky factor of K(rows, rows)
    solved [n + room]    L^-1 y
    """

    def __init__(self, coordinates: Floats, theta: Floats, rows: Rows, room: int) -> None:
        n, dimensions = len(rows), coordinates.shape[1]
        self.signal, self.own = (float(v) for v in np.exp(theta[dimensions:]))
        self.scaled = coordinates * np.exp(-theta[:dimensions])
        self.norms = (self.scaled * self.scaled).sum(1)
        own, norms = self.scaled[rows], self.norms[rows]
        covariance = self.signal * matern(distances(own, own, norms, norms))
        covariance[np.diag_indices(n)] += self.own + JITTER * self.signal
        self._rows, self._factor = rows, np.linalg.cholesky(covariance)
        self.half = np.empty((n + room, len(coordinates)))
        self.solved = np.empty(n + room)
        self.mean, self.explained = np.empty(len(coordinates)), np.empty(len(coordinates))

    def solve(self, begin: int, y: Floats) -> None:
        """The columns from `begin` on."""
        n, part = len(self._rows), slice(begin, begin + COLUMNS)
        if begin == 0:
            self.solved[:n] = blas.dtrsv(self._factor.T, y, lower=0, trans=1)
        own = self.scaled[self._rows]
        cross = self.signal * matern(distances(own, self.scaled[part], self.norms[self._rows], self.norms[part]))
        # The transposed equations, X' L' = K', in the transposed order of memory: nothing is copied.
        half = blas.dtrsm(1.0, self._factor.T, cross.T, side=1, lower=0, overwrite_b=1).T
        self.half[:n, part] = half
        self.mean[part] = self.solved[:n] @ half
        self.explained[part] = np.einsum("ij,ij->j", half, half)


def distances(a: Floats, b: Floats, norms_a: Floats, norms_b: Floats) -> Floats:
    """[len(a), len(b)], from the squared norms of the rows as well."""
    squared = a @ b.T
    squared *= -2
    squared += norms_a[:, None]
    squared += norms_b
    np.maximum(squared, 0.0, out=squared)
    distances: Floats = np.sqrt(squared, out=squared)
    return distances


def matern(r: Floats) -> Any:
    """Matern 5/2 with signal 1 at scaled distances `r`, which it overwrites."""
    r *= SQRT5
    shape = r / 3
    shape += 1
    shape *= r
    shape += 1
    np.exp(np.negative(r, out=r), out=r)
    shape *= r
    return shape
