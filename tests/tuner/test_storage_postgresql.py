"""One study in a real PostgreSQL, three worker processes on it, one of them killed: nothing twice, nothing lost."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")
pytest.importorskip("psycopg2", reason="psycopg2 is not installed")

from einsight.tuner.search import Search, SearchError, open_study, sampler
from einsight.tuner.space import enumerated

SPACE = enumerated("toy", [{"a": a, "b": b} for a in range(1, 9) for b in range(1, 9)])
BUDGET = 30


def programs() -> Path:
    """The folder of initdb and pg_ctl: on PATH, or where Debian puts them."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not versions:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    return versions[-1].parent


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URL of a fresh server. PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`."""
    tools = programs()
    user = next((u.pw_name for u in pwd.getpwall() if u.pw_name == "postgres"), "nobody") if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="einsight-pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_user(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=60)

    as_user(str(tools / "initdb"), "-D", str(folder / "data"), "-U", "einsight", "-A", "trust", "--no-sync")
    options = f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1"
    as_user(str(tools / "pg_ctl"), "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql://einsight@127.0.0.1:{port}/postgres"
    as_user(str(tools / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder)


WORKER = """
import sys, time
sys.path[:0] = [{source!r}, {tests!r}]
from pathlib import Path
from test_storage_postgresql import SPACE, BUDGET
from einsight.tuner.record import Status
from einsight.tuner.recorded import Outcome, Recorded
from einsight.tuner.search import Search, open_study, sampler
from einsight.tuner.store import Store, Subject
from einsight.tuner.tune import tune
url, seed, record, hanging = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])

taken = []

class Device(Recorded):
    def measure(self, row, prepared=None):
        print(row, flush=True)
        taken.append(row)
        if len(taken) == 3 and seed == 0:
            hanging.write_text("its third measurement never ends")
            time.sleep(600)
        while len(taken) == 3 and not hanging.exists():  # the others leave it time to get there
            time.sleep(0.05)
        return super().measure(row)

outcomes = tuple(Outcome(Status.OK, (1e-3 * (1 + (a - 5) ** 2 + (b - 2) ** 2),)) for a, b in SPACE.points.tolist())
device = Device("toy", "toy", "nowhere", SPACE, outcomes)
search = Search(open_study("toy", url, sampler("pool", SPACE, None, seed)), SPACE)
tune(search, device, Store(Subject("toy", {{}}, "nowhere"), record), BUDGET, stop_early=False)
""".format(source=str(Path(__file__).parents[2] / ".src"), tests=str(Path(__file__).parent))


def test_three_workers_share_a_study_and_one_may_die(database: str, tmp_path: Path) -> None:
    open_study("toy", database, sampler("random", SPACE, None, 0))  # the tables, once
    record = tmp_path / "r.jsonl"
    hanging = tmp_path / "hanging"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, database, str(seed), str(record), str(hanging)],
            stdout=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while not hanging.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers[0].kill()  # in the middle of a measurement
    dead, *alive = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert len(dead) == 3
    assert [w.returncode for w in workers[1:]] == [0, 0]
    search = Search(open_study("toy", database, sampler("random", SPACE, None, 0)), SPACE)
    done = Counter(SPACE.row(eval_configuration(line)) for line in record.read_text().splitlines())
    assert len(done) == BUDGET and set(done.values()) == {1}  # nothing twice, nothing lost
    assert set(search.measured()) == set(done)
    assert all(len(rows) >= 3 for rows in alive)  # both took part
    assert int(dead[-1]) in done and any(dead[-1] in rows for rows in alive)  # what died was measured by another


def eval_configuration(line: str) -> dict[str, int]:
    import json

    found: dict[str, int] = json.loads(line)["configuration"]
    return found


def test_a_database_that_does_not_answer_is_one_message() -> None:
    with pytest.raises(SearchError, match="the database does not answer"):
        open_study("toy", "postgresql://nobody@127.0.0.1:1/none", sampler("random", SPACE, None, 0))
