"""Our kernels against the strongest implementations at hand, on the CUDA GPU at hand.

    PYTHONPATH=.src python3 benchmarks/gpu_kernels.py            (within 9 minutes; needs torch, triton, numpy)
    PYTHONPATH=.src python3 benchmarks/gpu_kernels.py --dry-run  (no GPU: what would be run)

Same inputs, every result checked against float64 before it is timed, ours and theirs timed in turns. Of ours the fastest
of a few builds races. Block masks and compilation are outside the timing. Raw samples and the environment go into a
record; the table is printed at the end. A contest that ends the process (a hang, a lost GPU context) is missed, the others
are run in a new one. Exit code 0: every bar met; 1: one missed or not everything run; 2: no GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import contest_attention
import contest_decode
import contest_flashbias
import contest_gna
import contest_linear
import contest_sigmoid
import restart
from contests import Bar, Call, Contest, Round

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Estimate, compile_offline, source_hash
from einsight.kernels.spaces import LIMITS, Config
from einsight.tuner.measure import (
    NoGpuError,
    Policy,
    context_lost,
    environment,
    now,
    time_call,
    time_calls,
    under_load,
)
from einsight.tuner.record import Environment, Measurement, Status, append
from einsight.tuner.serve import classified

MODULES = (contest_attention, contest_flashbias, contest_gna, contest_decode, contest_sigmoid, contest_linear)
"""Where the contests are: a kernel joins with one module that has a function `contests`."""
RECORDS = Path(__file__).parents[1] / "reports" / "records"
CHOOSE = Policy(cache="warm", warmup_s=0.01, budget_s=0.05, min_samples=7, max_samples=50)
HANG_S = 240.0  # one contest; its process is ended then, with what was recorded kept
GRACE_S = 80.0  # or this long after the budget, so that a run is over within 9 minutes
RACE = Policy(cache="warm", warmup_s=0.05, budget_s=0.4, min_samples=21, max_samples=200)


@dataclass(slots=True)
class Run:
    """One run of the benchmark."""

    out: Path
    here: Environment
    deadline: float
    builds: dict[tuple[str, Config], list[Estimate]] = field(default_factory=dict)  # by contest and configuration
    rows: list[tuple[str, ...]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def contests() -> tuple[Contest, ...]:
    return tuple(contest for module in MODULES for contest in module.contests())


def compile_all(run: Run, chosen: tuple[Contest, ...], workers: int, cache: Path) -> None:
    """Compile every candidate in child processes; launches later find the binaries in Triton's cache."""
    wanted = [
        (contest, config, request)
        for contest in chosen for config in contest.candidates(run.here.capability)
        for request in contest.requests(config, run.here.capability)
    ]  # fmt: skip
    purpose = {id(request): (contest.name, config) for contest, config, request in wanted}
    for request, estimate in compile_offline([r for *_, r in wanted], workers=workers, triton_cache=cache):
        run.builds.setdefault(purpose[id(request)], []).append(estimate)


def known(run: Run, contest: Contest, kernel: str, config: Config | None = None) -> dict[str, Any]:
    """The fields of a measurement that do not depend on its outcome."""
    module = KERNELS[kernel].module if kernel in KERNELS else f"einsight.kernels.{kernel}"
    found = run.builds.get((contest.name, config), []) if config else []
    return {
        "kernel": kernel, "workload": dict(contest.workload), "configuration": asdict(config) if config else {},
        "cache": "warm", "environment": run.here, "at": now(), "work": dict(contest.work), "key": contest.key,
        "source_hash": source_hash(module) if kernel == contest.kernel else "",
        "resources": found[0].as_json() if found else {},
    }  # fmt: skip


def judged(call: Call, given: Round, slack: float = 0.0) -> tuple[float, float, str]:
    """(largest error, allowed, what is wrong or ""): of the result with the least room."""
    from einsight.kernels import references

    results = call()
    errors = [references.largest_error(r, e) for r, e in zip(results, given.exact, strict=True)]
    worst = max(range(len(errors)), key=lambda i: errors[i] / (given.allowed[i] + slack))
    error, allowed = errors[worst], given.allowed[worst] + slack
    return error, allowed, "" if error <= allowed else f"result {worst} off by {error:.3g}, allowed {allowed:.3g}"


def failed(run: Run, fields: Mapping[str, Any], error: Exception) -> None:
    """Record an exception; one that lost the GPU context ends this process, as nothing more can run in it."""
    told = classified(error, "run")
    lost = bool(told.get("lost")) and context_lost()
    status, reason = Status(told["status"]), told["reason"][:300]
    if fields["source_hash"] == "" and status is not Status.OUT_OF_RESOURCES and not lost:
        status = Status.UNSUPPORTED  # a rival that does not take these inputs
    append(run.out, Measurement(**fields, status=status, reason=reason))
    print(f"    {fields['kernel']}: {status.value}, {reason}", flush=True)
    if lost:
        print("the GPU context is lost; a new process goes on with the next contest", file=sys.stderr, flush=True)
        os._exit(3)


def checked(run: Run, fields: dict[str, Any], call: Call, given: Round, slack: float = 0.0) -> bool:
    """Whether a run works and is right; what does not is recorded with its reason."""
    try:
        error, allowed, wrong = judged(call, given, slack)
    except Exception as problem:
        failed(run, fields, problem)
        return False
    fields |= {"error": error if math.isfinite(error) else None, "error_allowed": allowed}
    if wrong:
        append(run.out, Measurement(**fields, status=Status.INCORRECT, reason=wrong))
        print(f"    {fields['kernel']}: incorrect, {wrong}", flush=True)
    return not wrong


def fastest(run: Run, contest: Contest, given: Round) -> Config | None:
    """The build of ours with the least median, of those that are right."""
    times: dict[Config, float] = {}
    for config in contest.candidates(run.here.capability):
        broken = next((e for e in run.builds.get((contest.name, config), []) if e.status != "ok"), None)
        fields = known(run, contest, contest.kernel, config)
        if broken is not None:
            append(run.out, Measurement(**fields, status=Status.OUT_OF_RESOURCES, reason=broken.reason or broken.status))
            continue
        call = given.ours(config)
        if checked(run, fields, call, given):
            samples = time_call(call, CHOOSE)
            append(run.out, Measurement(**fields, status=Status.OK, samples_s=samples))
            times[config] = statistics.median(samples)
    return min(times, key=lambda config: times[config], default=None)


def race(run: Run, contest: Contest) -> None:
    """Ours against every rival that runs and is right, in turns; one row of the table each."""
    given = contest.setup()
    best = fastest(run, contest, given)
    calls: dict[str, Call] = {contest.kernel: given.ours(best)} if best is not None else {}
    fields = {contest.kernel: known(run, contest, contest.kernel, best)}
    for name, call in given.rivals.items():
        fields[name] = known(run, contest, name)
        if checked(run, fields[name], call, given, given.slack):
            calls[name] = call
    for name, call in given.context.items():  # another problem: it must not join with predictions of this one
        calls[name], fields[name] = call, known(run, contest, name) | {"workload": {"beside": contest.name}, "key": ""}
    samples = time_calls(calls, RACE)
    if best is not None:
        run.here = under_load(run.here, calls[contest.kernel], statistics.median(samples[contest.kernel]))
    for name, taken in samples.items():
        measured = Measurement(**fields[name] | {"environment": run.here}, status=Status.OK, samples_s=taken, sweep=1)
        append(run.out, measured)
        build = str(best) if name == contest.kernel else ""
        row = (contest.name, name, f"{measured.time_s * 1e6:.1f}", f"{100 * measured.spread:.1f}",
               f"{measured.rate('flops') / 1e12:.0f}", build)  # fmt: skip
        run.rows.append(row)
        print("    " + "  ".join(row[1:]), flush=True)
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    run.missed += [told for bar in contest.bars if (told := missed(contest, bar, medians))]


def missed(contest: Contest, bar: Bar, medians: Mapping[str, float]) -> str:
    """What a bar falls short by, "" where it is met."""
    rivals = {name: t for name, t in medians.items() if name.startswith(bar.rivals)}
    if contest.kernel not in medians or not rivals:
        return f"{contest.name}: nothing to compare ({', '.join(medians) or 'no run'})"
    name = min(rivals, key=lambda n: rivals[n])
    ratio = rivals[name] / medians[contest.kernel]
    print(f"    {ratio:.3f} of the speed of {name}; bar {bar.factor:g}", flush=True)
    return "" if ratio >= bar.factor else f"{contest.name}: {ratio:.3f} of {name}, wanted {bar.factor:g}"


def plan(chosen: tuple[Contest, ...], capability: int) -> str:
    lines = [f"compute capability {capability / 10:.1f}:"]
    for contest in chosen:
        bars = "".join(f"; bar: {bar.factor:g} of the fastest {bar.rivals}*" for bar in contest.bars)
        lines.append(f"  {contest.name}: {contest.kernel}, {contest.work['flops'] / 1e12:.2f} TFLOP a call{bars}")
        lines += [f"    {config}" for config in contest.candidates(capability)]
    return "\n".join(lines)


def table(rows: list[tuple[str, ...]]) -> str:
    head = ("contest", "implementation", "us", "spread %", "TFLOP/s", "build")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORDS / "gpu_kernels.jsonl", help="record file to add to")
    parser.add_argument("--only", action="append", help="only contests whose name contains this; repeatable")
    parser.add_argument("--budget-s", type=float, default=450.0, help="begin no contest after this time (default 450)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="compiling processes")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no GPU")
    parser.add_argument("--capability", type=int, default=90, choices=sorted(LIMITS), help="for --dry-run")
    return parser.parse_args()


def main() -> int:
    begin = time.monotonic()
    given = arguments()
    chosen = tuple(c for c in contests() if not given.only or any(part in c.name for part in given.only))
    if not chosen:
        print(f"--only: no contest is called so, expected one of {', '.join(c.name for c in contests())}", file=sys.stderr)
        return 2
    if given.dry_run:
        print(plan(chosen, given.capability))
        return 0
    try:
        here = environment()
    except NoGpuError as error:
        print(f"nothing measured: {error} (--dry-run shows what would be)", file=sys.stderr)
        return 2
    if here.capability not in LIMITS:
        print(f"nothing measured: no limits for compute capability {here.capability}", file=sys.stderr)
        return 2
    run = Run(given.out, here, begin + given.budget_s)
    before = restart.noted()  # by processes that ended before their time
    run.missed += [f"{name}: ended its process" for name, finished in before.items() if not finished]
    chosen = tuple(contest for contest in chosen if contest.name not in before)
    print(f"{here.device}, driver {here.driver}, CUDA {here.cuda}, torch {here.torch}, triton {here.triton}")
    with restart.folder() as kept:
        cache = kept / "triton"
        os.environ["TRITON_CACHE_DIR"] = str(cache)  # read by Triton at import: launches find what the children compiled
        compile_all(run, chosen, given.workers, cache)
        print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
        for contest in chosen:
            if time.monotonic() > run.deadline:
                run.missed.append(f"{contest.name}: not run within {given.budget_s:g} s")
                continue
            print(f"{contest.name} ({time.monotonic() - begin:.0f} s)", flush=True)
            restart.note(contest.name)
            faulthandler.dump_traceback_later(min(HANG_S, run.deadline + GRACE_S - time.monotonic()), exit=True)
            try:
                race(run, contest)
            except Exception as error:  # the next contest can still run
                failed(run, known(run, contest, contest.kernel), error)
                run.missed.append(f"{contest.name}: {type(error).__name__}")
            finally:
                faulthandler.cancel_dump_traceback_later()
                restart.note(contest.name)
    print(f"\n{table(run.rows)}\n\nafter {time.monotonic() - begin:.0f} s. Records: {given.out}")
    for told in run.missed:
        print(f"missed: {told}")
    return 1 if run.missed else 0


if __name__ == "__main__":
    sys.exit(main() if arguments().dry_run else restart.run(main, __file__, arguments().budget_s))
