"""What a record file already knows about one search: nothing that was measured is measured again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from einsight.tuner.record import Measurement, Status, append, read_from

FINALISTS = 4  # at most this many are raced, if they are within FINALISTS_WITHIN of the best
FINALISTS_WITHIN = 0.03


@dataclass(frozen=True)
class Subject:
    """What a search measures: measurements of the same subject differ in nothing but the configuration.

    source_hash   of the kernel's module: an edited kernel is another subject
    """

    kernel: str
    workload: Mapping[str, Any]
    device: str
    source_hash: str = ""
    cache: str = "warm"
    sweep: int = 0

    def covers(self, m: Measurement) -> bool:
        mine = (self.kernel, dict(self.workload), self.device, self.source_hash, self.cache, self.sweep)
        return mine == (m.kernel, dict(m.workload), m.environment.device, m.source_hash, m.cache, m.sweep)


@dataclass
class Store:
    """An append-only file of measurements, or only memory where there is no path. Several processes may write it.

    known   the measurements of the subject by configuration; of several, the first
    """

    subject: Subject
    path: Path | None = None
    known: dict[tuple[Any, ...], Measurement] = field(default_factory=dict)
    _read_bytes: int = 0

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read what this or another process wrote since. Raises RecordError for a file that is none."""
        if self.path is None or not self.path.exists() or self.path.stat().st_size <= self._read_bytes:
            return
        found, self._read_bytes = read_from(self.path, self._read_bytes)
        for m in found:
            if self.subject.covers(m):
                self.known.setdefault(_name(m.configuration), m)

    def find(self, configuration: Mapping[str, Any]) -> Measurement | None:
        return self.known.get(_name(configuration))

    def add(self, measurement: Measurement) -> None:
        """On disk before this returns."""
        if self.path is not None:
            append(self.path, measurement)
        self.known.setdefault(_name(measurement.configuration), measurement)


def finalists(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The few that are close enough to the fastest for a race in turns to decide; none where one stands alone."""
    order = ranked(measurements)
    near = [m for m in order if m.time_s <= order[0].time_s * (1 + FINALISTS_WITHIN)][:FINALISTS]
    return near if len(near) > 1 else []


def _name(configuration: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(configuration.items()))


def ranked(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The successful ones, the fastest first; of equals the one of fewer resources, then by name, so that all agree."""

    def order(m: Measurement) -> tuple[Any, ...]:
        return (m.time_s, m.resources.get("shared_bytes") or 0, _name(m.configuration))

    return sorted((m for m in measurements if m.status is Status.OK), key=order)
