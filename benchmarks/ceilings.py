"""Measure what the units of the CUDA GPU at hand reach and add it to the records.

    PYTHONPATH=.src python3 benchmarks/ceilings.py            (about a minute; needs torch, triton, numpy)
    PYTHONPATH=.src python3 benchmarks/ceilings.py --dry-run  (no GPU: lists what would be measured)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from einsight.tuner.ceilings import Ceiling, cases, run
from einsight.tuner.measure import NoGpuError, environment
from einsight.tuner.record import Environment, Measurement, Status, append

RECORDS = Path(__file__).parents[1] / "reports" / "records"
UNITS = {"bytes": ("TB/s", 1e12), "flops": ("TFLOP/s", 1e12), "special_ops": ("T exp/s", 1e12),
         "vector_ops": ("T FMA/s", 1e12), "launches": ("M/s", 1e6)}  # fmt: skip
# What the dry run assumes of a device it does not have; only sizes of buffers and grids follow from it.
ASSUMED = Environment("(none: dry run)", 90, 132, 80 << 30, 50 << 20, "", "", "", "", "", "")


def line(case: Ceiling, measured: Measurement) -> str:
    if measured.status is not Status.OK:
        return f"{case.name:32} {measured.status.value}: {measured.reason}"
    unit, scale = UNITS[case.unit]
    clock = measured.environment.sm_clock_hz
    at = f"  at {clock / 1e6:.0f} MHz" if clock else ""
    return (
        f"{case.name:32} {measured.rate(case.unit) / scale:10.3f} {unit:8} median of {len(measured.samples_s)}, "
        f"spread {100 * measured.spread:.1f} %, {measured.time_s * 1e6:.1f} us{at}"
    )


def plan(here: Environment, chosen: tuple[Ceiling, ...]) -> str:
    lines = [f"would measure on a device with {here.sms} SMs and {here.l2_bytes >> 20} MiB of L2 (assumed):"]
    for case in chosen:
        arguments = ", ".join(f"{name}={value}" for name, value in case.arguments.items())
        lines.append(f"  {case.name:32} {case.probe}({arguments}), {case.policy.cache}, {case.policy.budget_s:g} s")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORDS / "ceilings.jsonl", help="record file to add to")
    parser.add_argument("--only", default="", help="measure only the cases whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and stop; needs no GPU")
    arguments = parser.parse_args()
    try:
        here = ASSUMED if arguments.dry_run else environment()
    except NoGpuError as error:
        print(f"no ceilings measured: {error}. Nothing was written; --dry-run lists what would be.", file=sys.stderr)
        return 2
    chosen = tuple(case for case in cases(here) if arguments.only in case.name)
    if not chosen:
        known = ", ".join(case.name for case in cases(here))
        print(f"--only {arguments.only}: no such case, expected a part of one of: {known}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        print(plan(here, chosen))
        return 0
    print(f"{here.device}, driver {here.driver}, CUDA {here.cuda}, torch {here.torch}, triton {here.triton}")
    failed = 0
    for case, measured in zip(chosen, run(here, chosen), strict=True):
        append(arguments.out, measured)
        failed += measured.status not in (Status.OK, Status.UNSUPPORTED)
        print(line(case, measured), flush=True)
    print(f"added to {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
