"""How good a comparison is: errors per group of rows, the worst rows, and the clusters that hold most of the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from einsight.reports.compare import Comparison
from einsight.reports.measured import COLUMNS, Column, Flags, Numbers, Places, Text, group_ids

OWN_COLUMNS = ("target", "family", "bound")
DERIVED = ("group", "windowed", "length", "batches")
BY = (*(c for c in COLUMNS if c != "latency_ms"), *OWN_COLUMNS, *DERIVED)
DEFAULT_BY = ("device", "framework", "phase")
CLUSTER_BY = ("target", "framework", "family", "phase", "kv_dtype", "windowed", "head_dim", "length")
LENGTH_EDGES = (2, 65, 1025, 16385)
BATCH_EDGES = (2, 17, 129)


@dataclass(frozen=True, slots=True)
class Score:
    """Percentages over the judged rows of a group: predicted, at least 15 us long, not set aside. None without any.

    n           judged rows
    mape, mdape, p90   mean, median and 90th percentile of |predicted - measured| / measured
    bias        mean of (predicted - measured) / measured
    spearman    rank correlation of predicted and measured times
    coverage    rows inside the predicted interval; `width`: median of (high - low) / predicted
    roofline_mape   mean error of the plain roofline on the same rows
    n_set_aside, n_short, unpredicted   rows that are not judged: noise among the long ones, under 15 us, without a prediction
    mape_all    mean error over every predicted row, the short ones and those set aside too
    """

    n: int
    mape_percent: float | None
    mdape_percent: float | None
    p90_percent: float | None
    bias_percent: float | None
    spearman: float | None
    coverage_percent: float | None
    width_percent: float | None
    n_set_aside: int
    n_short: int
    short_mape_percent: float | None
    unpredicted: int
    roofline_mape_percent: float | None
    mape_all_percent: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """As the columns HEADS of a table; empty where there is nothing to say."""
        errors = map(percent, (self.mape_percent, self.mdape_percent, self.p90_percent, self.bias_percent))
        rank = "" if self.spearman is None else f"{self.spearman:.3f}"
        rest = map(percent, (self.coverage_percent, self.width_percent, self.roofline_mape_percent))
        return (str(self.n), *errors, rank, *rest)


HEADS = ("cases", "mean", "median", "p90", "bias", "rank", "inside", "width", "roofline")


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def score(compared: Comparison, rows: Flags | None = None) -> Score:
    """The score of all rows, or of those where `rows` is true."""
    c = compared if rows is None else compared.take(rows)
    judged, known = c.judged, c.known
    measured, found = c.measured_s[judged], c.predicted_s[judged]
    error = relative_error(c)
    away, width = np.abs(error[judged]), (c.high_s[judged] - c.low_s[judged]) / found
    inside = (measured >= c.low_s[judged]) & (measured <= c.high_s[judged])
    return Score(
        n=int(judged.sum()), mape_percent=_percent(away, np.mean), mdape_percent=_percent(away, np.median),
        p90_percent=_percent(away, _ninetieth), bias_percent=_percent(error[judged], np.mean),
        spearman=rank_correlation(found, measured), coverage_percent=_percent(inside, np.mean),
        width_percent=_percent(width, np.median), n_set_aside=int((known & ~c.short & c.set_aside).sum()),
        n_short=int((known & c.short).sum()), short_mape_percent=_percent(np.abs(error[known & c.short]), np.mean),
        unpredicted=int((~known).sum()),
        roofline_mape_percent=_percent(np.abs(c.roofline_s[judged] / measured - 1.0), np.mean),
        mape_all_percent=_percent(np.abs(error[known]), np.mean),
    )  # fmt: skip


def relative_error(compared: Comparison) -> Numbers:
    """(predicted - measured) / measured; NaN without a prediction."""
    found: Numbers = compared.predicted_s / compared.measured_s - 1.0
    return found


def by_group(compared: Comparison, by: Sequence[str] = DEFAULT_BY) -> list[tuple[dict[str, Any], Score]]:
    """(the group's values by column, its score), in the order of the file. `by`: names of BY."""
    columns = [grouping_column(compared, name) for name in by]
    firsts, number = group_ids(columns)
    out = []
    for place, first in enumerate(firsts.tolist()):
        values = {name: plain(column[first]) for name, column in zip(by, columns, strict=True)}
        out.append((values, score(compared, number == place)))
    return out


def grouping_column(compared: Comparison, name: str) -> Column:
    """A column to group by. `group`: query heads per KV head; `windowed`: yes or no; `length`, `batches`: in steps."""
    m = compared.measured
    if name in COLUMNS:
        return m.column(name)
    if name in OWN_COLUMNS:
        found: Text = getattr(compared, name)
        return found
    if name == "group":
        return m.heads_q / m.heads_kv
    if name == "windowed":
        return np.where(m.window > 0, "yes", "no")
    return _steps(m.seq_kv, LENGTH_EDGES) if name == "length" else _steps(m.batch, BATCH_EDGES)


def worst(compared: Comparison, most: int = 10) -> Places:
    """Positions of the judged rows that are farthest off, in log time: twice too long is as bad as half."""
    where = np.flatnonzero(compared.judged)
    far = np.abs(np.log(compared.predicted_s[where] / compared.measured_s[where]))
    return where[np.argsort(-far, kind="stable")[:most]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Neighbouring cases that share an error. `share`: percent of all error in the comparison that stands in it."""

    values: dict[str, Any]
    score: Score
    share_percent: float


def clusters(compared: Comparison, most: int = 10, by: Sequence[str] = CLUSTER_BY, floor: float = 0.04) -> list[Cluster]:
    """The groups that hold most of the error beyond `floor` (the noise of the tables), the largest first."""
    kept = compared.take(compared.judged)
    if not len(kept.measured):
        return []
    columns = [grouping_column(kept, name) for name in by]
    firsts, number = group_ids(columns)
    away = np.abs(relative_error(kept))
    excess = np.bincount(number, np.maximum(away - floor, 0.0), minlength=len(firsts))
    order = np.argsort(-excess, kind="stable")[:most]
    return [
        Cluster({n: plain(column[firsts[g]]) for n, column in zip(by, columns, strict=True)}, score(kept, number == g),
                float(100.0 * away[number == g].sum() / max(away.sum(), 1e-300)))
        for g in order.tolist()
    ]  # fmt: skip


def rank_correlation(a: Numbers, b: Numbers) -> float | None:
    """Spearman's: the correlation of average ranks. None for fewer than three values or where all are equal."""
    from scipy.stats import rankdata  # half a second that only a comparison needs

    if len(a) < 3 or np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _percent(values: Numbers | Flags, statistic: Any) -> float | None:
    return float(100.0 * statistic(values)) if len(values) else None


def _ninetieth(values: Numbers) -> float:
    return float(np.percentile(values, 90))


def _steps(values: Numbers, edges: tuple[int, ...]) -> Text:
    """`1`, `2-64`, ..., `16385-`: which step each value falls into."""
    starts = (1, *edges)
    names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(starts, edges, strict=False)] + [f"{edges[-1]}-"]
    found: Text = np.array(names)[np.digitize(values, edges)]
    return found


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's, whole numbers as such."""
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain
