"""Fitting a family's constants on measured rows that are handed in as arrays. Reads no file and no record.

Robust least squares on log(predicted / measured): soft-l1, so that a few outliers do not pull; every constant inside its
physical range (`family.CONSTANTS`); a weak pull towards the starting value decides what the rows leave open. Which rows
fit and which judge follows from a hash of the row, so that two runs agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.cases import Cases
from einsight.sim.estimate import build_cases
from einsight.sim.family import CONSTANTS, Family
from einsight.sim.gpu import kernel_time
from einsight.sim.hardware import DTYPE_BYTES, Gpu, Quantity
from einsight.sim.interval import shares
from einsight.sim.plan import Plan
from einsight.sim.regime import RESOURCES, Regimes, regimes, shortest
from einsight.sim.rows import Rows, estimates, groups, sizes_of
from einsight.sim.schedule import ZERO, Array

SOFT = 0.08
"""Residual (in log time) from which a row counts linearly and no longer squared: about three times the noise floor."""
PULL = 0.02
"""Weight of the starting values: one unit of relative change counts as much as one row 2 % off."""

START: Mapping[str, float] = {"convert_per_element": 4.0}
"""Where the search begins for an effect that others imitate, and that it does not find from zero."""


STARTS: tuple[Mapping[str, float], ...] = (
    {}, {"unhidden": 0.8}, {"unhidden": 0.05, "tile_cycles": 1500.0}, {"l2_usable": 0.95},
)  # fmt: skip
"""Where a descent begins: at the assumed values, with units that take turns, with latency between tiles, with a cache that
holds nearly all it could. What hides what has several optima, because a tile's largest unit changes from one to the other, and
so has the size from which a working set misses; the lowest after `FIRST_STEPS` goes on."""
FIRST_STEPS, STEPS = 10, 40


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Measured rows of one device."""

    gpu: Gpu
    rows: Rows
    measured_s: Array


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a fit found. `uncertainty` is one standard error, from the curvature at the optimum; errors in percent."""

    constants: Mapping[str, float]
    uncertainty: Mapping[str, float]
    rows_fitted: int
    rows_held_out: int
    error_before: float
    error_fitted: float
    error_held_out: float
    p90_held_out: float


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """Everything of a group of rows that does not depend on the constants."""

    plan: Plan
    cases: Cases
    gpu: Gpu
    log_measured: Array


def fit(
    samples: Sequence[Sample], family: Family, names: Sequence[str], most: int = 4000, judge: Sequence[Sample] = (),
    starts: Sequence[Mapping[str, float]] = STARTS,
) -> Calibration:  # fmt: skip
    """Fits the constants `names` on half of the rows (at most `most` of them) and judges on the other half.

    `judge` gives other rows to judge on instead (a device left out).
    """
    from scipy.optimize import least_squares

    halves = [_halve(s) for s in samples]
    train = _prepare([_thin(a, most // max(len(samples), 1)) for a, _ in halves], family)
    held = _prepare(list(judge) or [b for _, b in halves], family)
    low, high = (np.array([getattr(CONSTANTS[n], side) for n in names]) for side in ("low", "high"))
    begin = [START[n] if n in START and n not in family.constants else family.constant(n) for n in names]
    start = np.clip(begin, low + 1e-3 * (high - low), high - 1e-3 * (high - low))
    scale = np.maximum(start, 0.05 * high)

    def residuals(x: Array) -> Array:
        return np.concatenate([_log_errors(train, with_constants(family, names, x * scale)), PULL * (x - start / scale)])

    def descend(begin: Array, steps: int) -> Any:
        limits = low / scale, high / scale
        return least_squares(residuals, begin, bounds=limits, loss="soft_l1", f_scale=SOFT, max_nfev=steps, x_scale=1.0)

    tried = [descend(_elsewhere(names, start, low, high, change) / scale, FIRST_STEPS) for change in starts]
    found = descend(min(tried, key=lambda t: float(t.cost)).x, STEPS)
    values = np.where(found.x * scale < low + 1e-6 * (high - low), low, found.x * scale)
    fitted = with_constants(family, names, values)
    covariance = np.linalg.pinv(found.jac.T @ found.jac) * max(2.0 * found.cost / max(len(found.fun), 1), 1e-9)
    after = np.abs(np.expm1(_log_errors(held, fitted)))
    return Calibration(
        dict(zip(names, map(float, values), strict=True)),
        dict(zip(names, map(float, np.sqrt(np.diag(covariance)) * scale), strict=True)),
        sum(len(p.log_measured) for p in train), len(after),
        _mape(_log_errors(held, family)), _mape(_log_errors(train, fitted)), float(100 * after.mean()),
        float(100 * np.percentile(after, 90)),
    )  # fmt: skip


def _elsewhere(names: Sequence[str], start: Array, low: Array, high: Array, change: Mapping[str, float]) -> Array:
    """The starting values with some of them changed, inside their range."""
    inside = 1e-3 * (high - low)
    moved: Array = np.array([change.get(n, value) for n, value in zip(names, start.tolist(), strict=True)])
    return np.clip(moved, low + inside, high - inside)


def with_constants(family: Family, names: Sequence[str], values: Sequence[float] | Array) -> Family:
    """The family with these constants in place of its own."""
    changed = {n: Quantity(float(v), f"{v:.4g}", "fitted", "calibration") for n, v in zip(names, values, strict=True)}
    return replace(family, constants={**family.constants, **changed}, fits=())


def _log_errors(prepared: Sequence[_Prepared], family: Family) -> Array:
    """log(predicted / measured) of every row."""
    out = []
    for p in prepared:
        time = sum((kernel_time(work, p.cases, p.gpu, family).time_s for work in p.plan.works), ZERO)
        out.append(np.log(time) - p.log_measured)
    return np.concatenate(out)


def _prepare(samples: Sequence[Sample], family: Family) -> list[_Prepared]:
    out = []
    for sample in samples:
        for plan, mask, index in groups(sample.rows):
            sizes = sizes_of(sample.rows.take(index))
            cases, _ = build_cases(plan, mask, sizes, True, sample.gpu, family, None)
            out.append(_Prepared(plan, cases, sample.gpu, np.log(sample.measured_s[index])))
    return out


def _mape(log_errors: Array) -> float:
    return float(100 * np.abs(np.expm1(log_errors)).mean())


def _halve(sample: Sample) -> tuple[Sample, Sample]:
    """Two halves by a hash of each row."""
    digest = row_hashes(sample.rows)
    return _pick(sample, digest % 2 == 0), _pick(sample, digest % 2 == 1)


def _thin(sample: Sample, most: int) -> Sample:
    """At most `most` rows, by another part of the hash."""
    if len(sample.measured_s) <= most:
        return sample
    order = np.argsort(row_hashes(sample.rows) // 2, kind="stable")
    keep = np.zeros(len(sample.measured_s), dtype=bool)
    keep[order[:most]] = True
    return _pick(sample, keep)


def _pick(sample: Sample, keep: NDArray[np.bool_]) -> Sample:
    return Sample(sample.gpu, sample.rows.take(keep), sample.measured_s[keep])


FOLLOWING = ("chunk", "read_dtype")
"""Columns that the kernel decides: which half a row belongs to must not depend on what we know of kernels."""


def row_hashes(rows: Rows) -> NDArray[np.int64]:
    """A number per row from its columns alone: the same in every run and on every machine."""
    columns = [getattr(rows, f.name) for f in fields(rows) if f.name not in FOLLOWING]
    texts = ("|".join(map(str, values)) for values in zip(*(c.tolist() for c in columns), strict=True))
    return np.array([int.from_bytes(blake2b(t.encode(), digest_size=7).digest(), "big") for t in texts], dtype=np.int64)


TILE_CONSTANTS = (
    "launch_s", "mma_efficiency", "unhidden", "unhidden_memory", "vector_per_score", "block_cycles",
    "block_bytes_per_cycle", "tile_cycles", "hbm_fraction", "l2_usable",
)  # fmt: skip
PHASE_CONSTANTS: Mapping[str, tuple[str, ...]] = {
    "prefill": ("mask_per_score", "kv_copy", "q_copy", "token_cycles"),
    "decode": ("regroup_s", "combine_s", "split_s", "sequence_s", "row_cycles", "result_cycles", "part_cycles",
               "fill_s"),
}
WINDOW_CONSTANTS = ("window_per_score", "test_per_score", "exit_cycles")
NARROW_CONSTANTS = ("convert_per_element",)
UNEVEN_CONSTANTS = ("uneven_s", "uneven_copy")


def constants_for(family: Family, phase: str, samples: Sequence[Sample] = ()) -> tuple[str, ...]:
    """The constants that measurements of a phase can tell: those of every tile, what the phase alone does, and what
    only windows, keys and values of different widths or a narrower cache show, where the rows have them."""
    wide = all(np.all(_width(s.rows.dtype) >= 2.0) for s in samples)
    own = tuple(n for n in PHASE_CONSTANTS[phase] if n != "q_copy" or not (family.queries_in_place and wide))
    splits = family.split[phase].rule != "none" and "combine_s" not in own
    merges: tuple[str, ...] = ("combine_s", "merge_cycles") if splits else ()
    windows = WINDOW_CONSTANTS if any(np.any(s.rows.window > 0) for s in samples) else ()
    uneven = UNEVEN_CONSTANTS if any(np.any(s.rows.value_dim != s.rows.head_dim) for s in samples) else ()
    converts = any(np.any(_width(s.rows.read_dtype) < _width(s.rows.dtype)) for s in samples)
    narrow = NARROW_CONSTANTS if converts and family.arithmetic == "operands" else ()
    return (*TILE_CONSTANTS, *own, *merges, *windows, *uneven, *narrow)


def _width(dtypes: NDArray[np.str_]) -> Array:
    """Bytes per element of a column of types."""
    return np.array([DTYPE_BYTES[d] for d in dtypes.tolist()])


def regimes_of(samples: Sequence[Sample], fitted: Family) -> tuple[float, Regimes]:
    """(half width of one interval for all, the regimes) on the half that fits, of which a fit looks at few rows; the other
    half judges them."""
    miss: list[Array] = []
    explained: dict[str, list[Array]] = {name: [] for name in RESOURCES}
    for sample in samples:
        half = _halve(sample)[0]
        for index, found in estimates(half.rows, sample.gpu, fitted):
            miss.append(np.log(half.measured_s[index] / found.time_s))
            share = shares(found)
            for name, column in explained.items():
                column.append(np.broadcast_to(share.get(name, ZERO), found.time_s.shape))
    whole, limits = np.concatenate(miss), CONSTANTS["interval"]
    made = regimes(whole, {name: np.concatenate(column) for name, column in explained.items()})
    return float(np.clip(max(shortest(whole)), limits.low, limits.high)), made


EARNED = 0.2
"""Percent of mean error that a constant must take off the fitted rows to be kept, after all that earn less are gone."""


def fit_few(samples: Sequence[Sample], family: Family, names: Sequence[str], most: int = 4000) -> Calibration:
    """As `fit`, with the constants alone that earn their place: the others stay at what changes nothing, or as assumed.

    After a fit of all, constants are given up in the order of how little the error of the fitted rows grows, as long as
    it grows by less than `EARNED` in all; the rest are fitted again. So are those whose value the rows then do not tell.
    """
    whole = fit(samples, family, names, most)
    train = _prepare([_thin(_halve(s)[0], most // max(len(samples), 1)) for s in samples], family)
    kept, values = list(names), dict(whole.constants)
    limit = _mape(_log_errors(train, with_constants(family, kept, [values[n] for n in kept]))) + EARNED

    def without(name: str) -> float:
        rest = [n for n in kept if n != name]
        return _mape(_log_errors(train, with_constants(family, rest, [values[n] for n in rest])))

    while len(kept) > 1:
        error, name = min((without(n), n) for n in kept)
        if error > limit:
            break
        kept.remove(name)
    start = with_constants(family, kept, [values[n] for n in kept])
    again = fit(samples, start, kept, most, starts=STARTS[:1])
    while len(kept) > 1 and (doubtful := _most_doubtful(again)) is not None:
        kept.remove(doubtful)
        start = with_constants(family, kept, [again.constants[n] for n in kept])
        less = fit(samples, start, kept, most, starts=STARTS[:1])
        if less.error_fitted > again.error_fitted + EARNED:
            break
        again = less
    return replace(again, error_before=whole.error_before)


DOUBT = 0.4
"""Standard error, as a share of a constant's physical range, from which the rows are taken not to know the constant."""


def _most_doubtful(found: Calibration) -> str | None:
    """The constant that the rows determine least, if that is not at all. It does no harm where it was fitted, because another
    one makes up for it, but would on another device, where the two weigh differently."""
    share = {n: error / (CONSTANTS[n].high - CONSTANTS[n].low) for n, error in found.uncertainty.items()}
    worst = max(share, key=lambda n: share[n])
    return worst if share[worst] > DOUBT else None


def held_out(rows: Rows) -> NDArray[np.bool_]:
    """The rows that a fit never sees: what it is judged on."""
    found: NDArray[np.bool_] = row_hashes(rows) % 2 == 1
    return found
