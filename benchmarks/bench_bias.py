"""Speed and memory of factorising biases, against their bars; exits with 1 when one is missed.

    python benchmarks/bench_bias.py            # both
    OMP_NUM_THREADS=1 python benchmarks/bench_bias.py tables   # on a machine whose cores are busy

tables   SVD of 32 heads of 576 x 576 (SwinV2 at 384 x 384) to 99.5 % of the energy: under 1 s
large    16384 x 16384 to rank 64, randomised: under 60 s and 8 GB
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from einsight.sim.bias_examples import point_cloud, swin_v2_tables, window_bias
from einsight.sim.bias_svd import decompose, factorise


def tables() -> bool:
    bias = window_bias(swin_v2_tables(32), 24, 24)
    factorise(bias[:1], 0.995)
    start = time.perf_counter()
    found = factorise(bias, 0.995)
    seconds = time.perf_counter() - start
    print(f"32 heads of 576 x 576: {seconds:.2f} s (bar 1 s), ranks {min(found.ranks)} to {max(found.ranks)}")  # type: ignore[type-var]
    return seconds < 1.0


def large(side: int = 16384) -> bool:
    """-|x - y| of points on a body: smooth, of full rank; built by rows so that only the matrix itself is large."""
    points = point_cloud(side).astype(np.float32)
    matrix = np.empty((side, side), dtype=np.float32)
    for rows in np.array_split(np.arange(side), 64):
        matrix[rows] = -np.linalg.norm(points[rows, None, :] - points[None], axis=2)
    start = time.perf_counter()
    found = decompose(matrix, 1.0, centred=True, least=64, most=64)
    seconds = time.perf_counter() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    kept = 100 * found.captured()[-1]
    print(f"{side} x {side} to rank 64: {seconds:.1f} s (bar 60 s), {gigabytes:.1f} GB (bar 8 GB), {kept:.3f} % of the energy")
    return seconds < 60.0 and gigabytes < 8.0


PARTS = {"tables": tables, "large": large}

if __name__ == "__main__":
    passed = [PARTS[name]() for name in sys.argv[1:] or PARTS]
    sys.exit(0 if all(passed) else 1)
