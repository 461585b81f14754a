"""The report: sections, each a function from the results to its part of the page. A new section is a new function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einsight.reports import html
from einsight.reports.figures import roofline_figure, svg
from einsight.reports.html import Section
from einsight.reports.numbers import interval, percent, times
from einsight.reports.roofline import roofline
from einsight.reports.sources import quantities
from einsight.sim.hardware import Gpu
from einsight.sim.prediction import MODEL_VERSION, Prediction
from einsight.sim.units import format_si, format_time

EXAMPLE_WORKLOADS = Path(__file__).parent / "templates" / "workloads.yaml"


@dataclass(frozen=True, slots=True)
class Results:
    """What a report shows: predictions, and the profile of every target that they name."""

    predictions: tuple[Prediction, ...]
    hardware: Mapping[str, Any]


def report(results: Results, sections: tuple[Callable[[Results], Section | None], ...] | None = None) -> str:
    """The page as HTML. A section that has nothing to show gives None and is left out."""
    made = (make(results) for make in (SECTIONS if sections is None else sections))
    lead = f"{len(results.predictions)} predictions on {len(results.hardware)} targets, model {MODEL_VERSION}"
    return html.page("einsight report", lead, [s for s in made if s is not None])


def prediction_section(results: Results) -> Section | None:
    """Time, what limits it and how far from the peak, per workload and target."""
    columns = ("workload", "target", "family", "time (90 %)", "limited by", "because", "TFLOP/s", "of peak", "FLOP/B")
    rows = [
        (p.workload, p.target, p.family, interval(p.time_s, p.time_low_s, p.time_high_s), p.bound.name,
         p.bound.because, f"{p.tflops:.3g}", percent(p.fraction_of_peak), f"{p.intensity:.3g}")
        for p in results.predictions
    ]  # fmt: skip
    traffic = [(p.workload, p.target, *_amounts(p)) for p in results.predictions]
    assumed = dict.fromkeys(a for p in results.predictions for a in p.assumptions)
    body = html.table(columns, rows, numbers=(3, 6, 7, 8))
    body += html.heading("Work, traffic and speedup")
    body += html.table(("workload", "target", "matmul FLOP", "traffic", "speedup over", "energy"), traffic)
    body += html.heading("Assumptions") + html.listing(assumed) if assumed else ""
    return Section("predictions", "Predictions", body)


def _amounts(p: Prediction) -> tuple[str, str, str, str]:
    energy = f"{format_si(p.energy_pj * 1e-12, 'J')}, {p.energy_note}" if p.energy_pj is not None else ""
    return (
        format_si(p.flops_matmul, "FLOP"),
        ", ".join(f"{memory} {format_si(moved, 'B')}" for memory, moved in p.bytes_by_memory.items()),
        ", ".join(f"{base.replace('_', ' ')} {times(ratio)}" for base, ratio in p.speedup.items()),
        energy,
    )


def bounds_section(results: Results) -> Section | None:
    """Every resource's own time: what would limit next."""
    rows = [
        (p.workload, p.target, b.name, format_time(b.time_s), percent(b.time_s / p.time_s), b.because)
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


def sources_section(results: Results) -> Section | None:
    """Every number of the profiles in use, with its kind and source."""
    body = ""
    for name, hardware in results.hardware.items():
        rows = [(place, q.text, q.kind, q.source) for place, q in quantities(hardware)]
        body += html.heading(name) + html.table(("quantity", "value", "kind", "source"), rows)
    return Section("sources", "Where each number comes from", body) if body else None


SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    prediction_section, roofline_section, bounds_section, passes_section, sources_section,
)  # fmt: skip
