"""A workload on a spatial array, put into words: the `Prediction` of `predict` for targets of kind `array`."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from einsight.einsum.counts import count
from einsight.einsum.passes import analyse
from einsight.sim.array import Run, run
from einsight.sim.array_case import IllegalArray
from einsight.sim.array_design import Design, load_design, names
from einsight.sim.array_hardware import Array
from einsight.sim.columns import summed_over_queries
from einsight.sim.mask import DENSE
from einsight.sim.prediction import Bound, Prediction
from einsight.sim.units import format_si
from einsight.sim.work import KEY
from einsight.sim.workload import Workload

BASELINES = (("over_dense_unfused", "unfused"), ("over_dense_fused", ""))
"""Speedups are measured against dense attention of the same sizes on the same array: by the unfused design, and by the
array's own (""), each with the cascade that the design was published with."""


def predict_array(workload: Workload, array: Array, family: str | None) -> Prediction:
    """What the workload costs on the array by a design (default: the array's own for the phase).

    Raises SpecError for an unknown design, IllegalArray where the workload cannot run.
    """
    if summed := summed_over_queries(workload.composed(masked=False)):
        raise IllegalArray(
            f"{workload.base.name} sums over queries into {', '.join(summed)}; the designs of arrays hold queries and walk"
            " keys. A GPU target has a model for it"
        )
    design = load_design(design_name(workload, array, family))
    return _worded(workload, array, design, run(workload, array, design))


def design_name(workload: Workload, array: Array, family: str | None) -> str:
    """The design that was asked for; a workload file's family only if it is one (it may be of a GPU)."""
    own = workload.family if workload.family in names() else None
    return family or own or array.family[workload.phase]


def array_times(workload: Workload, array: Array, family: str | None, sizes: list[dict[str, int]]) -> list[Bound]:
    """Limiting resource and time at each of several sizes, for sweeps."""
    found = (predict_array(replace(workload, sizes=s), array, family) for s in sizes)
    return [Bound(p.bound.name, p.time_s, p.bound.because) for p in found]


def _worded(workload: Workload, array: Array, design: Design, found: Run) -> Prediction:
    bounds = _bounds(array, found)
    matmul, by_class = _operations(found)
    energy = sum(found.energy_pj.values())
    parts = ", ".join(f"{name} {100 * e / energy:.3g} %" for name, e in found.energy_pj.items())
    peak = 2 * array.array_2d.elements * array.clock_hz.value
    return Prediction(
        workload=workload.name,
        key=workload.key,
        target=array.name,
        family=design.name,
        cascade=workload.base.name,
        time_s=found.time_s,
        time_low_s=min(found.time_s, max(b.time_s for b in bounds)),
        time_high_s=max(found.time_s, found.bounds_s["DRAM"] + found.bounds_s["2-D array"] + found.bounds_s["1-D array"]),
        bound=bounds[0],
        bounds=bounds,
        flops_matmul=matmul,
        flops_by_class=by_class,
        bytes_by_memory={"DRAM": found.dram_bytes, "buffer": found.buffer_bytes},
        passes=analyse(found.case.flow.cascade, KEY).passes,
        peak_flops_per_s=peak,
        speedup=_speedups(workload, array, found.time_s),
        mapping=_mapping(found),
        assumptions=_assumptions(workload, found),
        energy_pj=energy,
        energy_note=parts,
        cycles=found.cycles,
        utilisation={"2-D array": found.busy["2d"], "1-D array": found.busy["1d"], **found.busy_by},
        area_mm2=sum(found.areas_um2.values()) * 1e-6,
        energy_by_component_pj=found.energy_pj,
    )


def _bounds(array: Array, found: Run) -> tuple[Bound, ...]:
    """Every resource with the time it alone needs, the largest first."""
    clock = f"{array.clock_hz.text} ({array.clock_hz.kind})"
    at = {"2-D array": found.case.flow.on("2d"), "1-D array": found.case.flow.on("1d")}
    out = []
    for name, seconds in found.bounds_s.items():
        cycles = seconds * array.clock_hz.value
        if name in at:
            most = max(at[name], key=lambda s: found.cycles[s.name], default=None)
            why = f"{name}: {cycles:,.0f} cycles at {clock}"
            why += f", most of them {most.name} ({100 * found.cycles[most.name] / cycles:.3g} %)" if most and cycles else ""
        elif name == "DRAM":
            rate = array.dram_bytes_per_s
            why = f"DRAM: {format_si(found.dram_bytes, 'B')} at {rate.text} ({rate.kind})"
        elif name == "schedule":
            why = f"schedule: {cycles:,.0f} cycles at {clock} in {len(found.epochs)} epochs, in each of which one array waits"
        else:
            why = f"{name}: {format_si(found.buffer_bytes, 'B')} through {array.buffer_ports.text} ports at {clock}"
        out.append(Bound(name, seconds, why))
    return tuple(sorted((b for b in out if b.time_s > 0), key=lambda b: -b.time_s))


def _operations(found: Run) -> tuple[float, dict[str, float]]:
    """(matmul FLOPs, applications per operator class) at the points that exist."""
    case = found.case
    counted = count(case.flow.cascade)
    share = {s.name: case.existing(s) for s in case.flow.stages}
    matmul, by_class = 0.0, dict[str, float]()
    for entry in counted:
        number = float(entry.formula.evaluate(case.sizes)) * share.get(entry.einsum, 1.0)
        by_class[entry.klass] = by_class.get(entry.klass, 0.0) + number
        matmul += 2.0 * number * entry.matmul
    return matmul, by_class


def _speedups(workload: Workload, array: Array, time: float) -> dict[str, float]:
    dense = replace(workload, mask=DENSE, bias=(), family=None)
    times = {n: _baseline(dense, array, load_design(design or array.family[workload.phase])) for n, design in BASELINES}
    return {name: found / time for name, found in times.items() if found is not None}


@lru_cache(maxsize=4096)
def _baseline(workload: Workload, array: Array, design: Design) -> float | None:
    """None where the array cannot run the baseline."""
    try:
        return run(replace(workload, cascade=design.cascade), array, design).time_s
    except IllegalArray:
        return None


def _mapping(found: Run) -> dict[str, object]:
    case = found.case
    rows, columns = case.array.array_2d.sides
    return {
        "tile": f"{rows} keys x {columns} queries", "dataflow": case.residency.dataflow,
        "query_rows_per_block": case.block_rows, "query_blocks": case.row_blocks,
        "epochs": " / ".join("+".join(e.einsums) for e in found.epochs),
    }  # fmt: skip


def _assumptions(workload: Workload, found: Run) -> tuple[str, ...]:
    case, technology = found.case, found.case.array.technology
    notes = [
        f"energies and areas: {technology.name}",
        "full to no overlap: from the slowest resource alone to arrays and DRAM one after another; not an interval of measured"
        " times",
    ]
    if case.spilled or case.live_spilled:
        lost = max(case.spilled, case.live_spilled)
        notes.append(f"{100 * lost:.3g} % of the tensors that must stay on chip do not fit and move through DRAM")
    if not workload.canonical_mask.is_dense:
        notes.append("the mask's predicate costs no cycles: addresses decide which tiles run and which elements idle")
    if case.sizes["J"] > 1:
        notes.append(f"the {case.sizes['J']} query heads of a KV head share the columns of the 2-D array")
    if not case.limit_buffer:
        notes.append("the buffer's ports never limit")
    return tuple(notes)
