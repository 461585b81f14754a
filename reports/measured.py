"""Measured attention latencies as columns: CSV files (also .csv.gz), one row per case, in a fixed set of columns.

Strict, because a column misread is an error that looks like a model's: unknown or missing columns, numbers that are
none, heads that do not divide are refused with file and line.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Text = NDArray[np.str_]
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Places = NDArray[np.int64]

PHASES = ("prefill", "decode")
MAX_LENGTH = 2**40


class MeasuredError(ValueError):
    """A file that does not hold measured cases: says file, line, what was found and what was expected."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Measured cases as columns of one length, in the order of the files.

    device     as the driver prints it
    kernel     what the serving `framework` calls the kernel that it dispatched to
    phase      prefill: `seq_q` new tokens, causal, the last at the last key; decode: one new token per sequence
    dtype, kv_dtype   of the arithmetic and of the KV cache, as written in the file (bfloat16, fp8)
    window     sliding-window length, 0 for none
    latency_ms one attention call, launch included
    """

    device: Text
    framework: Text
    kernel: Text
    phase: Text
    batch: Numbers
    seq_q: Numbers
    seq_kv: Numbers
    heads_q: Numbers
    heads_kv: Numbers
    head_dim: Numbers
    dtype: Text
    kv_dtype: Text
    window: Numbers
    latency_ms: Numbers

    def __len__(self) -> int:
        return len(self.device)

    def column(self, name: str) -> Text | Numbers:
        found: Text | Numbers = getattr(self, name)
        return found

    def take(self, index: Flags | Places) -> Measured:
        """The rows at `index`."""
        return Measured(**{name: self.column(name)[index] for name in COLUMNS})


COLUMNS = tuple(f.name for f in fields(Measured))
TEXTS = ("device", "framework", "kernel", "phase", "dtype", "kv_dtype")
COUNTS = ("batch", "seq_q", "seq_kv", "heads_q", "heads_kv", "head_dim")


def read(paths: Iterable[Path]) -> Measured:
    """The rows of all files, one after the other. Raises MeasuredError, and OSError for a file that is not there."""
    return concatenate([_read_one(path) for path in paths])


def concatenate(parts: Sequence[Measured]) -> Measured:
    return Measured(**{name: np.concatenate([part.column(name) for part in parts]) for name in COLUMNS})


def codes(texts: Text) -> tuple[tuple[str, ...], Places]:
    """(the distinct values in order of appearance, the position of each row's value among them)."""
    known: dict[str, int] = {}
    places = np.fromiter((known.setdefault(t, len(known)) for t in texts.tolist()), dtype=np.int64, count=len(texts))
    return tuple(map(str, known)), places


def group_ids(columns: Sequence[Text | Numbers]) -> tuple[Places, Places]:
    """(the first row of each distinct combination, in order of appearance; the combination's number for every row)."""
    whole = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        inner = codes(column)[1] if column.dtype.kind in "UO" else np.unique(column, return_inverse=True)[1].ravel()
        whole = np.unique(whole * (int(inner.max(initial=0)) + 1) + inner, return_inverse=True)[1].ravel()
    _, first, number = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[number.ravel()]


def _read_one(path: Path) -> Measured:
    columns, count = _columns(path)
    found: dict[str, Text | Numbers] = {name: np.array(columns[name], dtype=np.str_) for name in TEXTS}
    for name in (*COUNTS, "window"):
        low = 0 if name == "window" else 1
        expected = f"a whole number of at least {low}"
        found[name] = _numbers(path, name, columns[name], expected, lambda x, low=low: (x >= low) & (x == np.floor(x)))
    found["latency_ms"] = _numbers(path, "latency_ms", columns["latency_ms"], "a positive time", lambda x: x > 0)
    made = Measured(**found) if count else _empty()  # type: ignore[arg-type]
    _check(path, "phase", columns["phase"], np.isin(made.phase, PHASES), "prefill or decode")
    _check(path, "heads_kv", columns["heads_kv"], made.heads_q % made.heads_kv == 0, "a divisor of heads_q")
    _check(path, "seq_q", columns["seq_q"], made.seq_q <= made.seq_kv, "at most seq_kv: the last query stands at the last key")
    return made


def _empty() -> Measured:
    return Measured(**{n: np.array([], dtype=np.str_ if n in TEXTS else np.float64) for n in COLUMNS})


def _columns(path: Path) -> tuple[Mapping[str, Sequence[str]], int]:
    """The file's fields by column name, and the number of rows."""
    opened: Callable[..., Iterable[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:  # type: ignore[attr-defined]
            rows = list(csv.reader(file, strict=True))
    except (gzip.BadGzipFile, EOFError) as error:
        raise MeasuredError(f"{path}: {error}; expected a gzip-compressed CSV file") from None
    except UnicodeDecodeError:
        raise MeasuredError(f"{path}: found bytes that are not UTF-8; expected a CSV file") from None
    except csv.Error as error:
        raise MeasuredError(f"{path}: {error}; expected a CSV file") from None
    header = rows.pop(0) if rows else []
    _check_header(path, header)
    for k, row in enumerate(rows):
        if len(row) != len(header):
            raise MeasuredError(f"{path}:{k + 2}: found {len(row)} fields; expected {len(header)}, one per column")
    by_name = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in header}
    return by_name, len(rows)


def _check_header(path: Path, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    for what, names in (("unknown column", unknown), ("no column", missing), ("twice the column", twice)):
        if names:
            raise MeasuredError(f"{path}:1: found {what} {', '.join(map(repr, names))}; expected {','.join(COLUMNS)}")


def _numbers(path: Path, name: str, texts: Sequence[str], expected: str, good: Callable[[Numbers], Flags]) -> Numbers:
    try:
        values = np.array(texts, dtype=np.str_).astype(np.float64) if texts else np.array([], dtype=np.float64)
    except ValueError:
        values = np.array([_number(text) for text in texts])
    _check(path, name, texts, np.isfinite(values) & (values < MAX_LENGTH) & good(values), expected)
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _check(path: Path, name: str, texts: Sequence[str], good: Flags, expected: str) -> None:
    if not good.all():
        bad = int(np.argmin(good))
        raise MeasuredError(f"{path}:{bad + 2}: {name}: found '{texts[bad]}'; expected {expected}")
