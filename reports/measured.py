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
from typing import Any

import numpy as np
from numpy.typing import NDArray

Text = NDArray[np.str_]
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Places = NDArray[np.int64]
Column = NDArray[Any]

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

    def column(self, name: str) -> Column:
        found: Column = getattr(self, name)
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


def group_ids(columns: Sequence[Column]) -> tuple[Places, Places]:
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
    columns = _columns(path)
    found: dict[str, Column] = {name: np.array(columns[name], dtype=np.str_) for name in TEXTS}
    for name in (*COUNTS, "window", "latency_ms"):
        found[name] = _numbers(path, name, columns[name])
    made = Measured(**found)
    _check(path, "phase", columns["phase"], np.isin(made.phase, PHASES), "prefill or decode")
    _check(path, "heads_kv", columns["heads_kv"], made.heads_q % made.heads_kv == 0, "a divisor of heads_q")
    _check(path, "seq_q", columns["seq_q"], made.seq_q <= made.seq_kv, "at most seq_kv: the last query stands at the last key")
    return made


def _columns(path: Path) -> Mapping[str, Sequence[str]]:
    """The file's fields by column name."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
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
    return dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())


def _check_header(path: Path, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    for what, names in (("unknown column", unknown), ("no column", missing), ("twice the column", twice)):
        if names:
            raise MeasuredError(f"{path}:1: found {what} {', '.join(map(repr, names))}; expected {','.join(COLUMNS)}")


def _numbers(path: Path, name: str, texts: Sequence[str]) -> Numbers:
    try:
        values = np.array(texts, dtype=np.str_).astype(np.float64)
    except ValueError:
        values = np.array([_number(text) for text in texts])
    values = np.where(["_" in text for text in texts], np.nan, values)  # Python's own digit grouping, nobody else's
    if name == "latency_ms":
        good, expected = values > 0, "a time above 0"
    else:
        low = 0 if name == "window" else 1
        good, expected = (values >= low) & (values == np.floor(values)), f"a whole number of at least {low}"
    _check(path, name, texts, good & (values < MAX_LENGTH), f"{expected}, below 2^40")
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


def write(path: Path, measured: Measured, beside: Mapping[str, Sequence[str]]) -> None:
    """The rows as a CSV file (.csv or .csv.gz) that `read` would take, and further columns of text beside them."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    own = [[_text(value) for value in measured.column(name).tolist()] for name in COLUMNS]
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*COLUMNS, *beside])
        out.writerows(zip(*own, *beside.values(), strict=True))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else str(int(value)) if value.is_integer() else repr(value)
