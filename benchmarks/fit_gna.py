"""Fits the kernels for neighborhood attention on some of NATTEN's sample profiles and prints what the others give.

    python benchmarks/fit_gna.py [FOLDER with natten_profiler.json]

Prints constants for `sim/families/natten_*.yaml`, `cudnn_*.yaml` and `gna/*.yaml`; run it again when the GPU model changes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from einsight.sim.family import Family, load_family
from einsight.sim.gna_bounds import block_sparsity
from einsight.sim.gna_kernel import GnaKernel, kernel_for
from einsight.sim.gna_tiles import count_tiles
from einsight.sim.gna_time import Problem, attention_times, dense_seconds, run_tiles
from einsight.sim.hardware import Gpu, Quantity, load_hardware
from einsight.sim.mask import Gna

DEVICES = {"h100": "h100-sxm", "b200": "b200", "a100": "a100-sxm-80gb"}
KERNEL_CONSTANTS = ("mask_cycles", "division_ops")
"""These belong to the kernel's own file; all others to a family."""


@dataclass(frozen=True, slots=True)
class Step:
    """Constants of one family (and its kernel) fitted on the named rows, after `shared` are taken from earlier steps."""

    family: str
    rows: tuple[str, ...]
    start: Mapping[str, float]
    shared: Mapping[str, str]  # constant -> family it comes from


STEPS = (
    Step("cudnn_hopper", ("1d-32k-cudnn-h100", "3d-hunyuan-cudnn-h100"), {"unhidden": 0.12}, {}),
    Step("natten_hopper", ("1d-32k-w2k-s256-hopper-fna-h100", "2d-flux-na-hopper-fna-h100", "2d-flux-gna-hopper-fna-h100"),
         {"unhidden": 0.1, "block_cycles": 5000, "mask_cycles": 1000}, {}),
    Step("cudnn_blackwell", ("1d-32k-cudnn-b200", "2d-flux-cudnn-b200"), {"unhidden": 0.12}, {}),
    Step("natten_blackwell", ("1d-32k-w2k-s256-blackwell-fna-b200", "1d-32k-w2k-blackwell-fna-b200"),
         {"block_cycles": 3000, "mask_cycles": 1000}, {}),
    Step("natten_ampere", ("optimize-on-cutlass-fna-a100", "optimize-off-cutlass-fna-a100"),
         {"mma_efficiency": 0.25, "division_ops": 30}, {}),
)  # fmt: skip


def seconds(record: Mapping[str, Any], gpu: Gpu, kernel: GnaKernel, family: Family) -> float:
    """Predicted seconds of the attention kernel of one profile."""
    p, tiles = record["problem"], record["tile_config"]
    gna = Gna(*(tuple(p[k]) for k in ("input_size", "window_size", "stride", "dilation", "is_causal")))
    problem = Problem(gna, p["batch"], p["heads"], p["head_dim"], p["dtype"])
    if tiles["q_tile"] is None:
        return dense_seconds(problem, gpu, family)
    q, kv = tuple(tiles["q_tile"]), tuple(tiles["kv_tile"])
    run = run_tiles(kernel, gna, count_tiles(gna, q, kv, kernel.tiling), block_sparsity(gna, q, kv, kernel.tiling).fully)
    return float(attention_times(problem, gpu, kernel, family, int(np.prod(q)), int(np.prod(kv)), run).time_s[0])


def with_constants(values: Mapping[str, float], kernel: GnaKernel, family: Family) -> tuple[GnaKernel, Family]:
    """Both with the values in place of their own."""
    own = {n: Quantity(v, f"{v:g}", "fitted", "") for n, v in values.items() if n in KERNEL_CONSTANTS}
    fits = tuple(replace(f, constants={**f.constants, **{n: v for n, v in values.items() if n not in own}})
                 for f in family.fits)  # fmt: skip
    return replace(kernel, **own), replace(family, fits=fits)


def fit(step: Step, records: Mapping[str, Any], earlier: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names, start = list(step.start), np.array(list(step.start.values()))
    shared = {name: earlier[family][name] for name, family in step.shared.items()}

    def errors(x: np.ndarray) -> list[float]:
        values = {**shared, **dict(zip(names, (x * start).tolist(), strict=True))}
        return [np.log(predicted(row, records, step.family, values) / measured(records[row])) for row in step.rows]

    found = least_squares(errors, np.ones(len(names)), bounds=(0.0, 50.0))
    return {**shared, **dict(zip(names, (found.x * start).tolist(), strict=True))}


def predicted(row: str, records: Mapping[str, Any], family: str, values: Mapping[str, float]) -> float:
    gpu = load_hardware(DEVICES[row.rsplit("-", 1)[1]])
    assert isinstance(gpu, Gpu)
    return seconds(records[row], gpu, *with_constants(values, kernel_for(gpu), load_family(family)))


def measured(record: Mapping[str, Any]) -> float:
    return float(record["kernels"][0]["time_us"]) * 1e-6


def main(argv: Sequence[str]) -> int:
    folder = Path(argv[0]) if argv else Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
    listed = json.loads((folder / "natten_profiler.json").read_text(encoding="utf-8"))["records"]
    records = {r["id"].removeprefix("profiler-"): r for r in listed}
    found: dict[str, dict[str, float]] = {}
    for step in STEPS:
        found[step.family] = fit(step, records, found)
        print(step.family, ", ".join(f"{name} {value:.4g}" for name, value in found[step.family].items()))
        for row in (r for r in records if same_kernel(r, step.rows[0])):
            off = predicted(row, records, step.family, found[step.family]) / measured(records[row]) - 1
            print(f"  {100 * off:+6.1f} %  {'fitted  ' if row in step.rows else 'held out'}  {row}")
    return 0


def same_kernel(row: str, other: str) -> bool:
    """Whether two profiles are of one kernel on one device: their names end alike."""
    ends = [r.split("-")[-1:] + (["cudnn"] if "cudnn" in r else ["fna"]) for r in (row, other)]
    return ends[0] == ends[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
