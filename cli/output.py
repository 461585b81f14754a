"""What every verb prints with: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]

PIPED_WIDTH = 110
"""Columns where the output is not a terminal: wide enough to keep numbers whole, the same on every machine."""


def print_json(value: Any) -> None:
    """One JSON document on stdout; infinities and NaN, which JSON lacks, become null."""
    escaped = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(_finite(value), indent=2, ensure_ascii=escaped, allow_nan=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    wrap: Collection[str] = (),
) -> None:
    """A table on stdout, cells taken as plain text. Columns in `wrap`, and the last one, give way when it is narrow; the
    title stands in a line of its own, as long as it is. Columns without any name have no heading."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=not (column in wrap or column == columns[-1]),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console()
    with out.capture() as captured:
        if title:
            out.print(Text(title, style="bold"), soft_wrap=True)
        out.print(table)
    print_lines(line.rstrip() for line in captured.get().rstrip().splitlines())


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines, wrapped by the terminal only."""
    for line in lines:
        print(line)


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
