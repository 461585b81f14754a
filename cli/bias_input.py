"""What `einsight bias` is given: a kind with its parameters, a table, or a matrix; and the analysis of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from einsight.cli.parsing import CommandError, whole
from einsight.sim import bias_exact as exact
from einsight.sim.additions import Addition
from einsight.sim.bias_analysis import Analysis, Wanted, of_exact, of_matrices
from einsight.sim.bias_exact import BiasError, ExactBias
from einsight.sim.bias_examples import point_cloud, toeplitz_bias, window_bias
from einsight.sim.bias_split import FORMATS, digits
from einsight.sim.bias_svd import LARGEST, Matrix, Probe

Loaded = NDArray[np.floating]
FINITE = f"below {LARGEST[8]:g}, so that errors stay finite: a smaller --power, --scale or --seq"
POWER, FREQUENCY, SCALE, DIMS = 2, 0.01, 1.0, 3
"""What the options of a kind are when they are left out."""
POINTED = ("distance", "weighted_distance", "sphere")
_WINDOW = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Given:
    """The options, as typed; None where one was left out."""

    kind: str | None
    table: Path | None
    window: str | None
    matrix: Path | None
    classes: Path | None
    points: Path | None
    heads: int | None
    queries: int | None
    keys: int | None
    power: int
    frequency: float
    scale: float
    dims: int

    def analysis(self, wanted: Wanted, head_dim: int, causal: bool, drops_rows: bool) -> Analysis:
        """The rank and errors of what is named. Raises CommandError and BiasError."""
        named = [o for o, v in (("--kind", self.kind), ("--table", self.table), ("--matrix", self.matrix)) if v is not None]
        segmented = self.kind == "segments" and self.table is not None and self.matrix is None
        if len(named) != 1 and not segmented:
            raise CommandError("bias", " with ".join(named) or None, "one of --kind, --table and --matrix")

        def probe(queries: int, keys: int) -> Probe:
            return Probe.random(queries, keys, head_dim, causal, drops_rows)

        for option, value in (("--frequency", self.frequency), ("--scale", self.scale)):
            if not np.isfinite(value):
                raise CommandError(option, str(value), "a finite number")
        self._all_used()
        if self.kind == "absolute":
            return self._absolute(wanted, probe)
        if self.kind is not None:
            bias, queries, keys = self._exact()
            return of_exact(bias, queries, keys, probe(queries, keys))
        if self.table is not None:
            return self._table(load(self.table), wanted, probe)
        assert self.matrix is not None
        return self._matrix(load(self.matrix), wanted, probe)

    def _all_used(self) -> None:
        """Raises CommandError for an option that what is asked for has no use for."""
        scaled = tuple(k for k in KINDS if k not in ("alibi", "segments"))
        given: tuple[tuple[str, object, object, tuple[str, ...]], ...] = (
            ("--power", self.power, POWER, ("polynomial",)), ("--frequency", self.frequency, FREQUENCY, ("cosine",)),
            ("--scale", self.scale, SCALE, scaled), ("--classes", self.classes, None, ("segments",)),
            ("--dims", self.dims, DIMS, POINTED), ("--points", self.points, None, POINTED),
        )  # fmt: skip
        for option, value, default, kinds in given:
            if value != default and self.kind not in kinds:
                raise CommandError(option, str(value), f"--kind {' or '.join(kinds)} beside it")
        if self.window is not None and (self.table is None or self.kind is not None):
            raise CommandError("--window", self.window, "--table FILE.npy beside it")

    @property
    def computed(self) -> Addition | None:
        """The fragment with which a kernel makes this bias itself, from positions, points or a table."""
        if self.kind in ("alibi", "linear"):
            return Addition("alibi")
        if self.kind == "distance":
            return Addition("distance", (("x", _points(self).shape[1]),))
        if self.table is not None and self.kind is None and (match := _WINDOW.fullmatch(self.window or "")):
            rows, columns = int(match[1]), int(match[2] or 0)
            if not columns:
                return Addition("toeplitz", (("u", 2 * rows - 1),))
            return Addition("window_table", (("u", (2 * rows - 1) * (2 * columns - 1)), ("w", columns)))
        return None

    def precision_note(self, dtype: str, keys: int) -> tuple[str, ...]:
        """What a 16-bit type makes of the positions of ALiBi at this length."""
        if self.kind != "alibi" or dtype not in FORMATS or keys // 2 <= FORMATS[dtype].base:
            return ()
        number = len(digits([keys // 2], dtype))
        return (
            f"{dtype} rounds positions beyond {FORMATS[dtype].base}: split them into {number} digits, rank {2 * number} with"
            " the terms of the query, exact near the diagonal (sim.bias_split); up to rank 16 that costs no more",
        )

    def _exact(self) -> tuple[ExactBias, int, int]:
        assert self.kind is not None
        if self.kind not in KINDS:
            raise CommandError("--kind", self.kind, f"one of {', '.join((*KINDS, 'absolute'))}")
        with np.errstate(over="ignore", invalid="ignore"):  # the factors' size is tested below
            bias = KINDS[self.kind](self)
        largest = max(float(np.abs(part).max(initial=0.0)) for part in (bias.whole.query, bias.whole.key))
        if not largest < LARGEST[8]:
            raise CommandError(f"--kind {self.kind}", f"factors as large as {largest:.3g}", FINITE)
        return bias, bias.whole.query.shape[1], bias.whole.key.shape[1]

    @property
    def lengths(self) -> tuple[int, int]:
        queries, keys = self.queries or self.keys, self.keys or self.queries
        if queries is None or keys is None:
            raise CommandError("--seq", None, "the sequence length, such as --seq 8192 (or --seq-q and --seq-kv)")
        return queries, keys

    @property
    def head_count(self) -> int:
        if self.heads is None:
            raise CommandError("--heads", None, "the number of heads, such as --heads 16")
        return self.heads

    def _absolute(self, wanted: Wanted, probe: Callable[[int, int], Probe]) -> Analysis:
        """-slope |i - j|: every head is a multiple of one matrix."""
        (m, n), slopes = self.lengths, exact.alibi_slopes(self.head_count)
        if m * n > 2**29:
            raise CommandError("--seq", f"{m} x {n}", "at most 2^29 elements: this kind has no exact form, its matrix is made")
        i, j = exact.positions(m, n)
        matrix = -np.abs(i[:, None] - j).astype(np.float32)
        title = "absolute: -slope |i - j|, without an exact form of low rank"
        return of_matrices(title, lambda h: matrix, len(slopes), wanted, probe(m, n), slopes.tolist())

    def _table(self, table: Loaded, wanted: Wanted, probe: Callable[[int, int], Probe]) -> Analysis:
        match = _WINDOW.fullmatch(self.window or "")
        if match is None:
            expected = "rows and columns such as 24x24, or one length for a table of offsets"
            raise CommandError("--window", self.window or None, expected)
        rows, columns = int(match[1]), int(match[2] or 0)
        tokens = rows * columns if columns else rows
        if not tokens:
            raise CommandError("--window", self.window or "", "at least 1 in each direction")
        sides = (2 * rows - 1, 2 * columns - 1) if columns else (2 * rows - 1,)
        by_head = _by_head(table, sides, str(self.table))

        def matrix(h: int) -> Matrix:
            own = by_head[h : h + 1]
            made = window_bias(own, rows, columns) if columns else toeplitz_bias(own, rows, rows)
            return np.asarray(made[0])

        kind = f"table of a {rows}x{columns} window" if columns else f"table of {2 * rows - 1} offsets"
        self._same_heads(len(by_head))
        return of_matrices(kind, matrix, len(by_head), wanted, probe(tokens, tokens))

    def _matrix(self, matrix: Loaded, wanted: Wanted, probe: Callable[[int, int], Probe]) -> Analysis:
        if matrix.ndim not in (2, 3) or 0 in matrix.shape:
            raise BiasError(str(self.matrix), f"shape {matrix.shape}", "[M, N] or [heads, M, N]")
        heads: Matrix = matrix[None] if matrix.ndim == 2 else matrix
        m, n = heads.shape[1:]
        for option, given, found in (("--seq-q", self.queries, m), ("--seq-kv", self.keys, n)):
            if given not in (None, found):
                raise CommandError(option, str(given), f"{found}, as {self.matrix} has (or leave it out)")
        if matrix.ndim == 3:
            self._same_heads(len(heads))
        number = self.heads or len(heads)
        if matrix.ndim == 2 and number > 1:
            title = "matrix, the same for all heads"
            return of_matrices(title, lambda h: heads[0], number, wanted, probe(m, n), [1.0] * number)
        return of_matrices("matrix", lambda h: heads[h], len(heads), wanted, probe(m, n))

    def _same_heads(self, found: int) -> None:
        if self.heads not in (None, found):
            raise CommandError("--heads", str(self.heads), f"{found}, as the file has (or leave it out)")


def _by_head(table: Loaded, sides: tuple[int, ...], where: str) -> Loaded:
    """[heads, entries] from [heads, entries], [heads, 2R-1, 2C-1], Swin's [entries, heads], or one head without its rank."""
    entries = int(np.prod(sides))
    if table.shape in (sides, (entries,)):
        return table.reshape(1, entries)
    if table.ndim == 1 + len(sides) and table.shape[1:] == sides:
        return table.reshape(len(table), entries)
    if table.ndim == 2 and table.shape[1] == entries:
        return table
    if table.ndim == 2 and table.shape[0] == entries:
        return np.ascontiguousarray(table.T)
    wide = "x".join(map(str, sides))
    raise BiasError(where, f"shape {table.shape}", f"[heads, {entries}] or [{entries}, heads] ({wide} entries of this window)")


def load(path: Path) -> Loaded:
    """An array from a .npy file; no pickles. Raises BiasError for anything else, NaN and complex numbers included."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise CommandError("file", str(path), "an existing .npy file") from None
    except OSError as error:
        raise BiasError(str(path), f"a file that cannot be read ({error.strerror})", "an array saved by numpy.save") from None
    except (ValueError, EOFError):
        raise BiasError(str(path), "something else, or Python objects", "an array of numbers saved by numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise BiasError(str(path), "an archive of arrays", "one array, saved by numpy.save")
    if array.dtype.kind == "c":
        raise BiasError(str(path), f"complex numbers ({array.dtype})", "real numbers")
    if array.dtype.kind not in "fiub":
        raise BiasError(str(path), f"elements of type {array.dtype}", "numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(array))[0]))
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise BiasError(f"{path}, element [{place}]", what, "finite numbers; a mask (-inf) stays a mask, outside the bias")
    return array


def _points(given: Given) -> NDArray[np.float64]:
    if given.points is None:
        return point_cloud(max(given.lengths), given.dims)
    points = load(given.points).astype(np.float64)
    if points.ndim == 2 and given.dims not in (DIMS, points.shape[1]):
        raise CommandError("--dims", str(given.dims), f"{points.shape[1]}, as {given.points} has (or leave it out)")
    return points


def _cut(given: Given, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(queries, keys) of one cloud: all of a file's points, or the lengths asked for."""
    if given.points is not None:
        _same_tokens(given, len(points), str(given.points))
        return points, points
    queries, keys = given.lengths
    return points[:queries], points[:keys]


def _same_tokens(given: Given, found: int, file: str) -> None:
    """Lengths beside a file of tokens say what the file has, or nothing."""
    for option, asked in (("--seq-q", given.queries), ("--seq-kv", given.keys)):
        if asked not in (None, found):
            raise CommandError(option, str(asked), f"{found}, as {file} has tokens (or leave it out)")


def _distance(given: Given, weighted: bool) -> ExactBias:
    x, y = _cut(given, _points(given))
    weights = np.random.default_rng(0).uniform(0.5, 1.5, len(x)) if weighted else None
    return exact.distance(x, y, [given.scale] * (given.heads or 1), weights)


def _segments(given: Given) -> ExactBias:
    if given.table is None or given.classes is None:
        expected = "--table FILE.npy [heads, K, K] and --classes FILE.npy, one class a token"
        raise CommandError("--kind segments", "not both files", expected)
    classes = load(given.classes)
    _same_tokens(given, len(classes), str(given.classes))
    bias = exact.segments(load(given.table), classes)
    if given.heads not in (None, bias.heads):
        raise CommandError("--heads", str(given.heads), f"{bias.heads}, as {given.table} has (or leave it out)")
    return bias


KINDS: Mapping[str, Callable[[Given], ExactBias]] = {
    "alibi": lambda g: exact.alibi(g.head_count, *g.lengths),
    "linear": lambda g: exact.linear(g.heads or 1, *g.lengths, g.scale),
    "polynomial": lambda g: exact.polynomial(g.heads or 1, *g.lengths, g.power, g.scale),
    "distance": lambda g: _distance(g, weighted=False),
    "weighted_distance": lambda g: _distance(g, weighted=True),
    "cosine": lambda g: exact.cosine(*g.lengths, [g.frequency] * (g.heads or 1), g.scale),
    "sphere": lambda g: exact.sphere(*_cut(g, _points(g)), [g.scale] * (g.heads or 1)),
    "segments": _segments,
}
"""Kinds with exact factors."""


def length(text: str | None, option: str) -> int | None:
    return None if text is None else whole(text, option)
