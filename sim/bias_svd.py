"""Factors of a bias matrix by singular value decomposition: the rank that a given error needs, head by head.

Rows are centred first where softmax allows it: what is added to a whole row has no effect, and taking the mean off each row
leaves the smallest rank that any such choice leaves. A table with a large mean looks easier than it is otherwise: the mean
is most of its energy, and none of its effect.

A head's decomposition starts with its first singular triplets (scikit-learn's randomised range finder with power iterations:
Halko, Martinsson and Tropp 2011, arXiv 0909.4061) and takes more of them only while the energy asked for is not reached. The
whole energy is known beforehand, as the sum of squares of the matrix.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from einsight.sim.bias_exact import Array, BiasError, Factors

Matrix = NDArray[np.floating]

FIRST, GROWTH = 24, 4
"""Triplets of the first try, and how many times more of the next."""
OVERSAMPLED, POWER_ITERATIONS = 8, 2
MOST = 512
"""Triplets at most of a matrix too large to decompose whole."""
WHOLE = 2048
"""Matrices up to this side are decomposed whole when a quarter of their triplets is not enough."""
PROBED_PAIRS = 2**20
"""Scores of one head that a probe computes at most: a bias of 128k positions is checked on 8 of its rows."""
LARGEST = {4: 1e15, 8: 1e60}
"""Of an element, by its bytes: sums of squares, and their squares, must stay numbers."""
SHARES = (0.9, 0.95, 0.99, 0.995, 0.999)
"""Energies of the curve that is printed."""


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """bias = row_means + left * singular * right, as far as it was computed.

    left       [M, K] with orthonormal columns; right [K, N]; singular [K], falling
    row_means  [M]: what was taken off each row (zeros where rows were not centred)
    energy     sum of squares of the (centred) matrix: that of all min(M, N) singular values
    """

    left: Matrix
    singular: Array
    right: Matrix
    row_means: Array
    energy: float

    @property
    def most(self) -> int:
        """The rank that the matrix can have."""
        return min(len(self.left), int(self.right.shape[1]))

    @property
    def complete(self) -> bool:
        return len(self.singular) == self.most

    def captured(self) -> Array:
        """Share of the energy in the first 1, 2, ... singular values."""
        if not self.energy:
            return np.ones(len(self.singular))
        return np.asarray(np.minimum(np.cumsum(self.singular**2) / self.energy, 1.0))

    def rank_for(self, energy: float) -> int | None:
        """The least rank with this share of the energy; 0 for a matrix of zeros, None when more triplets are needed."""
        if not self.energy:
            return 0
        captured = self.captured()
        all_but_rounding = 1.0 - 64 * float(np.finfo(self.left.dtype).eps)
        reached = np.nonzero(captured >= min(energy, all_but_rounding))[0]
        return int(reached[0]) + 1 if len(reached) else (self.most if self.complete else None)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """([M, R], [N, R]) with the singular values shared evenly, so that neither side leaves the range of fp16."""
        root = np.sqrt(self.singular[:rank])
        return np.asarray(self.left[:, :rank] * root), np.asarray(self.right[:rank].T * root)

    def residual(self, rank: int) -> float:
        """Relative error in the Frobenius norm of keeping `rank` singular values."""
        if not self.energy:
            return 0.0
        return float(np.sqrt(max(1.0 - (self.captured()[rank - 1] if rank else 0.0), 0.0)))

    def rank_with_means(self, energy: float) -> int | None:
        """The rank that the matrix needs with its row means left in; equal to `rank_for` where rows were not centred.

        Centred rows are orthogonal to the row of ones, so the means add one right singular direction to those that are known:
        the singular values are those of [left * singular | means * sqrt(N)].
        """
        columns = self.right.shape[1]
        extra = float(columns * (self.row_means**2).sum())
        if not extra:
            return self.rank_for(energy)
        if not self.energy:
            return 1
        wide = np.concatenate([self.left * self.singular, np.sqrt(columns) * self.row_means[:, None]], axis=1)
        singular = np.linalg.svd(np.linalg.qr(wide)[1], compute_uv=False)
        return replace(self, singular=singular, energy=self.energy + extra).rank_for(energy)

    def curve(self) -> dict[float, int | None]:
        """Energy -> rank, for the energies of `SHARES`; None where the rank is beyond what was computed."""
        return {share: self.rank_for(share) for share in SHARES}


def checked(bias: ArrayLike, where: str = "bias", first: int = 0) -> Matrix:
    """The bias as [heads, M, N] in floating point. `first`: its first head's number. Raises BiasError."""
    array = np.asarray(bias)
    if array.dtype.kind == "c":
        raise BiasError(where, f"complex numbers ({array.dtype})", "real numbers")
    if array.dtype.kind not in "fiub":
        raise BiasError(where, f"elements of type {array.dtype}", "numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise BiasError(where, f"shape {array.shape}", "[M, N] or [heads, M, N]")
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        array = array.astype(np.float64 if array.dtype.kind != "f" else np.float32)
    matrices = array[None] if array.ndim == 2 else array
    limit = LARGEST[min(array.dtype.itemsize, 8)]
    for head, matrix in enumerate(matrices, first):
        if not np.isfinite(matrix).all():
            what = "NaN" if np.isnan(matrix).any() else "infinity"
            m, n = np.argwhere(~np.isfinite(matrix))[0]
            raise BiasError(
                f"{where}, head {head}, element [{m}, {n}]", what,
                "finite numbers; a mask (-inf) stays a mask and does not belong into the bias",
            )  # fmt: skip
        if not max(-float(matrix.min()), float(matrix.max())) < limit:
            m, n = np.argwhere(np.abs(matrix) >= limit)[0]
            raise BiasError(
                f"{where}, head {head}, element [{m}, {n}]", f"{matrix[m, n]:.3g}",
                f"below {limit:g} in {array.dtype}, so that squares stay finite; a mask stays a mask, outside the bias",
            )  # fmt: skip
    return matrices


def checked_energy(energy: float) -> float:
    if not 0.0 < energy <= 1.0:  # NaN included
        raise BiasError("energy", f"{energy:g}", "a share in (0, 1], such as 0.995")
    return energy


@cache
def _libraries() -> ThreadpoolController:
    """The linear algebra libraries, NumPy's and SciPy's; finding them takes milliseconds."""
    import scipy.linalg  # noqa: F401  only what is loaded is found, and SciPy may bring a BLAS of its own

    return ThreadpoolController()


def _threads(matrix: Matrix) -> AbstractContextManager[object]:
    """One thread for a small matrix. BLAS would share out products of microseconds, and its threads wait for each other,
    spinning, at the end of every one: where the cores are busy with other work, that takes ten times the products."""
    return _libraries().limit(limits=1, user_api="blas") if matrix.size <= WHOLE**2 else nullcontext()


def decompose(matrix: Matrix, energy: float, centred: bool, least: int = 1, most: int | None = None) -> Decomposition:
    """Enough triplets of one head's [M, N] matrix for a share of its energy, and at least `least` of them.

    `most` ends the search there, whatever the energy reached. Matrices of up to `WHOLE` squared elements take one thread,
    and BLAS stays limited to it in the whole process meanwhile.
    """
    with _threads(matrix):
        return _decompose(matrix, energy, centred, least, most)


def _decompose(matrix: Matrix, energy: float, centred: bool, least: int, most: int | None) -> Decomposition:
    side = min(matrix.shape)
    matrix = np.ascontiguousarray(matrix, dtype=np.float64 if side <= WHOLE else matrix.dtype)
    means = matrix.mean(axis=1, dtype=np.float64) if centred else np.zeros(len(matrix))
    largest = max(abs(float(matrix.min())), abs(float(matrix.max())))
    rest = matrix - means.astype(matrix.dtype)[:, None] if centred else matrix
    total = _sum_of_squares(rest)
    small = total <= (np.finfo(matrix.dtype).eps * largest) ** 2 * matrix.size
    if small or (centred and not (matrix.max(axis=1) - matrix.min(axis=1)).any()):
        total = 0.0  # every row is constant: only the rounding of its mean is left
    number = max(FIRST, least)
    cap = min(side, most or _cap(matrix))
    while True:
        number = min(number, cap)
        if 4 * number > side and side <= WHOLE:
            left, singular, right = np.linalg.svd(rest, full_matrices=False)
        else:
            left, singular, right = _leading(rest, number)
        found = Decomposition(left, singular.astype(np.float64), right, means, total)
        if number >= cap or found.complete or (number >= least and found.rank_for(energy) is not None):
            return found
        number *= GROWTH


def _cap(matrix: Matrix) -> int:
    """Triplets of this matrix at most."""
    side = min(matrix.shape)
    return side if side <= WHOLE else MOST


def _sum_of_squares(matrix: Matrix) -> float:
    """A block of rows at a time, in fp64: squares of a 16k x 16k matrix would be as large again."""
    return float(sum(np.square(matrix[b : b + 1024]).sum(dtype=np.float64) for b in range(0, len(matrix), 1024)))


def _leading(matrix: Matrix, number: int) -> tuple[Matrix, Array, Matrix]:
    """The leading `number` triplets."""
    from sklearn.utils.extmath import randomized_svd  # most of a second of import, only where a matrix is decomposed

    left, singular, right = randomized_svd(
        matrix, number, n_oversamples=OVERSAMPLED, n_iter=POWER_ITERATIONS, power_iteration_normalizer="QR", random_state=0
    )  # without normalising, powers of a matrix in fp32 lose its small triplets
    return left, singular, right


# -- heads and layers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Factorised:
    """The heads of one layer, each decomposed.

    ranks    per head: what the error asked for needs; None where it is more than was computed
    """

    heads: tuple[Decomposition, ...]
    ranks: tuple[int | None, ...]

    @property
    def layer_rank(self) -> int | None:
        """One rank for all heads of a launch: the largest; None when some head's is beyond what was computed."""
        known = [r for r in self.ranks if r is not None]
        return max(known) if len(known) == len(self.ranks) else None

    def factors(self, rank: int | None = None) -> Factors:
        """Factors of all heads at one rank (default: the layer's), heads of lower rank filled up with zeros.

        Raises BiasError when a head needs more than was computed.
        """
        width = self.layer_rank if rank is None else rank
        if width is None:
            short = next(h for h, r in enumerate(self.ranks) if r is None)
            raise BiasError(f"head {short}", f"a rank beyond {len(self.heads[short].singular)}", "an error it can meet")
        sides: tuple[list[Array], list[Array]] = ([], [])
        for head, own in zip(self.heads, self.ranks, strict=True):
            kept = min(width, own if own is not None and rank is None else width, len(head.singular))
            for side, factor in zip(sides, head.factors(kept), strict=True):
                side.append(np.pad(factor, ((0, 0), (0, width - kept))))
        return Factors(np.stack(sides[0]), np.stack(sides[1]))


def factorise(bias: ArrayLike, energy: float, centred: bool = True, most: int | None = None) -> Factorised:
    """Every head of [heads, M, N] (or [M, N]) to a share of its energy; the relative Frobenius error is sqrt(1 - energy).

    centred   take the mean off each row first: for softmax and every normalisation that ignores row constants
    most      the largest rank that is computed for an energy that needs more
    Raises BiasError.
    """
    checked_energy(energy)
    heads = tuple(decompose(m, energy, centred, most=most) for m in checked(bias))
    return Factorised(heads, tuple(h.rank_for(energy) for h in heads))


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Queries, keys and values with which an error of the attention output is measured.

    queries [P, E] already scaled by E^-1/2, at the rows `rows` [P] of the bias; keys [N, E]; values [N, F]
    """

    queries: Array
    keys: Array
    values: Array
    rows: NDArray[np.integer]
    causal: bool = False
    normalise: bool = True  # softmax; otherwise the sigmoid of the scores, less log N

    @classmethod
    def random(cls, M: int, N: int, head_dim: int = 64, causal: bool = False, normalise: bool = True, rows: int = 128) -> Probe:
        """Standard normal entries, seeded; scores of variance 1. `rows` queries, evenly spread over the M, fewer when long."""
        rng = np.random.default_rng(0)
        rows = min(rows, max(2, PROBED_PAIRS // N))
        at = np.unique(np.linspace(0, M - 1, min(rows, M)).round().astype(np.int64))
        queries = rng.standard_normal((len(at), head_dim)) / np.sqrt(head_dim)
        keys, values = rng.standard_normal((2, N, head_dim))
        return cls(queries, keys, values, at, causal, normalise)

    def output(self, bias: Array, queries: int) -> Array:
        """Attention output [P, F] under `bias` [P, N]; `queries`: M, for the place of the causal diagonal."""
        scores = self.queries @ self.keys.T + bias
        if self.causal:
            at = self.rows + (len(self.keys) - queries)
            scores = np.where(np.arange(len(self.keys)) <= at[:, None], scores, -np.inf)
        if not self.normalise:
            return np.asarray(0.5 * (1 + np.tanh(0.5 * (scores - np.log(len(self.keys))))) @ self.values)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(weights @ self.values / weights.sum(axis=1, keepdims=True))

    def error(self, true: Array, approximate: Array, queries: int) -> float:
        """Relative Frobenius error of the output, both biases [P, N] at the probe's rows."""
        wanted = self.output(true, queries)
        return float(np.linalg.norm(self.output(approximate, queries) - wanted) / np.linalg.norm(wanted))


def approximate_rows(head: Decomposition, rank: int, rows: NDArray[np.integer]) -> Array:
    """The bias at some rows from `rank` singular triplets, row means included."""
    scaled = head.left[rows, :rank] * head.singular[:rank]
    return np.asarray(scaled @ head.right[:rank] + head.row_means[rows, None], dtype=np.float64)


def factorise_to_output(
    bias: ArrayLike, error: float, probe: Probe, centred: bool = True, most: int | None = None
) -> Factorised:
    """Every head to the least rank whose attention output, on the probe, is within `error` (relative, Frobenius)."""
    if not 0.0 < error < np.inf:
        raise BiasError("output error", f"{error:g}", "a relative error above 0, such as 0.01")
    found = [to_output(m, error, probe, centred, most) for m in checked(bias)]
    return Factorised(tuple(h for h, _ in found), tuple(r for _, r in found))


def to_output(
    matrix: Matrix, error: float, probe: Probe, centred: bool, most: int | None = None
) -> tuple[Decomposition, int | None]:
    """One head [M, N] decomposed far enough for the error, and the rank; None where `most` triplets are not enough."""
    true = matrix[probe.rows].astype(np.float64)
    head = decompose(matrix, 0.9, centred, most=most)
    while (rank := least_rank(head, true, error, probe, len(matrix))) is None and not head.complete:
        number = GROWTH * len(head.singular)
        wider = decompose(matrix, 1.0, centred, least=number, most=min(number, most or _cap(matrix)))
        if len(wider.singular) <= len(head.singular):
            break
        head = wider
    return head, rank


def least_rank(head: Decomposition, true: Array, error: float, probe: Probe, queries: int) -> int | None:
    """The least rank whose output is within the error, by halving: the error falls with the rank but for its last digits."""

    def fits(rank: int) -> bool:
        return probe.error(true, approximate_rows(head, rank, probe.rows), queries) <= error

    low, high = 0, len(head.singular)
    if not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
