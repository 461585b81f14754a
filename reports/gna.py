"""Generalized neighborhood attention (arXiv 2504.16922) and its predecessors recomputed, beside what was published.

Four tables: NATTEN's own tile counts, the paper's simulator column, measured profiles, and the generations of kernels
(naive, GEMM-based, fused; arXiv 2403.04690) with dilated neighborhoods. The first three need the folder of published
values; the last is ours over a sweep that stands here, since the published sweep does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from einsight.sim import strict_yaml
from einsight.sim.family import load_family
from einsight.sim.gna_advice import best_tiles, legal_pairs
from einsight.sim.gna_bounds import bounds, end_to_end
from einsight.sim.gna_kernel import GnaKernel, kernel_for, load_gna_kernel
from einsight.sim.gna_tiles import Shape, count_tiles
from einsight.sim.gna_time import Problem, dense_seconds, predict_gna
from einsight.sim.gna_unfused import gemm_seconds, naive_seconds
from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.sim.mask import Gna
from einsight.sim.strict_yaml import Item

COUNTS, PAPER, PROFILES = "natten_block_mask_counts.json", "gna_paper_rows.json", "natten_profiler.json"
SIMULATOR_ALLOWED, TIME_ALLOWED = 0.02, 0.15
"""Absolute difference to the paper's simulator column; relative difference to a measured kernel time."""

FACTS = Path(__file__).parent / "templates" / "gna.yaml"


class PublishedRowsError(ValueError):
    """A reference file without what the report reads; the message names file and key."""


@dataclass(frozen=True, slots=True)
class CountRow:
    """Tile counts of one mask: (Q tiles, KV tiles in all, of the worst Q tile, masked, unmasked), ours and NATTEN's."""

    mask: str
    ours: tuple[int, ...]
    published: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SimulatorRow:
    """End-to-end speedups of one model and mask: by FLOPs, by the worst tile (the simulator), predicted, measured.

    `predicted` takes our kernel time without permuting, which the paper does once per model run, not once per call.
    """

    model: str
    window: str
    stride: str
    dense_steps: int
    flop: float
    simulator: float
    predicted: float
    published_flop: float
    published_simulator: float
    published_actual: float

    @property
    def off(self) -> float:
        return self.simulator - self.published_simulator


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One measured kernel. `fitted`: whether a constant of the prediction was fitted on this row."""

    name: str
    target: str
    kernel: str
    fitted: bool
    time_s: float
    measured_s: float
    permute_s: float
    measured_permute_s: float

    @property
    def off(self) -> float:
        return self.time_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """Mean improvement in speed over naive kernels, as a factor less 1, over our sweep; published over another one."""

    kernel: str
    rank: int
    precision: str
    improvement: float | None
    published: float | None
    cases: int


@dataclass(frozen=True, slots=True)
class DilatedRow:
    """The same window without and with dilation: equal FLOPs, other tiles. Fused kernel, seconds."""

    mask: str
    target: str
    time_s: float
    undilated_s: float
    tile_speedup_max: float


def count_rows(folder: Path) -> list[CountRow]:
    """Ours beside every row of NATTEN's block masks."""
    found = []
    for row in _rows(folder / COUNTS, "rows", (*_MASK, "dilation", "is_causal", "q_tile", "kv_tile", *_COUNTED)):
        gna = _gna(row)
        q, kv = tuple(row["q_tile"]), tuple(row["kv_tile"])
        tiles = count_tiles(gna, q, kv)
        published = [row[name] for name in _COUNTED]
        ours = (tiles.q_tiles, tiles.total, tiles.most, tiles.masked, tiles.full)
        found.append(CountRow(f"{_mask(gna)} tiles {_by(q)} / {_by(kv)}", ours, tuple(published)))
    return found


def simulator_rows(folder: Path) -> list[SimulatorRow]:
    """The paper's end-to-end tables, measured on a B200; attention's share of the run is Table 1's."""
    paper, found = _end_to_end(), []
    gpu, kernel = paper.gpu, kernel_for(paper.gpu)
    for row in _rows(folder / PAPER, "rows", (*_MASK, "q_tile", "kv_tile", *_PAPER)):
        gna = _gna({"dilation": [1] * len(row["input_size"]), "is_causal": [False] * len(row["input_size"]), **row})
        bound = bounds(gna, count_tiles(gna, tuple(row["q_tile"]), tuple(row["kv_tile"])))
        steps = row["sa_steps"], row["total_steps"]
        share = paper.shares.get(row["model"], row["attention_share_of_e2e"] / (1 - steps[0] / steps[1]))
        problem = Problem(gna, heads=paper.heads, head_dim=paper.head_dim)
        time = predict_gna(problem, gpu, kernel, tuple(row["q_tile"]), tuple(row["kv_tile"]), kernel.tiling)
        flop, worst, ours = (end_to_end(s, share, *steps) for s in (bound.flop, bound.worst, time.speedup))
        found.append(SimulatorRow(
            row["model"], _by(gna.window), _by(gna.stride), row["sa_steps"], flop, worst, ours,
            row["e2e_flopwise_paper"], row["e2e_nattensim_paper"], row["e2e_actual_paper"],
        ))  # fmt: skip
    return found


def profile_rows(folder: Path) -> list[ProfileRow]:
    """Every forward profile; of profiles with a backward pass the forward kernel and no copies."""
    found = []
    for record in _rows(folder / PROFILES, "records", _PROFILE):
        gpu, kernel = _device(record["device"]), _kernel_of(record)
        problem = _problem(record["problem"])
        measured = [k["time_us"] * 1e-6 for k in record["kernels"]]
        copies = 0.0 if record["backprop"] else sum(measured[1:])
        tiles = record["tile_config"]
        if tiles["q_tile"] is None:
            time, permute = dense_seconds(problem, gpu, load_family(kernel.dense)), 0.0
        else:
            made = predict_gna(problem, gpu, kernel, tuple(tiles["q_tile"]), tuple(tiles["kv_tile"]), kernel.tiling)
            time, permute = made.time_s, made.permute_s
        name = record["id"].removeprefix("profiler-")
        found.append(ProfileRow(
            name, gpu.name, record["backend"], name in _fitted(kernel), time, measured[0], permute, copies
        ))  # fmt: skip
    return found


def _kernel_of(record: Mapping[str, Any]) -> GnaKernel:
    """The kernel of a profile; of a dense one the kernel that NATTEN would take on that GPU."""
    if record["tile_config"]["q_tile"] is None:
        return kernel_for(_device(record["device"]))
    return load_gna_kernel(record["backend"])


def _fitted(kernel: GnaKernel) -> set[str]:
    """Names of the profiles that a constant of the kernel, its family or its dense family was fitted on."""
    texts = [fit.fitted_on for name in (kernel.family, kernel.dense) for fit in load_family(name).fits]
    texts += [kernel.mask_cycles.source, kernel.division_ops.source]
    return {word for text in texts for word in re.findall(r"[\w-]+", text)}


# -- generations -----------------------------------------------------------------------------------------------------

SWEEP: Mapping[int, tuple[tuple[Shape, Shape], ...]] = {
    1: tuple(((n,), (w,)) for n in (1024, 4096, 16384) for w in (32, 128, 512)),
    2: tuple(((n, n), (w, w)) for n in (32, 64, 128) for w in (7, 13, 25)),
    3: tuple(((n, n, n), (w, w, w)) for n in (12, 16, 24) for w in (3, 5, 9)),
}
"""Our sweep: grids and windows by rank; batch 8, 4 heads of 32, without dilation and with the largest possible one."""
SWEEP_WORDS = (
    "1-D 1k, 4k, 16k tokens with windows 32, 128, 512; 2-D 32, 64, 128 squared with 7, 13, 25; 3-D 12, 16, 24 cubed with"
    " 3, 5, 9; batch 8, 4 heads of 32, dilation 1 and the largest possible"
)
TENSOR_TYPE = {"fp32": "tf32", "fp16": "fp16"}


def generation_rows(gpu: Gpu) -> list[GenerationRow]:
    """The published averages beside ours over `SWEEP`; forward passes only."""
    rows = []
    for item in _facts("generations")["improvements"].items():
        entry = item.table(required=("kernel", "rank", "precision", "published"))
        kernel, precision, rank = entry["kernel"].text(), entry["precision"].text(), entry["rank"].integer(1)
        found = _improvements(kernel, rank, precision, gpu)
        rows.append(GenerationRow(
            kernel, rank, precision, mean(found) if found else None, entry["published"].number(), len(found)
        ))  # fmt: skip
    return rows


def generations_gpu() -> Gpu:
    """Where the published averages were measured."""
    return _gpu(_facts("generations")["target"].text())


def _improvements(kernel: str, rank: int, precision: str, gpu: Gpu) -> list[float]:
    found = []
    for problem in _swept(rank, precision):
        time = gemm_seconds(problem, gpu, TENSOR_TYPE[precision]) if kernel == "gemm" else _fused_seconds(problem, gpu)
        if time is not None:
            found.append(naive_seconds(problem, gpu) / time - 1)
    return found


def _swept(rank: int, precision: str) -> list[Problem]:
    found = []
    for layout, window in SWEEP[rank]:
        widest = tuple(n // w for n, w in zip(layout, window, strict=True))
        for dilation in dict.fromkeys(((1,) * rank, widest)):
            gna = Gna(layout, window, (1,) * rank, dilation, (False,) * rank)
            found.append(Problem(gna, batch=8, heads=4, head_dim=32, dtype=precision))
    return found


def _fused_seconds(problem: Problem, gpu: Gpu) -> float:
    kernel = kernel_for(gpu)
    return best_tiles(problem, gpu, kernel, legal_pairs(problem, kernel, gpu))[0].total_s


DILATED: tuple[tuple[Shape, Shape, Shape], ...] = (
    ((56, 56), (7, 7), (8, 8)), ((28, 28), (7, 7), (4, 4)), ((14, 14), (7, 7), (2, 2)), ((16384,), (512,), (32,)),
    ((24, 44, 80), (24, 4, 16), (1, 11, 5)), ((24, 44, 80), (24, 12, 16), (1, 1, 5)),
)  # fmt: skip
"""Grid, window, dilation: the levels of a dilated transformer (DiNAT), a long line, and two patterns of a video model."""


def dilated_rows(gpu: Gpu) -> list[DilatedRow]:
    """Dilated neighborhoods beside the same windows without dilation: 24 heads of 64."""
    kernel, found = kernel_for(gpu), []
    for layout, window, dilation in DILATED:
        rank = len(layout)
        gna = Gna(layout, window, (1,) * rank, dilation, (False,) * rank)
        problem = Problem(gna, heads=24, head_dim=64)
        plain = replace(problem, gna=replace(gna, dilation=(1,) * rank))
        pair = legal_pairs(problem, kernel, gpu)[:1]
        best, without = (best_tiles(p, gpu, kernel, pair)[0] for p in (problem, plain))
        found.append(DilatedRow(_mask(gna), gpu.name, best.total_s, without.total_s, best.tile_speedup_max))
    return found


# -- published facts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Paper:
    gpu: Gpu
    heads: int
    head_dim: int
    shares: Mapping[str, float]


def _end_to_end() -> _Paper:
    t = _facts("end_to_end")
    shares = {name: item.number() for name, item in t["shares"].entries().items()}
    return _Paper(_gpu(t["target"].text()), t["heads"].integer(1), t["head_dim"].integer(1), shares)


def _facts(section: str) -> Mapping[str, Item]:
    return strict_yaml.load(FACTS).table(required=("end_to_end", "generations"))[section].entries()


def _gpu(name: str) -> Gpu:
    found = load_hardware(name)
    assert isinstance(found, Gpu)
    return found


# -- files -----------------------------------------------------------------------------------------------------------


_MASK = ("input_size", "window_size", "stride")
_COUNTED = tuple(f"natten_{k}" for k in ("num_q_tiles", "total_kv_tiles", "max_kv_tiles", "partial_tiles", "full_tiles"))
_PAPER = (
    "model", "sa_steps", "total_steps", "attention_share_of_e2e", "e2e_flopwise_paper", "e2e_nattensim_paper",
    "e2e_actual_paper",
)  # fmt: skip
_PROFILE = (
    "id", "device", "backend", "backprop", "kernels", "tile_config.q_tile", "tile_config.kv_tile",
    *(f"problem.{k}" for k in (*_MASK, "dilation", "is_causal", "batch", "heads", "head_dim", "dtype")),
)  # fmt: skip
"""What the rows of a file must have."""


def _rows(path: Path, key: str, needs: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """The rows of a file. Raises PublishedRowsError: which row lacks which entry."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (KeyError, TypeError, ValueError) as error:
        raise PublishedRowsError(f"{path}: found no list under '{key}' ({error}); expected NATTEN's published rows") from None
    if not isinstance(found, list):
        raise PublishedRowsError(f"{path}: found no list under '{key}'; expected NATTEN's published rows")
    for number, row in enumerate(found):
        for need in needs:
            at = row
            for part in need.split("."):
                if not isinstance(at, Mapping) or part not in at:
                    raise PublishedRowsError(f"{path}: {key}[{number}]: found no {need}; expected NATTEN's published rows")
                at = at[part]
    return found


def _gna(row: Mapping[str, Any]) -> Gna:
    return Gna(*(tuple(row[k]) for k in ("input_size", "window_size", "stride", "dilation", "is_causal")))


def _problem(p: Mapping[str, Any]) -> Problem:
    return Problem(_gna(p), p["batch"], p["heads"], p["head_dim"], p["dtype"])


def _device(printed: str) -> Gpu:
    """The GPU of a profile that prints it as "NVIDIA H100": of several sizes the one with the larger memory."""
    word = printed.split()[-1].lower()
    for name in reversed(names()):
        found = load_hardware(name)
        if isinstance(found, Gpu) and word in name.split("-"):
            return found
    raise PublishedRowsError(f"device {printed!r}: found no profile of that name; expected one of {', '.join(names())}")


def _mask(gna: Gna) -> str:
    words = [_by(gna.layout), f"window {_by(gna.window)}"]
    words += [f"stride {_by(gna.stride)}"] if max(gna.stride) > 1 else []
    words += [f"dilation {_by(gna.dilation)}"] if max(gna.dilation) > 1 else []
    words += [f"causal {_by([int(c) for c in gna.causal])}"] if any(gna.causal) else []
    return " ".join(words)


def _by(values: Sequence[int]) -> str:
    return "x".join(map(str, values))
