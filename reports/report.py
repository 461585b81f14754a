"""The report: sections, each a function from the results to its part of the page. A new section is a new function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einsight.reports import html
from einsight.reports.compare import Comparison
from einsight.reports.figures import comparison_figure, roofline_figure, svg
from einsight.reports.html import Section
from einsight.reports.outliers import RULE
from einsight.reports.roofline import roofline
from einsight.reports.scores import DEFAULT_BY, HEADS, by_group, score
from einsight.reports.sources import quantities
from einsight.sim.hardware import Gpu
from einsight.sim.prediction import MODEL_VERSION, Prediction, side_by_side
from einsight.sim.units import format_time

EXAMPLE_WORKLOADS = Path(__file__).parent / "templates" / "workloads.yaml"


@dataclass(frozen=True, slots=True)
class Results:
    """What a report shows: predictions, and the profile and family of each by the names that they carry."""

    predictions: tuple[Prediction, ...]
    hardware: Mapping[str, Any]
    families: Mapping[str, Any]
    compared: Comparison | None = None  # measured cases beside their predictions

    def by_workload(self) -> list[tuple[Prediction, ...]]:
        """The predictions of each workload, one per target."""
        names = dict.fromkeys((p.workload, p.key) for p in self.predictions)
        return [tuple(p for p in self.predictions if (p.workload, p.key) == name) for name in names]


def report(results: Results, sections: tuple[Callable[[Results], Section | None], ...] | None = None) -> str:
    """The page as HTML. A section that has nothing to show gives None and is left out."""
    made = (make(results) for make in (SECTIONS if sections is None else sections))
    lead = f"{len(results.predictions)} predictions on {len(results.hardware)} targets, model {MODEL_VERSION}"
    return html.page("einsight report", lead, [s for s in made if s is not None])


def prediction_section(results: Results) -> Section | None:
    """One table per workload, a column per target: what `Prediction.rows` says."""
    body = ""
    for column in results.by_workload():
        body += html.heading(f"{column[0].workload} ({column[0].cascade})")
        body += html.table(("", *(p.target for p in column)), side_by_side(column))
    assumed = dict.fromkeys(f"{p.target}, {p.family}: {note}" for p in results.predictions for note in p.assumptions)
    body += html.heading("Assumptions") + html.listing(assumed) if assumed else ""
    return Section("predictions", "Predictions", body) if body else None


def bounds_section(results: Results) -> Section | None:
    """Every resource's own time: what would limit next."""
    rows = [
        (p.workload, p.target, b.name, format_time(b.time_s), f"{100 * b.time_s / p.time_s:.3g} %", b.because)
        for p in results.predictions
        for b in p.bounds
    ]
    if not rows:
        return None
    lead = "The time that each resource alone would need; the prediction adds what does not overlap."
    columns = ("workload", "target", "resource", "time", "of the whole", "because")
    return Section("bounds", "Bounds", html.paragraph(lead) + html.table(columns, rows, numbers=(3, 4)))


def roofline_section(results: Results) -> Section | None:
    """A hierarchical roofline per GPU."""
    gpus = [h for h in results.hardware.values() if isinstance(h, Gpu)]
    if not gpus:
        return None
    lead = (
        "Slopes are memories, dashed lines are units. Every workload stands once per memory, at its matmul FLOP per"
        " byte of that memory and the FLOP/s it is predicted to reach."
    )
    pictures = [html.picture(svg(roofline_figure([roofline(g, results.predictions)]), g.name), g.title) for g in gpus]
    return Section("rooflines", "Rooflines", html.paragraph(lead) + "".join(pictures))


def passes_section(results: Results) -> Section | None:
    """How often each cascade must walk the keys."""
    found = {(p.workload, p.cascade): p.passes for p in results.predictions}
    tensors = list(dict.fromkeys(tensor for passes in found.values() for tensor in passes))
    if not tensors:
        return None
    lead = "Passes are a property of the cascade: how many times every mapping must traverse the tensor's key rank."
    rows = [(w, c, *(str(passes.get(t, "")) for t in tensors)) for (w, c), passes in found.items()]
    columns = ("workload", "cascade", *tensors)
    places = range(2, len(columns))
    return Section("passes", "Passes", html.paragraph(lead) + html.table(columns, rows, numbers=places))


def comparison_section(results: Results) -> Section | None:
    """Predicted against measured, where measured cases were given."""
    compared = results.compared
    if compared is None or not compared.judged.any():
        return None
    overall = score(compared)
    lead = (
        f"Error in percent of the measured time over {overall.n} cases of at least 15 us, the plain roofline's mean error "
        f"beside. Apart: {overall.n_short} shorter ones, {overall.n_set_aside} set aside as noise ({RULE}), "
        f"{overall.unpredicted} without a prediction."
    )
    groups = [(", ".join(map(str, values.values())), *found.cells()) for values, found in by_group(compared)]
    table = html.table((", ".join(DEFAULT_BY), *HEADS), [*groups, ("all", *overall.cells())], numbers=range(1, len(HEADS) + 1))
    drawing = html.picture(svg(comparison_figure(compared), "comparison"), "Darker: more cases. 1 is right.")
    missing = html.listing(f"{u.rows} rows: {u.reason}" for u in compared.unpredicted) if compared.unpredicted else ""
    return Section("comparison", "Predicted against measured", html.paragraph(lead) + drawing + table + missing)


def sources_section(results: Results) -> Section | None:
    """Every number of the profiles and families in use, with its kind and source."""
    body = ""
    for name, used in (*results.hardware.items(), *results.families.items()):
        rows = [(place, q.text, q.kind, q.source) for place, q in quantities(used)]
        body += html.heading(name) + html.table(("quantity", "value", "kind", "source"), rows)
    return Section("sources", "Where each number comes from", body) if body else None


SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    prediction_section, roofline_section, bounds_section, passes_section, comparison_section, sources_section,
)  # fmt: skip
