"""The worker process: whatever a configuration does is a status, and the next one is measured all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

from einsight.tuner.faults import FAULTS, LOSING, name_of, true_time_s
from einsight.tuner.kernel_device import WorkerDevice
from einsight.tuner.record import Environment, Status, read
from einsight.tuner.search import Search, open_study, sampler
from einsight.tuner.space import Space, enumerated
from einsight.tuner.store import Store, Subject
from einsight.tuner.tune import tune
from einsight.tuner.worker import Worker, WorkerError

HERE = Environment("faulty", 0, 0, 0, 0, "", "", "", "", "", "")
SUBJECT = Subject("toy", {"sizes": {"m": 1}}, "faulty", source_hash="1")
LIMITS = {"start": 30.0, "compile": 3.0, "check": 30.0, "time": 3.0, "race": 30.0}
"""Seconds; a busy machine can stop a process for one."""
GOOD = {"a": 5, "b": 3, "c": 4}


def faulty(faults: dict[str, str], marks: Path, limits: dict[str, float] = LIMITS) -> Worker:
    return Worker("einsight.tuner.faults:faulty", {"faults": faults, "marks": str(marks)}, limits)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_status_and_the_next_configuration_runs(fault: str, tmp_path: Path) -> None:
    bad = {"a": 1, "b": 1, "c": 1}
    with faulty({name_of(bad): fault}, tmp_path) as worker:
        attempt = worker.run(bad)
        assert attempt.status is FAULTS[fault] and bool(attempt.reason) == (attempt.status is not Status.OK)
        if fault == "wrong result":
            assert (attempt.error, attempt.error_allowed) == (1.0, 1e-3)
        after = worker.run(GOOD)
        assert after.status is Status.OK and after.samples_s == (true_time_s(GOOD),) * 3
        assert after.resources == {"registers": 32} and after.error == 1e-4


def test_a_worker_that_cannot_serve_says_why() -> None:
    with Worker("einsight.tuner.faults:missing") as worker, pytest.raises(WorkerError, match="AttributeError"):
        worker.start()


def test_a_race_takes_all_in_one_process(tmp_path: Path) -> None:
    with faulty({}, tmp_path) as worker:
        first, second = worker.race([GOOD, {"a": 1, "b": 1, "c": 1}])
        assert first.samples_s[0] == true_time_s(GOOD) < second.samples_s[0] and worker.starts == 1


def test_stopping_ends_the_child(tmp_path: Path) -> None:
    worker = faulty({}, tmp_path)
    assert worker.start() == {"device": "faulty"}
    assert worker._process is not None
    child = worker._process.pid
    worker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_two_hundred_faults_of_every_kind_lose_nothing(tmp_path: Path) -> None:
    """Most of a space fails, in every way there is; each failure is a record, the optimum is found, nothing repeats."""
    space = enumerated("toy", [{"a": a, "b": b, "c": c} for a in range(1, 9) for b in range(1, 7) for c in range(1, 7)])
    best = min(range(len(space)), key=lambda r: true_time_s(space.configuration(r)))
    deadly = {*LOSING, "compile hang", "hang", "crash", "killed once"}  # a new process each: fewer of these
    mild = [fault for fault in FAULTS if fault not in deadly]
    kinds = [*(sorted(deadly) * 8), *(mild * 36)]
    assert len(kinds) == 200
    placed = [r for r in range(len(space)) if r != best][-200:]
    faults = {name_of(space.configuration(r)): kinds[(37 * i) % 200] for i, r in enumerate(placed)}
    assert len(faults) == 200 and set(faults.values()) == set(FAULTS)
    record, begin = tmp_path / "r.jsonl", time.monotonic()
    with faulty(faults, tmp_path, LIMITS) as worker:
        found = _all(space, worker, record)
    rows = [space.row(m.configuration) for m in found.measured]
    assert sorted(r for r in rows if r is not None) == list(range(len(space)))  # all accounted for, once
    names = [name_of(space.configuration(r)) for r in range(len(space))]
    expected = {name: FAULTS[faults[name]] if name in faults else Status.OK for name in names}
    assert {name_of(m.configuration): m.status for m in found.measured} == expected
    assert found.best is not None and space.row(found.best.configuration) == best
    assert read(record)[: len(found.measured)] == tuple(found.measured)
    print(f"{len(space)} configurations, 200 faults, {worker.starts} processes, {time.monotonic() - begin:.0f} s")


def _all(space: Space, worker: Worker, record: Path):  # type: ignore[no-untyped-def]
    search = Search(open_study("faults", None, sampler("pool", space, None, 0)), space)
    device = WorkerDevice(space, SUBJECT, worker, HERE)
    return tune(search, device, Store(SUBJECT, record), len(space), stop_early=False)
