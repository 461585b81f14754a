"""Cold start of the command, from a new process each time, against the bars we set ourselves."""

from __future__ import annotations

import subprocess
import sys
import time

REPEATS = 7
SIMULATE = "simulate --cascade one_pass --heads 32 --seq 8192 --head-dim 128 --target h100-sxm"
BARS_S = {"--help": 0.3, "simulate --help": 1.0, SIMULATE: 1.0}
"""Command line and the wall seconds it may take: the fastest repeat, so that other work on the machine does not count."""


def seconds(words: str) -> float:
    """Wall time of one cold `einsight` process."""
    command = [sys.executable, "-c", "import sys; from einsight.cli import main; sys.exit(main())", *words.split()]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    slow = 0
    for words, bar in BARS_S.items():
        seconds(words)
        taken = min(seconds(words) for _ in range(REPEATS))
        slow += taken > bar
        print(f"{taken:6.3f} s  (bar {bar:.1f} s{', MISSED' if taken > bar else ''})  einsight {words}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
