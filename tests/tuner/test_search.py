"""The search on Optuna's study: no configuration twice, failures told, dead workers' trials come back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState

from einsight.tuner import search as search_module
from einsight.tuner.record import Status
from einsight.tuner.recorded import Outcome, Recorded
from einsight.tuner.search import GRANTED, SAMPLERS, STATUS, WORKER, Search, SearchError, distributions, open_study, sampler
from einsight.tuner.space import enumerated
from einsight.tuner.store import Store, Subject
from einsight.tuner.tune import tune

LISTED = [{"a": a, "b": b, "c": c} for a in range(1, 9) for b in range(1, 7) for c in (1, 2, 4, 8) if a * c <= 32]
SPACE = enumerated("toy", LISTED)


def seconds(c: dict[str, int]) -> float:
    return 1e-3 * (1 + 0.1 * (c["a"] - 5) ** 2 + 0.2 * (c["b"] - 3) ** 2 + 0.05 * (c["c"] - 4) ** 2)


def toy(failing: int = 0) -> Recorded:
    """Every `failing`-th configuration fails."""
    outcomes = [
        Outcome(Status.OUT_OF_RESOURCES, (), "too large") if failing and r % failing == 1 else Outcome(Status.OK, (seconds(c),))
        for r, c in enumerate(LISTED)
    ]
    return Recorded("toy", "toy", "nowhere", SPACE, tuple(outcomes))


def searching(name: str = "pool", seed: int = 0, storage: Path | None = None) -> Search:
    return Search(open_study("toy", storage, sampler(name, SPACE, None, seed)), SPACE)


def store(path: Path | None = None) -> Store:
    return Store(Subject("toy", {}, "nowhere"), path)


@pytest.mark.parametrize("name", [s for s in SAMPLERS if s in ("pool", "random", "tpe", "qmc")])
def test_no_configuration_is_measured_twice(name: str) -> None:
    found = tune(searching(name), toy(failing=7), store(), 60, stop_early=False)
    rows = [SPACE.row(m.configuration) for m in found.measured]
    assert len(rows) == len(set(rows)) == 60 and None not in rows


def test_the_whole_space_ends_the_search() -> None:
    found = tune(searching(), toy(), store(), 10**6, stop_early=False)
    assert len(found.measured) == len(SPACE) and found.why == "every configuration is measured"
    assert found.best is not None and found.best.time_s == min(map(seconds, LISTED))


def test_it_stops_when_nothing_is_to_be_gained() -> None:
    found = tune(searching(), toy(), store(), 10**6)
    assert len(found.measured) < 0.6 * len(SPACE) and "noise" in found.why
    assert found.best is not None and found.best.time_s == min(map(seconds, LISTED))


def test_failures_are_complete_infeasible_and_counted() -> None:
    search, device = searching(), toy(failing=3)
    found = tune(search, device, store(), 60, stop_early=False)
    failed = [m for m in found.measured if m.status is not Status.OK]
    assert failed and found.statuses == {"ok": 60 - len(failed), "out_of_resources": len(failed)}
    trials = [t for t in search.study.trials if t.user_attrs[STATUS] != "ok"]
    assert len(trials) == len(failed)
    assert all(t.state is TrialState.COMPLETE and t.user_attrs["reason"] == "too large" for t in trials)


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    first = tune(searching(), toy(), store(record), 20, stop_early=False)
    again = tune(searching(), toy(), store(record), 40, stop_early=False)
    assert again.resumed == 20 and len(again.measured) == 40
    rows = [SPACE.row(m.configuration) for m in again.measured]
    assert len(set(rows)) == 40 and rows[:20] == [SPACE.row(m.configuration) for m in first.measured]
    assert len(record.read_text().splitlines()) == 40


def test_an_interrupt_ends_with_the_best_found_and_loses_nothing(tmp_path: Path) -> None:
    class Interrupted(Recorded):
        def measure(self, row: int, prepared: None = None):  # type: ignore[no-untyped-def]
            if sum(1 for _ in record.open()) >= 12 if record.exists() else False:
                raise KeyboardInterrupt
            return super().measure(row)

    record, journal = tmp_path / "r.jsonl", tmp_path / "r.journal"
    device = toy()
    stopped = Interrupted(device.name, device.kernel, device.device, device.space, device.outcomes)
    found = tune(searching(storage=journal), stopped, store(record), 30, stop_early=False)
    assert found.why == "interrupted" and len(found.measured) == 12 and found.best is not None
    search = searching(storage=journal)
    assert [t.state for t in search.study.trials].count(TrialState.WAITING) == 1
    again = tune(search, device, store(record), 30, stop_early=False)
    assert len(again.measured) == 30 and len(record.read_text().splitlines()) == 30


def test_the_same_seed_is_the_same_search() -> None:
    runs = [[m.configuration for m in tune(searching(seed=4), toy(), store(), 30, stop_early=False).measured] for _ in "ab"]
    assert runs[0] == runs[1]


def test_several_at_a_time_are_all_told(tmp_path: Path) -> None:
    found = tune(searching(), toy(failing=5), store(), 50, ahead=4, stop_early=False)
    rows = [SPACE.row(m.configuration) for m in found.measured]
    assert len(set(rows)) == len(rows) == 50


def test_what_a_killed_process_was_measuring_is_measured_by_another(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    code = f"""
import sys, time
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2] / ".src")!r}]
import test_search
search = test_search.searching(storage=Path({str(journal)!r}))
asked = search.ask()
print(asked.row, flush=True)
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    row = int(child.stdout.readline())
    search = searching(seed=1, storage=journal)
    assert search.reclaim() == 0  # it lives
    child.kill()
    child.wait()
    assert search.reclaim() == 1 and search.reclaim() == 0
    asked = search.ask()
    assert asked is not None and asked.row == row


def test_two_workers_of_one_study_never_measure_the_same(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    one, two = searching(seed=1, storage=journal), searching(seed=1, storage=journal)
    rows = []
    for _ in range(10):
        asked = [one.ask(), two.ask()]
        for search, a in zip((one, two), asked, strict=True):
            assert a is not None
            rows.append(a.row)
            search.tell(a, toy().measure(a.row))
    assert len(set(rows)) == 20


def asked_for(search: Search, row: int) -> Trial:
    """A trial of this row, as a worker has it between asking and claiming."""
    search.study.enqueue_trial({name: int(i) for name, i in zip(SPACE.parameters, SPACE.points[row], strict=True)})
    return search.study.ask(distributions(SPACE))


def test_an_older_claim_yields_to_a_younger_one_that_was_granted_before_it_was_written(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    one, two = searching(storage=journal), searching(seed=1, storage=journal)
    old, young = asked_for(one, 7), asked_for(two, 7)  # both have drawn the row, neither has seen the other
    assert two._claim(young, 7, None)
    assert not one._claim(old, 7, None) and one.skipped["duplicate"] == 1
    last = asked_for(one, 8)
    assert not one._claim(last, 8, 1)  # another row, but the budget of one is taken
    assert len(one.measured()) == 0 and one.begun() == 1  # granted, and running


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize(("row", "budget"), [(7, None), (8, 1)])
def test_an_older_claim_waits_for_a_younger_one_that_is_not_decided(
    granted: bool, row: int, budget: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The younger worker may have looked before the older claim was written: it is granted, or it yields."""
    journal = tmp_path / "study.journal"
    one, two = searching(storage=journal), searching(seed=1, storage=journal)
    old, young = asked_for(one, row), asked_for(two, 7)
    young.set_user_attr(WORKER, two.worker)
    waited = []

    def decide(seconds: float) -> None:
        waited.append(seconds)
        if granted:
            young.set_user_attr(GRANTED, True)
        else:
            two.study.tell(young, state=TrialState.FAIL)

    monkeypatch.setattr("einsight.tuner.search.time.sleep", decide)
    assert one._claim(old, row, budget) is not granted
    assert len(waited) == 1


def test_what_was_asked_and_never_claimed_counts_for_nothing(tmp_path: Path) -> None:
    """A worker killed between asking and claiming leaves a trial without owner: neither budget nor space lacks it."""
    one = searching(storage=tmp_path / "study.journal")
    asked_for(one, 7)
    assert one.begun() == 0
    one.study.enqueue_trial({name: int(i) for name, i in zip(SPACE.parameters, SPACE.points[7], strict=True)})
    asked = one.ask(1)
    assert asked is not None and asked.row == 7 and one.ask(1) is None


@pytest.mark.parametrize("name", ["pool", "random"])
def test_the_last_row_is_asked_even_where_a_dead_worker_drew_it_or_gave_it_up(name: str) -> None:
    """Nothing else is left to draw: the search must neither skip the row nor ask for a known one for ever."""
    search, device = searching(name), toy()
    asked_for(search, 7)  # drawn, never claimed
    first = search.ask()
    assert first is not None
    for row in range(len(SPACE)):
        if row not in (7, first.row):
            search.add(row, device.measure(row))
    search.study.tell(first.trial, state=TrialState.FAIL)  # and not put back into the queue
    rows = []
    while (asked := search.ask()) is not None:
        rows.append(asked.row)
        search.tell(asked, device.measure(asked.row))
    assert sorted(rows) == sorted({7, first.row})


def test_a_worker_of_another_user_on_this_host_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searching()
    asked = search.ask()
    assert asked is not None

    def forbidden(process: int, sign: int) -> None:
        raise PermissionError

    monkeypatch.setattr("einsight.tuner.search.os.kill", forbidden)
    assert search.reclaim() == 0
    assert search.reclaim(grace_s=-1.0) == 1  # unless it gives no sign


def test_a_storage_that_fails_once_does_not_end_the_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    search, again, times = searching(), threading.Event(), []
    asked = search.ask()
    assert asked is not None

    def answers(trial: Trial, name: str, value: float) -> None:
        times.append(value)
        if len(times) == 1:
            raise StorageInternalError("the connection was lost")
        again.set()

    monkeypatch.setattr("einsight.tuner.search.SIGN_S", 0.001)
    monkeypatch.setattr(Trial, "set_user_attr", answers)
    with search.alive([asked]):
        assert again.wait(60)
    assert len(times) >= 2


def test_a_younger_claim_yields_to_an_older_one(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    one, two = searching(storage=journal), searching(seed=1, storage=journal)
    old, young = asked_for(one, 7), asked_for(two, 7)
    old.set_user_attr(WORKER, one.worker)
    assert not two._claim(young, 7, None)
    assert one._claim(old, 7, None)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(SearchError, match=r"--sampler: got 'best', expected one of pool, random"):
        searching("best")
    with pytest.raises(SearchError, match="expected a journal file or postgresql"):
        open_study("toy", "sqlite:///x.db", sampler("random", SPACE, None, 0))


@pytest.mark.parametrize(("name", "package"), [("gp", "torch"), ("cmaes", "cmaes")])
def test_a_sampler_whose_package_is_missing_is_refused_at_once(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "find_spec", lambda wanted: None)
    with pytest.raises(SearchError, match=f"--sampler {name}: .*pip install {package}"):
        sampler(name, SPACE, None, 0)
    monkeypatch.setattr(search_module, "find_spec", lambda wanted: wanted)
    assert sampler(name, SPACE, None, 0) is not None


def test_an_ask_is_quick_on_ten_thousand_configurations() -> None:
    """Not the bar itself (benchmarks/bench_tuner.py times that), but a guard against an order of magnitude."""
    ten = range(1, 11)
    space = enumerated("large", [{"a": a, "b": b, "c": c, "d": d} for a in ten for b in ten for c in ten for d in ten])
    outcomes = tuple(Outcome(Status.OK, (1.0 + (p[0] - 3) ** 2 + p[3],)) for p in space.points.tolist())
    search = Search(open_study("large", None, sampler("pool", space, None, 0)), space)
    begin = time.process_time()
    tune(search, Recorded("large", "k", "d", space, outcomes), Store(Subject("k", {}, "d")), 40, stop_early=False)
    assert time.process_time() - begin < 40 * 0.5


def test_a_journal_that_a_kill_cut_short_is_mended(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    search = searching(storage=journal)
    for _ in range(3):
        asked = search.ask()
        assert asked is not None
        search.tell(asked, toy().measure(asked.row))
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x')  # what a killed process left
    with pytest.warns(UserWarning, match="last line incomplete"):
        again = searching(seed=1, storage=journal)
        asked = again.ask()
    assert asked is not None and len(again.measured()) == 3
    assert len(searching(storage=journal).measured()) == 3  # and it can be read ever after


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "notes.txt"
    journal.write_text("not a journal\nat all\n")
    with pytest.raises(SearchError, match="is no study journal"):
        searching(storage=journal)


def slim(path: Path) -> Path:
    """The toy space as a file that `tune --replay` takes."""
    values = {"a": list(range(20)), "b": list(range(20))}
    rows = [[a, b, 1.0 + (a - 7) ** 2 + (b - 11) ** 2, 1.0] for a in range(20) for b in range(20)]
    raw = {"name": "t", "kernel": "t", "device": "d", "time_unit": "ms", "param_values": values, "rows": rows}
    path.write_text(json.dumps(raw))
    return path


def command(space: Path, record: Path, trials: int, seed: int = 0) -> list[str]:
    source = str(Path(__file__).parents[2] / ".src")
    code = f"import sys; sys.path.insert(0, {source!r}); from einsight.cli import main; sys.exit(main())"
    words = ["tune", "--replay", str(space), "--record", str(record), "--trials", str(trials), "--seed", str(seed)]
    return [sys.executable, "-c", code, *words, "--no-stop", "--sampler", "random"]


def configurations(record: Path) -> list[str]:
    return [json.dumps(json.loads(line)["configuration"]) for line in record.read_text().splitlines()]


def test_kills_at_any_moment_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    space, record = slim(tmp_path / "t.json"), tmp_path / "r.jsonl"
    for k, after in enumerate((5, 20)):
        child = subprocess.Popen(command(space, record, 400, seed=k), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while (record.read_bytes().count(b"\n") if record.exists() else 0) < after and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait()
    before = len(configurations(record))  # a line cut by a kill ends in a newline too, and holds nothing
    assert before >= 18
    subprocess.run(command(space, record, before + 15, seed=9), check=True, stdout=subprocess.DEVNULL)
    found = configurations(record)
    assert len(found) == len(set(found)) == before + 15


def test_two_processes_share_a_record(tmp_path: Path) -> None:
    space, record = slim(tmp_path / "t.json"), tmp_path / "r.jsonl"
    children = [subprocess.Popen(command(space, record, 40, seed), stdout=subprocess.DEVNULL) for seed in (1, 2)]
    assert [child.wait(timeout=240) for child in children] == [0, 0]
    found = configurations(record)
    assert len(found) == len(set(found)) == 40
