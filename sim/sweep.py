"""Sweeps: one workload over a range of one size, on several targets, and the inverse questions it answers.

The same vectorised core as `predict`; "longest context under 10 ms" and "which GPU from which length on" are read off
the swept curve, the first to a whole number and the second to one step of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.estimate import Estimate, estimate
from einsight.sim.hardware import load_gpu, load_hardware
from einsight.sim.mask import MAX_SIZE, Mask
from einsight.sim.predict import family_on
from einsight.sim.schedule import Array
from einsight.sim.work import KEY, QUERY
from einsight.sim.workload import Workload

_SCALES = {"k": 1024, "m": 1024 * 1024}
MOST_POINTS = 1_000_000
TIED = (("m", "n"), ("e", "f"))
"""Sizes that are one thing where they are equal: a prefill's queries and keys are the same tokens, keys and values have one
head dimension. Sweeping one moves the other."""
SEARCHED = 64
"""Values tried at once between two swept ones."""


class SweepError(ValueError):
    """A sweep text that cannot be read; says what is wrong and shows a right one."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The values of one size, ascending."""

    size: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Times of one target along an axis, seconds.

    `bound` names the limiting resource of each point; `mapping` says what the family's rules chose there (GPUs), which
    explains a step back of the time.
    """

    target: str
    family: str
    axis: Axis
    time_s: tuple[float, ...]
    bound: tuple[str, ...]
    mapping: tuple[str, ...] = ()
    asked: str = ""  # the target as it was named, with the family

    @property
    def label(self) -> str:
        """The target, with the family where one was named: two families of one target are two curves."""
        _, colon, family = self.asked.partition(":")
        return self.target + colon + family if family else self.target

    def bracket(self, seconds: float) -> tuple[int | None, int | None]:
        """(last value whose time, like that of all before it, is at most `seconds`; the next one), None where there is none."""
        over = next((i for i, t in enumerate(self.time_s) if t > seconds), len(self.time_s))
        values = (None, *self.axis.values, None)
        return values[over], values[over + 1]

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target, "family": self.family, "size": self.axis.size, "values": list(self.axis.values),
            "time_s": list(self.time_s), "bound": list(self.bound), "mapping": list(self.mapping),
        }  # fmt: skip


def parse_axis(text: str) -> Axis:
    """`n=1k:128k`, `n=1k:128k:32`, `n=1k:128k:32:linear`, `n=1024,2048`; k is 1024. Raises SweepError."""
    name, equals, spec = text.partition("=")
    if not equals or not name.strip().isalnum():
        raise SweepError(f"--sweep: found {text!r}; expected SIZE=FROM:TO[:POINTS][:log|linear], such as n=1k:128k")
    if "," in spec:
        return Axis(name.strip().lower(), tuple(sorted({_number(v, text) for v in spec.split(",")})))
    parts = spec.split(":")
    if not 2 <= len(parts) <= 4:
        raise SweepError(f"--sweep: found {text!r}; expected FROM:TO[:POINTS][:log|linear], such as n=1k:128k:32:log")
    low, high = _number(parts[0], text), _number(parts[1], text)
    scale = parts[3] if len(parts) == 4 else "log"
    if scale not in ("log", "linear"):
        raise SweepError(f"--sweep: found scale {scale!r} in {text!r}; expected log or linear")
    if low > high:
        raise SweepError(f"--sweep: {text!r} runs from {low} down to {high}; expected FROM <= TO")
    points = _number(parts[2], text) if len(parts) > 2 else _octaves(low, high)
    if points > MOST_POINTS:
        raise SweepError(f"--sweep: {text!r} asks for {points} points; at most {MOST_POINTS}")
    space = np.geomspace if scale == "log" else np.linspace
    return Axis(name.strip().lower(), tuple(sorted({round(float(v)) for v in space(low, high, max(points, 1))})))


def _octaves(low: int, high: int) -> int:
    """Four points an octave, ends included."""
    return int(np.ceil(4 * np.log2(high / low))) + 1


def _number(text: str, whole: str) -> int:
    value = text.strip().lower()
    scale = _SCALES.get(value[-1:], 1)
    digits = value[:-1] if scale > 1 else value
    number = int(digits) * scale if re.fullmatch("[0-9]{1,15}", digits) else 0
    if not 1 <= number <= MAX_SIZE:
        raise SweepError(
            f"--sweep: found {text!r} in {whole!r}; expected a positive whole number, such as 4096 or 4k, up to 2^40"
        )
    return number


def sweep(workload: Workload, axis: Axis, targets: Sequence[str]) -> tuple[Curve, ...]:
    """The workload's time on each target at each value of the axis. Raises as `predict` does."""
    sizes = swept_sizes(workload, axis)
    for i in (0, -1):  # what a workload of such sizes would be refused for: the rules about sizes only grow along an axis
        replace(workload, sizes=_point(workload, sizes, i))
    return tuple(_curve(workload, axis, target) for target in targets)


def _point(workload: Workload, sizes: Mapping[str, Array], i: int) -> dict[str, int]:
    """The lower-case sizes of point i, h in place of j."""
    own = {name: int(sizes[name.upper()][i]) for name in workload.sizes if name not in ("h", "j")}
    return own | {"h": int(sizes["G"][i] * sizes["J"][i])}


def longest_within(workload: Workload, curve: Curve, seconds: float) -> int | None:
    """The largest value of the swept size that takes at most `seconds`, as do the swept values below it; None if none does.

    Between two swept values every whole number is a candidate, except of head counts, which must divide each other.
    """
    low, high = curve.bracket(seconds)
    if low is None or high is None or curve.axis.size in ("h", "g", "j"):
        return low
    while high - low > 1:
        between = sorted({low + (high - low) * k // SEARCHED for k in range(1, SEARCHED)} - {low, high})
        finer = _curve(workload, Axis(curve.axis.size, (low, *between, high)), curve.asked)
        low, above = finer.bracket(seconds)
        assert low is not None and above is not None  # both ends are as they were
        high = above
    return low


def _curve(workload: Workload, axis: Axis, target: str) -> Curve:
    name, _, chosen = target.partition(":")
    if load_hardware(name).kind == "array":
        return _array_curve(workload, axis, name, chosen)
    gpu = load_gpu(name)
    family, made, _ = family_on(workload, gpu, chosen or workload.family or gpu.family[workload.phase])
    sizes = swept_sizes(workload, axis)
    time = np.empty(len(axis.values))
    bound, chosen_at = np.empty(len(axis.values), dtype=object), np.empty(len(axis.values), dtype=object)
    for mask, at in _masks(workload, sizes):
        part = {rank: values[at] for rank, values in sizes.items()}
        found = estimate(made, mask, part, workload.cache == "warm", gpu, family)
        names = list(found.bounds_s)
        time[at] = found.time_s
        bound[at] = [names[i] for i in np.argmax(np.stack([found.bounds_s[n] for n in names]), axis=0)]
        chosen_at[at] = _tile_texts(found)
    return Curve(name, family.name, axis, tuple(map(float, time)), tuple(map(str, bound)), tuple(map(str, chosen_at)), target)


def _tile_texts(found: Estimate) -> list[str]:
    """`128x64`, `128x64, 4 parts`: the tile and, where the keys are split, into how many parts."""
    cases = found.cases
    rows = zip(cases.block_m.tolist(), cases.block_n.tolist(), cases.splits.tolist(), strict=True)
    return [f"{m:.0f}x{n:.0f}" + (f", {s:.0f} parts" if s > 1 else "") for m, n, s in rows]


def _array_curve(workload: Workload, axis: Axis, name: str, design: str) -> Curve:
    """Point by point: a prediction on an array takes milliseconds."""
    from einsight.sim.array_hardware import load_array  # loaded for arrays only: a GPU's answer should not wait
    from einsight.sim.array_predict import array_times, design_name

    array = load_array(name)
    sizes = swept_sizes(workload, axis)
    points = [_point(workload, sizes, i) for i in range(len(axis.values))]
    found = array_times(workload, array, design, points)
    time, bound = tuple(b.time_s for b in found), tuple(b.name for b in found)
    asked = f"{name}:{design}" if design else name
    return Curve(array.name, design_name(workload, array, design), axis, time, bound, (), asked)


def _masks(workload: Workload, sizes: Mapping[str, Array]) -> list[tuple[Mask, NDArray[np.int64]]]:
    """The mask in its canonical form (which depends on the lengths: a window of all keys is none) and its points."""
    found: dict[Mask, list[int]] = {}
    for i, (m, n) in enumerate(zip(sizes[QUERY].astype(int).tolist(), sizes[KEY].astype(int).tolist(), strict=True)):
        workload.mask.check(m, n)
        found.setdefault(workload.mask.canonical(m, n), []).append(i)
    return [(mask, np.array(at)) for mask, at in found.items()]


def swept_sizes(workload: Workload, axis: Axis) -> dict[str, Array]:
    """Upper-case sizes with the swept one as an array; in a prefill over its own keys m and n move together."""
    known = workload.rank_sizes
    if axis.size not in workload.sizes:
        raise SweepError(f"--sweep: the workload has no size {axis.size!r}; it has {', '.join(workload.sizes)}")
    values = np.array(axis.values, dtype=np.float64)
    sizes = {name: np.full(values.shape, float(v)) for name, v in known.items()}
    if axis.size in ("h", "g", "j"):
        return sizes | _swept_heads(workload, axis, values)
    sizes[axis.size.upper()] = values
    for one, other in TIED:
        if axis.size in (one, other) and known[one.upper()] == known[other.upper()]:
            sizes |= {one.upper(): values, other.upper(): values}
    return sizes


def _swept_heads(workload: Workload, axis: Axis, values: Array) -> dict[str, Array]:
    """G and J for swept query heads (over the same KV heads) or swept KV heads (under the same query heads)."""
    h, g = workload.sizes["h"], workload.sizes["g"]
    if axis.size == "j":
        raise SweepError("--sweep: j follows from h and g; sweep h (query heads) or g (KV heads)")
    wrong = [v for v in axis.values if (v % g if axis.size == "h" else h % v)]
    if wrong and axis.size == "h":
        raise SweepError(f"--sweep: h = {wrong[0]} is not a multiple of g = {g}; list values such as h={g},{2 * g}")
    if wrong:
        raise SweepError(f"--sweep: g = {wrong[0]} does not divide h = {h}; list values such as g=1,{h}")
    return {"J": values / g} if axis.size == "h" else {"G": values, "J": h / values}


def crossovers(curves: Sequence[Curve]) -> tuple[tuple[int, str], ...]:
    """(value, target): from this value of the size on, this target is the fastest of the curves."""
    times = np.array([c.time_s for c in curves])
    best = times.argmin(axis=0)
    out: list[tuple[int, str]] = []
    for value, index in zip(curves[0].axis.values, best, strict=True):
        if not out or out[-1][1] != curves[index].label:
            out.append((value, curves[index].label))
    return tuple(out)
