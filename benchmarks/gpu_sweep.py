"""Measure the attention kernel in every valid configuration on the CUDA GPU at hand, against PyTorch's attention.

    PYTHONPATH=.src python3 benchmarks/gpu_sweep.py            (about 8 minutes; needs torch, triton, numpy)
    PYTHONPATH=.src python3 benchmarks/gpu_sweep.py --dry-run  (no GPU: what would be compiled and measured)

Every configuration is checked against float64 before it is timed. Builds are compiled in child processes while others
are measured. Stopped at any moment, the next run goes on where this one stopped; a configuration that ends the process
(a hang, a lost GPU context) does not end the run.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import restart
from sweep_cases import CHECKED, KERNEL, SWEPT, Case, baselines, judge, tensors

from einsight.kernels.resources import Estimate, compile_offline, source_hash
from einsight.kernels.spaces import ATTENTION, LIMITS, Config, configurations, default_config, excluded
from einsight.tuner.measure import NoGpuError, Policy, environment, now, time_call, time_calls
from einsight.tuner.record import Environment, Measurement, RecordError, Status, append, read
from einsight.tuner.serve import classified

RECORDS = Path(__file__).parents[1] / "reports" / "records"
POLICY = Policy(cache="warm", warmup_s=0.01, budget_s=0.06, min_samples=9, max_samples=60)
RACE = Policy(cache="warm", warmup_s=0.05, budget_s=0.3, min_samples=21, max_samples=200)
HANG_S = 60.0  # one configuration: compile from the cache, check, time
RACE_SWEEP = 100  # number of the pass in which the best build and the baselines run in turns
LSE_ERROR = 2e-5  # relative to 1 + |log-sum-exp|: float32 sums of exact products


class OutOfTimeError(RuntimeError):
    """The time budget is used up; what was measured is in the record."""


@dataclass(slots=True)
class Sweep:
    """One run: where records go, what is already there, and when to stop."""

    out: Path
    here: Environment
    deadline: float
    done: dict[str, Measurement] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)  # of the case last used
    judged: dict[str, Any] = field(default_factory=dict)
    held: dict[int, Any] = field(default_factory=dict)  # builds that are ready before their case's turn
    lost: bool = False  # whether the GPU context is, after which only a new process can go on

    @property
    def in_flight(self) -> Path:
        """Names the attempt that is running and how often it was begun: what is found there ended its process."""
        return self.out.with_suffix(".in-flight")

    def begun(self, identity: str) -> int:
        """Note that an attempt begins; returns how often it was begun before without coming to an end."""
        before = 0
        if self.in_flight.exists():
            name, _, times = self.in_flight.read_text().partition(" ")
            before = int(times) if name == identity else 0
        self.in_flight.parent.mkdir(parents=True, exist_ok=True)
        self.in_flight.write_text(f"{identity} {before + 1}")
        return before

    def keep(self, measured: Measurement) -> None:
        append(self.out, measured)
        self.done[measured.identity] = measured

    def prepare(self, case: Case) -> tuple[dict[str, Any], tuple[Any, Any, float]]:
        if case.name not in self.inputs:
            self.inputs, self.judged = {case.name: tensors(case)}, {}
            self.judged[case.name] = judge(case, self.inputs[case.name])
        return self.inputs[case.name], self.judged[case.name]


def blank(case: Case, config: Config | None, here: Environment, sweep: int, kernel: str = KERNEL.name) -> dict[str, Any]:
    """The fields of a measurement that are known before it is made."""
    return {
        "kernel": kernel, "workload": case.workload(), "configuration": asdict(config) if config else {},
        "cache": "warm", "environment": here, "sweep": sweep, "key": workload_key(case), "work": {"flops": case.flops},
        "source_hash": source_hash(KERNEL.module) if kernel == KERNEL.name else "",
    }  # fmt: skip


@lru_cache
def workload_key(case: Case) -> str:
    """The key that predictions of this problem carry; "" where the model refuses it (aligned to the first key, rows that
    see no key) or its dependencies are not installed."""
    B, H, G, M, N, E, F = case.sizes
    told = case.workload()
    if "align" in told:  # the models' causal mask and windows are aligned to the last key
        return ""
    try:
        from einsight.sim.workload import Workload

        return Workload.attention(
            batch=B, heads=H, kv_heads=G, seq_q=M, seq_kv=N, head_dim=E, value_dim=F, dtype=told["dtype"],
            mask=told.get("mask"), bias=told.get("bias", ()), phase=told["phase"], cache=told["cache"],
        ).key  # fmt: skip
    except (ImportError, ValueError):
        return ""


def attempt(run: Sweep, case: Case, config: Config, sweep: int, built: Estimate | None) -> Measurement:
    """Check and time one configuration; whatever goes wrong becomes a status with its reason."""
    known = blank(case, config, run.here, sweep) | {"at": now()}
    if built is not None:
        known["resources"] = built.as_json()
        if built.status != "ok":
            status = {"compile_failed": Status.COMPILE_FAILED, "timeout": Status.TIMEOUT}
            return Measurement(**known, status=status.get(built.status, Status.OUT_OF_RESOURCES), reason=built.reason)
    ended = Measurement(**known, status=Status.TIMEOUT, reason="ended its process twice: a hang, a crash or a kill")
    if run.begun(ended.identity) >= 2:
        run.in_flight.unlink()
        return ended
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    try:
        return _checked_and_timed(run, case, config, known)
    except Exception as error:
        told = classified(error, "launch")
        run.lost = bool(told.get("lost"))
        return Measurement(**known, status=Status(told["status"]), reason=told["reason"])
    finally:
        faulthandler.cancel_dump_traceback_later()
        run.in_flight.unlink(missing_ok=True)


def _checked_and_timed(run: Sweep, case: Case, config: Config, known: dict[str, Any]) -> Measurement:
    import torch

    from einsight.kernels import references
    from einsight.kernels.attention import attention

    given, (exact, exact_lse, allowed) = run.prepare(case)
    out = torch.full(exact.shape, math.nan, dtype=given["q"].dtype, device=given["q"].device)
    lse = torch.full(exact_lse.shape, math.nan, dtype=torch.float32, device=given["q"].device)

    def call() -> None:
        attention(**given, causal=case.causal, window=case.window, align=case.align, softcap=case.softcap,
                  config=config, out=out, lse=lse)  # fmt: skip

    call()
    error = references.largest_error(out, exact)
    finite = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs()
    lse_error = references.largest_error(lse, exact_lse) / (1.0 + float(finite.max()))
    known |= {"error": error if math.isfinite(error) else None, "error_allowed": allowed}
    if error > allowed or lse_error > LSE_ERROR:
        reason = f"output off by {error:.3g} (allowed {allowed:.3g}), log-sum-exp by {lse_error:.3g} ({LSE_ERROR:g})"
        return Measurement(**known, status=Status.INCORRECT, reason=reason)
    return Measurement(**known, status=Status.OK, samples_s=time_call(call, POLICY))


def first_pass(run: Sweep, cache: Path, workers: int) -> None:
    """Compile everything in child processes and measure each build as it is ready; then the single-case checks."""
    wanted = [(case, config, 0) for case in SWEPT for config in space(case, run.here.capability)]
    wanted += [(case, default_config(*case.sizes[5:]), 0) for case in CHECKED]
    missing = [w for w in wanted if identity(run, *w) not in run.done]
    requests = [case.request(config, run.here.capability) for case, config, _ in missing]
    ready = compile_offline(requests, workers=workers, triton_cache=cache)
    purpose = {id(request): what for request, what in zip(requests, missing, strict=True)}
    for case in (*SWEPT, *CHECKED):  # all builds of one case together: inputs and reference are made once
        waiting = {name for name, what in purpose.items() if what[0] is case}
        for request, built in _of_case(ready, waiting, run.held):
            step(run, case, *purpose[id(request)][1:], built)


def _of_case(ready: Iterator[Any], waiting: set[int], held: dict[int, Any]) -> Iterator[Any]:
    """The builds in `waiting` as they come; those of other cases are held back until their turn."""
    while waiting:
        for name in [name for name in held if name in waiting]:
            waiting.discard(name)
            yield held.pop(name)
        if waiting:
            request, built = next(ready)
            held[id(request)] = (request, built)


def later_passes(run: Sweep, passes: int) -> None:
    """The same configurations again, each time in another order, so that drift does not always hit the same ones."""
    for sweep in range(1, passes):
        for case in SWEPT:
            order = list(space(case, run.here.capability))
            random.Random(sweep).shuffle(order)
            for config in order:
                first = run.done.get(identity(run, case, config, 0))
                if first is not None and first.status is Status.OK and identity(run, case, config, sweep) not in run.done:
                    step(run, case, config, sweep, None)


def step(run: Sweep, case: Case, config: Config, sweep: int, built: Estimate | None) -> None:
    if time.monotonic() > run.deadline:
        raise OutOfTimeError
    measured = attempt(run, case, config, sweep, built)
    run.keep(measured)
    told = f"{case.flops / measured.time_s / 1e12:7.1f} TFLOP/s" if measured.status is Status.OK else measured.reason
    print(f"pass {sweep}  {case.name:26} {config}  {measured.status.value:10} {told}", flush=True)
    if run.lost:
        print("the GPU context is lost; a new process goes on with the next configuration", file=sys.stderr, flush=True)
        os._exit(3)


def race(run: Sweep) -> None:
    """The best build of each case and every PyTorch backend, in turns, in one process."""
    from einsight.kernels.attention import attention

    for case in SWEPT:
        best = best_config(run, case)
        if best is None or identity(run, case, best, RACE_SWEEP) in run.done:
            continue
        if time.monotonic() > run.deadline:
            raise OutOfTimeError
        given, _ = run.prepare(case)
        calls = {KERNEL.name: lambda given=given, case=case, best=best: attention(**given, causal=case.causal, config=best)}
        calls |= baselines(case, given)
        for name, samples in time_calls(calls, RACE).items():
            config = best if name == KERNEL.name else None
            known = blank(case, config, run.here, RACE_SWEEP, name)
            run.keep(Measurement(**known, at=now(), status=Status.OK, samples_s=samples))
            rate = case.flops / sorted(samples)[len(samples) // 2] / 1e12
            print(f"race    {case.name:26} {name:16} {rate:7.1f} TFLOP/s", flush=True)


def best_config(run: Sweep, case: Case) -> Config | None:
    """The build with the least median over the passes."""
    times: dict[Config, list[float]] = {}
    for config in space(case, run.here.capability):
        for sweep in range(RACE_SWEEP):
            found = run.done.get(identity(run, case, config, sweep))
            if found is None:
                break
            if found.status is Status.OK:
                times.setdefault(config, []).append(found.time_s)
    return min(times, key=lambda config: sorted(times[config])[len(times[config]) // 2], default=None)


def space(case: Case, capability: int) -> tuple[Config, ...]:
    return configurations(case.heads, LIMITS[capability], rows=case.sizes[3])


def identity(run: Sweep, case: Case, config: Config, sweep: int) -> str:
    known = blank(case, config, run.here, sweep)
    return Measurement(**known, at="", status=Status.FAILED, reason="-").identity


def plan(capability: int) -> str:
    """What a run would do, from the spaces alone."""
    lines = [f"compute capability {capability / 10:.1f}: three passes over"]
    for case in SWEPT:
        valid = space(case, capability)
        reasons = Counter(
            " ".join(w for w in excluded(case.heads, c, LIMITS[capability], case.sizes[3]).split() if not w.isdigit())
            for c in ATTENTION.candidates() if c not in valid
        )  # fmt: skip
        lines.append(f"  {case.name}: {len(valid)} configurations, {case.flops / 1e12:.2f} TFLOP a call; left out:")
        lines += [f"    {count:3} {reason}" for reason, count in reasons.most_common()]
    lines.append(f"  checks in the default configuration: {', '.join(case.name for case in CHECKED)}")
    lines.append("  then the best build of each against scaled_dot_product_attention (flash, cudnn, efficient), in turns")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORDS / "attention_sweep.jsonl", help="record file to add to")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=480.0, help="stop cleanly after this time (default 480)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="compiling processes")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no GPU")
    parser.add_argument("--capability", type=int, default=90, choices=sorted(LIMITS), help="for --dry-run")
    return parser.parse_args()


def resume(out: Path, here: Environment) -> Sweep:
    run = Sweep(out, here, deadline=math.inf)
    if out.exists():
        run.done = {m.identity: m for m in read(out)}
        print(f"{len(run.done)} measurements found in {out}, going on from there")
    return run


def main() -> int:
    begin = time.monotonic()
    given = arguments()
    if given.dry_run:
        print(plan(given.capability))
        return 0
    try:
        here = environment()
        run = resume(given.out, here)
    except (NoGpuError, RecordError) as error:
        print(f"nothing measured: {error} (--dry-run shows what would be)", file=sys.stderr)
        return 2
    if here.capability not in LIMITS:
        known = ", ".join(map(str, sorted(LIMITS)))
        print(f"nothing measured: compute capability {here.capability} has no limits here, expected {known}", file=sys.stderr)
        return 2
    run.deadline = begin + given.budget_s
    print(f"{here.device}, driver {here.driver}, CUDA {here.cuda}, torch {here.torch}, triton {here.triton}")
    with restart.folder() as kept:
        cache = kept / "triton"
        os.environ["TRITON_CACHE_DIR"] = str(cache)  # read by Triton at import: launches find what the children compiled
        try:
            first_pass(run, cache, given.workers)
            later_passes(run, given.passes)
            race(run)
        except OutOfTimeError:
            print(f"stopped after {given.budget_s:g} s; run again to go on. Records: {given.out}")
            return 1
    print(f"complete after {time.monotonic() - begin:.0f} s. Records: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main() if arguments().dry_run else restart.run(main, __file__, arguments().budget_s))
