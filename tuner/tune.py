"""One search from start to end: ask, prepare, measure, keep, tell, until the budget is spent or nothing is to be gained."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from einsight.tuner.record import Measurement, Status
from einsight.tuner.search import Asked, PoolSampler, Search
from einsight.tuner.space import Configuration, Space
from einsight.tuner.store import Store, finalists, ranked

TIED = 1.0  # times the noise: configurations this close to the best are told as tied
LEAST_NOISE = 2e-3  # relative; a device never repeats itself better than this
PATIENCE = 3  # proposals in a row that promise less than the noise end the search
RECLAIM_EVERY_S = 1.0  # how often the study is searched for what dead workers left
INTERRUPTED = "interrupted"


class Device(Protocol):
    """What measures: a GPU in a worker process, or a recorded space."""

    def prepare(self, row: int) -> Any:
        """Whatever can be done away from the device (compile); called in a thread, several at a time."""

    def measure(self, row: int, prepared: Any) -> Measurement:
        """One configuration, one at a time. Failures are measurements with their status."""

    def race(self, rows: Sequence[int]) -> list[Measurement]:
        """The configurations in turns in one process, so that drift hits all alike; of another pass than `measure`."""


@dataclass(frozen=True)
class Progress:
    """What a progress display shows after each measurement."""

    done: int
    budget: int
    last: Measurement
    best: Measurement | None


@dataclass
class Tuned:
    """The outcome. `why` the search ended; `raced`: the finalists measured in turns, empty where there was no race;
    `study_best`: the fastest of every worker of the study, with its time in seconds."""

    space: Space
    measured: list[Measurement] = field(default_factory=list)
    raced: list[Measurement] = field(default_factory=list)
    resumed: int = 0
    why: str = ""
    study_best: tuple[Configuration, float] | None = None

    @property
    def order(self) -> list[Measurement]:
        """The successful ones, the fastest first: of the race, or of the search where no race came to an end."""
        return ranked(self.raced) or ranked(self.measured)

    @property
    def ranking(self) -> list[Measurement]:
        """Every successful configuration: those of the race in its order, then the others. Times of the two do not compare."""
        first = self.order
        raced = [m.configuration for m in first]
        return first + [m for m in ranked(self.measured) if m.configuration not in raced]

    @property
    def best(self) -> Measurement | None:
        return next(iter(self.order), None)

    @property
    def tied(self) -> list[Measurement]:
        """The configurations within the noise of the best, it first: measuring cannot tell them apart."""
        order = self.order
        return [m for m in order if m.time_s <= order[0].time_s * (1 + TIED * noise(order))]

    @property
    def statuses(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for m in self.measured:
            found[m.status.value] = found.get(m.status.value, 0) + 1
        return found


def noise(measurements: Sequence[Measurement]) -> float:
    """Relative noise of a time: the middle one of the spreads of the samples, at least LEAST_NOISE."""
    spreads = [m.spread for m in measurements if m.status is Status.OK]
    return max(LEAST_NOISE, statistics.median(spreads) if spreads else 0.0)


def tune(
    search: Search,
    device: Device,
    store: Store,
    budget: int,
    *,
    ahead: int = 1,
    stop_early: bool = True,
    each: Callable[[Progress], None] = lambda progress: None,
) -> Tuned:
    """Measure at most `budget` configurations, those in the store included.

    ahead       configurations that are prepared at the same time, while others are measured
    stop_early  end when PATIENCE proposals in a row promise less than the measured noise
    A KeyboardInterrupt ends it cleanly: unfinished configurations go back to the queue, the outcome is what was found.
    """
    outcome = Tuned(search.space)
    outcome.resumed = _take_over(search, store, outcome)
    queue: Queue = {}
    threads = ThreadPoolExecutor(max(1, ahead))
    try:
        with search.alive(queue.values()):
            outcome.why = _loop(search, device, store, budget, ahead, stop_early, each, outcome, queue, threads)
        outcome.raced = _race(device, outcome)
        for measured in outcome.raced:
            store.add(measured)
    except KeyboardInterrupt:
        outcome.why = INTERRUPTED
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for asked in queue.values():
            search.give_back(asked)
    outcome.study_best = search.best()
    return outcome


Queue = dict["Future[Any]", Asked]
"""What is asked and not yet told; whatever is left when the search ends goes back to the study."""


def _take_over(search: Search, store: Store, outcome: Tuned) -> int:
    """Measurements of the store that the study lacks are added to it; returns how many are known."""
    there = search.measured()
    for measured in store.known.values():
        row = search.space.row(measured.configuration)
        if row is None:
            continue
        outcome.measured.append(measured)
        if row not in there:
            search.add(row, measured)
    return len(outcome.measured)


def _loop(
    search: Search, device: Device, store: Store, budget: int, ahead: int, stop_early: bool,
    each: Callable[[Progress], None], outcome: Tuned, queue: Queue, threads: ThreadPoolExecutor,
) -> str:  # fmt: skip
    calm, ended, looked = 0, "", 0.0
    while True:
        while not ended and len(queue) < max(1, ahead):
            if time.monotonic() - looked > RECLAIM_EVERY_S:
                search.reclaim()
                looked = time.monotonic()
            if (asked := search.ask(budget)) is None:
                ended = "the budget is spent" if search.begun() >= budget else "every configuration is measured"
            elif _known_meanwhile(search, store, asked, outcome):
                continue
            else:
                queue[threads.submit(device.prepare, asked.row)] = asked
                calm = calm + 1 if stop_early and _small(search, outcome) else 0
                ended = "the next measurements promise less than the noise" if calm >= PATIENCE else ""
        if not queue:
            return ended
        ready, _ = wait(queue, return_when=FIRST_COMPLETED)
        _finish(search, device, store, queue, ready.pop(), outcome)
        each(Progress(len(outcome.measured), budget, outcome.measured[-1], outcome.best))


def _known_meanwhile(search: Search, store: Store, asked: Asked, outcome: Tuned) -> bool:
    """Whether another process that writes the same record has measured this configuration; its outcome is told."""
    store.refresh()
    measured = store.find(search.space.configuration(asked.row))
    if measured is None:
        return False
    outcome.measured.append(measured)
    search.tell(asked, measured)
    return True


def _finish(search: Search, device: Device, store: Store, queue: Queue, future: Future[Any], outcome: Tuned) -> None:
    """Measure one prepared configuration; on disk first, then told to the study."""
    asked = queue[future]
    measured = device.measure(asked.row, future.result())
    store.add(measured)
    outcome.measured.append(measured)
    search.tell(asked, measured)
    del queue[future]


def _race(device: Device, outcome: Tuned) -> list[Measurement]:
    """The finalists once more, in turns."""
    rows = [row for m in finalists(outcome.measured) if (row := outcome.space.row(m.configuration)) is not None]
    return device.race(rows) if rows else []


def _small(search: Search, outcome: Tuned) -> bool:
    """Whether the last proposal's expected improvement (of log time, so relative) is below the measured noise."""
    sampler = search.study.sampler
    gain = sampler.expected_gain if isinstance(sampler, PoolSampler) else math.inf
    return gain < noise(outcome.measured)
