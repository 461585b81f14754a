"""`einsight cascades [NAME]`: the library of attention algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.einsum import library
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.parse import parse_file


def run(
    name: Annotated[str | None, typer.Argument(help="A cascade, a fragment, or the path of a .casc file.")] = None,
    as_json: Json = False,
) -> None:
    """The attention algorithms that are there; one name: all about it.

    Example: einsight cascades one_pass
    """
    if name is not None:
        return _one(_named(name), as_json)
    found, fragments = library.listing(), [library.fragment(name) for name in library.fragments()]
    if as_json:
        return print_json({"cascades": [_facts(c) for c in found], "fragments": [_facts(c) for c in fragments]})
    rows = [(c.name, c.computes.replace("_", " "), "yes" if c.stable else "no", _roles(c), c.paper) for c in found]
    columns = ("name", "computes", "stable", "can carry", "paper")
    print_table("Cascades", columns, rows, wrap=columns[1:4:2])
    extra = [(c.name, _extends(c), c.paper) for c in fragments]
    print_table("\nFragments: biases and softcaps, spliced into a cascade", ("name", "extends", "paper"), extra)


def _named(name: str) -> Cascade:
    """Of the library or a file, cascade or fragment. Raises CascadeError."""
    if name in library.fragments():
        return library.fragment(name)
    return parse_file(Path(name)) if name.endswith(".casc") else library.load(name)


def _one(cascade: Cascade, as_json: bool) -> None:
    text = format_cascade(cascade)
    if as_json:
        return print_json({**_facts(cascade), "text": text})
    print_lines(text.rstrip("\n").splitlines())


def _facts(c: Cascade) -> dict[str, Any]:
    return {
        "name": c.name,
        "computes": c.computes,
        "stable": c.stable,
        "paper": c.paper,
        "ranks": {r.name: list(r.parts) for r in c.ranks},
        "inputs": {t.name: list(t.ranks) for t in c.inputs},
        "outputs": {t.name: list(t.ranks) for t in c.outputs},
        "marks": {m.role: m.access.tensor for m in c.marks},
        "extends": c.extends.role if c.extends else None,
        "einsums": [e.name for e in c.einsums],
    }


def _roles(c: Cascade) -> str:
    """What the marks allow: a score carries masks and biases, a denominator a sink."""
    return ", ".join(m.role for m in c.marks) or "nothing"


def _extends(c: Cascade) -> str:
    return c.extends.role if c.extends else ""
