"""Speed of the neighborhood attention model in a warm process: one problem, a sweep of a video model, a huge grid."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

from einsight.sim.gna_advice import all_strides, legal_pairs
from einsight.sim.gna_bounds import block_sparsity, bounds
from einsight.sim.gna_kernel import kernel_for
from einsight.sim.gna_tiles import count_tiles
from einsight.sim.gna_time import Problem, predict_gna
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.mask import Gna

ONE_BAR_S, SWEEP_BAR_S = 2e-3, 1.0
HUGE_BAR = 1.25
"""A huge grid may take this times a small one: as long, but for the noise of the clock."""
REPEATS = 200
VIDEO = ((30, 48, 80), (18, 24, 24))


def grid(layout: tuple[int, ...], window: tuple[int, ...], k: int) -> Gna:
    """A mask of that window whose stride no earlier k had, so that no cache answers."""
    stride = tuple(1 + (k // 7**d) % w for d, w in enumerate(window))
    return Gna(layout, window, stride, (1,) * len(layout), (False,) * len(layout))


def typical_s(run: Callable[[int], object]) -> float:
    times = []
    for k in range(REPEATS):
        start = time.process_time()
        run(k)
        times.append(time.process_time() - start)
    return median(times)


def one_problem(gpu: Gpu, layout: tuple[int, ...], window: tuple[int, ...]) -> Callable[[int], object]:
    """Counts, bounds, block sparsity and the predicted time against dense attention."""
    kernel = kernel_for(gpu)

    def run(k: int) -> object:
        mask = grid(layout, window, k)
        tiles = count_tiles(mask, (2, 8, 8), (2, 8, 8))
        block_sparsity(mask, (2, 8, 8), (2, 8, 8))
        bounds(mask, tiles)
        return predict_gna(Problem(mask, heads=24, head_dim=128), gpu, kernel, (2, 8, 8), (2, 8, 8), "static")

    return run


def sweep_s(gpu: Gpu) -> tuple[float, int]:
    """(seconds, cases) of every stride with every legal pair of tiles."""
    kernel = kernel_for(gpu)
    problem = Problem(grid(*VIDEO, 0), heads=24, head_dim=128)
    pairs = legal_pairs(problem, kernel, gpu)
    start = time.process_time()
    swept = [all_strides(problem, gpu, kernel, pair) for pair in pairs]
    return time.process_time() - start, sum(len(s.time_s) for s in swept)


def main() -> int:
    """Processor seconds, which do not count what other programs take."""
    rows = []
    for name in ("h100-sxm", "b200", "a100-sxm-80gb"):
        gpu = load_hardware(name)
        assert isinstance(gpu, Gpu)
        if name == "h100-sxm":
            one = typical_s(one_problem(gpu, *VIDEO))
            huge = typical_s(one_problem(gpu, (512, 512, 512), (9, 9, 9)))
            small = typical_s(one_problem(gpu, (16, 16, 16), (9, 9, 9)))
            rows.append((one * 1e3, ONE_BAR_S * 1e3, "ms", "one problem on h100-sxm"))
            rows.append((huge / small, HUGE_BAR, "x ", "512x512x512 against 16x16x16"))
        seconds, cases = sweep_s(gpu)
        rows.append((seconds, SWEEP_BAR_S, "s ", f"sweep of {cases:,} strides and tiles of 30x48x80 on {name}"))
    for found, bar, unit, what in rows:
        print(f"{found:8.3f} {unit}  (bar {bar:g} {unit.strip()}{', MISSED' if found > bar else ''})  {what}")
    return 1 if any(found > bar for found, bar, *_ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
