"""`einsight simulate`: predictions per workload and target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from einsight.cli import workload as options
from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.reports.roofline import roofline
from einsight.sim import units
from einsight.sim.hardware import Gpu
from einsight.sim.prediction import Prediction, side_by_side
from einsight.sim.sweep import Curve, crossovers, longest_within, parse_axis, sweep
from einsight.sim.workload import Workload

SHOWN_POINTS = 12
"""Rows of a printed sweep; `--json` has every point."""


Axis = Annotated[
    str | None,
    typer.Option(
        "--sweep", metavar="n=1k:128k",
        help="Walk a size, n=FROM:TO[:POINTS][:log|linear] or n=1k,4k; m goes with n, and f with e, where they are equal.",
    ),
]
Within = Annotated[str | None, typer.Option(metavar="TIME", help="With --sweep: the most under this time.")]
Kernel = Annotated[str | None, typer.Option(metavar="NAME", help="One of our kernels, with --config.")]
Config = Annotated[str | None, typer.Option(help="A build of --kernel: BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2.")]
Source = Annotated[str | None, typer.Option(help="Where a build's resources come from: compiled, table or closed_form.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the roofline (or the sweep).")]


def run(
    files: options.Files = None,
    model: options.Model = None,
    cascade: options.Cascade = None,
    phase: options.Phase = None,
    batch: options.Batch = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    seq: options.Seq = None,
    seq_q: options.SeqQ = None,
    seq_kv: options.SeqKv = None,
    head_dim: options.HeadDim = None,
    dtype: options.Dtype = None,
    causal: options.Causal = False,
    window: options.Window = None,
    bias: options.Bias = None,
    cache: options.Cache = None,
    target: options.Target = None,
    axis: Axis = None,
    within: Within = None,
    kernel: Kernel = None,
    config: Config = None,
    source: Source = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """How long a workload takes on each target, what limits it, and why.

    Example: einsight simulate --model config.json --phase prefill --batch 1 --seq 8192 --target h100-sxm
    """
    shape = options.Shape(
        cascade, phase, batch, heads, kv_heads, seq, seq_q, seq_kv, head_dim, dtype, causal, window, bias, cache
    )
    if kernel is None and (config or source):
        raise CommandError("--kernel", None, f"a kernel beside --{'config' if config else 'source'}; see `einsight kernels`")
    if kernel is not None:
        for option, value in (("--sweep", axis), ("--within", within), ("--plot", plot)):
            if value is not None:
                raise CommandError("--kernel", kernel, f"a build without {option} beside it")
        from einsight.cli.simulate_kernel import predictions  # kernels and resources: only for a build

        return _print(predictions(kernel, config, source, files or [], model, shape, target or []), as_json)
    found = options.cases(files or [], model, shape)
    if axis is not None:
        return _sweep(found, target or [], axis, within, plot, as_json)
    if within is not None:
        raise CommandError("--within", within, "a --sweep beside it")
    named = {case: options.targets(target or [], case.workloads[0]) for case in found}
    by_case = [[case.predictions(t) for t in names] for case, names in named.items()]
    by_workload = [column for made in by_case for column in zip(*made, strict=True)]
    every = [p for column in by_workload for p in column]
    if plot is not None:
        from einsight.reports.figures import roofline_figure, save  # matplotlib: half a second, only for a picture

        hardware = options.profiles(t for names in named.values() for t in names).values()
        save(roofline_figure([roofline(h, every) for h in hardware if isinstance(h, Gpu)]), plot)
    _print(by_workload, as_json)


def _print(columns: Sequence[Sequence[Prediction]], as_json: bool) -> None:
    if as_json:
        return print_json([p.as_json() for column in columns for p in column])
    for column in columns:
        print_predictions(column)
    return None


def print_predictions(column: Sequence[Prediction]) -> None:
    """One workload on its targets, side by side, then what was assumed and for which of them."""
    first = column[0]
    heads = ("", *(p.target for p in column))
    title = f"{first.workload}  ({first.cascade}, key {first.key})"
    print_table(title, heads, side_by_side(column), wrap=heads[1:])
    notes: dict[str, list[str]] = {}
    for p in column:
        for note in p.assumptions:
            notes.setdefault(note, []).append(p.target)
    for note, on in notes.items():
        print_lines([f"  assumed{'' if len(on) == len(column) else ' on ' + ', '.join(on)}: {note}"])
    print_lines([""])


def _sweep(
    found: Sequence[options.Case], named: Sequence[str], text: str, within: str | None, plot: Path | None, as_json: bool
) -> None:
    every = [w for case in found for w in case.workloads]
    if len(every) != 1:
        raise CommandError("--sweep", f"{len(every)} workloads", "one workload (one kind of layer) at a time")
    axis, workload, limit_s = parse_axis(text), every[0], None if within is None else _seconds(within)
    curves = sweep(workload, axis, options.targets(named, workload))
    if plot is not None:
        from einsight.reports.figures import save, sweep_figure  # matplotlib: half a second, only for a picture

        save(sweep_figure(curves), plot)
    if as_json:
        return print_json(_sweep_json(workload, curves, limit_s))
    title = f"{workload.name}: time by {axis.size}"
    shown = _shown(len(axis.values))
    rows = [(f"{axis.values[i]}", *(f"{units.format_time(c.time_s[i])}  {c.bound[i]}" for c in curves)) for i in shown]
    print_table(title, (axis.size, *(c.label for c in curves)), rows, right=(axis.size,))
    if len(shown) < len(axis.values):
        print_lines([f"{len(shown)} of {len(axis.values)} points; --json has all"])
    print_lines(f"fastest from {axis.size} = {value} on: {name}" for value, name in crossovers(curves))
    if limit_s is not None:
        answers = {c.label: longest_within(workload, c, limit_s) for c in curves}
        print_lines(
            f"largest {axis.size} within {within} on {name}: {value or 'none'}"
            + (", where the sweep ends" if value == axis.values[-1] else "")
            for name, value in answers.items()
        )


def _shown(points: int) -> list[int]:
    """Which points are printed: the first, the last, and evenly spread ones between them."""
    most = min(points, SHOWN_POINTS)
    return sorted({round(k * (points - 1) / max(most - 1, 1)) for k in range(most)})


def _seconds(within: str) -> float:
    try:
        found = units.parse(within, "s")
    except units.UnitError:
        found = 0.0
    if not found > 0:
        raise CommandError("--within", within, "a time above 0, such as '10 ms'")
    return found


def _sweep_json(workload: Workload, curves: Sequence[Curve], limit_s: float | None) -> dict[str, object]:
    found: dict[str, object] = {
        "workload": workload.name,
        "curves": [c.as_json() for c in curves],
        "fastest": [{"from": value, "target": name} for value, name in crossovers(curves)],
    }
    if limit_s is not None:
        found["within_s"] = limit_s
        found["largest_within"] = {c.label: longest_within(workload, c, limit_s) for c in curves}
    return found
