"""One bias, head by head: the rank it has, the rank its workload needs, the error that leaves, and what it rests on.

Exact forms come from `bias_exact`; everything else, tables and matrices, from the singular values of `bias_svd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from einsight.sim.bias_exact import Array, BiasError, ExactBias
from einsight.sim.bias_svd import (
    Decomposition,
    Matrix,
    Probe,
    approximate_rows,
    checked,
    checked_energy,
    decompose,
    least_rank,
    to_output,
)

KEPT_SINGULAR = 64
"""Singular values of a head that a report keeps."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What one head needs.

    rank          under the workload's normalisation; None: more than was computed (`computed` triplets)
    rank_exact    with the row constants kept
    error_bias    relative Frobenius error of the bias that softmax sees, over all rows (exact forms: over the probe's)
    error_output  relative Frobenius error of the attention output on the probe
    singular      singular values from the first; empty for exact forms
    curve         share of the energy -> rank
    """

    rank: int | None
    rank_exact: int | None
    error_bias: float
    error_output: float
    computed: int
    singular: Array
    curve: dict[float, int | None]

    def as_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank, "rank_exact": self.rank_exact, "error_bias": self.error_bias,
            "error_output": self.error_output, "computed": self.computed,
            "energy_ranks": {str(share): rank for share, rank in self.curve.items()},
            "singular_values": self.singular.tolist(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A bias of `queries` x `keys`. `exact`: the factors are the bias, not an approximation of it."""

    title: str
    queries: int
    keys: int
    exact: bool
    heads: tuple[Head, ...]
    rests_on: tuple[str, ...]

    @property
    def rank(self) -> int | None:
        """One rank for a launch over all heads: the largest; None when some head's is beyond what was computed."""
        known = [h.rank for h in self.heads if h.rank is not None]
        return max(known) if len(known) == len(self.heads) else None

    @property
    def rank_at_least(self) -> int:
        """The launch's rank, or where it is not known what was computed without reaching it."""
        return max(h.computed if h.rank is None else h.rank for h in self.heads)


def of_exact(bias: ExactBias, queries: int, keys: int, probe: Probe) -> Analysis:
    """The analysis of a bias with exact factors; errors on the probe's rows against the definition."""
    used, whole = (bias.up_to_rows if probe.normalise else bias.whole), bias.whole
    true = bias.rows(probe.rows)
    made = used.scores(probe.rows)
    heads = []
    for h in range(bias.heads):
        difference = made[h] - true[h]
        difference -= difference.mean(axis=1, keepdims=True) if probe.normalise else 0.0
        error = float(np.linalg.norm(difference) / (np.linalg.norm(true[h]) or 1.0))
        output = probe.error(true[h], made[h], queries)
        heads.append(Head(used.rank, whole.rank, error, output, used.rank, np.empty(0), {}))
    rests = ["exact factors: the bias is their product, whatever the sizes"]
    if used.rank != whole.rank:
        rests.append("the normalisation ignores what is added to a row: terms of the query alone are dropped")
    elif not probe.normalise:
        rests.append("the normalisation is changed by row constants: all terms are kept")
    rests += _probe_notes(probe, len(probe.rows))
    return Analysis(f"{bias.kind} bias", queries, keys, True, tuple(heads), tuple(rests))


@dataclass(frozen=True, slots=True)
class Wanted:
    """How good the factors must be: a share of the energy, or a relative error of the attention output."""

    energy: float = 0.995
    output_error: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        checked_energy(self.energy)
        if self.output_error is not None and not 0.0 < self.output_error < np.inf:
            raise BiasError("output error", f"{self.output_error:g}", "a relative error above 0, such as 0.01")

    @property
    def text(self) -> str:
        if self.output_error is not None:
            return f"attention output within {self.output_error:g} (relative, Frobenius, on the probe)"
        return f"{100 * self.energy:g} % of the energy: a relative error of {np.sqrt(1 - self.energy):.2g} in the bias"


def of_matrices(
    title: str, of: Callable[[int], Matrix], number: int, wanted: Wanted, probe: Probe, scales: Sequence[float] | None = None
) -> Analysis:
    """The analysis of `number` heads, head h the matrix of(h) [M, N], one at a time.

    scales   the heads are these multiples of of(0): it is decomposed once
    """
    heads: list[Head] = []
    shape, found = (0, 0), None
    for h in range(number):
        if scales is None or h == 0:
            (matrix,) = checked(of(h), title, h)
            shape = matrix.shape
            found = _decomposed(matrix, wanted, probe)
        assert found is not None
        factor = 1.0 if scales is None else float(scales[h])
        heads.append(_head(matrix, _scaled(found, factor), factor, wanted, probe))
    rests = [f"singular values; rank for {wanted.text}"]
    if probe.normalise:
        rests.append("the normalisation ignores what is added to a row: row means go first and are no energy")
    else:
        rests.append("the normalisation is changed by row constants: row means stay in and count as energy")
    rests.append("factors hold for frozen weights: a trained table is decomposed again after each change")
    return Analysis(title, *shape, False, tuple(heads), (*rests, *_probe_notes(probe, shape[0])))


def _decomposed(matrix: Matrix, wanted: Wanted, probe: Probe) -> Decomposition:
    if wanted.output_error is None:
        return decompose(matrix, wanted.energy, probe.normalise, most=wanted.most)
    return to_output(matrix, wanted.output_error, probe, probe.normalise, wanted.most)[0]


def _scaled(found: Decomposition, factor: float) -> Decomposition:
    if factor == 1.0:
        return found
    sign, size = np.sign(factor), abs(factor)
    return replace(found, left=found.left * sign, singular=found.singular * size, row_means=found.row_means * factor,
                   energy=found.energy * factor**2)  # fmt: skip


def _head(matrix: Matrix, found: Decomposition, factor: float, wanted: Wanted, probe: Probe) -> Head:
    true = matrix[probe.rows].astype(np.float64) * factor
    if wanted.output_error is None:
        rank, exact = found.rank_for(wanted.energy), found.rank_with_means(wanted.energy)
    else:
        rank = least_rank(found, true, wanted.output_error, probe, len(matrix))
        means = probe.normalise and np.ptp(found.row_means) > 0
        exact = None if rank is None else rank + int(means)
    kept = len(found.singular) if rank is None else rank
    output = probe.error(true, approximate_rows(found, kept, probe.rows), len(matrix))
    return Head(rank, exact, found.residual(kept), output, len(found.singular), found.singular[:KEPT_SINGULAR], found.curve())


def _probe_notes(probe: Probe, queries: int) -> tuple[str, ...]:
    return (
        f"errors of the output: {len(probe.rows)} of the queries, seeded standard normal Q, K, V with dimension "
        f"{probe.keys.shape[1]}, scores of variance 1; on real activations they differ",
    )
