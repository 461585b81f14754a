"""The page of the kernels shows the instruction check of the table that is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from einsight.kernels.catalog import KERNELS

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("instruction_table", ROOT / "benchmarks" / "instruction_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes() -> None:
    made = script()
    page = made.PAGE.read_text()
    assert made.written(page) == page, "run benchmarks/instruction_table.py --write"


def test_every_kernel_is_listed_and_what_is_checked_agrees() -> None:
    rows = [line.strip("| \n").split(" | ") for line in script().text().splitlines()[2:]]
    assert {row[0] for row in rows} == set(KERNELS)
    for row in rows:
        agreed, _, checked = row[3].partition(" of ")
        assert agreed == checked, row
        unchecked = sum(int(part.partition(":")[0]) for part in row[7].split("; ")) if len(row) > 7 and row[7] else 0
        assert int(checked) + unchecked == int(row[2]), row
