"""A benchmark in a child process, started again where that ended before its work did: a hang, a crash, a lost context."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = "EINSIGHT_BENCHMARK_FOLDER"  # set for the child: what it notes there, the next child finds
MOST = 20  # children: one that dies before it gets anywhere must not be started for ever


def supervised(script: str, arguments: Sequence[str], budget_s: float) -> int:
    """Run `script` with what is left of its `--budget-s` until it ends by itself. Its exit code; 1 where it never did."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="einsight-benchmark-", ignore_cleanup_errors=True) as folder:
        for _ in range(MOST):
            left = budget_s - (time.monotonic() - begin)
            command = [sys.executable, script, *arguments, "--budget-s", f"{left:.1f}"]
            code = subprocess.run(command, env=os.environ | {FOLDER: folder}, check=False).returncode
            if _ended(Path(folder)).exists():
                return code
            print(f"the process ended with code {code}", file=sys.stderr, flush=True)
            if time.monotonic() - begin > budget_s:
                break
    return 1


def child(main: Callable[[], int]) -> int:
    """`main`, with a note that it came to an end, by an exception too: only what ends a process at once leaves none."""
    try:
        return main()
    finally:
        _ended(Path(os.environ[FOLDER])).touch()


def run(main: Callable[[], int], script: str, budget_s: float) -> int:
    """What a script ends with: itself where it is the child, else the supervision of one."""
    return child(main) if FOLDER in os.environ else supervised(script, sys.argv[1:], budget_s)


@contextmanager
def folder() -> Iterator[Path]:
    """Where work is kept until the benchmark ends: of all children together, or of a process that nothing supervises."""
    if FOLDER in os.environ:
        yield Path(os.environ[FOLDER])
        return
    with tempfile.TemporaryDirectory(prefix="einsight-benchmark-") as own:
        yield Path(own)


def noted() -> dict[str, bool]:
    """What this child and those before it have begun, in order, and whether it came to an end."""
    file = _notes()
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
    return {name: lines.count(name) > 1 for name in lines}


def note(name: str) -> None:
    """Once when work of this name (one line) begins, and once at its end: a child that follows can leave it out."""
    file = _notes()
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(name + "\n")


def _notes() -> Path | None:
    return Path(os.environ[FOLDER]) / "notes" if FOLDER in os.environ else None


def _ended(folder: Path) -> Path:
    return folder / "ended"
