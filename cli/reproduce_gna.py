"""`einsight reproduce gna`: neighborhood attention's published tables beside ours."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.reports import gna
from einsight.reports.gna import SIMULATOR_ALLOWED, TIME_ALLOWED, CountRow, GenerationRow, ProfileRow, SimulatorRow
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.units import format_time

Target = Annotated[str | None, typer.Option(metavar="NAME", help="GPU of the generations' rows; default: NATTEN's.")]
Reference = Annotated[Path | None, typer.Option("--reference", metavar="DIR", help="Folder of the published rows.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="The measured profiles as CSV and nothing else.")]


def run(target: Target = None, reference: Reference = None, as_csv: AsCsv = False, as_json: Json = False) -> None:
    """NATTEN's tile counts, the paper's simulator column, measured profiles, and the generations of kernels.

    Exit code 1 where a count differs, the simulator is off by more than 0.02, or a Hopper or Blackwell time by 15 %.

    Example: einsight reproduce gna
    """
    folder = reference or Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
    gpu = _gpu(target)
    there = folder.is_dir()
    counts = gna.count_rows(folder) if there else []
    simulated = gna.simulator_rows(folder) if there else []
    profiles = gna.profile_rows(folder) if there else []
    generations, dilated = gna.generation_rows(gpu), gna.dilated_rows(gpu)
    short = _short(counts, simulated, profiles)
    if as_csv:
        return _csv(profiles)
    if as_json:
        print_json({
            "counts": [asdict(r) for r in counts], "simulator": [asdict(r) | {"off": r.off} for r in simulated],
            "profiles": [asdict(r) | {"off": r.off} for r in profiles], "generations": [asdict(r) for r in generations],
            "dilated": [asdict(r) for r in dilated], "sweep": gna.SWEEP_WORDS, "short": short,
        })  # fmt: skip
    else:
        if not there:
            print_lines([f"{folder}: not there, so only our own rows; --reference DIR names the published ones", ""])
        _print_counts(counts)
        _print_simulator(simulated)
        _print_profiles(profiles)
        _print_generations(generations, gpu)
        rows = [
            (r.mask, format_time(r.time_s), format_time(r.undilated_s), f"{r.tile_speedup_max:.2f}x") for r in dilated
        ]  # fmt: skip
        print_table(f"Dilated neighborhoods on {gpu.name}", ("mask", "time", "without dilation", "worst tile"), rows)
        met = ["every published row that has a bar is within it; improvements over naive kernels have none"] if there else []
        print_lines(["", *(short or met)])
    if short:
        raise typer.Exit(1)


def _gpu(target: str | None) -> Gpu:
    found = load_hardware(target) if target else gna.generations_gpu()
    if not isinstance(found, Gpu):
        raise CommandError("--target", str(target), "a GPU")
    return found


def _short(counts: Sequence[CountRow], simulated: Sequence[SimulatorRow], profiles: Sequence[ProfileRow]) -> list[str]:
    """What misses its bar, in words."""
    found = [f"tile counts differ: {r.mask}: {r.ours}, NATTEN {r.published}" for r in counts if r.ours != r.published]
    found += [
        f"simulator off by {r.off:+.3f}: {r.model} stride {r.stride}" for r in simulated if abs(r.off) > SIMULATOR_ALLOWED
    ]
    return found + [f"time off by {100 * r.off:+.1f} %: {r.name}" for r in profiles if abs(r.off) > TIME_ALLOWED]


def _print_counts(rows: Sequence[CountRow]) -> None:
    if not rows:
        return
    names = ("Q tiles", "KV tiles", "of the worst", "masked", "unmasked")
    shown = [(r.mask, *map(str, r.ours), "same" if r.ours == r.published else f"NATTEN {r.published}") for r in rows]
    print_table("Tile counts, beside NATTEN's block masks", ("mask", *names, "NATTEN"), shown, right=names, wrap=("mask",))
    print_lines([f"{sum(r.ours == r.published for r in rows)} of {len(rows)} agree in every count", ""])


def _print_simulator(rows: Sequence[SimulatorRow]) -> None:
    if not rows:
        return
    columns = ("model", "window", "stride", "dense", "FLOPs", "paper", "worst tile", "paper", "off", "predicted", "measured")
    shown = [
        (
            r.model, r.window, r.stride, str(r.dense_steps), f"{r.flop:.2f}x", f"{r.published_flop:.2f}x",
            f"{r.simulator:.2f}x", f"{r.published_simulator:.2f}x", f"{r.off:+.3f}", f"{r.predicted:.2f}x",
            f"{r.published_actual:.2f}x",
        )
        for r in rows
    ]  # fmt: skip
    print_table("End-to-end speedups of the paper; dense: steps that stay dense", columns, shown)
    print_lines([f"largest difference to the simulator's column: {max(abs(r.off) for r in rows):.3f}", ""])


def _print_profiles(rows: Sequence[ProfileRow]) -> None:
    if not rows:
        return
    columns = ("profile", "target", "ours", "measured", "off", "permuting", "measured", "row")
    shown = [
        (
            r.name, r.target, format_time(r.time_s), format_time(r.measured_s), f"{100 * r.off:+.1f} %",
            format_time(r.permute_s), format_time(r.measured_permute_s), "fitted" if r.fitted else "held out",
        )
        for r in rows
    ]  # fmt: skip
    print_table("Attention kernels, beside NATTEN's profiler", columns, shown, wrap=("profile",))
    out = [abs(r.off) for r in rows if not r.fitted]
    off = f", mean {100 * sum(out) / len(out):.1f} %, worst {100 * max(out):.1f} %" if out else ""
    print_lines([f"held-out rows: {len(out)}{off}", ""])


def _print_generations(rows: Sequence[GenerationRow], gpu: Gpu) -> None:
    shown = [
        (
            r.kernel, f"{r.rank}-D", r.precision, "-" if r.improvement is None else f"{100 * r.improvement:+.0f} %",
            "-" if r.published is None else f"{100 * r.published:+.0f} %", f"{r.cases} cases",
        )
        for r in rows
    ]  # fmt: skip
    columns = ("kernel", "grid", "precision", "ours", "published", "our sweep")
    print_table(f"Mean improvement over naive kernels, forward, on {gpu.name}", columns, shown)
    print_lines([f"published: sweep not published; ours: {gna.SWEEP_WORDS}", ""])


def _csv(rows: Sequence[ProfileRow]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    fields: list[Any] = list(asdict(rows[0])) if rows else []
    out.writerow([*fields, "off"])
    for row in rows:
        out.writerow([*asdict(row).values(), row.off])
