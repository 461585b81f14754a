"""The tuner on the CUDA GPU at hand, at most 16 measurements per shape, judged by the exhaustive sweep of the same shapes.

    PYTHONPATH=.src python3 benchmarks/gpu_sweep.py           (first, about 8 minutes: every valid configuration)
    PYTHONPATH=.src python3 benchmarks/gpu_tune.py            (within 9 minutes; needs torch, triton, numpy, scipy,
                                                               pyyaml, threadpoolctl)
    PYTHONPATH=.src python3 benchmarks/gpu_tune.py --dry-run  (no GPU: what would be measured first)

Shapes: those of the sweep. Bars: what the tuner chose is within 2 % of the sweep's best, by the sweep's own times; and the
first 8 in the simulator's order hold a configuration within 3 % of it. Optuna is not needed: one process, no shared study;
everything else is what `einsight tune` runs. Stopped at any moment, the next run goes on. Exit code 0: both bars are met
for every shape; 1: one is missed, or not everything was run; 2: no GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gpu_sweep import RACE_SWEEP
from sweep_cases import KERNEL, SWEPT, Case

from einsight.kernels.builds import config_of
from einsight.kernels.spaces import LIMITS
from einsight.sim.hardware import Gpu, find_device, load_hardware
from einsight.sim.workload import Workload
from einsight.tuner import gpu as devices
from einsight.tuner import prior as priors
from einsight.tuner.kernel_device import WorkerDevice
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.pool import Floats, Pool, spread_order
from einsight.tuner.problem import Problem, problem_of
from einsight.tuner.record import Environment, Measurement, RecordError, Status, read
from einsight.tuner.store import Store, finalists, ranked

RECORDS = Path(__file__).parents[1] / "reports" / "records"
TRIALS, WITHIN, TOP, TOP_WITHIN = 16, 0.02, 8, 0.03


@dataclass(slots=True)
class Run:
    """One run: where records go, when to stop, what was missed."""

    out: Path
    here: Environment
    gpu: Gpu
    deadline: float
    ahead: int
    missed: list[str] = field(default_factory=list)


def workload_of(case: Case) -> Workload:
    B, H, G, M, N, E, F = case.sizes
    told = case.workload()
    return Workload.attention(
        batch=B, heads=H, kv_heads=G, seq_q=M, seq_kv=N, head_dim=E, value_dim=F, dtype=told["dtype"], mask=told.get("mask"),
        bias=told.get("bias", ()), phase=told["phase"], cache=told["cache"], name=case.name,
    )  # fmt: skip


def search(run: Run, device: WorkerDevice, store: Store, prior: Floats) -> list[Measurement]:
    """At most TRIALS measurements, builds compiled ahead; what the store has is not repeated."""
    pool = Pool(device.space.coordinates, prior, 0, device.space.features)
    found: list[Measurement] = []
    for row in range(len(device.space)):
        known = store.find(device.space.configuration(row))
        if known is not None and len(found) < TRIALS:
            tell(pool, row, known)
            found.append(known)
    waiting: dict[Future[Any], int] = {}
    with ThreadPoolExecutor(run.ahead) as threads:
        while time.monotonic() < run.deadline:
            while len(waiting) < run.ahead and len(found) + len(waiting) < TRIALS:
                row = pool.propose(waiting.values())
                if row is None:
                    break
                waiting[threads.submit(device.prepare, row)] = row
            if not waiting:
                break
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            row = waiting.pop(done := ready.pop())
            measured = device.measure(row, done.result())
            store.add(measured)
            tell(pool, row, measured)
            found.append(measured)
            told = f"{measured.time_s * 1e6:9.1f} us" if measured.status is Status.OK else measured.reason
            print(f"  {len(found):2}  {config_of(measured.configuration)}  {measured.status.value:10} {told}", flush=True)
    return found


def tell(pool: Pool, row: int, measured: Measurement) -> None:
    pool.observe(row, math.log(measured.time_s) if measured.status is Status.OK else None)


def chosen(device: WorkerDevice, found: Sequence[Measurement]) -> Measurement | None:
    """The fastest; where several are close, the fastest of a race in turns."""
    rows = [row for m in finalists(found) if (row := device.space.row(m.configuration)) is not None]
    raced = ranked(device.race(rows)) if rows else []
    return next(iter(raced or ranked(found)), None)


def swept(measurements: Sequence[Measurement], case: Case) -> dict[str, float]:
    """Median over the passes of each configuration's time, by the text of the build."""
    told = case.workload()
    times: dict[str, list[float]] = {}
    for m in measurements:
        if m.kernel == KERNEL.name and m.status is Status.OK and m.sweep < RACE_SWEEP and dict(m.workload) == told:
            times.setdefault(str(config_of(m.configuration)), []).append(m.time_s)
    return {name: statistics.median(taken) for name, taken in times.items()}


def judge(
    case: Case, problem: Problem, prior: Floats, best: Measurement | None, times: Mapping[str, float]
) -> tuple[list[str], str]:
    """(bars that are missed, a line of the table)."""
    if not times:
        return [f"{case.name}: not in the sweep's record"], f"{case.name}: nothing to compare with"
    least = min(times.values())
    configs = problem.configurations()
    first = [str(configs[r]) for r in top_of(problem, prior)]
    top = min((times[name] / least - 1 for name in first if name in times), default=math.inf)
    name = str(config_of(best.configuration)) if best is not None else "none"
    off = times.get(name, math.inf) / least - 1
    missed = [f"{case.name}: {100 * off:.1f} % behind the sweep's best, wanted {100 * WITHIN:.0f}"] if off > WITHIN else []
    if top > TOP_WITHIN:
        missed.append(f"{case.name}: the simulator's first {TOP} are {100 * top:.1f} % behind, wanted {100 * TOP_WITHIN:.0f}")
    line = f"{case.name}: {name}, {100 * off:.1f} % behind the best of {len(times)}"
    return missed, f"{line}; the simulator's first {TOP}: {100 * top:.1f} %"


def top_of(problem: Problem, prior: Floats) -> list[int]:
    """The simulator's first TOP: by predicted time, ties far apart."""
    return spread_order(problem.space().coordinates, prior, TOP, most_alike=len(prior))


def one(run: Run, case: Case, sweep: Sequence[Measurement]) -> str:
    problem = problem_of(KERNEL, workload_of(case), run.here.capability)
    prior = priors.simulated(problem, run.gpu)
    print(f"{case.name}: {len(problem.configurations())} configurations", flush=True)
    with devices.device(problem, run.here) as device:
        store = Store(device.subject, run.out)
        found = search(run, device, store, prior)
        if len(found) < min(TRIALS, len(device.space)):
            run.missed.append(f"{case.name}: {len(found)} of {TRIALS} measurements within the time")
        best = chosen(device, found)
    missed, line = judge(case, problem, prior, best, swept(sweep, case))
    run.missed += missed
    return line


def attempted(run: Run, case: Case, sweep: Sequence[Measurement]) -> str:
    """`one`, or why there is nothing to say: the next shape can still be tuned."""
    try:
        return one(run, case, sweep)
    except Exception as error:
        run.missed.append(f"{case.name}: {type(error).__name__}: {error}")
        return f"{case.name}: not tuned"


def plan(capability: int, gpu: Gpu) -> str:
    lines = [f"compute capability {capability / 10:.1f}, predictions for {gpu.name}: at most {TRIALS} measurements each of"]
    for case in SWEPT:
        problem = problem_of(KERNEL, workload_of(case), capability)
        prior, configs = priors.simulated(problem, gpu), problem.configurations()
        lines.append(f"  {case.name}: {len(configs)} configurations; the simulator's first {TOP}:")
        lines += [f"    {configs[r]}  {1e6 * np.exp(prior[r]):.0f} us" for r in top_of(problem, prior)]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=RECORDS / "attention_sweep.jsonl", help="record of gpu_sweep.py")
    parser.add_argument("--out", type=Path, default=RECORDS / "attention_tuned.jsonl", help="record file to add to")
    parser.add_argument("--budget-s", type=float, default=480.0, help="begin no measurement after this time (default 480)")
    parser.add_argument("--ahead", type=int, default=max(2, (os.cpu_count() or 2) - 1), help="builds compiled at once")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no GPU")
    parser.add_argument("--target", default="h200-sxm", help="for --dry-run: the profile")
    return parser.parse_args()


def profile(name: str) -> Gpu:
    found = load_hardware(name)
    assert isinstance(found, Gpu)
    return found


def main() -> int:
    begin = time.monotonic()
    given = arguments()
    if given.dry_run:
        gpu = profile(given.target)
        print(plan(round(10 * float(gpu.architecture.compute_capability)), gpu))
        return 0
    try:
        here = environment()
    except NoGpuError as error:
        print(f"nothing measured: {error} (--dry-run shows what would be)", file=sys.stderr)
        return 2
    named = find_device(here.device)
    if named is None or here.capability not in LIMITS:
        print(f"nothing measured: no profile and limits for {here.device}", file=sys.stderr)
        return 2
    try:
        sweep = read(given.sweep) if given.sweep.exists() else ()
    except RecordError as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    run = Run(given.out, here, profile(named), begin + given.budget_s, given.ahead)
    print(f"{here.device}, driver {here.driver}, CUDA {here.cuda}, torch {here.torch}, triton {here.triton}")
    lines = [attempted(run, case, sweep) for case in SWEPT]
    print("\n" + "\n".join(lines) + f"\nafter {time.monotonic() - begin:.0f} s. Records: {given.out}")
    for told in run.missed:
        print(f"missed: {told}")
    return 1 if run.missed else 0


if __name__ == "__main__":
    sys.exit(main())
