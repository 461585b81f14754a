"""A configuration space as something that measures: builds, a worker process, records with everything a reader needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from einsight.tuner.measure import now
from einsight.tuner.record import Environment, Measurement, Status
from einsight.tuner.space import Space
from einsight.tuner.store import Subject
from einsight.tuner.worker import Attempt, Worker

RACE_SWEEP = 100  # the pass in which finalists run in turns


@dataclass
class WorkerDevice:
    """Measures rows of a space in a worker process; a `build` runs before it, in other processes, several at a time.

    build   row's configuration -> an Attempt that failed (nothing is launched then), or the build's resources
    """

    space: Space
    subject: Subject
    worker: Worker
    environment: Environment
    build: Callable[[Mapping[str, Any]], Attempt | Mapping[str, Any]] = lambda configuration: {}
    key: str = ""
    work: Mapping[str, float] = field(default_factory=dict)

    def prepare(self, row: int) -> Attempt | Mapping[str, Any]:
        return self.build(self.space.configuration(row))

    def measure(self, row: int, prepared: Attempt | Mapping[str, Any]) -> Measurement:
        configuration = self.space.configuration(row)
        if isinstance(prepared, Attempt):
            return self._recorded(configuration, prepared, {})
        return self._recorded(configuration, self.worker.run(configuration), prepared)

    def race(self, rows: Sequence[int]) -> list[Measurement]:
        configurations = [self.space.configuration(row) for row in rows]
        attempts = self.worker.race(configurations)
        return [
            self._recorded(c, a, {}, RACE_SWEEP) for c, a in zip(configurations, attempts, strict=True)
        ]  # fmt: skip

    def _recorded(
        self, configuration: Mapping[str, Any], attempt: Attempt, built: Mapping[str, Any], sweep: int | None = None
    ) -> Measurement:
        ok = attempt.status is Status.OK
        return Measurement(
            kernel=self.subject.kernel, workload=dict(self.subject.workload), configuration=dict(configuration),
            status=attempt.status, cache=self.subject.cache, environment=self.environment, at=now(),
            samples_s=attempt.samples_s if ok else (), reason=attempt.reason, key=self.key, work=dict(self.work),
            error=attempt.error, error_allowed=attempt.error_allowed, resources={**built, **attempt.resources},
            source_hash=self.subject.source_hash, sweep=self.subject.sweep if sweep is None else sweep,
        )  # fmt: skip
