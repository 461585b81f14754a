"""`einsight explain CASCADE`: what an algorithm computes, counts, and must walk more than once."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli import parsing
from einsight.cli.output import Json, print_json, print_lines
from einsight.einsum import library
from einsight.einsum.concatenate import Concatenation, concatenation
from einsight.einsum.counts import count, matmul_flops
from einsight.einsum.definitions import largest_error
from einsight.einsum.dot import dot
from einsight.einsum.errors import render
from einsight.einsum.footprint import POLICIES, Footprint, Point, curve, footprint, least_traffic
from einsight.einsum.format import format_cascade, format_einsum
from einsight.einsum.ir import Cascade
from einsight.einsum.lint import warnings
from einsight.einsum.passes import PassAnalysis, analyse, levels
from einsight.einsum.resolve import bind
from einsight.sim.hardware import Gpu, load_gpu
from einsight.sim.predict import made_chunk
from einsight.sim.unit_cycles import unit_cycles
from einsight.sim.work import KEY, QUERY
from einsight.sim.workload_file import load_workloads

WORKLOAD_ENDINGS = (".yaml", ".yml")
ELEMENT_BYTES = 2


def run(
    what: Annotated[str, typer.Argument(metavar="CASCADE", help="A library name, a .casc file or a workload .yaml.")],
    size: Annotated[
        list[str] | None, typer.Option(metavar="m=6,n=16,...", help="Sizes for the counts and the traffic.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="N", help="The rank whose passes are counted; default N, the keys.")
    ] = None,
    block: Annotated[str, typer.Option(metavar="M0", help="Query rows of a block, for the traffic.")] = "128",
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="With sizes: what the operations mean for an SM of this GPU.")
    ] = None,
    as_dot: Annotated[bool, typer.Option("--dot", help="Print the dependency graph for Graphviz.")] = False,
    as_json: Json = False,
) -> None:
    """A cascade's Einsums, operation counts, passes and live sets, per head; of a workload, the composed cascade.

    Example: einsight explain one_pass --size m=6,n=16,e=5,f=7,n0=4
    """
    if as_dot and as_json:
        raise parsing.CommandError("--dot", "--dot beside --json", "one of them")
    found, rows = _cascades(what, parsing.sizes(size or ())), parsing.whole(block, "--block")
    for cascade, _ in found:
        if rank is not None and rank not in known_ranks(cascade):
            raise parsing.CommandError("--rank", rank, f"one of {', '.join(known_ranks(cascade))}")
    rank, gpu = rank or KEY, None if target is None else load_gpu(target)
    if gpu is not None and any(sizes is None for _, sizes in found):
        raise parsing.CommandError("--target", target, "sizes beside it, such as --size m=4096,n=4096,e=128,f=128")
    for problem in warnings(library.load(what)) if Path(what).is_file() and not _is_workload(what) else ():
        print(render(what, Path(what).read_text(encoding="utf-8"), [problem]).replace(": ", ": warning: ", 1), file=sys.stderr)
    if as_dot:
        return print_lines(dot(cascade) for cascade, _ in found)
    if as_json:
        documents = [explanation(cascade, sizes, rank, rows) | _on(cascade, sizes, gpu) for cascade, sizes in found]
        return print_json(documents[0] if len(documents) == 1 else documents)
    for cascade, sizes in found:
        print_lines([*_text(cascade, sizes, rank, rows), *_on_text(cascade, sizes, gpu)])


def _cascades(what: str, sizes: Mapping[str, int]) -> list[tuple[Cascade, dict[str, int] | None]]:
    """The cascade that is named, with its sizes bound; of a workload file the composed ones with the file's sizes."""
    if _is_workload(what):
        return [_sized(w.composed(), {**w.composed_sizes, **sizes}) for w in load_workloads(what)]
    if what in library.fragments():
        expected = f"a cascade; {what} is a fragment, which `einsight cascades {what}` shows and a workload's bias names"
        raise parsing.CommandError("CASCADE", what, expected)
    return [_sized(library.load(what), sizes)]


def _is_workload(what: str) -> bool:
    return Path(what).suffix in WORKLOAD_ENDINGS


def _sized(cascade: Cascade, sizes: Mapping[str, int]) -> tuple[Cascade, dict[str, int] | None]:
    """The cascade with all its sizes; a tile that is not given is the one that operation totals assume.

    A tile N0 of a rank N that this cascade does not cut is left out, so that one --size serves every algorithm.
    """
    if not sizes:
        return cascade, None
    uncut = {f"{rank.name}0" for rank in cascade.ranks if not rank.parts} - set(known_ranks(cascade))
    given = {name.upper(): size for name, size in sizes.items() if name.upper() not in uncut}
    for rank in cascade.ranks:
        if rank.parts and rank.name in given and not given.keys() & set(rank.parts):
            given[rank.parts[-1]] = made_chunk(given[rank.name])
    return cascade, bind(cascade, given)


def known_ranks(cascade: Cascade) -> tuple[str, ...]:
    """Ranks and chunks, by name."""
    return tuple(name for r in cascade.ranks for name in (r.name, *r.parts))


def explanation(cascade: Cascade, sizes: Mapping[str, int] | None, rank: str, block: int) -> dict[str, Any]:
    """The JSON of `explain`; counts are numbers where sizes are given and formulas otherwise."""
    found = _levels(cascade, rank)
    counts = count(cascade)
    return {
        "cascade": cascade.name,
        "computes": cascade.computes,
        "paper": cascade.paper,
        "stable": cascade.stable,
        "warnings": [problem.message for problem in warnings(cascade)],
        "sizes": dict(sizes or {}),
        "error": None if sizes is None else largest_error(cascade, sizes),
        "passes": dict(found[0].passes) if found else {},
        "total_passes": found[0].total if found else 0,
        "passes_over": {a.rank: dict(a.passes) for a in found},
        "why": {
            tensor: [{"number": s.number, "einsum": s.einsum, "barrier": s.barrier, "text": s.text} for s in chain]
            for tensor, chain in (found[0].chains.items() if found else ())
        },
        "live": _live(found[0], sizes) if found else [],
        "counts": {klass: _number(part.total(), sizes) for klass, part in counts.group_by("klass").items()},
        "counts_by_einsum": {
            name: {klass: _number(p.total(), sizes) for klass, p in part.group_by("klass").items()}
            for name, part in counts.group_by("einsum").items()
        },
        "flops": {"matmul": _number(matmul_flops(counts), sizes)},
        "traffic": _traffic(cascade, sizes, block),
        "einsums": [format_einsum(e) for e in cascade.einsums],
        "text": format_cascade(cascade),
        **({"concatenated": _folded(folded, sizes)} if (folded := concatenation(cascade)) else {}),
    }


def _folded(folded: Concatenation, sizes: Mapping[str, int] | None) -> dict[str, Any]:
    """The JSON of the same computation with the bias inside the score's contraction."""
    wide = bind(folded.cascade, folded.sizes(sizes)) if sizes else None
    return {
        "rank": folded.rank[0] if folded.rank else None,
        "sizes": wide or {},
        "counts": {klass: _number(part.total(), wide) for klass, part in count(folded.cascade).group_by("klass").items()},
        "einsums": [format_einsum(e) for e in folded.cascade.einsums],
        "text": format_cascade(folded.cascade),
    }


def _levels(cascade: Cascade, rank: str) -> tuple[PassAnalysis, ...]:
    """The analysis of the rank and its chunks; nothing for a cascade that does not have the rank."""
    if rank in (r.name for r in cascade.ranks):
        return levels(cascade, rank)
    return (analyse(cascade, rank),) if rank in known_ranks(cascade) else ()


def _live(found: PassAnalysis, sizes: Mapping[str, int] | None) -> list[dict[str, Any]]:
    return [
        {
            "tensor": live.tensor,
            "indices": list(live.indices),
            "born": live.born,
            "read_in": list(live.read_in),
            **({"elements": math.prod(sizes[i.upper()] for i in live.indices)} if sizes else {}),
        }
        for live in found.live
    ]


def _footprint(cascade: Cascade, sizes: Mapping[str, int] | None, block: int) -> Footprint | None:
    """Traffic and buffer of one head; None without sizes or where queries do not meet keys."""
    if sizes is None or not {QUERY, KEY} <= set(known_ranks(cascade)):
        return None
    return footprint(cascade, sizes, min(block, sizes[QUERY]), widths=ELEMENT_BYTES)


def _traffic(cascade: Cascade, sizes: Mapping[str, int] | None, block: int) -> dict[str, Any]:
    found = _footprint(cascade, sizes, block)
    if found is None or sizes is None:
        return {}
    costs = {name: found.policy(name) for name in POLICIES}
    return {
        "block": min(block, sizes[QUERY]),
        "element_bytes": ELEMENT_BYTES,
        "compulsory_bytes": found.compulsory_bytes,
        "unfused_bytes": found.unfused_bytes,
        "curve": [asdict(p) for p in _curve(cascade, sizes)],
        "policies": {n: {"bytes": c.traffic_bytes, "buffer_bytes": c.buffer_bytes} for n, c in costs.items()},
    }


def _curve(cascade: Cascade, sizes: Mapping[str, int]) -> tuple[Point, ...]:
    """Least traffic of one head against the buffer, over query blocks and key tiles of any size."""
    if not {QUERY, KEY} <= set(known_ranks(cascade)):
        return ()
    chunks = {part for rank in cascade.ranks for part in rank.parts}
    return curve(cascade, {name: size for name, size in sizes.items() if name not in chunks}, widths=ELEMENT_BYTES)


def _on(cascade: Cascade, sizes: Mapping[str, int] | None, gpu: Gpu | None) -> dict[str, Any]:
    """What the cascade means for one SM: how long its units are busy, and the least traffic its shared memory allows."""
    if gpu is None or sizes is None:
        return {}
    buffer_bytes = gpu.architecture.shared_bytes_per_block.value
    best = least_traffic(_curve(cascade, sizes), buffer_bytes)
    found = {"cycles_per_sm": unit_cycles(count(cascade), sizes, gpu), "buffer_bytes": buffer_bytes}
    return {"target": {"name": gpu.name, **found, "least_traffic": asdict(best) if best else None}}


def _on_text(cascade: Cascade, sizes: Mapping[str, int] | None, gpu: Gpu | None) -> list[str]:
    found = _on(cascade, sizes, gpu).get("target")
    if found is None:
        return []
    units = ", ".join(f"{unit} {cycles:,.0f}" for unit, cycles in found["cycles_per_sm"].items())
    lines = ["", f"Cycles of one SM of {found['name']}, each unit at its full rate (bf16): {units}"]
    if (best := found["least_traffic"]) is not None:
        held, moved = found["buffer_bytes"] / 2**10, best["traffic_bytes"] / 2**20
        lines.append(
            f"Least traffic with a block's {held:g} KiB of shared memory: {moved:,.2f} MiB "
            f"({best['policy']}, query blocks of {best['block']}, tiles of {best['tile']})"
        )
    return lines


def _number(formula: Any, sizes: Mapping[str, int] | None) -> int | str:
    return str(formula) if sizes is None else int(formula.evaluate(sizes))


def _text(cascade: Cascade, sizes: Mapping[str, int] | None, rank: str, block: int) -> list[str]:
    at = f" at {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
    lines = [*format_cascade(cascade).rstrip("\n").splitlines(), ""]
    found = _levels(cascade, rank)
    lines += [line for analysis in found for line in str(analysis).splitlines()] or [f"No rank {rank}: no passes over it."]
    lines += ["", f"Operations per Einsum and class{at}", *count(cascade).table(sizes).splitlines()]
    if sizes and (error := largest_error(cascade, sizes)) is not None:
        lines += ["", f"Largest error against the definition of {cascade.computes}: {error:.1g} (fp64, normal inputs)"]
    if sizes is not None and (traffic := _footprint(cascade, sizes, block)) is not None:
        rows = min(block, sizes[QUERY])
        title = f"Traffic to memory of one head, query blocks of {rows}, {ELEMENT_BYTES} bytes an element, dense"
        lines += ["", title, *str(traffic).splitlines()]
    if (folded := concatenation(cascade)) is not None:
        lines += _folded_text(folded, sizes)
    return lines


def _folded_text(folded: Concatenation, sizes: Mapping[str, int] | None) -> list[str]:
    joined = "{} = {} + {}".format(*folded.rank) if folded.rank else "the product of its ranks"
    wide = bind(folded.cascade, folded.sizes(sizes)) if sizes else None
    return [
        "", f"The bias is a contraction too. The same as one contraction, over {joined}:", "",
        *format_cascade(folded.cascade).rstrip("\n").splitlines(), "",
        "Operations per Einsum and class", *count(folded.cascade).table(wide).splitlines(),
    ]  # fmt: skip
