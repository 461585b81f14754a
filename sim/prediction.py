"""`Prediction`: a time with its reasons. Prints itself as the table a person wants and as the JSON of the design."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from einsight.sim.units import format_si, format_time

MODEL_VERSION = "0.1"


@dataclass(frozen=True, slots=True)
class Bound:
    """One resource and the time it alone would need; `because` names the amount, the rate and the rate's source."""

    name: str
    time_s: float
    because: str

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "time_s": self.time_s, "because": self.because}


class Later(Mapping[str, float]):
    """A mapping that is computed when first read: what an answer may show but most callers never ask for."""

    def __init__(self, make: Callable[[], Mapping[str, float]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, float]:
        return self._make()

    def __getitem__(self, key: str) -> float:
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one workload costs on one target. Times in seconds, traffic in bytes, energy in picojoules."""

    workload: str
    key: str
    target: str
    family: str
    cascade: str
    time_s: float
    time_low_s: float
    time_high_s: float
    bound: Bound
    bounds: tuple[Bound, ...]
    flops_matmul: float  # flash-attention convention: 2 per multiply-accumulate of the two contractions, unmasked points
    flops_by_class: Mapping[str, float]
    bytes_by_memory: Mapping[str, float]
    passes: Mapping[str, int]
    peak_flops_per_s: float
    speedup: Mapping[str, float]
    mapping: Mapping[str, Any]
    assumptions: tuple[str, ...] = ()
    energy_pj: float | None = None
    energy_note: str = ""
    cycles: Mapping[str, float] | None = None  # spatial arrays only, with the three fields below
    utilisation: Mapping[str, float] | None = None
    area_mm2: float | None = None
    energy_by_component_pj: Mapping[str, float] | None = None
    layers: int = 1
    time_all_layers_s: float | None = None

    @property
    def intensity(self) -> float:
        """Matmul FLOPs per byte of the farthest memory."""
        far = next(iter(self.bytes_by_memory.values()), 0.0)
        return self.flops_matmul / far if far else float("inf")

    @property
    def tflops(self) -> float:
        """Achieved 10^12 FLOP/s in the flash-attention convention."""
        return self.flops_matmul / self.time_s / 1e12

    @property
    def fraction_of_peak(self) -> float:
        return self.flops_matmul / self.time_s / self.peak_flops_per_s

    @property
    def span(self) -> str:
        """What `time_low_s` to `time_high_s` is: an interval that held so many measured times, or, on arrays, which
        nobody measured, the ends between which the overlap of units and DRAM moves the time."""
        return "90 %" if self.cycles is None else "full to no overlap"

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) of everything that is printed."""
        layers = [] if self.time_all_layers_s is None else [
            (f"all {self.layers} layers", format_time(self.time_all_layers_s))
        ]  # fmt: skip
        between = f"{format_time(self.time_low_s)} to {format_time(self.time_high_s)}"
        energy = [] if self.energy_pj is None else [
            ("energy", f"{format_si(self.energy_pj * 1e-12, 'J')} ({self.energy_note})")
        ]  # fmt: skip
        array = [] if self.cycles is None else [
            ("cycles", ", ".join(f"{part} {n:,.0f}" for part, n in self.cycles.items())),
            ("utilisation", ", ".join(f"{part} {100 * u:.3g} %" for part, u in (self.utilisation or {}).items())),
            ("area", "" if self.area_mm2 is None else f"{self.area_mm2:,.4g} mm^2"),
        ]  # fmt: skip
        return [
            ("family", self.family),
            (f"time ({self.span})", f"{format_time(self.time_s)} ({between})"),
            *layers,
            ("limited by", self.bound.because),
            ("matmul work", format_si(self.flops_matmul, "FLOP")),
            ("achieved", f"{format_si(self.tflops * 1e12, 'FLOP/s')}, {100 * self.fraction_of_peak:.3g} % of peak"),
            *((f"{memory} traffic", format_si(moved, "B")) for memory, moved in self.bytes_by_memory.items()),
            ("intensity", f"{self.intensity:,.4g} FLOP/B"),
            ("passes", ", ".join(f"{tensor} {n}" for tensor, n in self.passes.items())),
            *((f"speedup {base.replace('_', ' ')}", f"{ratio:.3g}x") for base, ratio in self.speedup.items()),
            *energy,
            *array,
            ("mapping", ", ".join(_choice(name, value) for name, value in self.mapping.items() if value is not False)),
        ]

    def __str__(self) -> str:
        rows = [("workload", self.workload), ("target", self.target), *self.rows()]
        rows += [("assumed", note) for note in self.assumptions]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def as_json(self) -> dict[str, Any]:
        """The interchange form of docs/design; arrays add cycles, utilisation, energy and area."""
        out: dict[str, Any] = {
            "workload": self.workload, "key": self.key, "target": self.target, "family": self.family,
            "cascade": self.cascade, "time_s": self.time_s, "time_low_s": self.time_low_s,
            "time_high_s": self.time_high_s, "bound": self.bound.as_json(),
            "bounds": [b.as_json() for b in self.bounds],
            "flops": {"matmul": self.flops_matmul, "by_class": dict(self.flops_by_class)},
            "bytes": dict(self.bytes_by_memory), "intensity": self.intensity, "tflops": self.tflops,
            "fraction_of_peak": self.fraction_of_peak, "passes": dict(self.passes), "speedup": dict(self.speedup),
            "mapping": dict(self.mapping), "assumptions": list(self.assumptions), "model_version": MODEL_VERSION,
        }  # fmt: skip
        if self.energy_pj is not None:
            out["energy_pj"] = self.energy_pj
            out["energy_note"] = self.energy_note
        if self.cycles is not None:
            out["cycles"] = dict(self.cycles)
            out["utilisation"] = dict(self.utilisation or {})
            out["area_mm2"] = self.area_mm2
            out["energy_by_component_pj"] = dict(self.energy_by_component_pj or {})
        if self.time_all_layers_s is not None:
            out["layers"] = self.layers
            out["time_all_layers_s"] = self.time_all_layers_s
        return out


def side_by_side(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """Rows of a label and one text per prediction; empty where a target has no such line, which stands before
    the line that follows it there."""
    texts = [dict(p.rows()) for p in predictions]
    labels: list[str] = []
    for rows in texts:
        at = len(labels)
        for label in reversed(rows):
            if label not in labels:
                labels.insert(at, label)
            at = labels.index(label)
    return [(label, *(rows.get(label, "") for rows in texts)) for label in labels]


def _choice(name: str, value: Any) -> str:
    """`block_m 128`; a yes-or-no choice that was taken is its name alone."""
    return name if value is True else f"{name} {value}"
