"""Speed of the model in a warm process: one prediction, and a sweep of many (shape, tile, target) points."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from statistics import median

from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.sim.predict import predict
from einsight.sim.sweep import Axis, sweep
from einsight.sim.workload import Workload

PREDICTION_BAR_S = 2e-3
SWEEP_POINTS, SWEEP_BAR_S, SWEEP_BAR_BYTES = 100_000, 20.0, 1e9
REPEATS = 200

ATTENTION = Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal")


def one_prediction_s() -> float:
    """Median seconds of one `predict` at a size not seen before, so that no cache answers."""
    times = []
    for k in range(REPEATS):
        workload = replace(ATTENTION, sizes={**ATTENTION.sizes, "m": 4096 + k, "n": 4096 + k})
        start = time.perf_counter()
        predict(workload, "h100-sxm")
        times.append(time.perf_counter() - start)
    return median(times)


def sweep_s(points: int) -> tuple[float, int]:
    """(seconds, points) of a sweep over sequence lengths, and so over tiles and splits, on every shipped GPU."""
    targets = [name for name in names() if isinstance(load_hardware(name), Gpu)]
    lengths = Axis("n", tuple(range(1024, 1024 + -(-points // len(targets)))))
    start = time.perf_counter()
    curves = sweep(ATTENTION, lengths, targets)
    return time.perf_counter() - start, sum(len(c.time_s) for c in curves)


def main() -> int:
    predict(ATTENTION, "h100-sxm")
    single = one_prediction_s()
    swept, points = sweep_s(SWEEP_POINTS)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = [
        ("one prediction, warm process", single * 1e3, PREDICTION_BAR_S * 1e3, "ms"),
        (f"sweep of {points:,} points", swept, SWEEP_BAR_S, "s"),
        ("peak memory", peak_bytes / 1e9, SWEEP_BAR_BYTES / 1e9, "GB"),
    ]
    for what, found, bar, unit in rows:
        print(f"{found:8.3f} {unit:2}  (bar {bar:g} {unit}{', MISSED' if found > bar else ''})  {what}")
    return 1 if any(found > bar for _, found, bar, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
