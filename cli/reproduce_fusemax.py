"""`einsight reproduce fusemax`: FuseMax's evaluation recomputed, beside the tables of its artifact where they are."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from einsight.cli import reproduce_search
from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, whole
from einsight.reports import fusemax
from einsight.reports.fusemax import MODELS, SEQUENCES, TARGETS, LayerRow, Model, ParetoRow, Row
from einsight.sim.array_case import ARTIFACT
from einsight.sim.units import format_time

COLUMNS = ("design", "model", "seq_len", "traffic_bytes", "latency_s", "energy_pj", "util_2d", "util_1d")
PUBLISHED = {"traffic_bytes": "traffic", "latency_s": "latency", "energy_pj": "energy", "util_2d": "util_2d",
             "util_1d": "util_1d"}  # fmt: skip
"""Our columns and those of the artifact's tables."""
ALLOWED = {"traffic_bytes": 1e-9, "latency_s": 1e-9, "energy_pj": 1e-4, "util_2d": 1e-9, "util_1d": 1e-9}
"""Relative difference that `--artifact` may leave; the artifact's energies carry rounded constants."""

SHAPES, BUFFERS = "16,32,64,128,256,512", "256k,1m,4m,16m"
"""What `--search` walks where nothing is asked for."""

Designs = Annotated[str, typer.Option("--design", metavar="NAME[,NAME]|all", help=f"Of {', '.join(TARGETS)}.")]
Models = Annotated[str, typer.Option("--model", metavar="BERT|TrXL|T5|XLM|all", help="Whose encoder layer.")]
Lengths = Annotated[str, typer.Option("--seq", metavar="1K,4K|all", help="Tokens; any such as 24K, too.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print rows as CSV and nothing else.")]
Layer = Annotated[bool, typer.Option("--end-to-end", help="Whole encoder layers: attention and the linear layers.")]
Sides = Annotated[bool, typer.Option("--pareto", help="Arrays from 16 x 16 to 512 x 512 at 256K tokens.")]
Artifact = Annotated[bool, typer.Option("--artifact", help="Replicate the published numbers with what they omit.")]
Defects = Annotated[bool, typer.Option("--differences", help="What each of these omissions does to the headlines.")]
OnArray = Annotated[str | None, typer.Option("--array", metavar="PROFILE", help="Every design on this array.")]
HeadDim = Annotated[str | None, typer.Option("--head-dim", metavar="E", help="Another head dimension than the model's.")]
Heads = Annotated[str | None, typer.Option("--heads", metavar="H", help="Another number of heads than the model's.")]
Search = Annotated[bool, typer.Option("--search", help="Which array shape and buffer is best, past the paper.")]
Shapes = Annotated[str, typer.Option("--shapes", metavar="64,128x256", help="With --search: rows x columns.")]
Buffers = Annotated[str, typer.Option("--buffers", metavar="512k,4m", help="With --search: buffers in bytes.")]
File = Annotated[Path | None, typer.Option("--workload", metavar="FILE.yaml", help="With --search: any workload.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg|png", help="With --search or --pareto: draw them.")]
Ports = Annotated[bool, typer.Option("--buffer-ports", help="With --search: let the buffer's ports limit the speed.")]
Reference = Annotated[Path | None, typer.Option("--reference", metavar="DIR", help="Folder of the artifact's tables.")]


def run(
    context: typer.Context,
    design: Designs = "all",
    model: Models = "all",
    seq: Lengths = "all",
    as_csv: AsCsv = False,
    end_to_end: Layer = False,
    pareto: Sides = False,
    artifact: Artifact = False,
    differences: Defects = False,
    array: OnArray = None,
    head_dim: HeadDim = None,
    heads: Heads = None,
    reference: Reference = None,
    search: Search = False,
    shapes: Shapes = SHAPES,
    buffers: Buffers = BUFFERS,
    workload: File = None,
    plot: Plot = None,
    buffer_ports: Ports = False,
    as_json: Json = False,
) -> None:
    """FuseMax's evaluation recomputed: traffic, latency, energy, utilisation, and the headline means.

    The default is the physically consistent model; --artifact replicates the published numbers, defects included, and
    ends with exit code 1 where it does not.

    Example: einsight reproduce fusemax --design binding --model BERT --artifact
    """
    models = [_resized(MODELS[m], head_dim, heads) for m in _chosen("--model", model, MODELS)]
    switches = ARTIFACT if artifact else frozenset()
    folder = _folder(reference)
    _check_options(_given(context))
    if pareto:
        return _pareto(models, switches, folder, as_csv, as_json, plot)
    if search:
        tasks = reproduce_search.workloads(workload, models, [] if seq == "all" else _lengths(seq))
        targets = [TARGETS[d] for d in _chosen("--design", "binding" if design == "all" else design, TARGETS)]
        return reproduce_search.run(tasks, targets, array, shapes, buffers, plot, buffer_ports, as_json)
    if differences:
        return _differences(models, _lengths(seq), as_json)
    asked = (_chosen("--design", design, TARGETS), models, _lengths(seq), switches, array)
    found = fusemax.attention(*asked)
    rows = fusemax.layers(*asked) if end_to_end or array is None else ()  # of another array only where they are asked for
    if as_csv:
        return _layer_csv(rows) if end_to_end else _csv(COLUMNS, map(_values, found))
    found = tuple(r.total for r in rows) if end_to_end else found
    known = {} if array or head_dim or heads else _known(found, folder, end_to_end)
    if as_json:
        return print_json({
            "rows": [{**asdict(r), "published": known.get(r.key)} for r in found],
            "headlines": [asdict(h) for h in fusemax.headlines(fusemax.attention(*asked), rows)], "artifact": artifact,
        })  # fmt: skip
    _print_rows(found, known, "Encoder layers" if end_to_end else "Attention", artifact)
    if not folder.is_dir():
        print_lines(["", f"{folder}: not there, so only our own rows; --reference DIR names the published ones"])
    _print_headlines(fusemax.attention(*asked), rows)
    if artifact and (off := _off(found, known)):
        print_lines(["", *off])
        raise typer.Exit(1)


def _folder(reference: Path | None) -> Path:
    """Where the published tables are, if they are there; a folder that was named must hold some."""
    if reference is None:
        return Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "fusemax"
    if not any(reference.glob("*.csv")):
        lacks = "no .csv file there" if reference.is_dir() else "no such folder"
        raise CommandError("--reference", f"{reference}: {lacks}", "the folder that holds attn-unfused.csv and its like")
    return reference


TABLES: Mapping[str, tuple[str, ...]] = {
    "--search": ("--end-to-end", "--artifact", "--csv"),
    "--pareto": ("--end-to-end", "--array", "--design", "--seq"),
    "--differences": ("--array", "--csv", "--design"),
}
"""Tables other than the rows, and what does not change them."""

ONE_TABLE_ONLY = {
    "--shapes": ("--search",), "--buffers": ("--search",), "--workload": ("--search",), "--buffer-ports": ("--search",),
    "--plot": ("--search", "--pareto"),
}  # fmt: skip

PAIRS = (("--csv", "--json"), *(("--workload", option) for option in ("--model", "--seq", "--head-dim", "--heads")))
"""Two that name the same thing."""


def _given(context: typer.Context) -> list[str]:
    """The options that say something else than their defaults, as they are typed. --pareto is of one design and length:
    to name these says nothing."""
    of_pareto = {"design": "binding", "seq": fusemax.SIDES_SEQUENCE} if context.params["pareto"] else {}
    nothing = (None, False, "all", SHAPES, BUFFERS)
    found = (n for n, value in context.params.items() if value not in nothing and value != of_pareto.get(n))
    return [f"--{name.removeprefix('as_').replace('_', '-')}" for name in found]


def _check_options(used: Sequence[str]) -> None:
    """Refuses what would be ignored."""
    tables = [option for option in TABLES if option in used]
    clashes = [*((t, o) for t in tables for o in TABLES[t]), *PAIRS, *combinations(tables, 2)]
    for first, second in clashes:
        if first in used and second in used:
            raise CommandError(second, f"{second} beside {first}", "one of them")
    for option, needs in ONE_TABLE_ONLY.items():
        if option in used and not set(needs) & set(tables):
            raise CommandError(option, f"{option} alone", f"{' or '.join(needs)} beside it")


def _chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """Names separated by commas, in any case; `all` for all."""
    names = {n.lower(): n for n in known}
    if text.lower() == "all":
        return list(names.values())
    for word in text.split(","):
        if word.strip().lower() not in names:
            raise CommandError(option, word, f"all, or one or more of {', '.join(names.values())}")
    return [names[word.strip().lower()] for word in text.split(",")]


def _lengths(text: str) -> list[str]:
    """`1K,24K` as labels; a number of tokens that is no multiple of 1024 stays as it is."""
    if text.lower() == "all":
        return list(SEQUENCES)
    return [_label(whole(word, "--seq")) for word in text.split(",")]


def _label(tokens: int) -> str:
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def _resized(model: Model, head_dim: str | None, heads: str | None) -> Model:
    e = whole(head_dim, "--head-dim") if head_dim else model.head_dim
    h = whole(heads, "--heads") if heads else model.heads
    return Model(model.name, h, e, model.width, model.feed_forward)


# -- rows ------------------------------------------------------------------------------------------------------------


def _values(row: Row) -> list[object]:
    return [getattr(row, column) for column in COLUMNS]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Numbers in full: they read back as the same."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(columns)
    for row in rows:
        out.writerow([repr(v) if isinstance(v, float) else v for v in row])


LAYER_COLUMNS = (*COLUMNS, "linear_traffic_bytes", "linear_latency_s", "linear_energy_pj")


def _layer_csv(rows: Sequence[LayerRow]) -> None:
    """Whole layers, and in further columns the linear layers alone."""
    parts = ([r.linear.dram_bytes, r.linear.time_s, sum(r.linear.energy_pj.values())] for r in rows)
    _csv(LAYER_COLUMNS, ([*_values(r.total), *part] for r, part in zip(rows, parts, strict=True)))


def _known(rows: Sequence[Row], folder: Path, whole_layer: bool) -> dict[tuple[str, str, str], dict[str, float]]:
    """Published values under our names. A layer is its attention row and its row of linear layers together."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    attention = fusemax.published(folder)
    linear = fusemax.published_layers(folder) if whole_layer else {}
    for row in rows:
        key = row.key
        table = attention.get(key)
        beside = linear.get((TARGETS[key[0]].partition(":")[0], *key[1:]), {})
        if table is None or (whole_layer and not beside):
            continue
        names = ("traffic_bytes", "latency_s", "energy_pj") if whole_layer else tuple(PUBLISHED)
        found[key] = {n: table[PUBLISHED[n]] + beside.get(PUBLISHED[n], 0.0) for n in names}
    return found


def _print_rows(
    rows: Sequence[Row], known: Mapping[tuple[str, str, str], Mapping[str, float]], what: str, artifact: bool
) -> None:
    """Every row and, below it, the published one with the largest relative difference."""
    mode = "published omissions replicated" if artifact else "physically consistent"
    columns = ("design", "model", "tokens", "traffic", "latency", "energy", "2-D", "1-D", "largest")
    cells: list[tuple[str, ...]] = []
    for row in rows:
        ours = {name: getattr(row, name) for name in PUBLISHED}
        cells.append((row.design, row.model, row.seq_len, *_shown(ours), ""))
        if table := known.get(row.key):
            off = max((ours[name] / value - 1 for name, value in table.items()), key=abs)
            cells.append(("published", "", "", *_shown(table), f"{off:+.1e}"))
    print_table(f"{what}, {mode}", columns, cells, right=columns[2:8])


def _shown(values: Mapping[str, float]) -> tuple[str, ...]:
    """Traffic, latency, energy and both utilisations with five digits; empty where there is none."""
    busy = (f"{100 * values[n]:.2f} %" if n in values else "" for n in ("util_2d", "util_1d"))
    energy = f"{values['energy_pj'] * 1e-12:.5g} J"
    return f"{values['traffic_bytes'] * 1e-9:.5g} GB", f"{values['latency_s']:.5g} s", energy, *busy


def _print_headlines(attention: Sequence[Row], rows: Sequence[LayerRow]) -> None:
    found = fusemax.headlines(attention, rows)
    if not found:
        return
    cells = [
        (h.what, "" if h.printed is None else f"{h.printed:g}", f"{h.mean:.4f}", f"{h.geometric:.4f}",
         f"{h.low:.3f} to {h.high:.3f}")
        for h in found
    ]  # fmt: skip
    count = len({r.key[1:] for r in attention})
    columns = ("headline", "paper", "mean", "geometric", "range")
    print_table(f"Ratios over {count} workloads (the paper prints the mean over 24)", columns, cells, right=columns[1:4])


def _off(rows: Sequence[Row], known: Mapping[tuple[str, str, str], Mapping[str, float]]) -> list[str]:
    """Rows that miss their published value, one line each."""
    out = []
    for row in rows:
        for name, value in known.get(row.key, {}).items():
            ours = getattr(row, name)
            if abs(ours / value - 1) > ALLOWED[name]:
                out.append(f"{' '.join(row.key)}: {name} is {ours!r}, published {value!r} ({ours / value - 1:+.2e})")
    return out


# -- arrays of other sizes -------------------------------------------------------------------------------------------

PARETO_COLUMNS = (
    *COLUMNS, "pe_dim", "mem_latency_s", "comp_2d_latency_s", "comp_1d_latency_s", "array_2d_area_um2", "area_um2",
)  # fmt: skip


def _pareto(
    models: Sequence[Model], switches: frozenset[str], folder: Path, as_csv: bool, as_json: bool, plot: Path | None
) -> None:
    rows = fusemax.pareto(models, replicate=switches)
    if plot is not None:
        from einsight.reports.figures import arrays_figure, save  # matplotlib: half a second, only for a picture

        points = [r.point for r in rows]
        title = f"{', '.join(m.name for m in models)} at {fusemax.SIDES_SEQUENCE} tokens"
        save(arrays_figure(points, points, title), plot)
    cells = [[*_values(r.row), r.side, r.memory_s, r.array_2d_s, r.array_1d_s, r.array_2d_um2, r.area_um2] for r in rows]
    if as_csv:
        return _csv(PARETO_COLUMNS, cells)
    if as_json:
        return print_json([dict(zip(PARETO_COLUMNS, row, strict=True)) for row in cells])
    known = fusemax.published_pareto(folder)
    columns = ("model", "side", "latency", "area", "2-D area", "latency x area") + ("ours / published",) * bool(known)
    shown = [_pareto_cells(r, known.get((r.row.model, r.side))) for r in rows]
    print_table("Arrays at 256K tokens", columns, [row[: len(columns)] for row in shown], right=columns[1:6])


def _pareto_cells(row: ParetoRow, known: Mapping[str, float] | None) -> tuple[str, ...]:
    area = row.area_um2 * 1e-8
    ratios = "" if known is None else (
        f"latency {row.row.latency_s / known['latency']:.6f}, area {row.area_um2 / known['area']:.4f}"
    )  # fmt: skip
    return (
        row.row.model, str(row.side), format_time(row.row.latency_s), f"{area:.3f} cm^2",
        f"{row.array_2d_um2 * 1e-8:.3f} cm^2", f"{row.row.latency_s * area:.0f} s cm^2", ratios,
    )  # fmt: skip


# -- what the omissions do -------------------------------------------------------------------------------------------


def _differences(models: Sequence[Model], lengths: Sequence[str], as_json: bool) -> None:
    found = fusemax.differences(models, lengths)
    if as_json:
        return print_json({what: [asdict(h) for h in heads] for what, heads in found.items()})
    first = next(iter(found.values()))
    rows = [(*(f"{h.mean:.4f}" for h in heads), what) for what, heads in found.items()]
    print_lines(f"{_letter(k)}  {h.what}" for k, h in enumerate(first))
    columns = (*(_letter(k) for k, _ in enumerate(first)), "what the numbers contain")
    print_table("\nHeadline means", columns, rows, right=columns[:-1])


def _letter(index: int) -> str:
    return chr(ord("A") + index)
