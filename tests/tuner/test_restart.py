"""`benchmarks/restart.py`: what ends a benchmark's process does not end the benchmark."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import restart

def main():
    assert sys.argv[-2] == "--budget-s" and 0 < float(sys.argv[-1]) <= 100
    for name in "abcd":
        if name in restart.noted():
            continue
        restart.note(name)
        if name in "bc":
            os._exit(9)
        print(name, flush=True)
        restart.note(name)
    print(*(name for name, finished in restart.noted().items() if not finished))
    return 1

sys.exit(restart.run(main, __file__, 100.0))
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("restart")


def test_work_that_ends_the_process_is_left_out_and_the_rest_is_done(tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPT)
    assert done.returncode == 1 and done.stdout.split() == ["a", "d", "b", "c"], done
    assert done.stderr.count("the process ended with code 9") == 2


def test_an_exception_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPT.replace('print(name, flush=True)', 'raise ValueError("odd")'))
    assert done.returncode == 1 and done.stderr.count("ValueError: odd") == 1 and "the process ended" not in done.stderr


def test_a_process_that_never_gets_anywhere_is_given_up(
    restart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os; os._exit(7)")
    monkeypatch.setattr(restart, "MOST", 3)
    assert restart.supervised(str(script), [], 100.0) == 1
    assert capfd.readouterr().err.count("code 7") == 3
    assert restart.supervised(str(script), [], -1.0) == 1  # no time left: once, for what it says
    assert capfd.readouterr().err.count("code 7") == 1


def test_without_supervision_nothing_is_noted(restart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(restart.FOLDER, raising=False)
    restart.note("a")
    with restart.folder() as own:
        assert own.is_dir()
    assert restart.noted() == {} and not own.exists()
