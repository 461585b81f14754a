"""`einsight reproduce flashbias`: FlashBias's published measurements beside our predictions."""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from typing import Annotated

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.reports import flashbias
from einsight.reports.flashbias import Row
from einsight.reports.flashbias_kernels import ASSUMED_TARGET
from einsight.sim.hardware import load_gpu

AsCsv = Annotated[bool, typer.Option("--csv", help="Print rows as CSV and nothing else.")]
On = Annotated[str, typer.Option("--target", metavar="NAME", help="The GPU; the publication does not state it.")]

COLUMNS = ("table", "what", "size", "unit", "published", "predicted", "ratio", "basis", "note")


def run(target: On = ASSUMED_TARGET, as_csv: AsCsv = False, as_json: Json = False) -> None:
    """FlashBias's measurements (arXiv 2505.12044) beside our predictions, with their ratio.

    Two constants of the baseline are fitted on two of its own forward rows, marked so; every other row is predicted, those of
    forward and backward together too. Ends with exit code 1 where a prediction says faster and the measurement slower, or the
    reverse.

    Example: einsight reproduce flashbias
    """
    load_gpu(target)  # an array, or a name that is none, is refused with what was expected
    rows = flashbias.rows(target)
    wrong = [r for r in rows if r.same_sign is False]
    if as_csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(COLUMNS)
        out.writerows([_cell(r.as_json()[c]) for c in COLUMNS] for r in rows)
    elif as_json:
        print_json({"target": target, "rows": [r.as_json() for r in rows], "assumptions": flashbias.assumptions(target)})
    else:
        _print(rows, target, wrong)
    if wrong:
        raise typer.Exit(1)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(rows: list[Row], target: str, wrong: list[Row]) -> None:
    for table, members in groupby(rows, key=lambda r: r.table):
        own = list(members)
        cells = [(r.what, r.size, _number(r.published, r.unit), _number(r.predicted, r.unit), _ratio(r), r.basis) for r in own]
        columns = ("", "size", "published", "predicted", "ratio", "basis")
        print_table(table, columns, cells, right=("published", "predicted", "ratio"), wrap=("",))
        print_lines(f"  {note}" for note in dict.fromkeys(r.note for r in own if r.note))
        print_lines([""])
    print_lines(["rests on", *(f"  {line}" for line in flashbias.assumptions(target))])
    for row in wrong:
        print_lines([f"the sign is wrong: {row.what}, {row.size}"])


def _number(value: float | None, unit: str) -> str:
    """`2.59 ms`; a ratio is a number of times, as a speedup is."""
    return "" if value is None else f"{value:.3g} {'x' if unit == 'ratio' else unit}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}"
