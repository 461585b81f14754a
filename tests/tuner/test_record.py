"""Records: what may be said in one, and that the file survives kills, other writers and bad lines."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.tuner.record import Environment, Measurement, RecordError, Status, append, read

HERE = Environment("Test GPU", 90, 132, 80 << 30, 50 << 20, "1.0", "13.0", "2.11", "3.6", "3.12", "Linux 6", 1.98e9)
GOOD = Measurement(
    kernel="attention", workload={"sizes": {"b": 1, "m": 8}}, configuration={"block_m": 64}, status=Status.OK,
    cache="warm", environment=HERE, at="2026-01-01T00:00:00+00:00", samples_s=(3e-6, 1e-6, 2e-6), work={"bytes": 8e3},
)  # fmt: skip
BAD = replace(GOOD, status=Status.TIMEOUT, samples_s=(), reason="nothing after 10 s")


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "r.jsonl"
    for measurement in (GOOD, BAD):
        append(file, measurement)
    assert read(file) == (GOOD, BAD)
    assert len(file.read_text().splitlines()) == 2


def test_time_and_rate_come_from_the_samples() -> None:
    assert GOOD.time_s == statistics.median(GOOD.samples_s) and GOOD.rate("bytes") == pytest.approx(8e3 / 2e-6)
    assert GOOD.spread == 0.0
    assert replace(GOOD, samples_s=(1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx((4.5 - 1.5) / 3)
    with pytest.raises(RecordError, match="timeout: nothing after 10 s"):
        _ = BAD.time_s


def test_the_status_decides_which_fields_exist() -> None:
    for changes, message in (
        ({"samples_s": ()}, "expected samples iff ok"),
        ({"reason": "odd"}, "expected a reason iff not ok"),
        ({"status": Status.INCORRECT}, "expected samples iff ok"),
        ({"status": Status.FAILED, "samples_s": ()}, "expected a reason iff not ok"),
        ({"samples_s": (1e-6, 0.0)}, "expected finite positive seconds"),
        ({"samples_s": (float("nan"),)}, "expected finite positive seconds"),
        ({"cache": "lukewarm"}, "expected one of cold, warm"),
    ):
        with pytest.raises(RecordError, match=message):
            replace(GOOD, **changes)  # type: ignore[arg-type]


def test_identity_is_what_was_attempted_not_what_came_out() -> None:
    assert GOOD.identity == BAD.identity == replace(GOOD, at="later", samples_s=(1.0,)).identity
    others = [
        replace(GOOD, kernel="sdpa"), replace(GOOD, configuration={"block_m": 128}), replace(GOOD, source_hash="1"),
        replace(GOOD, workload={}), replace(GOOD, cache="cold"), replace(GOOD, sweep=1),
        replace(GOOD, environment=replace(HERE, device="Other")),
    ]  # fmt: skip
    assert len({m.identity for m in (GOOD, *others)}) == 1 + len(others)


@given(st.integers(1, 400))
def test_a_cut_line_is_repaired_and_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    file = tmp_path_factory.mktemp("cut") / "r.jsonl"
    append(file, GOOD)
    append(file, BAD)
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    file.write_bytes(whole[: -min(cut, last - 1)])
    with pytest.warns(UserWarning, match="last line incomplete"):
        assert read(file) == (GOOD,)
    with pytest.warns(UserWarning, match="cut off"):
        append(file, BAD)
    assert file.read_bytes() == whole


def test_a_first_line_cut_leaves_an_empty_record(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"format": 1, "ker' * 10_000)
    with pytest.warns(UserWarning, match="180000 bytes"):
        append(file, GOOD)
    assert read(file) == (GOOD,)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    good = GOOD.as_json()
    cases = {
        "format: got 2": good | {"format": 2},
        "colour: unknown, expected .*kernel": good | {"colour": "red"},
        "environment: missing": {k: v for k, v in good.items() if k != "environment"},
        "kernel": {k: v for k, v in good.items() if k != "kernel"},
        "'fine' is not a valid Status": good | {"status": "fine"},
        "got 'list'": [1],
    }
    for message, raw in cases.items():
        file.write_text(json.dumps(good) + "\n" + json.dumps(raw) + "\n" + json.dumps(good) + "\n")
        with pytest.raises(RecordError, match=rf"r\.jsonl:2: .*{message}"):
            read(file)
    file.write_text("{]\n")
    with pytest.raises(RecordError, match=r"r\.jsonl:1: "):
        read(file)
    with pytest.raises(RecordError, match="No such file"):
        read(tmp_path / "missing.jsonl")


WRITER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from einsight.tuner.record import Measurement, append
file, kernel, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
good = Measurement.from_json(json.loads(sys.argv[4]))
for i in range(count):
    append(file, replace(good, kernel=kernel, sweep=i))
"""


def start_writer(file: Path, kernel: str, count: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", WRITER, str(file), kernel, str(count), json.dumps(GOOD.as_json())]
    return subprocess.Popen(command, env=environment)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    file, count = tmp_path / "r.jsonl", 40
    writers = [start_writer(file, name, count) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    got = read(file)
    for name in ("a", "b"):
        assert [m.sweep for m in got if m.kernel == name] == list(range(count))


def test_a_writer_killed_at_any_moment_loses_no_finished_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    writer = start_writer(file, "a", 1_000_000)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (file.exists() and file.stat().st_size > 50_000):
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    append(file, BAD)
    got = read(file)
    assert [m.sweep for m in got[:-1]] == list(range(len(got) - 1)) and got[-1] == BAD
