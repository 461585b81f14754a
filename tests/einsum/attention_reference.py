"""Attention written out in NumPy without the cascade language: the answer that every cascade is compared with.

Arrays carry batch b, KV head g, query head within the group j:
Q[b,g,j,m,e], K[b,g,n,e], V[b,g,n,f], result [b,g,j,m,f]. `keep[m,n]` says which keys a query sees.
Rows are done one by one over only the keys they see, so nothing here depends on how masked elements are treated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def scores(Q: Array, K: Array) -> Array:
    """[b,g,j,m,n], unscaled."""
    out = np.empty((*Q.shape[:4], K.shape[2]))
    for b, g, j in np.ndindex(Q.shape[:3]):
        out[b, g, j] = Q[b, g, j] @ K[b, g].T
    return out


def alibi(slope: Array, M: int, N: int) -> Array:
    """slope[g,j] times the distance from each key to the query, which stands at m + N - M. [g,j,m,n]"""
    distance = np.array([[n - (m + N - M) for n in range(N)] for m in range(M)], dtype=float)
    return slope[:, :, None, None] * distance


def softcap(x: Array, cap: float) -> Array:
    return cap * np.tanh(x / cap)


def softmax_attention(S: Array, V: Array, keep: NDArray[np.bool_], sink: Array | None = None) -> Array:
    """Rows without any key are NaN. `sink[g,j]` is a logit that takes weight and carries no value."""

    def row(s: Array, values: Array, extra: float | None) -> Array:
        if not s.size:
            return np.full(values.shape[1], np.nan)
        top = s.max()
        weights = np.exp(s - top)
        total = weights.sum() + (0.0 if extra is None else np.exp(extra - top))
        return np.asarray((weights / total) @ values)

    return _per_row(S, V, keep, row, sink)


def sigmoid_attention(S: Array, V: Array, keep: NDArray[np.bool_], offset: float) -> Array:
    def row(s: Array, values: Array, extra: float | None) -> Array:
        return np.asarray((1.0 / (1.0 + np.exp(-(s + offset)))) @ values)

    return _per_row(S, V, keep, row, None)


def linear_attention(Q: Array, K: Array, V: Array) -> Array:
    """Feature map elu(x) + 1, all keys; in the quadratic order, weights first."""

    def feature(x: Array) -> Array:
        return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))

    weights = scores(feature(Q), feature(K))
    everything = np.ones(weights.shape[-2:], dtype=bool)
    return _per_row(weights, V, everything, lambda w, values, _: np.asarray(w / w.sum() @ values), None)


def _per_row(
    S: Array,
    V: Array,
    keep: NDArray[np.bool_],
    row: Callable[[Array, Array, float | None], Array],
    sink: Array | None,
) -> Array:
    out = np.empty((*S.shape[:-1], V.shape[-1]))
    for b, g, j, m in np.ndindex(S.shape[:-1]):
        keys = np.flatnonzero(keep[m])
        out[b, g, j, m] = row(S[b, g, j, m, keys], V[b, g, keys], None if sink is None else float(sink[g, j]))
    return out
