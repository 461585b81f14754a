"""Published winners against the simulator: how far behind its best prediction it puts the build that was fastest in truth.

    python benchmarks/published_winners.py            the table
    python benchmarks/published_winners.py --write    and into docs/tuner.md

Winners: the fastest of 450 builds of another Triton attention kernel (causal, fp16, head dimension 128, batch 1) on an A100,
from triton-dejavu's cache in the reference data (EINSIGHT_REFERENCE). Needs no GPU.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from einsight.kernels.catalog import KERNELS
from einsight.kernels.spaces import Config
from einsight.sim.hardware import load_gpu
from einsight.sim.workload import Workload
from einsight.tuner.prior import simulated
from einsight.tuner.problem import problem_of

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", ROOT.parent / "shared" / "reference"))
FILE = REFERENCE / "tuner_spaces" / "attention_winners" / "attn_fwd__NVIDIA_A100-SXM4-80GB__triton_3.2.0__1.json"
PAGE = ROOT / "docs" / "tuner.md"
TARGET, CAPABILITY, HEAD_DIM = "a100-sxm-80gb", 80, 128
BEGIN, END = "<!-- published_winners: begin -->", "<!-- published_winners: end -->"


@dataclass(frozen=True)
class Winner:
    """The fastest build of one shape, and its predicted time over the best predicted, less 1; None where our space lacks it."""

    queries: int
    heads: tuple[int, int]
    build: Config
    behind: float | None


def winners() -> Iterator[Winner]:
    """In the order of the file: ascending lengths. Raises OSError without the reference data."""
    gpu, known = load_gpu(TARGET), json.loads(FILE.read_text())
    for key, value in known["cache"].items():
        shape = dict(zip(known["keys"], ast.literal_eval(key), strict=False))
        told = dict(part.split(": ") for part in value.split(", "))
        heads, queries = (int(shape["HQ"]), int(shape["HK"])), int(shape["MAX_SEQLENS_Q"])
        build = Config(*(int(told[name]) for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")))
        workload = Workload.attention(
            heads=heads[0], kv_heads=heads[1], seq_q=queries, head_dim=HEAD_DIM, mask="causal", dtype="fp16"
        )
        problem = problem_of(KERNELS["attention"], workload, CAPABILITY)
        logs, builds = simulated(problem, gpu), problem.configurations()
        behind = float(np.expm1(logs[builds.index(build)] - logs.min())) if build in builds else None
        yield Winner(queries, heads, build, behind)


def table() -> str:
    lines = ["| queries | heads / KV heads | fastest build | predicted behind the best prediction |", "|---|---|---|---|"]
    for one in winners():
        behind = "not in our space" if one.behind is None else f"{100 * one.behind:.0f} %"
        lines.append(f"| {one.queries} | {one.heads[0]} / {one.heads[1]} | {one.build} | {behind} |")
    return "\n".join(lines)


def main() -> int:
    try:
        made = table()
    except OSError as error:
        print(f"{FILE}: {error.strerror}; EINSIGHT_REFERENCE names the folder of the reference data", file=sys.stderr)
        return 2
    print(made)
    if "--write" in sys.argv[1:]:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
