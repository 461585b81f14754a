"""`einsight tune KERNEL`: our kernels: why a configuration is valid, the simulator's ranking, the GPU, many shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.cli.tune_search import Live, finish, search
from einsight.cli.workload import Shape
from einsight.kernels.catalog import KERNELS
from einsight.kernels.spaces import Config, excluded
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.units import format_time
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads
from einsight.tuner import gpu as devices
from einsight.tuner import prior as priors
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.portfolio import Portfolio, portfolio
from einsight.tuner.record import Environment, Measurement, Status
from einsight.tuner.space import Problem, Space
from einsight.tuner.store import Store
from einsight.tuner.tune import Tuned

SHOWN = 12


def dispatch(
    kernel: str | None, shape: Shape, target: str | None, explained: str | None, predict_only: bool, file: Path | None,
    keep: int, live: Live, as_json: bool,
) -> None:  # fmt: skip
    if kernel is None:
        raise CommandError("tune", "no kernel", "a kernel such as `attention`, or --replay FILE")
    if file is not None:
        return shapes(kernel, file, target, keep, predict_only, live, as_json)
    if explained is not None:
        return explain(kernel, shape.workload(), target, explained, as_json)
    if predict_only:
        return predicted(kernel, shape.workload(), target, as_json)
    return measured(kernel, shape.workload(), live, as_json)


def problem_of(kernel: str, workload: Workload, gpu: Gpu) -> Problem:
    if kernel not in KERNELS:
        raise CommandError("tune", kernel, f"a kernel: {', '.join(sorted(KERNELS))}")
    major, _, minor = gpu.architecture.compute_capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise CommandError("--target", gpu.name, "a CUDA GPU; its resource limits are what makes a configuration valid")
    return Problem(KERNELS[kernel], workload, 10 * int(major) + int(minor))


def gpu_of(target: str | None) -> Gpu:
    """The profile named, else that of the GPU at hand."""
    if target is None:
        try:
            seen = environment().device
        except NoGpuError as error:
            raise CommandError("--target", f"nothing, and {error}", "a profile such as --target h100-sxm") from None
        target = find_device(seen)
        if target is None:
            raise CommandError("--target", f"nothing, and no profile lists {seen}", "a profile such as --target h100-sxm")
    hardware = load_hardware(target)
    if not isinstance(hardware, Gpu):
        raise CommandError("--target", target, "a GPU; kernels do not run on an array")
    return hardware


def explain(kernel: str, workload: Workload, target: str | None, text: str, as_json: bool) -> None:
    """Whether one configuration is in the space, and why not; with what it occupies."""
    gpu = gpu_of(target)
    problem = problem_of(kernel, workload, gpu)
    why = problem.why_excluded(text)
    candidates = list(problem.kernel.space.candidates())
    valid = problem.configurations()
    if as_json:
        return print_json({"configuration": text, "valid": not why, "reason": why, "candidates": len(candidates),
                           "configurations": len(valid)})  # fmt: skip
    title = f"{workload.name} on {gpu.name}: {len(valid)} of {len(candidates)} candidates are valid"
    print_lines([f"{text}: {'out: ' + why if why else 'in'}", title])
    reasons = Counter(_kind(excluded(problem.heads, c, problem.limits, problem.rows)) for c in candidates)
    print_lines(f"  {count:4} {reason or 'valid'}" for reason, count in reasons.most_common())
    return None


def _kind(reason: str) -> str:
    """A reason without its numbers, so that reasons of one kind are counted together."""
    return " ".join(word for word in reason.partition("(")[0].split() if not word.isdigit())


def predicted(kernel: str, workload: Workload, target: str | None, as_json: bool) -> None:
    """The space ranked by the simulator."""
    gpu = gpu_of(target)
    problem = problem_of(kernel, workload, gpu)
    space, times = problem.space(), np.exp(priors.simulated(problem, gpu))
    order = np.argsort(times, kind="stable")
    if as_json:
        return print_json({
            "kernel": kernel, "workload": workload.name, "key": workload.key, "target": gpu.name,
            "ranking": [{"configuration": space.configuration(int(r)), "time_s": float(times[r])} for r in order],
        })  # fmt: skip
    rows = [
        (_text(space, int(r)), format_time(float(times[r])), f"{100 * (times[r] / times[order[0]] - 1):.1f} %")
        for r in order[:SHOWN]
    ]
    title = f"{workload.name} on {gpu.name}: {len(space)} configurations of {kernel}, by the simulator (family {priors.FAMILY})"
    return print_table(title, ("configuration", "predicted", "behind"), rows, right=("predicted", "behind"))


def _text(space: Space, row: int) -> str:
    return ", ".join(f"{name}={value}" for name, value in space.configuration(row).items())


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
    problem = _here(kernel, workload, here)
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


def _here(kernel: str, workload: Workload, here: Environment) -> Problem:
    if kernel not in KERNELS:
        raise CommandError("tune", kernel, f"a kernel: {', '.join(sorted(KERNELS))}")
    return Problem(KERNELS[kernel], workload, here.capability)


def _measured_on_all(kernel: str, workloads: Sequence[Workload], live: Live, here: Environment) -> list[dict[str, float]]:
    """Times by configuration for every shape: its own search, then the winners of the other shapes too."""
    found = [_search(kernel, w, live, here) for w in workloads]
    winners = [dict(t.best.configuration) for t in found if t.best is not None]
    tables = []
    for workload, tuned in zip(workloads, found, strict=True):
        measured = list(tuned.measured)
        with devices.device(_here(kernel, workload, here), here) as device:
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
        problems = [problem_of(kernel, w, gpu) for w in workloads]
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
    return {str(Config(**m.configuration)): m.time_s for m in found if m.status is Status.OK}


def _print_portfolio(names: Sequence[str], columns: Sequence[str], chosen: Portfolio, times: priors.Floats) -> None:
    rows = [
        (name, columns[c], format_time(float(times[s, c])), f"{100 * loss:.1f} %")
        for s, (name, c, loss) in enumerate(zip(names, chosen.chosen, chosen.loss, strict=True))
    ]
    losses = f"mean loss {100 * chosen.mean_loss:.1f} %, worst {100 * chosen.worst_loss:.1f} %"
    title = f"{len(chosen.kept)} configurations for {len(names)} shapes; {losses}"
    print_table(title, ("shape", "configuration", "time", "behind its best"), rows, right=("time", "behind its best"))
