"""What a prior says in common of neighbouring configurations, apart from what it says of each one alone.

Where a prior deviates from its own trend, that is knowledge of a single configuration or an error about it; nothing
tells them apart before a measurement. A search that takes the lowest beliefs collects the errors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from einsight.tuner.surrogate import COLUMNS, JITTER, Surrogate, distances, matern

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

KEPT = 0.5  # of a deviation from the trend: the mean, while any share of it may be knowledge
SLOWEST = 0.5  # quantile of the prior above which it is not asked how slow: times range over decades there, and no search ends
OWN = 0.1  # expected share of the deviations in the variance of a prior, where the fit starts
SAMPLE, ITERATIONS = 512, 30  # beliefs that the hyperparameters are fitted to, steps of the optimiser
BASE = 1024  # points that the mean is projected on: 10,000 configurations take 2.5 s of one core, once


def believed(features: Floats, prior: Floats) -> Floats:
    """[N] log time to be expected: the prior, with its deviations from its own trend halved."""
    along = trend(features, prior)
    return along + KEPT * (prior - along)


def trend(features: Floats, prior: Floats) -> Floats:
    """[N] what a Gaussian process expects of each configuration from the beliefs about all others.

    features [N, F] in [0, 1]; prior [N]: log of a predicted time in any unit.
    """
    capped = np.minimum(prior, np.quantile(prior, SLOWEST))
    centre, scale = float(capped.mean()), max(float(capped.std()), 1e-9)
    y = (capped - centre) / scale
    order = np.random.default_rng(0).permutation(len(y))  # the same for every search: it belongs to the prior
    sample = order[:SAMPLE]
    theta = Surrogate(features, OWN).optimum(sample, y[sample], ITERATIONS)
    return centre + scale * left_out(features, y, theta, order[:BASE])


def left_out(features: Floats, y: Floats, theta: Floats, base: Rows) -> Floats:
    """[N] mean at each point given y at all others, projected on the points `base` (Rasmussen and Williams, eq. 8.14).

    theta [F + 2]: logarithms of length scales, signal variance and variance of the own deviations. The fit is linear in y,
    so that without its own value a point is at y - (y - fit) / (1 - h), with h the weight of that value in its fit.
    """
    signal, own = (float(v) for v in np.exp(theta[features.shape[1] :]))
    scaled = features * np.exp(-theta[: features.shape[1]])
    norms = (scaled * scaled).sum(1)

    def to_base(part: slice | Rows) -> Floats:
        covariance: Floats = signal * matern(distances(scaled[base], scaled[part], norms[base], norms[part]))
        return covariance

    among = to_base(base)
    among[np.diag_indices(len(base))] += JITTER * signal
    factor = np.linalg.cholesky(among)
    parts = [slice(begin, begin + COLUMNS) for begin in range(0, len(y), COLUMNS)]
    normal, right = own * np.eye(len(base)), np.zeros(len(base))
    for part in parts:
        half = solve_triangular(factor, to_base(part), lower=True)
        normal += half @ half.T
        right += half @ y[part]
    root = np.linalg.cholesky(normal)
    solved, residual = solve_triangular(root, right, lower=True), np.empty_like(y)
    for part in parts:
        half = solve_triangular(root, solve_triangular(factor, to_base(part), lower=True), lower=True)
        residual[part] = (y[part] - solved @ half) / np.maximum(1 - np.einsum("ij,ij->j", half, half), JITTER)
    return y - residual
