"""`einsight tune KERNEL` on the GPU at hand, and one set of builds for many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from einsight.cli.output import print_json, print_table
from einsight.cli.parsing import CommandError
from einsight.cli.tune_predict import Asked, catalogued, gpu_of, on
from einsight.cli.tune_search import Live, finish, search
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.units import format_time
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads
from einsight.tuner import gpu as devices
from einsight.tuner import prior as priors
from einsight.tuner.builds import config_of
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.portfolio import Portfolio, portfolio
from einsight.tuner.problem import problem_of
from einsight.tuner.record import Environment, Measurement, Status
from einsight.tuner.store import Store
from einsight.tuner.tune import Tuned


def dispatch(
    asked: Asked, target: str | None, predict_only: bool, file: Path | None, keep: int, live: Live, as_json: bool
) -> None:
    """A search on the GPU at hand, for one workload or for those of a file."""
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
    target = find_device(here.device)
    hardware = load_hardware(target) if target else None
    prior = None
    if live.prior in (None, "simulator") and isinstance(hardware, Gpu):
        prior = priors.simulated(problem, hardware)
    elif live.prior not in (None, "none", "simulator"):
        raise CommandError("--prior", str(live.prior), "none or simulator on a GPU")
    with devices.device(problem, here) as device:
        title = f"{kernel} {workload.name}"
        return search(device.space, device, device.subject, prior, live, title, workload.key)


def _measured_on_all(kernel: str, workloads: Sequence[Workload], live: Live, here: Environment) -> list[dict[str, float]]:
    """Times by configuration for every shape: its own search, then the winners of the other shapes too."""
    found = [_search(kernel, w, live, here) for w in workloads]
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
    workloads = load_workloads(file)
    names = [w.name for w in workloads]
    if predict_only:
        gpu = gpu_of(target)
        problems = [on(kernel, w, gpu) for w in workloads]
        tables = [dict(zip(map(str, p.configurations()), np.exp(priors.simulated(p, gpu)), strict=True)) for p in problems]
    else:
        tables = _measured_on_all(kernel, workloads, live, gpu_here())
    columns = sorted({c for table in tables for c in table})
    times = np.array([[table.get(c, np.nan) for c in columns] for table in tables])
    chosen = portfolio(times, keep, names=names)
    document = {
        "kernel": kernel, "kept": [columns[c] for c in chosen.kept], "mean_loss": chosen.mean_loss,
        "worst_loss": chosen.worst_loss,
        "dispatch": [
            {"workload": w.name, "sizes": dict(w.sizes), "configuration": columns[c], "loss": loss}
            for w, c, loss in zip(workloads, chosen.chosen, chosen.loss, strict=True)
        ],
    }  # fmt: skip
    return print_json(document) if as_json else _print_portfolio(names, columns, chosen, times)


def _times(found: Sequence[Measurement]) -> dict[str, float]:
    return {str(config_of(m.configuration)): m.time_s for m in found if m.status is Status.OK}


def _print_portfolio(names: Sequence[str], columns: Sequence[str], chosen: Portfolio, times: priors.Floats) -> None:
    rows = [
        (name, columns[c], format_time(float(times[s, c])), f"{100 * loss:.1f} %")
        for s, (name, c, loss) in enumerate(zip(names, chosen.chosen, chosen.loss, strict=True))
    ]
    losses = f"mean loss {100 * chosen.mean_loss:.1f} %, worst {100 * chosen.worst_loss:.1f} %"
    title = f"{len(chosen.kept)} configurations for {len(names)} shapes; {losses}"
    print_table(title, ("shape", "configuration", "time", "behind its best"), rows, right=("time", "behind its best"))
