"""`let` names replaced by what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from einsight.einsum.expression import Expression, Symbol, substitute
from einsight.einsum.ir import Cascade, S, rewrite_statement


def let_values(cascade: Cascade) -> dict[str, Expression]:
    """Each `let` with the `let`s that it uses written out."""
    values: dict[str, Expression] = {}
    for let in cascade.lets:
        values[let.name] = substitute(let.expression, values)
    return values


def written_out(statement: S, lets: Mapping[str, Expression]) -> S:
    """The statement without `let` names. What takes the place of a name keeps the name's place in the file."""

    def change(node: Expression) -> Expression:
        if isinstance(node, Symbol) and node.name in lets:
            return replace(lets[node.name], span=node.span)
        return node

    return rewrite_statement(statement, change) if lets else statement
