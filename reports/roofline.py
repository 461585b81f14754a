"""The hierarchical roofline of a GPU: a roof per memory, a ceiling per unit, every workload a point per memory.

The vertical axis is matmul FLOP/s in the flash-attention convention, the horizontal one matmul FLOPs per byte of the
memory in question. A unit that does no matmuls (special functions) bounds them by how many of its operations the
workload needs per matmul FLOP; its ceiling therefore names that ratio.
Sources: Williams, Waterman, Patterson 2009 (roofline); Yang et al. 2018 (hierarchical: one intensity per memory).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from einsight.sim.hardware import Gpu
from einsight.sim.prediction import Prediction

FLOPS_PER_FMA = 2


@dataclass(frozen=True, slots=True)
class Roof:
    """A memory's slope, in bytes per second, for the key that `Prediction.bytes_by_memory` uses."""

    memory: str
    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A unit's limit on matmul FLOP/s."""

    title: str
    flops_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Point:
    """One workload: FLOPs per byte by memory, and the FLOP/s that it is predicted to reach."""

    workload: str
    bound: str
    intensity: dict[str, float]
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Roofline:
    target: str
    title: str
    peak_flops_per_s: float  # the highest tensor-core ceiling that is shown
    roofs: tuple[Roof, ...]
    ceilings: tuple[Ceiling, ...]
    points: tuple[Point, ...]


def roofline(gpu: Gpu, predictions: Iterable[Prediction]) -> Roofline:
    """The roofline of `gpu` with the predictions made for it; those of other targets are left out."""
    mine = [p for p in predictions if p.target == gpu.name]
    tensor = _tensor_ceilings(gpu, mine)
    return Roofline(
        target=gpu.name,
        title=gpu.title,
        peak_flops_per_s=max(c.flops_per_s for c in tensor),
        roofs=_roofs(gpu),
        ceilings=(*tensor, *_other_ceilings(gpu, mine)),
        points=tuple(_point(p) for p in mine),
    )


def _roofs(gpu: Gpu) -> tuple[Roof, ...]:
    per_cycle = gpu.sms.value * gpu.boost_hz.value
    l2, shared = gpu.architecture.l2_bytes_per_cycle, gpu.architecture.shared_bytes_per_cycle
    return (
        Roof("HBM", gpu.hbm_bytes_per_s.value, gpu.hbm_bytes_per_s.source),
        Roof("L2", l2.value * per_cycle, l2.source),
        Roof("shared memory", shared.value * per_cycle, shared.source),
    )


def _tensor_ceilings(gpu: Gpu, predictions: Sequence[Prediction]) -> tuple[Ceiling, ...]:
    """A ceiling per rate of the tensor cores; only those of dtypes that a prediction uses, when there is one."""
    ceilings = [
        Ceiling(f"tensor cores, {dtype}", gpu.tensor_flops_per_s(dtype), rate.source)
        for dtype, rate in gpu.tensor_flops_per_cycle.items()
    ]
    nearest = {
        min(ceilings, key=lambda c: abs(math.log(c.flops_per_s / peak))).flops_per_s
        for peak in {p.peak_flops_per_s for p in predictions}
    }
    return tuple(_merged([c for c in ceilings if c.flops_per_s in nearest] or ceilings))


def _other_ceilings(gpu: Gpu, predictions: Sequence[Prediction]) -> tuple[Ceiling, ...]:
    """fp32 fused multiply-adds, and special functions at each ratio of matmul FLOPs to operations that occurs."""
    cycles_per_s = gpu.sms.value * gpu.boost_hz.value
    vector, special = gpu.architecture.vector_ops_per_cycle, gpu.architecture.special_ops_per_cycle
    ratios = _extremes([r for p in predictions if (r := _flops_per_special(gpu, p)) is not None])
    return (
        Ceiling("fp32 pipes", FLOPS_PER_FMA * vector.value * cycles_per_s, vector.source),
        *(Ceiling(f"special functions at {r:g} FLOP each", r * special.value * cycles_per_s, special.source)
          for r in ratios),
    )  # fmt: skip


def _merged(ceilings: Sequence[Ceiling]) -> list[Ceiling]:
    """Ceilings of equal height as one: bf16 and fp16 share a line."""
    by_height: dict[float, Ceiling] = {}
    for c in ceilings:
        same = by_height.get(c.flops_per_s)
        title = f"{same.title}, {c.title.removeprefix('tensor cores, ')}" if same else c.title
        by_height[c.flops_per_s] = Ceiling(title, c.flops_per_s, c.source)
    return list(by_height.values())


def _flops_per_special(gpu: Gpu, prediction: Prediction) -> float | None:
    """Matmul FLOPs that the workload does for each operation of the special-function unit; None without any."""
    operators = gpu.architecture.operators
    count = sum(n * operators.get(klass, {}).get("special", 0.0) for klass, n in prediction.flops_by_class.items())
    return prediction.flops_matmul / count if count else None


def _point(p: Prediction) -> Point:
    intensity = {memory: p.flops_matmul / moved for memory, moved in p.bytes_by_memory.items() if moved}
    return Point(p.workload, p.bound.name, intensity, p.flops_matmul / p.time_s)


def _extremes(ratios: Sequence[float]) -> list[float]:
    """The smallest and the largest of the ratios to two digits; one of them where they would share a line."""
    if not ratios:
        return []
    low, high = (float(f"{ratio:.2g}") for ratio in (min(ratios), max(ratios)))
    return [low] if high < 1.2 * low else [low, high]
