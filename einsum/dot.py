"""A cascade's dependency graph in Graphviz's language."""

from __future__ import annotations

from collections.abc import Iterator

from einsight.einsum.expression import accesses
from einsight.einsum.format import format_einsum
from einsight.einsum.ir import Cascade, Initial, Iterate


def dot(cascade: Cascade) -> str:
    """`digraph`: inputs as ellipses, Einsums as boxes, loops as clusters; dashed: read from an earlier step."""
    lines = [f"digraph {_quoted(cascade.name)} {{", "  rankdir=TB; node [shape=box, fontname=monospace];"]
    lines += [f"  {_quoted(t.name)} [shape=ellipse];" for t in cascade.inputs]
    for number, statement in enumerate(cascade.statements):
        if isinstance(statement, Iterate):
            lines.append(f"  subgraph cluster_{number} {{ label={_quoted(f'iterate {statement.variable}')};")
            lines += [f"    {_box(e.name, format_einsum(e))}" for e in statement.body]
            lines.append("  }")
        elif not isinstance(statement, Initial):
            lines.append(f"  {_box(statement.name, format_einsum(statement))}")
    lines += _edges(cascade)
    return "\n".join([*lines, "}"])


def _edges(cascade: Cascade) -> Iterator[str]:
    """One edge per tensor that an Einsum reads."""
    known = {t.name for t in cascade.inputs}
    for einsum, loop in cascade.placed():
        for tensor in dict.fromkeys(a.tensor for a in accesses(einsum.expression)):
            earlier = loop is not None and tensor not in known
            yield f"  {_quoted(tensor)} -> {_quoted(einsum.name)}{' [style=dashed]' if earlier else ''};"
        known.add(einsum.name)


def _box(name: str, text: str) -> str:
    return f"{_quoted(name)} [label={_quoted(text)}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
