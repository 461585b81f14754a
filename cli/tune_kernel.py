"""`einsight tune KERNEL` on the GPU at hand, and one set of builds for many shapes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from einsight.cli import INTERRUPTED
from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.cli.tune_predict import Asked, catalogued, gpu_of, on
from einsight.cli.tune_search import Live, finish, search
from einsight.kernels.builds import config_of, told
from einsight.kernels.lookup import Entry
from einsight.kernels.resources import source_hash
from einsight.kernels.spaces import Config
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.units import format_time
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads
from einsight.tuner import gpu as devices
from einsight.tuner import prior as priors
from einsight.tuner.export import write_lookup
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.portfolio import Portfolio, portfolio
from einsight.tuner.problem import Problem, problem_of, written
from einsight.tuner.record import Environment, Measurement, Status
from einsight.tuner.store import Store
from einsight.tuner.tune import INTERRUPTED as ENDED_BY_USER
from einsight.tuner.tune import Tuned


def dispatch(
    asked: Asked | None, target: str | None, predict_only: bool, file: Path | None, keep: int, live: Live, as_json: bool
) -> None:
    """A search on the GPU at hand, for one workload or for those of a file."""
    if asked is None:
        raise CommandError("tune", "no kernel", "a kernel such as `attention`, or --replay FILE")
    if target is not None and not predict_only:
        raise CommandError("--target", f"{target} for a search", "--predict-only beside it: a search measures the GPU at hand")
    if file is not None:
        return shapes(asked.kernel, file, target, keep, predict_only, live, as_json)
    return measured(asked.kernel, asked.workload, live, as_json)


def measured(kernel: str, workload: Workload, live: Live, as_json: bool) -> None:
    """The search on the GPU at hand, the simulator as its prior."""
    here = gpu_here()
    return finish(_search(kernel, workload, live, here), live, as_json)


def gpu_here() -> Environment:
    try:
        return environment()
    except NoGpuError as error:
        raise CommandError(
            "tune", f"no GPU to measure on ({error})",
            "a CUDA GPU; without one: --predict-only --target NAME ranks by the simulator, --replay FILE searches a record",
        ) from None  # fmt: skip


def _search(kernel: str, workload: Workload, live: Live, here: Environment) -> Tuned:
    problem = problem_of(catalogued(kernel), workload, here.capability)
    prior = _believed(problem, live, here)
    with devices.device(problem, here) as device:
        title = f"{kernel} {workload.name}"
        return search(device.space, device, device.subject, prior, live, title, workload.key)


def _believed(problem: Problem, live: Live, here: Environment) -> priors.Floats | None:
    """The simulator's times; none where that is asked for, or where no profile knows the GPU, which is told."""
    if live.prior not in (None, "none", "simulator"):
        raise CommandError("--prior", live.prior, "none or simulator on a GPU")
    if live.prior == "none":
        return None
    target = find_device(here.device)
    hardware = load_hardware(target) if target else None
    if isinstance(hardware, Gpu):
        return priors.simulated(problem, hardware)
    if live.prior == "simulator":
        raise CommandError("--prior", f"simulator on {here.device}", "a GPU that a profile lists (`einsight hardware`)")
    warnings.warn(f"no profile lists {here.device}: the search begins without the simulator", stacklevel=2)
    return None


def _measured_on_all(kernel: str, workloads: Sequence[Workload], live: Live, here: Environment) -> list[dict[Config, float]]:
    """Times by configuration for every shape: its own search, then the winners of the other shapes too."""
    found: list[Tuned] = []
    for workload in workloads:
        found.append(_search(kernel, workload, live, here))
        if found[-1].why == ENDED_BY_USER:
            print_lines([f"interrupted after {len(found) - 1} of {len(workloads)} shapes; with --record, run again to go on"])
            raise typer.Exit(INTERRUPTED)
    winners = [dict(t.best.configuration) for t in found if t.best is not None]
    tables = []
    for workload, tuned in zip(workloads, found, strict=True):
        measured = list(tuned.measured)
        with devices.device(problem_of(catalogued(kernel), workload, here.capability), here) as device:
            store = Store(device.subject, live.record)
            for row in {r for w in winners if (r := device.space.row(w)) is not None}:
                configuration = device.space.configuration(row)
                if all(dict(m.configuration) != configuration for m in measured):
                    measured.append(device.measure(row, device.prepare(row)))
                    store.add(measured[-1])
        tables.append(_times(measured))
    return tables


def shapes(kernel: str, file: Path, target: str | None, keep: int, predict_only: bool, live: Live, as_json: bool) -> None:
    """A few configurations for all workloads of a file: measured, or with --predict-only by the simulator."""
    if live.output is not None and live.output.kind != "lookup":
        raise CommandError("--as", f"{live.output.kind} with --shapes", "lookup: one entry per shape")
    workloads = load_workloads(file)
    tables: list[dict[Config, float]]
    if predict_only:
        gpu = gpu_of(target)
        problems = [on(kernel, w, gpu) for w in workloads]
        tables = [dict(zip(p.configurations(), np.exp(priors.simulated(p, gpu)), strict=True)) for p in problems]
        on_devices: Sequence[str] = gpu.devices
    else:
        here = gpu_here()
        tables, on_devices = _measured_on_all(kernel, workloads, live, here), (here.device,)
    columns = sorted({c for table in tables for c in table})
    times = np.array([[table.get(c, np.nan) for c in columns] for table in tables])
    chosen = portfolio(times, keep, names=[w.name for w in workloads])
    if live.output is not None:
        best = [(w, columns[c], float(times[s, c])) for s, (w, c) in enumerate(zip(workloads, chosen.chosen, strict=True))]
        write_lookup(live.output.file, kernel, _entries(kernel, best, on_devices, predict_only))
    if as_json:
        return print_json(_portfolio_json(kernel, workloads, columns, chosen))
    _print_portfolio([w.name for w in workloads], columns, chosen, times)
    if live.output is not None:
        print_lines([f"written: {live.output.file} ({len(workloads)} shapes)"])
    return None


def _portfolio_json(
    kernel: str, workloads: Sequence[Workload], columns: Sequence[Config], chosen: Portfolio
) -> dict[str, Any]:
    return {
        "kernel": kernel, "kept": [str(columns[c]) for c in chosen.kept], "mean_loss": chosen.mean_loss,
        "worst_loss": chosen.worst_loss,
        "dispatch": [
            {"workload": w.name, "sizes": dict(w.sizes), "configuration": str(columns[c]), "loss": loss}
            for w, c, loss in zip(workloads, chosen.chosen, chosen.loss, strict=True)
        ],
    }  # fmt: skip


def _entries(
    kernel: str, best: Sequence[tuple[Workload, Config, float]], names: Sequence[str], predicted: bool
) -> list[Entry]:
    source = source_hash(catalogued(kernel).module)
    return [Entry(name, written(w), told(c), t, source, predicted) for w, c, t in best for name in names]


def _times(found: Sequence[Measurement]) -> dict[Config, float]:
    return {config_of(m.configuration): m.time_s for m in found if m.status is Status.OK}


def _print_portfolio(names: Sequence[str], columns: Sequence[Config], chosen: Portfolio, times: priors.Floats) -> None:
    rows = [
        (name, str(columns[c]), format_time(float(times[s, c])), f"{100 * loss:.1f} %")
        for s, (name, c, loss) in enumerate(zip(names, chosen.chosen, chosen.loss, strict=True))
    ]
    losses = f"mean loss {100 * chosen.mean_loss:.1f} %, worst {100 * chosen.worst_loss:.1f} %"
    title = f"{len(chosen.kept)} configurations for {len(names)} shapes; {losses}"
    print_table(title, ("shape", "configuration", "time", "behind its best"), rows, right=("time", "behind its best"))
