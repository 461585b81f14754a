"""Speed and memory of factorising biases, against their bars and a plain baseline in the same run; exits with 1 when a bar is
missed.

    python benchmarks/bench_bias.py            # both
    python benchmarks/bench_bias.py tables

tables   SVD of 32 heads of 576 x 576 (SwinV2 at 384 x 384) to 99.5 % of the energy, with the threads that the libraries take
         by default: under 1 s. Baseline: numpy.linalg.svd of four of the heads, times eight
large    16384 x 16384 to rank 64, randomised: under 60 s and 8 GB. Baseline: ARPACK (scipy.sparse.linalg.svds) on the same
         matrix, run only when `arpack` is named

Wall time is what is judged; CPU time is printed beside it, which other work on the machine does not stretch.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.bias_examples import point_cloud, swin_v2_tables, window_bias
from einsight.sim.bias_svd import decompose, factorise

SIDE, RANK = 16384, 64


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, wall seconds, CPU seconds of all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    return call(), time.perf_counter() - wall, time.process_time() - cpu


def tables() -> bool:
    bias = window_bias(swin_v2_tables(32), 24, 24)
    factorise(bias[:1], 0.995)  # imports
    found, wall, cpu = timed(lambda: factorise(bias, 0.995))
    ranks = [r for r in found.ranks if r is not None]
    print(f"32 heads of 576 x 576: {wall:.2f} s (bar 1 s), {cpu:.2f} s of CPU, ranks {min(ranks)} to {max(ranks)}")
    _, whole, whole_cpu = timed(lambda: np.linalg.svd(bias[:4]))
    print(f"  baseline, numpy.linalg.svd of 4 heads x 8: {8 * whole:.2f} s, {8 * whole_cpu:.2f} s of CPU")
    return wall < 1.0


def points_matrix() -> NDArray[np.float32]:
    """-|x - y| of points on a body: smooth, of full rank; built by rows so that only the matrix itself is large."""
    points = point_cloud(SIDE).astype(np.float32)
    matrix = np.empty((SIDE, SIDE), dtype=np.float32)
    for rows in np.array_split(np.arange(SIDE), 64):
        matrix[rows] = -np.linalg.norm(points[rows, None, :] - points[None], axis=2)
    return matrix


def large() -> bool:
    matrix = points_matrix()
    found, wall, cpu = timed(lambda: decompose(matrix, 1.0, centred=True, least=RANK, most=RANK))
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    kept = 100 * found.captured()[-1]
    print(f"{SIDE} x {SIDE} to rank {RANK}: {wall:.1f} s (bar 60 s), {cpu:.1f} s of CPU, {gigabytes:.1f} GB (bar 8 GB),"
          f" {kept:.4f} % of the energy")  # fmt: skip
    return wall < 60.0 and gigabytes < 8.0


def arpack() -> bool:
    """The baseline of `large`: as accurate, no bar of its own."""
    from scipy.sparse.linalg import svds

    matrix = points_matrix()
    matrix -= matrix.mean(axis=1, dtype=np.float64).astype(np.float32)[:, None]
    energy = sum(float(np.square(matrix[b : b + 1024], dtype=np.float64).sum()) for b in range(0, SIDE, 1024))
    (_, singular, _), wall, cpu = timed(lambda: svds(matrix, k=RANK, tol=1e-3, random_state=0))
    kept = 100 * float(np.square(singular, dtype=np.float64).sum()) / energy
    print(f"  baseline, ARPACK: {wall:.1f} s, {cpu:.1f} s of CPU, {kept:.4f} % of the energy")
    return True


PARTS = {"tables": tables, "large": large, "arpack": arpack}

if __name__ == "__main__":
    passed = [PARTS[name]() for name in sys.argv[1:] or ("tables", "large")]
    sys.exit(0 if all(passed) else 1)
