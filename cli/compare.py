"""`einsight compare FILE...`: measured cases against predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli import FELL_SHORT
from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, writable
from einsight.reports import measured
from einsight.reports.compare import SHORT_MS, Comparison, Unpredicted, beside, compare
from einsight.reports.outliers import RULE
from einsight.reports.recorded import read_records
from einsight.reports.scores import BY, DEFAULT_BY, HEADS, Score, by_group, percent, plain, score, worst
from einsight.sim.units import format_time
from einsight.sim.workload import element_type

SHOWN_WORST = 10


def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Measured cases: .csv, .csv.gz, or records .jsonl.")],
    by: Annotated[
        str, typer.Option(metavar="COLUMN,...", help="Columns to group by, also target, family, bound, group, windowed.")
    ] = ",".join(DEFAULT_BY),
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw predicted against measured.")] = None,
    rows: Annotated[Path | None, typer.Option(metavar="OUT.csv", help="Write every row with its prediction.")] = None,
    fail_above: Annotated[
        float | None, typer.Option(metavar="PERCENT", min=0.0, help="Exit with 1 when the mean error is above.")
    ] = None,
    family: Annotated[str | None, typer.Option(metavar="NAME", help="Kernel family of every row, whatever it says.")] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="Profile of every row, whatever its device says.")] = None,
    as_json: Json = False,
) -> None:
    """Measured cases (CSV) against predictions: errors per group, the worst cases, the plain roofline beside.

    Example: einsight compare h100.csv.gz --by device,phase,head_dim --rows out.csv
    """
    columns = _columns(by)
    writable(rows, "--rows")
    writable(plot, "--plot")
    cases, left_out = _read(files)
    compared = compare(cases, target, family)
    compared = replace(compared, unpredicted=(*compared.unpredicted, *left_out))
    if not compared.known.any():
        raise CommandError("FILE", _reasons(compared), "at least one row that can be predicted")
    if rows is not None:
        measured.write(rows, compared.measured, beside(compared))
    if plot is not None:
        from einsight.reports.figures import comparison_figure, save  # matplotlib: half a second, only for a picture

        save(comparison_figure(compared), plot)
    overall = score(compared)
    if as_json:
        print_json(_as_json(compared, columns, overall))
    else:
        _print(compared, columns, overall)
    if fail_above is not None and (overall.mape_percent is None or overall.mape_percent > fail_above):
        raise typer.Exit(FELL_SHORT)


def _read(files: Sequence[Path]) -> tuple[measured.Measured, list[Unpredicted]]:
    """The rows of tables and records, and what the records hold beside them."""
    parts, left_out = [], []
    for k, file in enumerate(files):
        if file.resolve() in (earlier.resolve() for earlier in files[:k]):
            raise CommandError("FILE", f"{file} twice", "each file once: its rows would count twice")
        if file.suffix == ".jsonl":
            rows, reasons = read_records(file)
            left_out += [Unpredicted(*item) for item in reasons.items()]
        else:
            rows = measured.read([file])
        parts.append(rows)
    return measured.concatenate(parts), left_out


def _columns(by: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in by.split(",") if name.strip())
    for name in names:
        if name not in BY:
            raise CommandError("--by", name, f"some of {', '.join(BY)}, joined by commas")
    if not names:
        raise CommandError("--by", by, f"at least one of {', '.join(BY)}")
    return names


def _reasons(compared: Comparison) -> str:
    return "; ".join(f"{u.rows} rows: {u.reason}" for u in compared.unpredicted) or "no row"


def _as_json(compared: Comparison, by: Sequence[str], overall: Score) -> dict[str, Any]:
    return {
        "overall": overall.as_json(),
        "groups": [{**values, **found.as_json()} for values, found in by_group(compared, by)],
        "worst": [_case(compared, row) for row in worst(compared, SHOWN_WORST).tolist()],
        "unpredicted": [{"reason": u.reason, "rows": u.rows} for u in compared.unpredicted],
        "set_aside_rule": RULE,
        "short_ms": SHORT_MS,
        "constants": list(compared.notes),
    }


def _case(compared: Comparison, row: int) -> dict[str, Any]:
    """One row with everything that was said about it."""
    one = compared.measured
    return {name: plain(one.column(name)[row]) for name in measured.COLUMNS} | {
        "predicted_ms": 1e3 * compared.predicted_s[row], "low_ms": 1e3 * compared.low_s[row],
        "high_ms": 1e3 * compared.high_s[row], "family": str(compared.family[row]), "bound": str(compared.bound[row]),
        "roofline_ms": 1e3 * compared.roofline_s[row],
    }  # fmt: skip


def _print(compared: Comparison, by: Sequence[str], overall: Score) -> None:
    groups = [("\n".join(map(str, values.values())), *found.cells()) for values, found in by_group(compared, by)]
    title = "Error in percent of the measured time, over rows of at least 15 us; the plain roofline's mean error beside"
    heads = (", ".join(by), *HEADS)
    print_table(title, heads, [*groups, ("all", *overall.cells())], right=HEADS, wrap=heads[:1])
    print_lines([_apart(overall), ""])
    told = ("kernel", "case", "measured", "predicted", "90 % interval", "bound")
    listed = [_worst_cells(compared, row) for row in worst(compared, SHOWN_WORST).tolist()]
    print_table("Worst cases", told, listed, right=told[2:4], wrap=told[:2])
    print_lines([f"Set aside as noise: {RULE}."])
    print_lines(f"Not predicted, {u.rows} rows: {u.reason}" for u in compared.unpredicted)
    print_lines(note[:1].upper() + note[1:] for note in compared.notes)


def _apart(s: Score) -> str:
    """What the means leave out."""
    return (
        f"Apart: {s.n_short} rows under 15 us (mean error {percent(s.short_mape_percent) or '-'} %), {s.n_set_aside} rows "
        f"set aside as noise, {s.unpredicted} not predicted. Every predicted row: {percent(s.mape_all_percent)} %."
    )


def _types(dtype: str, kv_dtype: str) -> str:
    ours = element_type(dtype), element_type(kv_dtype)
    return f"{ours[0]}" if ours[0] == ours[1] else f"{ours[0]}/{ours[1]}"


def _worst_cells(compared: Comparison, row: int) -> tuple[str, ...]:
    m = compared.measured
    window = f" window {m.window[row]:.0f}" if m.window[row] else ""
    sizes = f"b{m.batch[row]:.0f} h{m.heads_q[row]:.0f}/{m.heads_kv[row]:.0f} {m.seq_q[row]:.0f}x{m.seq_kv[row]:.0f}"
    return (
        f"{compared.target[row]} {m.kernel[row]}",
        f"{sizes} d{m.head_dim[row]:.0f} {_types(str(m.dtype[row]), str(m.kv_dtype[row]))}{window}",
        format_time(compared.measured_s[row]), format_time(compared.predicted_s[row]),
        f"{format_time(compared.low_s[row])} to {format_time(compared.high_s[row])}", str(compared.bound[row]),
    )  # fmt: skip
