"""`einsight bias`: the rank of an attention bias, and what its factors buy on a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli import workload as options
from einsight.cli.bias_input import DIMS, FREQUENCY, KINDS, POWER, SCALE, Given, length
from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, whole
from einsight.einsum.ir import Cascade
from einsight.einsum.library import load
from einsight.einsum.shift import ignores_row_constants
from einsight.sim import bias_traffic as traffic
from einsight.sim.bias_analysis import Analysis, Head, Wanted
from einsight.sim.bias_svd import SHARES
from einsight.sim.bias_times import BiasTimes, bias_times, dense_kind
from einsight.sim.hardware import DTYPE_BYTES, Gpu, load_hardware
from einsight.sim.units import format_si, format_time
from einsight.sim.workload import Workload

Number = Annotated[float, typer.Option(metavar="NUMBER")]


def run(
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"{', '.join(KINDS)}, absolute.")] = None,
    table: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Learned entries per head.")] = None,
    window: Annotated[str | None, typer.Option(metavar="24x24|N", help="Tokens of the window that --table is for.")] = None,
    matrix: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="The bias itself: [M, N] or [heads, M, N].")] = None,
    energy: Annotated[float, typer.Option(help="Share of the squared singular values that is kept, up to 1.")] = 0.995,
    output_error: Annotated[float | None, typer.Option(help="Instead: relative error of the attention output.")] = None,
    heads: options.Heads = None,
    seq: options.Seq = None,
    seq_q: options.SeqQ = None,
    seq_kv: options.SeqKv = None,
    batch: options.Batch = None,
    head_dim: options.HeadDim = None,
    kv_heads: options.KvHeads = None,
    dtype: options.Dtype = None,
    causal: options.Causal = False,
    cascade: options.Cascade = None,
    cache: options.Cache = None,
    target: options.Target = None,
    shared: Annotated[str, typer.Option(metavar="batch|heads|both|none", help="Who shares one matrix.")] = "batch",
    power: Annotated[int, typer.Option(help="Of --kind polynomial.")] = POWER,
    dims: Annotated[int, typer.Option(help="Coordinates of the points of distance and sphere.")] = DIMS,
    points: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Points [tokens, D]; default: seeded.")] = None,
    classes: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Of --kind segments: a class per token.")] = None,
    frequency: Annotated[float, typer.Option(help="Of --kind cosine, radians per position.")] = FREQUENCY,
    scale: Annotated[float, typer.Option(help="Factor of every kind but alibi and segments.")] = SCALE,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw singular values and time by rank.")] = None,
    as_json: Json = False,
) -> None:
    """The rank of an attention bias under the workload's normalisation, its error, and the time of matrix and factors.

    Example: einsight bias --kind alibi --heads 16 --seq-q 8192 --seq-kv 8192 --target h100-sxm
    """
    both = length(seq, "--seq")
    queries, keys = length(seq_q, "--seq-q") or both, length(seq_kv, "--seq-kv") or both
    given = Given(
        kind, table, window, matrix, classes, points, length(heads, "--heads"), queries, keys, power, frequency, scale, dims
    )
    if max(queries or 1, keys or 1) > MOST_TOKENS:
        raise CommandError("--seq", f"{max(queries or 1, keys or 1)} tokens", f"at most {MOST_TOKENS}, so that memory holds it")
    if dims < 1:
        raise CommandError("--dims", str(dims), "at least 1")
    if shared not in SHARED:
        raise CommandError("--shared", shared, f"one of {', '.join(SHARED)}")
    drops = ignores_row_constants(_forward(cascade or "one_pass"))
    wide = length(head_dim, "--head-dim") or options.DEFAULT_HEAD_DIM
    found = given.analysis(Wanted(energy, output_error), wide, causal, drops)
    plain = Workload.attention(
        heads=len(found.heads), kv_heads=length(kv_heads, "--kv-heads"), seq_q=found.queries, seq_kv=found.keys,
        head_dim=wide, batch=whole(batch or "1", "--batch"), mask="causal" if causal else None, dtype=dtype or "bf16",
        cache=cache or "cold", cascade=cascade or "one_pass", name=found.title,
    )  # fmt: skip
    found = replace(found, rests_on=(*found.rests_on, *given.precision_note(plain.dtype, found.keys)))
    timed = [bias_times(plain, found.rank_at_least, t, SHARED[shared], given.computed) for t in target or []]
    if plot is not None:
        _draw(found, timed, plot)
    if as_json:
        return print_json(_document(found, timed, plain, drops))
    _print(found, timed, plain, drops)


def _forward(name: str) -> Cascade:
    """The cascade, when a bias can be judged by its output."""
    base = load(name)
    if base.mark("score") is None or base.mark("slope") is not None:
        lacks = "has no score to add a bias to" if base.mark("score") is None else "computes gradients"
        raise CommandError("--cascade", f"{base.name}, which {lacks}", "a forward pass that marks its score, such as one_pass")
    return base


def _draw(found: Analysis, timed: Sequence[BiasTimes], plot: Path) -> None:
    """Singular values per head, and the time by rank on every target, into a picture file."""
    from einsight.reports.figures import bias_figure, save  # matplotlib: half a second, only for a picture

    curves = {t.target: (t.curve, t.dense.time_s, t.none.time_s) for t in timed}
    save(bias_figure([h.singular for h in found.heads], curves), plot)


MOST_TOKENS = 1 << 22
NOTICEABLE = 0.05
"""Relative error of the attention output that a verdict mentions."""

SHARED = {
    "batch": dense_kind(False, True), "heads": dense_kind(True, False), "both": dense_kind(False, False),
    "none": dense_kind(True, True),
}  # fmt: skip
"""Who shares the matrix -> the fragment that reads it."""


def _document(found: Analysis, timed: Sequence[BiasTimes], plain: Workload, drops: bool) -> dict[str, Any]:
    return {
        "bias": found.title, "exact": found.exact, "heads": len(found.heads), "seq_q": found.queries,
        "seq_kv": found.keys, "row_constants_drop": drops,
        "rank": [h.rank for h in found.heads], "rank_exact": [h.rank_exact for h in found.heads], "layer_rank": found.rank,
        "error": {"bias": [h.error_bias for h in found.heads], "output": [h.error_output for h in found.heads]},
        "times": {t.target: t.as_json() for t in timed},
        "break_even_rank": {t.target: t.break_even_rank for t in timed},
        "bytes_saved": {t.target: t.memory_bytes_saved for t in timed},
        "traffic": {t.target: _traffic(t, plain) for t in timed},
        "per_head": [h.as_json() for h in found.heads],
        "verdict": _verdict(found, timed), "rests_on": _rests_on(found, timed),
    }  # fmt: skip


# -- tables -----------------------------------------------------------------------------------------------------------


def _print(found: Analysis, timed: Sequence[BiasTimes], plain: Workload, drops: bool) -> None:
    normalisation = "ignores row constants" if drops else "keeps row constants"
    title = f"{found.title}, {found.queries} x {found.keys}; {plain.cascade} {normalisation}"
    rows = [_head_row(names, head) for names, head in _alike(found.heads)]
    print_table(title, ("heads", "rank", "whole bias", "error of bias", "of output"), rows, right=("rank", "whole bias"))
    if not found.exact:
        shares = [f"{100 * s:g} %" for s in SHARES]
        curve = [(name, *(_rank(h.curve[s], h) for s in SHARES), _first(h)) for name, h in _alike(found.heads)]
        print_table("\nRank by energy", ("heads", *shares, "singular values 1, 2, 4, 8, ..."), curve, right=shares)
    for t in timed:
        _print_times(t, plain)
    print_lines(["", *_verdict(found, timed), "", "rests on"])
    print_lines(f"  {line}" for line in _rests_on(found, timed))


def _alike(heads: Sequence[Head]) -> list[tuple[str, Head]]:
    """Neighbouring heads of one rank and energy curve together; the errors shown are the largest of them."""
    groups: list[list[int]] = []
    for k, head in enumerate(heads):
        last = heads[groups[-1][0]] if groups else None
        same = last is not None and (last.rank, last.rank_exact, last.curve) == (head.rank, head.rank_exact, head.curve)
        if same:
            groups[-1].append(k)
        else:
            groups.append([k])
    return [
        (str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}", max((heads[k] for k in g), key=lambda h: h.error_output))
        for g in groups
    ]


def _head_row(name: str, head: Head) -> tuple[str, ...]:
    return name, _rank(head.rank, head), _rank(head.rank_exact, head), f"{head.error_bias:.2g}", f"{head.error_output:.2g}"


def _rank(rank: int | None, head: Head) -> str:
    return f"> {head.computed}" if rank is None else str(rank)


def _first(head: Head) -> str:
    places = [2**k for k in range(len(head.singular).bit_length()) if 2**k <= len(head.singular)]
    return " ".join(f"{head.singular[p - 1]:.3g}" for p in places) or "none: every row is constant"


def _print_times(t: BiasTimes, plain: Workload) -> None:
    rows = [("no bias", t.none), ("matrix", t.dense)]
    rows += [("made in the kernel", t.computed)] if t.computed is not None else []
    rows += [(f"rank {t.rank}, {FORM_TEXT[name]}", p) for name, p in t.forms.items()]
    memory = next(iter(t.dense.bytes_by_memory))
    cells = [
        (label, format_time(p.time_s), f"{t.dense.time_s / p.time_s:.2f}x", format_si(p.bytes_by_memory[memory], "B"),
         p.bound.name)
        for label, p in rows
    ]  # fmt: skip
    title = f"{t.target}, {plain.name}, {plain.sizes['h']} heads of {plain.sizes['e']}, batch {plain.sizes['b']}"
    print_table(f"\n{title}", ("", "time", "over the matrix", f"{memory} traffic", "limited by"), cells, right=("time",))
    least = "at least " if t.capped else ""
    print_lines([
        f"  factors beat the matrix up to rank {least}{t.break_even_rank} (model, L2 included);"
        f" at rank {t.rank} they spare {format_si(t.memory_bytes_saved, 'B')} of {memory} traffic",
        *(f"  {line}" for line in _traffic_lines(_traffic(t, plain))),
    ])  # fmt: skip


FORM_TEXT = {"low_rank": "two contractions in one kernel", "concatenated": "concatenated"}


def _traffic(t: BiasTimes, plain: Workload) -> dict[str, Any]:
    """The tile loop without any L2, and the theorem: two models beside that of the times."""
    s, width = plain.sizes, DTYPE_BYTES[plain.dtype]
    shape = traffic.Shape(s["m"], s["n"], s["e"], s["f"], _rows_at_once(t))
    out: dict[str, Any] = {
        "tile_loop": {
            "block_m": shape.block_m, "dense_elements": traffic.dense_elements(shape),
            "low_rank_elements": traffic.low_rank_elements(shape, t.rank), "ratio": traffic.tile_ratio(shape, t.rank),
            "break_even_rank": traffic.tile_break_even(shape),
        },
    }  # fmt: skip
    hardware = load_hardware(t.target)
    if isinstance(hardware, Gpu):
        capacity = hardware.architecture.shared_bytes.value / width
        out["theorem"] = {
            "capacity_elements": capacity, "ratio": traffic.theorem_ratio(s["e"], t.rank, capacity),
            "ratio_with_constants": traffic.theorem_ratio_with_constants(s["e"], t.rank, capacity),
        }  # fmt: skip
    return out


def _rows_at_once(t: BiasTimes) -> int:
    """Queries that share one load of a key: a block's on a GPU, those of a pass over the keys on an array."""
    found = t.none.mapping
    return int(found["block_m"] if "block_m" in found else found["query_rows_per_block"])


def _traffic_lines(found: dict[str, Any]) -> list[str]:
    loop = found["tile_loop"]
    lines = [
        f"tile loop of {loop['block_m']} queries without a mask, nothing kept in L2: matrix over factors"
        f" {loop['ratio']:.2f}x in elements moved, break-even at rank {loop['break_even_rank']:.0f}"
    ]
    if theorem := found.get("theorem"):
        lines.append(
            f"theorem, S = {theorem['capacity_elements']:.0f} elements: {theorem['ratio']:.2f}x,"
            f" {theorem['ratio_with_constants']:.2f}x with tile widths; an order of growth, not a prediction"
        )
    return lines


def _verdict(found: Analysis, timed: Sequence[BiasTimes]) -> list[str]:
    """Where factors pay, said outright."""
    lines = []
    if found.rank is None:
        short = [k for k, h in enumerate(found.heads) if h.rank is None]
        lines.append(
            f"heads {', '.join(map(str, short))}: not factorised at this error; it needs a rank above {found.rank_at_least}"
            f" of {min(found.queries, found.keys)}; the singular values above fall too slowly"
        )
    worst = max(range(len(found.heads)), key=lambda k: found.heads[k].error_output)
    if not found.exact and (error := found.heads[worst].error_output) > NOTICEABLE:
        lines.append(
            f"head {worst}: at this rank the attention output is off by {error:.2g} on random activations;"
            " --output-error 0.01 finds the rank that is not"
        )
    for t in timed:
        if t.useful and found.rank is not None:
            gain = t.dense.time_s / t.low_rank.time_s
            lines.append(f"{t.target}: rank {t.rank} is worth it, {gain:.2f}x over the matrix ({FORM_TEXT[t.form]})")
            if t.computed is not None and t.computed.time_s < t.low_rank.time_s:
                gain = t.dense.time_s / t.computed.time_s
                lines.append(f"  a kernel that makes the bias itself needs no factors: {gain:.2f}x")
        else:
            lines.append(
                f"{t.target}: rank {found.rank_at_least} is not useful, factors pay up to rank {t.break_even_rank};"
                " keep the matrix"
            )
            keep = [k for k, h in enumerate(found.heads) if h.rank is not None and h.rank <= t.break_even_rank]
            if keep and len(keep) < len(found.heads):
                lines.append(f"  by head: {', '.join(map(str, keep))} could be factorised in a launch of their own")
    if not timed:
        lines.append("no --target: ranks and errors only")
    return lines


def _rests_on(found: Analysis, timed: Sequence[BiasTimes]) -> list[str]:
    lines = list(found.rests_on)
    if timed:
        lines.append("all heads of a launch share the largest rank; ranks run as the next multiple of 16")
        lines.append("making the factors is not in the times: once for frozen weights, or part of the layer before")
        lines += dict.fromkeys(f"{t.target}: {note}" for t in timed for note in t.dense.assumptions)
    return lines
