"""`einsight gna`: what neighborhood attention can gain on a shape, what it costs on a target, and what to ask instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, whole
from einsight.sim.gna_advice import Advice, Choice, advise, every_stride, legal_pairs, over_windows, stride_choices
from einsight.sim.gna_bounds import BlockSparsity, Bounds, block_sparsity, bounds, end_to_end, natten_rule
from einsight.sim.gna_kernel import GnaKernel, TilePair, family_of, kernel_for, load_gna_kernel, names, runs_on
from einsight.sim.gna_tiles import TILINGS, GnaTiles, Shape, count_tiles, padded_shape, shape_from
from einsight.sim.gna_time import GnaTime, Problem, predict_gna
from einsight.sim.hardware import DTYPES, Gpu, load_hardware
from einsight.sim.mask import Gna, restriction_from
from einsight.sim.units import format_time
from einsight.sim.workload import element_type

SHOWN = 12
"""Rows of a printed table of advice; `--json` has all."""
SWEEPS = ("strides", "windows")


def run(
    per_dimension: Annotated[str | None, typer.Argument(hidden=True)] = None,
    size: Annotated[str, typer.Option("-i", "--input-size", metavar="30x48x80", help="The grid of tokens.")] = "",
    window: Annotated[str | None, typer.Option("-w", "--window-size", metavar="WxWxW", help="Default: the grid.")] = None,
    stride: Annotated[str, typer.Option("-s", "--stride", metavar="SxSxS", help="Queries that share a window.")] = "1",
    dilation: Annotated[str, typer.Option("-d", "--dilation", metavar="DxDxD", help="Gap between neighbours.")] = "1",
    causal: Annotated[bool, typer.Option("--causal", help="In every dimension, or as given: --causal=1x0x0.")] = False,
    heads: Annotated[str, typer.Option("-n", "--heads", metavar="H", help="Heads.")] = "1",
    batch: Annotated[str, typer.Option("-b", "--batch", metavar="B", help="Grids.")] = "1",
    head_dim: Annotated[str, typer.Option("--head-dim", metavar="E", help="Dimension of a head.")] = "64",
    dtype: Annotated[str, typer.Option("--dtype", metavar="fp16|bf16|...", help="Element type.")] = "fp16",
    q_tile: Annotated[str | None, typer.Option("--q-tile", metavar="2x8x8", help="Queries of a tile; 128: 1-D.")] = None,
    kv_tile: Annotated[str | None, typer.Option("--kv-tile", metavar="2x8x8", help="Keys of a tile.")] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", metavar="static|dynamic", help="Where KV tiles start.")] = None,
    target: Annotated[list[str] | None, typer.Option(metavar="NAME[:KERNEL]", help="Where; repeatable.")] = None,
    share: Annotated[float | None, typer.Option(metavar="0.607", help="Attention's share of a model's time.")] = None,
    dense_steps: Annotated[int, typer.Option(metavar="15", help="With --share: steps that stay dense, ...")] = 0,
    steps: Annotated[int, typer.Option(metavar="50", help="... of so many.")] = 1,
    sweep: Annotated[str | None, typer.Option("--sweep", metavar="strides|windows", help="A table over them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="With --sweep strides: all that are tried, not their front.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="With --sweep: draw it.")] = None,
    as_json: Json = False,
) -> None:
    """Bounds, tiles, block sparsity, predicted time against dense attention, and better strides and tiles.

    Tile counts are for one batch and head, all dilation groups together. Works without a GPU.

    Example: einsight gna -i 30x48x80 -w 18x24x24 -s 16x8x8 -n 24 --head-dim 128 --target h100-sxm
    """
    gna = _mask(size, window, stride, dilation, _causal(causal, per_dimension))
    problem = Problem(
        gna, whole(batch, "--batch"), whole(heads, "--heads"), whole(head_dim, "--head-dim"), _dtype(dtype)
    )  # fmt: skip
    asked = _asked_tiles(q_tile, kv_tile)
    named = [_target(name) for name in target or []]
    made = [_case(problem, name, gpu, kernel, asked, tiling) for name, gpu, kernel in named]
    if not made:
        made = [_case(problem, "", None, _some_kernel(problem), asked, tiling)]
    if share is not None or dense_steps or steps != 1:
        _check_share(share, dense_steps, steps)
    if every and (sweep != "strides" or plot is not None):
        asked_for = f"a sweep of {sweep or 'nothing'}" if sweep != "strides" else f"--plot {plot}, which draws the front"
        raise CommandError("--all", asked_for, "--sweep strides, without --plot")
    if sweep is not None or plot is not None:
        return _sweep(problem, made, asked is not None, sweep, plot, every, as_json)
    if as_json:
        return print_json(_json(problem, made, share, dense_steps, steps))
    _print(problem, made, share, dense_steps, steps)


@dataclass(frozen=True, slots=True)
class Case:
    """One target (or none) with the tiles taken there and what they give."""

    target: str
    gpu: Gpu | None
    kernel: GnaKernel
    pair: TilePair
    tiling: str
    tiles: GnaTiles
    bounds: Bounds
    sparsity: BlockSparsity
    time: GnaTime | None

    @property
    def built(self) -> bool:
        """Whether the kernel comes with this pair of tiles."""
        here = self.gpu.architecture.name if self.gpu else ""
        return any((t.q, t.kv) == (self.pair.q, self.pair.kv) and here not in t.not_on for t in self.kernel.tiles)


def _case(
    problem: Problem, name: str, gpu: Gpu | None, kernel: GnaKernel, asked: TilePair | None, tiling: str | None
) -> Case:
    if gpu and (why := family_of(kernel).why_unusable(gpu, problem.dtype)):
        others = [k.name for k in map(load_gna_kernel, names()) if not family_of(k).why_unusable(gpu, problem.dtype)]
        known = f"a type that {kernel.name} covers there ({why})"
        raise CommandError("--dtype", problem.dtype, f"{known}, or a kernel with it: {', '.join(others) or 'there is none'}")
    if gpu and not kernel.covers(problem.head_dim):
        known = f"one that {kernel.name} is built for: {_dims(kernel.head_dims)}"
        raise CommandError("--head-dim", str(problem.head_dim), known)
    pair = asked or _default_pair(problem, kernel, gpu)
    chosen = tiling or kernel.tiling
    if chosen not in TILINGS:
        raise CommandError("--tiling", chosen, " or ".join(TILINGS))
    kernel = replace(kernel, tiling=chosen)  # advice and sweeps are about what is asked, too
    tiles = count_tiles(problem.gna, pair.q, pair.kv, chosen)
    time = predict_gna(problem, gpu, kernel, pair.q, pair.kv, chosen) if gpu else None
    return Case(
        name, gpu, kernel, pair, chosen, tiles, bounds(problem.gna, tiles),
        block_sparsity(problem.gna, pair.q, pair.kv, chosen), time,
    )  # fmt: skip


# -- options -------------------------------------------------------------------------------------------------------------


def _mask(size: str, window: str | None, stride: str, dilation: str, causal: str | bool) -> Gna:
    if not size:
        raise CommandError("-i", None, "the grid of tokens, such as -i 30x48x80")
    spec = {"layout": size, "window": window or size, "stride": stride, "dilation": dilation, "causal": causal}
    rank = len(size.lower().split("x"))
    fields = {
        name: "x".join([text] * rank) if isinstance(text, str) and "x" not in text.lower() and rank > 1 else text
        for name, text in spec.items()
    }
    found = restriction_from({"gna": fields})
    assert isinstance(found, Gna)
    return found


def _dims(values: Sequence[int]) -> str:
    """A short list in full, an even one by its ends."""
    if len(values) <= 8:
        return ", ".join(map(str, values))
    return f"{values[0]}, {values[1]}, ... {values[-1]}"


def _causal(flag: bool, per_dimension: str | None) -> str | bool:
    if per_dimension is None:
        return flag
    if not flag:
        raise CommandError("gna", per_dimension, "options only, such as -i 30x48x80")
    if not all(part in ("0", "1") for part in per_dimension.split("x")):
        raise CommandError("--causal", per_dimension, "0 or 1 per dimension, such as 1x0x0")
    return per_dimension


def _dtype(text: str) -> str:
    found = element_type(text)
    if found is None:
        raise CommandError("--dtype", text, f"one of {', '.join(DTYPES)}")
    return found


def _asked_tiles(q_tile: str | None, kv_tile: str | None) -> TilePair | None:
    if (q_tile is None) != (kv_tile is None):
        raise CommandError("--q-tile" if q_tile else "--kv-tile", q_tile or kv_tile or "", "both or neither")
    if q_tile is None or kv_tile is None:
        return None
    return TilePair(0, _shape("--q-tile", q_tile), _shape("--kv-tile", kv_tile))


def _shape(option: str, text: str) -> Shape:
    found = shape_from(text)
    if found is None:
        raise CommandError(option, text, "whole numbers such as 2x8x8")
    return found


def _target(text: str) -> tuple[str, Gpu, GnaKernel]:
    name, _, chosen = text.partition(":")
    gpu = load_hardware(name)
    if not isinstance(gpu, Gpu):
        raise CommandError("--target", name, "a GPU; arrays have no kernel for neighborhood attention")
    if not chosen:
        return text, gpu, kernel_for(gpu)
    kernel = load_gna_kernel(chosen)
    if not runs_on(kernel, gpu):
        raise CommandError("--target", text, f"a kernel that runs on {gpu.architecture.instructions} instructions")
    return text, gpu, kernel


def _default_pair(problem: Problem, kernel: GnaKernel, gpu: Gpu | None) -> TilePair:
    found = legal_pairs(problem, kernel, gpu)
    if not found:
        most = max(t.head_dim for t in kernel.tiles)
        raise CommandError("--head-dim", str(problem.head_dim), f"at most {most}, which {kernel.name} is built for")
    return found[0]


def _some_kernel(problem: Problem) -> GnaKernel:
    """Whose default tiles stand for all when no target is named."""
    found = [k for k in map(load_gna_kernel, names()) if legal_pairs(problem, k)]
    if not found:
        raise CommandError("--head-dim", str(problem.head_dim), "a head dimension that a kernel is built for")
    return found[0]


def _check_share(share: float | None, dense_steps: int, steps: int) -> None:
    if share is None or not 0 <= share <= 1:
        raise CommandError("--share", None if share is None else str(share), "attention's share of the time, from 0 to 1")
    if steps < 1 or not 0 <= dense_steps <= steps:
        raise CommandError("--dense-steps", f"{dense_steps} of {steps}", "at most the number given by --steps")


# -- one problem ---------------------------------------------------------------------------------------------------------


def _advice(problem: Problem, case: Case) -> Advice | None:
    pairs = legal_pairs(problem, case.kernel, case.gpu)
    return advise(problem, case.gpu, case.kernel, pairs) if case.gpu and pairs else None


def _json(problem: Problem, made: Sequence[Case], share: float | None, dense_steps: int, steps: int) -> dict[str, Any]:
    """The first target's counts and bounds, then every target with its own; a single target's times on top, too."""
    out = _facts(problem, made[0])
    if share is not None:
        out["end_to_end"] = _end_to_end(made[0], share, dense_steps, steps)
    timed = {c.target: _facts(problem, c) | _times(c.time) for c in made if c.time}
    for case in made:
        if found := _advice(problem, case):
            timed[case.target]["advice"] = {
                name: [_choice_json(c) for c in getattr(found, name)] for name in ("tiles", "near", "better", "front")
            }
    if len(made) == 1 and made[0].time:
        out |= _times(made[0].time)
    return out | {"targets": timed}


def _facts(problem: Problem, case: Case) -> dict[str, Any]:
    gna, tiles = problem.gna, case.tiles
    return {
        "input_size": list(gna.layout), "window_size": list(gna.window), "stride": list(gna.stride),
        "dilation": list(gna.dilation), "causal": list(gna.causal), "kernel": case.kernel.name,
        "q_tile": list(case.pair.q), "kv_tile": list(case.pair.kv), "tiling": case.tiling,
        "sparsity": 1 - 1 / case.bounds.flop, "flop_speedup": case.bounds.flop,
        "tile_speedup_max": case.bounds.worst, "tile_speedup_avg": case.bounds.average,
        "padded_speedup_avg": case.bounds.padded, "num_q_tiles": tiles.q_tiles, "total_kv_tiles": tiles.total,
        "max_kv_tiles": tiles.most, "dense_kv_tiles": tiles.dense, "masked_kv_tiles": tiles.masked,
        "unmasked_kv_tiles": tiles.full, "kv_tiles_by_masked_dimensions": list(tiles.by_masked_dimensions),
        "exact": tiles.exact, "fully_block_sparse": case.sparsity.fully, "reason": case.sparsity.reason,
        "natten_fully_block_sparse": natten_rule(gna, case.pair.q, case.pair.kv) if case.tiling == "static" else None,
        "padding": {
            "q": tiles.q_padding, "kv": tiles.kv_padding, "q_shape": list(padded_shape(gna, case.pair.q)),
            "kv_shape": list(padded_shape(gna, case.pair.kv)),
        },
    }  # fmt: skip


def _times(time: GnaTime) -> dict[str, Any]:
    return {
        "time_s": time.time_s, "time_low_s": time.low_s, "time_high_s": time.high_s, "permute_time_s": time.permute_s,
        "total_time_s": time.total_s, "dense_time_s": time.dense_s, "speedup": time.speedup,
        "speedup_total": time.speedup_total, "bounds": time.bounds_s,
    }  # fmt: skip


def _choice_json(c: Choice) -> dict[str, Any]:
    return {
        "window_size": list(c.window), "stride": list(c.stride), "q_tile": list(c.tiles.q), "kv_tile": list(c.tiles.kv),
        "flop_speedup": c.flop_speedup, "tile_speedup_max": c.tile_speedup_max, "tile_speedup_avg": c.tile_speedup_avg,
        "fully_block_sparse": c.fully_block_sparse, "time_s": c.time_s, "total_time_s": c.total_s,
        "speedup": c.speedup, "speedup_total": c.speedup_total,
    }  # fmt: skip


def _end_to_end(case: Case, share: float, dense_steps: int, steps: int) -> dict[str, float]:
    found = {"flop": case.bounds.flop, "tile_max": case.bounds.worst, "tile_avg": case.bounds.average}
    if case.time:
        found["predicted"] = case.time.speedup_total
    return {name: end_to_end(value, share, dense_steps, steps) for name, value in found.items()}


def _print(problem: Problem, made: Sequence[Case], share: float | None, dense_steps: int, steps: int) -> None:
    for case in made:
        print_table(_title(problem, case), ("", ""), _rows(problem, case, share, dense_steps, steps))
        if case.time is None:
            print_lines(["", "--target NAME predicts times and gives advice; tiles that are not asked are its kernel's."])
        elif found := _advice(problem, case):
            _print_advice(problem, found)
        print_lines([""])


def _title(problem: Problem, case: Case) -> str:
    where = f" on {case.target} ({case.kernel.name})" if case.time else ""
    return f"Neighborhood attention of {_by(problem.gna.layout)} tokens{where}"


def _rows(
    problem: Problem, case: Case, share: float | None, dense_steps: int, steps: int
) -> list[tuple[str, str]]:  # fmt: skip
    gna, t, b = problem.gna, case.tiles, case.bounds
    extra = "" if not any(gna.causal) else f", causal {_by(int(c) for c in gna.causal)}"
    needed = "no score needs the mask" + (", the padded end of the grid aside" if t.masked else "")
    sparse = f"yes: {needed}" if case.sparsity.fully else f"no: {case.sparsity.reason}"
    if case.sparsity.fully != natten_rule(gna, case.pair.q, case.pair.kv) and case.tiling == "static":
        sparse += "; NATTEN's conservative rule says otherwise and masks"
    foreign = f"; {case.kernel.name} has no such pair there" if case.gpu and not case.built else ""
    rows = [
        ("mask", f"window {_by(gna.window)}, stride {_by(gna.stride)}, dilation {_by(gna.dilation)}{extra}"),
        ("sparsity", f"{100 * (1 - 1 / b.flop):.1f} %"),
        ("tiles (Q / KV)", f"{case.pair}, {case.tiling}{foreign}"),
        ("speedup at most", f"{b.flop:.2f}x by FLOPs, {b.worst:.2f}x by the worst tile, {b.average:.2f}x by the average tile"),
        ("KV tiles", f"{t.total:,} over {t.q_tiles:,} Q tiles, at most {t.most} of {t.dense}; {t.masked:,} need a mask"),
        ("padding", f"queries x{t.q_padding:.3g}, keys x{t.kv_padding:.3g}; {b.padded:.2f}x by the average tile with it"),
        ("fully block-sparse", sparse),
    ]
    if not t.exact:
        rows.append(("counted", "on evenly spaced Q tiles"))
    if share is not None:
        e2e = _end_to_end(case, share, dense_steps, steps)
        rows.append(("end to end", ", ".join(f"{value:.2f}x {name.replace('_', ' ')}" for name, value in e2e.items())))
    return rows + (_time_rows(case.time) if case.time else [])


def _time_rows(time: GnaTime) -> list[tuple[str, str]]:
    limit = max(time.bounds_s, key=lambda name: time.bounds_s[name])
    return [
        ("time (90 %)", f"{format_time(time.time_s)} ({format_time(time.low_s)} to {format_time(time.high_s)})"),
        ("limited by", f"{limit}: {format_time(time.bounds_s[limit])} alone"),
        ("permuting tokens", f"{format_time(time.permute_s)}; {format_time(time.total_s)} in all"),
        ("dense attention", f"{format_time(time.dense_s)}"),
        ("predicted speedup", f"{time.speedup:.2f}x, {time.speedup_total:.2f}x with permuting"),
    ]


_COLUMNS = ("window", "stride", "Q / KV tiles", "worst", "average", "block-sparse", "time", "in all", "speedup in all")


def _print_advice(problem: Problem, found: Advice) -> None:
    _print_choices("\nTiles for this window and stride, fastest first", found.tiles[:SHOWN])
    if found.near:
        _print_choices("\nFully block-sparse strides near the asked one", found.near)
    else:
        why = "a causal dimension is never" if any(problem.gna.causal) else "no stride of this window is"
        print_lines(["", f"No fully block-sparse stride: {why}, with these tiles."])
    if found.better:
        _print_choices("\nThe same window and sparsity, faster, sharing the fewest queries", found.better)
    _print_choices("\nStrides: the fastest by how many queries share a window", found.front[-SHOWN:])


def _print_choices(title: str, choices: Sequence[Choice]) -> None:
    rows = [
        (
            _by(c.window), _by(c.stride), str(c.tiles), f"{c.tile_speedup_max:.2f}x", f"{c.tile_speedup_avg:.2f}x",
            "yes" if c.fully_block_sparse else "no", format_time(c.time_s), format_time(c.total_s), f"{c.speedup_total:.2f}x",
        )
        for c in choices
    ]  # fmt: skip
    print_table(title, _COLUMNS, rows, right=("worst", "average", "time", "in all", "speedup in all"))


def _by(values: Any) -> str:
    return "x".join(str(v) for v in values)


# -- sweeps --------------------------------------------------------------------------------------------------------------


def _sweep(
    problem: Problem, made: Sequence[Case], asked: bool, what: str | None, plot: Path | None, every: bool, as_json: bool
) -> None:  # fmt: skip
    if what not in SWEEPS:
        raise CommandError("--sweep", what, " or ".join(SWEEPS))
    timed = [c for c in made if c.gpu]
    if len(timed) != 1 or timed[0].gpu is None:
        raise CommandError("--sweep", f"{len(timed)} targets", "one --target")
    case = timed[0]
    pairs = (case.pair,) if asked else legal_pairs(problem, case.kernel, case.gpu)
    if len(pairs[0].q) < len(problem.gna.layout):
        raise CommandError("--q-tile", _by(pairs[0].q), f"{len(problem.gna.layout)} entries; a sweep has no plain 1-D tiling")
    if what == "windows":
        found = over_windows(problem, timed[0].gpu, case.kernel, pairs)
    elif every:
        found = every_stride(problem, timed[0].gpu, case.kernel, pairs)
    else:
        found = advise(problem, timed[0].gpu, case.kernel, pairs).front
    if plot is not None:
        from einsight.reports.figures import gna_figure, save  # matplotlib: half a second, only for a picture

        save(gna_figure(found, case.target), plot)
    tried = prod(len(choices) for choices in stride_choices(problem.gna))
    if as_json:
        head = {"target": case.target, "sweep": what} | ({"strides_tried": tried} if what == "strides" else {})
        return print_json(head | {"points": [_choice_json(c) for c in found]})
    _print_choices(f"{what.capitalize()} of {_by(problem.gna.layout)} tokens on {case.target}", found)
    if what == "windows":
        print_lines(["each window with stride 1, the asked stride and the fastest one, tiles the fastest"])
    elif not every:
        print_lines([f"the front of {tried:,} strides: each shares its window among more queries and is faster than all"
                     " before; --all has every one"])  # fmt: skip
