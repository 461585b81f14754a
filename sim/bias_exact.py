"""Attention biases that are products of factors exactly, each with the rank it has and the rank that softmax leaves.

    bias[h,m,n] = sum over r of query[h,m,r] * key[h,n,r]

Softmax over n ignores whatever is added to a whole row, so a term that depends on the query alone may be dropped: that
is `up_to_rows`. Sigmoid, linear and other normalisations keep it: `whole`. A causal mask stays a mask; a bias with
explicit zeros above the diagonal has full rank.

Positions and points are taken relative to their middle. What is left is the same bias up to a constant per query, and its
terms stay as small as the largest distance, so that fp64 keeps every score to a few roundings of the largest.
Factors: FlashBias, arXiv 2505.12044, section 3; ALiBi: Press et al. 2022, arXiv 2108.12409, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


FASTEST = 1e9
"""Radians per position; far above the half turn beyond which waves repeat at whole positions."""


class BiasError(ValueError):
    """A bias that cannot be: what was found, what was expected."""

    def __init__(self, where: str, found: str, expected: str) -> None:
        super().__init__(f"{where}: found {found}; expected {expected}")


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """query: [heads, M, R], key: [heads, N, R]. A leading extent of 1 is shared by all heads."""

    query: NDArray[np.floating]
    key: NDArray[np.floating]

    @property
    def rank(self) -> int:
        return int(self.query.shape[-1])

    def scores(self, queries: slice | NDArray[np.integer] = slice(None)) -> Array:
        """The bias of these queries, [heads, queries, N], in fp64."""
        q, k = self.query[:, queries].astype(np.float64), self.key.astype(np.float64)
        return np.asarray(q @ k.transpose(0, 2, 1))


@dataclass(frozen=True, slots=True, eq=False)
class ExactBias:
    """A bias with its factors.

    whole        factors of the bias as it is defined
    up_to_rows   factors of the bias but for a constant per query
    rows         the bias of some queries from its definition, [heads, queries, N]: the reference
    """

    kind: str
    whole: Factors
    up_to_rows: Factors
    rows: Callable[[NDArray[np.integer]], Array]
    heads: int


def alibi_slopes(heads: int) -> Array:
    """2^(-8h/H) for h = 1..H, H a power of two. Otherwise the authors' rule: the slopes of the power of two below, then
    every second slope of the one above."""
    below = 2 ** (heads.bit_length() - 1)
    slopes = np.exp2(-8.0 * np.arange(1, below + 1) / below)
    if below == heads:
        return np.asarray(slopes)
    return np.concatenate([slopes, alibi_slopes(2 * below)[0::2][: heads - below]])


def alibi(heads: int, queries: int, keys: int, slopes: ArrayLike | None = None) -> ExactBias:
    """-slope_h * (i - j); query m stands at i = m + N - M. Far keys lose: the sign is minus. Rank 2, 1 under softmax."""
    m_h = alibi_slopes(heads) if slopes is None else np.asarray(slopes, dtype=np.float64)
    return _offsets("alibi", -m_h, 1, queries, keys)


def linear(heads: int, queries: int, keys: int, scale: float = 1.0) -> ExactBias:
    """scale * (i - j). Rank 2, 1 under softmax."""
    return _offsets("linear", np.full(heads, scale), 1, queries, keys)


def polynomial(heads: int, queries: int, keys: int, power: int, scale: float = 1.0) -> ExactBias:
    """scale * (i - j)^power. Rank power + 1, power under softmax (the binomial theorem; the term j^0 is a row constant)."""
    if power < 1:
        raise BiasError("power", str(power), "a whole number of at least 1")
    return _offsets("polynomial", np.full(heads, scale), power, queries, keys)


def _offsets(kind: str, scale: Array, power: int, queries: int, keys: int) -> ExactBias:
    i, j = positions(queries, keys)
    middle = (min(int(i[0]), 0) + keys - 1) // 2
    u, v = (i - middle).astype(np.float64), (j - middle).astype(np.float64)
    terms = range(power + 1)
    query = np.stack([comb(power, k) * u ** (power - k) for k in terms], axis=-1)
    key = np.stack([(-v) ** k for k in terms], axis=-1)
    of_head = scale[:, None, None] * query
    shared = np.ascontiguousarray(key[None])

    def rows(m: NDArray[np.integer]) -> Array:
        return np.asarray(scale[:, None, None] * (i[m][:, None] - j).astype(np.float64) ** power)

    whole, rest = Factors(of_head, shared), Factors(of_head[..., 1:], shared[..., 1:])
    return ExactBias(kind, whole, rest, rows, len(scale))


def positions(queries: int, keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of queries and keys; the last query stands at the last key."""
    return np.arange(queries, dtype=np.int64) + (keys - queries), np.arange(keys, dtype=np.int64)


def distance(
    points_q: ArrayLike, points_k: ArrayLike | None = None, scale: ArrayLike = 1.0, weights: ArrayLike | None = None
) -> ExactBias:
    """-scale_h * w_m * |x_m - y_n|^2 for points in D dimensions. Rank D + 2, D + 1 under softmax, weighted or not.

    points_q [M, D], points_k [N, D] (default: the same); scale one number per head; weights [M], one per query
    """
    x = _points("points of the queries", points_q)
    y = x if points_k is None else _points("points of the keys", points_k)
    if x.shape[1] != y.shape[1]:
        raise BiasError("points", f"{x.shape[1]} and {y.shape[1]} coordinates", "the same number for queries and keys")
    w = np.ones(len(x)) if weights is None else _vector("weights", weights, len(x))
    s = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    middle = np.concatenate([x, y]).mean(axis=0)
    a, b = x - middle, y - middle
    query = np.concatenate([-(a**2).sum(1)[:, None], 2 * a, -np.ones((len(a), 1))], axis=1)
    key = np.concatenate([np.ones((len(b), 1)), b, (b**2).sum(1)[:, None]], axis=1)
    of_head = s[:, None, None] * (w[:, None] * query)

    def rows(m: NDArray[np.integer]) -> Array:
        squared = ((x[m][:, None, :] - y[None]) ** 2).sum(-1)
        return np.asarray(-s[:, None, None] * (w[m][:, None] * squared))

    kind = "distance" if weights is None else "weighted_distance"
    return ExactBias(kind, Factors(of_head, key[None]), Factors(of_head[..., 1:], key[None, :, 1:]), rows, len(s))


def cosine(queries: int, keys: int, frequency: ArrayLike, scale: float = 1.0) -> ExactBias:
    """scale * cos(w_h (i - j)). Rank 2, under softmax too: no term depends on the query alone."""
    w = np.atleast_1d(np.asarray(frequency, dtype=np.float64))
    if not np.abs(w).max(initial=0.0) < FASTEST:
        raise BiasError("frequency", f"{np.abs(w).max():g}", f"radians per position, below {FASTEST:g}")
    i, j = positions(queries, keys)

    def waves(p: NDArray[np.int64]) -> Array:
        return np.stack(_cos_sin(w, p), axis=-1)

    def rows(m: NDArray[np.integer]) -> Array:
        return np.asarray(scale * _cos_sin(w, i[m][:, None] - j)[0])

    both = Factors(scale * waves(i), waves(j))
    return ExactBias("cosine", both, both, rows, len(w))


def _cos_sin(w: Array, p: NDArray[np.int64]) -> tuple[Array, Array]:
    """Cosine and sine of w * p, shape (frequencies, *p.shape), each to a few roundings.

    w * 8192 rounded to fp64 is already off by 1e-12, so the angle is never formed: of w in two pieces the products with
    a position are exact, and the sum of the two angles is taken by the addition theorem.
    """
    scaled = w * (2.0**27 + 1.0)
    high = scaled - (scaled - w)  # the upper half of the digits (Dekker 1971)
    shape = (-1, *[1] * p.ndim)
    a, b = high.reshape(shape) * p, (w - high).reshape(shape) * p
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    return ca * cb - sa * sb, sa * cb + ca * sb


def sphere(points_q: ArrayLike, points_k: ArrayLike | None = None, scale: ArrayLike = 1.0) -> ExactBias:
    """scale_h * cosine of the angle between two directions in D dimensions: their dot product. Rank D, under softmax too."""
    x, y = (_directions(p) for p in (points_q, points_q if points_k is None else points_k))
    s = np.atleast_1d(np.asarray(scale, dtype=np.float64))

    def rows(m: NDArray[np.integer]) -> Array:
        return np.asarray(s[:, None, None] * (x[m] @ y.T))

    both = Factors(s[:, None, None] * x, y[None])
    return ExactBias("sphere", both, both, rows, len(s))


def segments(table: ArrayLike, classes_q: ArrayLike, classes_k: ArrayLike | None = None) -> ExactBias:
    """table[h, class of m, class of n]. Rank: the number of classes of the keys, one less under softmax.

    A one-hot key sums to one over the classes, so that one column of the table, taken off the others, is a row constant.
    """
    t = np.asarray(table, dtype=np.float64)
    t = t[None] if t.ndim == 2 else t
    if t.ndim != 3:
        raise BiasError("table", f"shape {t.shape}", "[heads, classes of queries, classes of keys]")
    cq = _classes("classes of the queries", classes_q, t.shape[1])
    ck = _classes("classes of the keys", classes_q if classes_k is None else classes_k, t.shape[2])
    onehot = np.eye(t.shape[2])[ck][None]

    def rows(m: NDArray[np.integer]) -> Array:
        return np.asarray(t[:, cq[m]][:, :, ck])

    whole = Factors(t[:, cq], onehot)
    rest = Factors((t - t[..., :1])[:, cq][..., 1:], onehot[..., 1:])
    return ExactBias("segments", whole, rest, rows, len(t))


# -- what is given ----------------------------------------------------------------------------------------------------


def _points(what: str, given: ArrayLike) -> Array:
    points = np.asarray(given, dtype=np.float64)
    if points.ndim != 2 or not points.size:
        raise BiasError(what, f"shape {points.shape}", "[points, coordinates]")
    if not np.isfinite(points).all():
        raise BiasError(what, "coordinates that are not finite", "numbers")
    return points


def _directions(given: ArrayLike) -> Array:
    points = _points("directions", given)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    if not length.all():
        raise BiasError("directions", "a vector of length zero", "directions that differ from the origin")
    return np.asarray(points / length)


def _vector(what: str, given: ArrayLike, length: int) -> Array:
    vector = np.asarray(given, dtype=np.float64)
    if vector.shape != (length,):
        raise BiasError(what, f"shape {vector.shape}", f"({length},), one per query")
    return vector


def _classes(what: str, given: ArrayLike, number: int) -> NDArray[np.intp]:
    classes = np.asarray(given)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or classes.min(initial=0) < 0 or classes.max(initial=0) >= number:
        raise BiasError(what, f"{classes.dtype} of shape {classes.shape}", f"one whole number below {number} per position")
    return classes.astype(np.intp)
