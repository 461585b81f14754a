"""Which Einsums of a tile share the arrays, and the cycles that this leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from einsight.sim.array_design import Schedule
from einsight.sim.array_flow import Flow, Stage

UNITS = ("2d", "1d")


@dataclass(frozen=True, slots=True)
class Epoch:
    """Einsums that run at the same time, with the cycles of each array; it lasts as long as the longer one."""

    einsums: tuple[str, ...]
    cycles: Mapping[str, float]

    @property
    def length(self) -> float:
        return max(self.cycles.values())


def epochs(flow: Flow, cycles: Mapping[str, float], schedule: Schedule) -> tuple[Epoch, ...]:
    """The epochs of a run, cycles summed over all its tiles.

    The published epochs where they name exactly the cascade's Einsums; by `first_fit` for other cascades.
    """
    names = [s.name for s in flow.stages]
    if schedule.rule == "overlap":
        groups: Sequence[Sequence[str]] = [names]
    elif schedule.rule == "phases":
        groups = runs(flow)
    elif schedule.epochs and sorted(n for e in schedule.epochs for n in e) == sorted(names):
        groups = schedule.epochs
    else:
        groups = first_fit(flow, cycles, wrap=schedule.rule == "pipelined")
    unit = {s.name: s.unit for s in flow.stages}
    return tuple(
        Epoch(tuple(group), {u: sum(cycles[n] for n in group if unit[n] == u) for u in UNITS}) for group in groups
    )


def runs(flow: Flow) -> list[list[str]]:
    """Neighbours in program order on one array: the phases of a design that goes through DRAM between arrays."""
    found: list[list[str]] = []
    last = ""
    for stage in flow.stages:
        if stage.unit != last:
            found.append([])
        found[-1].append(stage.name)
        last = stage.unit
    return found


def first_fit(flow: Flow, cycles: Mapping[str, float], wrap: bool) -> list[list[str]]:
    """Epochs by rule. The 2-D array works in program order; a new epoch begins where an Einsum waits for the other
    array, and with every matrix product. What the 2-D array waits for keeps its place; the others follow, of those whose
    operands are placed the longest first, each to the first epoch from its earliest one on in which its array has room,
    else to the one with most room. With `wrap`, later epochs are those of the next tile: epoch L is epoch 0.
    """
    level: dict[str, int] = {}
    fixed = _feeds_2d(flow)
    last_2d, busy = 0, False
    for stage in (s for s in flow.stages if s.name in fixed):
        at = _earliest(stage, flow, level)
        if stage.unit == "2d":
            at = max(at, last_2d)
            if stage.matmul and busy and at == last_2d:
                at += 1
            last_2d, busy = at, True
        level[stage.name] = at
    count = 1 + max(level.values(), default=0)
    room = [0.0] * count
    for name, at in level.items():
        room[at] += cycles[name] if _of(flow, name).unit == "2d" else -cycles[name]
    waiting = [s for s in flow.stages if s.name not in fixed]
    while waiting:
        names = {s.name for s in waiting}
        ready = [s for s in waiting if not (s.same_step - {s.name}) & names]
        stage = max(ready, key=lambda s: cycles[s.name])
        waiting.remove(stage)
        first = _earliest(stage, flow, level)
        at = _choose(room, first, cycles[stage.name], wrap)
        if at >= len(room) and not wrap:
            room += [0.0] * (at + 1 - len(room))
        room[at % len(room)] -= cycles[stage.name]
        level[stage.name] = at
    groups: list[list[str]] = [[] for _ in room]
    for stage in flow.stages:
        groups[level[stage.name] % len(room)].append(stage.name)
    return [g for g in groups if g]


def _choose(room: Sequence[float], first: int, need: float, wrap: bool) -> int:
    window = range(first, first + len(room)) if wrap else range(first, max(first + 1, len(room)))
    free = {at: room[at % len(room)] if wrap or at < len(room) else 0.0 for at in window}
    return next((at for at in window if free[at] >= need), max(window, key=lambda at: free[at]))


def _feeds_2d(flow: Flow) -> set[str]:
    """Einsums of the 2-D array and those that it waits for within a tile."""
    found: set[str] = set()
    for stage in reversed(flow.stages):
        if stage.unit == "2d" or any(stage.name in s.same_step for s in flow.stages if s.name in found):
            found.add(stage.name)
    return found


def _earliest(stage: Stage, flow: Flow, level: Mapping[str, int]) -> int:
    """After everything it reads of this tile; one epoch later where that comes from the other array."""
    before = (s for s in flow.stages if s.name in stage.same_step and s.name in level and s.name != stage.name)
    return max((level[s.name] + (s.unit != stage.unit) for s in before), default=0)


def _of(flow: Flow, name: str) -> Stage:
    return next(s for s in flow.stages if s.name == name)
