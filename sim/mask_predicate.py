"""A mask as a predicate of the cascade language: over positions m and n and sizes M and N, for `einsum.compose`.

Clauses are written as affine comparisons wherever they can be, so that the counts find closed forms.
"""

from __future__ import annotations

from einsight.einsum.expression import Apply, Expression, Number, Symbol, conjunction
from einsight.sim.mask import Blocks, Gna, Mask

_QUERY, _KEY, _QUERIES, _KEYS = Symbol("m"), Symbol("n"), Symbol("M"), Symbol("N")


def predicate(mask: Mask) -> Expression | None:
    """True where the pair (m, n) exists; None for a dense mask."""
    position = _op("-", _op("+", _QUERY, _KEYS), _QUERIES)
    clauses: list[Expression] = []
    if mask.causal:
        clauses.append(_exempt(_op("<=", _KEY, position), mask.prefix))
    if mask.window is not None:
        behind = _op(">", _KEY, _op("-", position, _n(mask.window)))
        clauses.append(_exempt(behind, mask.sink))
        if not mask.causal or mask.prefix:
            clauses.append(_exempt(_op("<", _KEY, _op("+", position, _n(mask.window))), mask.sink))
    if mask.gna is not None:
        for d in range(len(mask.gna.layout)):
            clauses += _dimension(mask.gna, d)
    if mask.blocks is not None:
        clauses.append(_kept(mask.blocks, position))
    return conjunction(tuple(clauses))


def _exempt(clause: Expression, first_keys: int) -> Expression:
    """The clause, or a key among the first ones."""
    return _op("||", _op("<", _KEY, _n(first_keys)), clause) if first_keys else clause


def _dimension(gna: Gna, d: int) -> list[Expression]:
    """One dimension of a neighborhood (see `gna_ranges` for the definition)."""
    length, window, stride, dilation = gna.layout[d], gna.window[d], gna.stride[d], gna.dilation[d]
    if window == length and not gna.causal[d]:
        return []
    i, j = _coordinate(gna.layout, d, _QUERY), _coordinate(gna.layout, d, _KEY)
    clauses: list[Expression] = []
    last: Expression = _n(length - 1)  # of the dilation group
    if dilation > 1:
        clauses.append(_op("==", _op("%", i, _n(dilation)), _op("%", j, _n(dilation))))
        last = _op("floordiv", _op("-", _n(length - 1), _op("%", i, _n(dilation))), _n(dilation))
        i, j = _op("floordiv", i, _n(dilation)), _op("floordiv", j, _n(dilation))
    group = i if stride == 1 else _op("*", _op("floordiv", i, _n(stride)), _n(stride))
    ahead = stride - 1 if gna.causal[d] else stride // 2
    leader = group if not ahead else _op("min", _op("+", group, _n(ahead)), last)
    if gna.causal[d]:
        return [*clauses, _op(">", j, _op("-", leader, _n(window))), _op("<=", j, i)]
    latest = _op("-", last, _n(window - 1))
    start = _op("max", _op("min", _op("-", leader, _n(window // 2)), latest), _n(0))
    return [*clauses, _op(">=", j, start), _op("<", j, _op("+", start, _n(window)))]


def _coordinate(layout: tuple[int, ...], d: int, token: Expression) -> Expression:
    """Coordinate d of a row-major token."""
    inner = 1
    for length in layout[d + 1 :]:
        inner *= length
    line = token if inner == 1 else _op("floordiv", token, _n(inner))
    return line if d == 0 else _op("%", line, _n(layout[d]))


def _kept(blocks: Blocks, position: Expression) -> Expression:
    size = _n(blocks.size)
    row, column = _op("floordiv", position, size), _op("floordiv", _KEY, size)
    if blocks.keep is not None:
        return _listed(blocks.keep, row, column)
    ratio = blocks.fraction()
    columns = _op("floordiv", _op("+", _KEYS, _n(blocks.size - 1)), size)
    rounded = _op("+", _op("*", columns, _n(2 * ratio.numerator)), _n(ratio.denominator))
    count = _op("max", _n(1), _op("floordiv", rounded, _n(2 * ratio.denominator)))
    return _op("<", _op("%", _op("*", _op("-", column, row), count), columns), count)


def _listed(keep: tuple[tuple[int, int], ...], row: Expression, column: Expression) -> Expression:
    """One alternative per run of neighbouring kept blocks of a row."""
    result: Expression | None = None
    for i, first, last in _runs(keep):
        run = _op("&&", _op("==", row, _n(i)), _op("&&", _op(">=", column, _n(first)), _op("<=", column, _n(last))))
        result = run if result is None else _op("||", result, run)
    return result if result is not None else _op("<", _KEY, _n(0))


def _runs(keep: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for i, j in sorted(set(keep)):
        if runs and runs[-1][0] == i and runs[-1][2] == j - 1:
            runs[-1] = (i, runs[-1][1], j)
        else:
            runs.append((i, j, j))
    return runs


def _n(value: int) -> Number:
    return Number(float(value))


def _op(op: str, left: Expression, right: Expression) -> Apply:
    return Apply(op, (left, right))
