"""Masks as values: which (query, key) pairs exist. Each restriction is small; a mask is their conjunction.

Query m of M stands at position p = m + N - M among the N keys: the last query is aligned to the last key, so that one
description serves prefill (M = N), chunked prefill and decode (M < N).

    causal          n <= p
    prefix: s       the first s keys are exempt from `causal` (prefix language model)
    window: w       |p - n| < w; with `causal` that is the last w positions, the query's own included. In the
                    flash-attention convention this is window_size = (w - 1, w - 1), or (w - 1, 0) when causal
    sink: s         the first s keys are exempt from `window` (attention sinks)
    gna             generalized neighborhood attention per dimension of a token grid (arXiv 2504.16922): windows of
                    exact size, shifted at the borders and not shrunk; stride, dilation and causality per dimension
    blocks          a square block (i, j) of `size` positions is kept or not: by an evenly spread pattern of the asked
                    density, or by a list
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from numbers import Integral
from typing import Any, ClassVar

MAX_SIZE = 1 << 40
"""Above any count of tokens; keeps arithmetic within 64 bits."""
MOST_PAIRS = 1 << 62
"""Pairs are counted in 64 bits."""

MAX_BLOCKS = 8192
"""Most blocks of a block mask along one side (a million keys in blocks of 128)."""

KINDS = ("blocks", "causal", "gna", "prefix", "sink", "window")


class MaskError(ValueError):
    """A mask that cannot be: which restriction or dimension with the value found, and the allowed range."""

    def __init__(self, found: str, expected: str) -> None:
        self.found, self.expected = found, expected
        super().__init__(found, expected)

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Causal:
    kind: ClassVar[str] = "causal"

    def as_json(self) -> Any:
        return "causal"


@dataclass(frozen=True, slots=True)
class Window:
    size: int
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        _at_least("window", self.size, 1)

    def as_json(self) -> Any:
        return {"window": self.size}


@dataclass(frozen=True, slots=True)
class Sink:
    size: int
    kind: ClassVar[str] = "sink"

    def __post_init__(self) -> None:
        _at_least("sink", self.size, 0)

    def as_json(self) -> Any:
        return {"sink": self.size}


@dataclass(frozen=True, slots=True)
class Prefix:
    size: int
    kind: ClassVar[str] = "prefix"

    def __post_init__(self) -> None:
        _at_least("prefix", self.size, 0)

    def as_json(self) -> Any:
        return {"prefix": self.size}


@dataclass(frozen=True, slots=True)
class Gna:
    """Neighborhoods on a grid of tokens, flattened row-major: M = N = prod(layout). One entry per dimension."""

    layout: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]
    kind: ClassVar[str] = "gna"

    def __post_init__(self) -> None:
        rank = len(self.layout)
        if rank not in (1, 2, 3):
            raise MaskError(f"gna: layout {_by(self.layout)} has {rank} dimensions", "1, 2 or 3")
        for field in ("window", "stride", "dilation", "causal"):
            found = len(getattr(self, field))
            if found != rank:
                raise MaskError(f"gna: {field} has {found} entries", f"{rank}, one per dimension of {_by(self.layout)}")
        for d in range(rank):
            self._check_dimension(d)
        if self.tokens * prod(self.window) > MOST_PAIRS:
            raise MaskError(f"gna: {_by(self.layout)} tokens with {prod(self.window)} keys each", "at most 2^62 pairs in all")

    def _check_dimension(self, d: int) -> None:
        length, window = self.layout[d], self.window[d]
        if length < 2:
            raise MaskError(f"gna: dimension {d} has length {length}", "2 or more")
        if not 2 <= window <= length:
            raise MaskError(f"gna: dimension {d} has window {window}", f"2 to {length} (its length)")
        if not 1 <= self.stride[d] <= window:
            raise MaskError(f"gna: dimension {d} has stride {self.stride[d]}", f"1 to {window} (its window)")
        if not 1 <= self.dilation[d] <= length // window:
            raise MaskError(
                f"gna: dimension {d} has dilation {self.dilation[d]}",
                f"1 to {length // window} (length {length} // window {window}: each dilation group holds a window)",
            )

    @property
    def tokens(self) -> int:
        total = 1
        for length in self.layout:
            total *= length
        return total

    def as_json(self) -> Any:
        """Without the entries that change nothing: stride 1, dilation 1, not causal."""
        out: dict[str, Any] = {"layout": list(self.layout), "window": list(self.window)}
        if any(s != 1 for s in self.stride):
            out["stride"] = list(self.stride)
        if any(d != 1 for d in self.dilation):
            out["dilation"] = list(self.dilation)
        if any(self.causal):
            out["causal"] = list(self.causal)
        return {"gna": out}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of size x size positions, counted along p (queries) and n (keys) from 0.

    With `density`, each row of blocks keeps c = max(1, round(density * J)) of its J = ceil(N / size) blocks, evenly
    spread and always with the diagonal one: block (i, j) is kept when ((j - i) * c) mod J < c. With `keep`, exactly
    the listed (i, j) are kept.
    """

    size: int
    density: float | None = None
    keep: tuple[tuple[int, int], ...] | None = None
    kind: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        _at_least("blocks: size", self.size, 1)
        if (self.density is None) == (self.keep is None):
            given = "neither density nor keep" if self.keep is None else "both density and keep"
            raise MaskError(f"blocks: {given}", "one of them: density (a share) or keep (a list of blocks)")
        if self.density is not None and not 0 < self.density <= 1:
            raise MaskError(f"blocks: density is {self.density}", "above 0 and up to 1")
        for i, j in self.keep or ():
            if i < 0 or j < 0:
                raise MaskError(f"blocks: keep has block [{i}, {j}]", "rows and columns from 0")

    def fraction(self) -> Fraction:
        """The density as an exact ratio, so that counting and the predicate round alike."""
        return Fraction(self.density or 0).limit_denominator(1_000_000)

    def kept_per_row(self, n: int) -> int:
        """Blocks that the density pattern keeps in each row of blocks over n keys."""
        columns = -(-n // self.size)
        ratio = self.fraction()
        return max(1, (2 * columns * ratio.numerator + ratio.denominator) // (2 * ratio.denominator))

    def as_json(self) -> Any:
        if self.keep is not None:
            return {"blocks": {"size": self.size, "keep": [list(b) for b in sorted(set(self.keep))]}}
        return {"blocks": {"size": self.size, "density": self.density}}


Restriction = Causal | Window | Sink | Prefix | Gna | Blocks


@dataclass(frozen=True, slots=True)
class Mask:
    """The conjunction of its restrictions, kept sorted by kind; empty means dense."""

    restrictions: tuple[Restriction, ...] = ()

    def __post_init__(self) -> None:
        kinds = [r.kind for r in self.restrictions]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise MaskError(f"mask: {kind} is given {kinds.count(kind)} times", "each restriction once")
        for kind, needs in (("sink", "window"), ("prefix", "causal")):
            if kind in kinds and needs not in kinds:
                raise MaskError(f"mask: {kind}, which exempts keys from {needs}, but no {needs}", f"{needs} beside it")
        if "gna" in kinds and len(kinds) > 1:
            other = next(k for k in kinds if k != "gna")
            raise MaskError(f"mask: gna and {other}", "gna alone, with its own window and causal entries")
        object.__setattr__(self, "restrictions", tuple(sorted(self.restrictions, key=lambda r: r.kind)))

    @property
    def causal(self) -> bool:
        return any(isinstance(r, Causal) for r in self.restrictions)

    @property
    def window(self) -> int | None:
        return next((r.size for r in self.restrictions if isinstance(r, Window)), None)

    @property
    def sink(self) -> int:
        return next((r.size for r in self.restrictions if isinstance(r, Sink)), 0)

    @property
    def prefix(self) -> int:
        return next((r.size for r in self.restrictions if isinstance(r, Prefix)), 0)

    @property
    def gna(self) -> Gna | None:
        return next((r for r in self.restrictions if isinstance(r, Gna)), None)

    @property
    def blocks(self) -> Blocks | None:
        return next((r for r in self.restrictions if isinstance(r, Blocks)), None)

    @property
    def is_dense(self) -> bool:
        return not self.restrictions

    def as_json(self) -> list[Any]:
        """The form that workload files take and that the key hashes."""
        return [r.as_json() for r in self.restrictions]

    def check(self, m: int, n: int) -> None:
        """Raises MaskError when the mask does not fit m queries and n keys."""
        gna, blocks = self.gna, self.blocks
        if gna is not None and (m != gna.tokens or n != gna.tokens):
            found = f"gna: layout {_by(gna.layout)} for m = {m} and n = {n}"
            raise MaskError(found, f"both to be its {gna.tokens} tokens")
        if blocks is not None and max(m, n) > MAX_BLOCKS * blocks.size:
            least = -(-max(m, n) // MAX_BLOCKS)
            found = f"blocks: size {blocks.size} for m = {m} and n = {n}"
            raise MaskError(found, f"{least} or more (at most {MAX_BLOCKS} blocks along a side)")
        if blocks is not None and blocks.keep:
            edge = -(-n // blocks.size)
            for i, j in blocks.keep:
                if i >= edge or j >= edge:
                    raise MaskError(
                        f"blocks: keep has block [{i}, {j}]", f"0 to {edge - 1} ({n} keys in blocks of {blocks.size})"
                    )

    def canonical(self, m: int, n: int) -> Mask:
        """The same pairs at m queries and n keys with every restriction dropped that excludes none of them."""
        if self.gna is not None:
            return _canonical_gna(self.gna)
        kept: dict[str, Restriction] = {r.kind: r for r in self.restrictions}
        if m <= 1 or self.prefix >= n:  # a single query stands at the last key
            kept.pop("causal", None)
        if "causal" not in kept or self.prefix <= n - m + 1:  # key n - m is already visible to the first query
            kept.pop("prefix", None)
        if self.window is not None and self._window_is_vacuous(m, n, ahead="causal" not in kept or "prefix" in kept):
            kept.pop("window", None)
        if "window" not in kept or self.sink == 0:
            kept.pop("sink", None)
        blocks = self.blocks
        if blocks is not None and blocks.density is not None and blocks.kept_per_row(n) >= -(-n // blocks.size):
            kept.pop("blocks", None)
        return Mask(tuple(kept.values()))

    def _window_is_vacuous(self, m: int, n: int, ahead: bool) -> bool:
        """Behind, the last query reaches back to the sink; ahead, the first one reaches the last key."""
        window = self.window or 0
        return window + self.sink >= n and (not ahead or window >= m or self.sink >= n)


DENSE = Mask()
CAUSAL = Mask((Causal(),))


def _canonical_gna(gna: Gna) -> Mask:
    """Stride 1 where the window is the whole dimension; a plain causal window where the grid is a line."""
    whole = tuple(w == n and not c for w, n, c in zip(gna.window, gna.layout, gna.causal, strict=True))
    if all(whole):
        return DENSE
    if len(gna.layout) == 1 and gna.causal[0] and gna.stride[0] == 1 and gna.dilation[0] == 1:
        return Mask((Causal(), Window(gna.window[0]))).canonical(gna.layout[0], gna.layout[0])
    stride = tuple(1 if full else s for full, s in zip(whole, gna.stride, strict=True))
    return Mask((Gna(gna.layout, gna.window, stride, gna.dilation, gna.causal),))


def mask_from(spec: Any) -> Mask:
    """A mask from its written form: `causal`, `[causal, {window: 4096}]`, `dense`, None, or a Mask itself."""
    if isinstance(spec, Mask):
        return spec
    if spec is None or spec == "dense":
        return DENSE
    if isinstance(spec, str | Mapping):
        spec = [spec]
    if not isinstance(spec, Sequence):
        raise MaskError(f"mask {spec!r}", "a list such as [causal, {window: 4096}]")
    return Mask(tuple(restriction_from(item) for item in spec))


def restriction_from(item: Any) -> Restriction:
    """One restriction from its written form; errors name the entry and what it may be."""
    if isinstance(item, Causal | Window | Sink | Prefix | Gna | Blocks):
        return item
    if item == "causal":
        return Causal()
    if not isinstance(item, Mapping) or len(item) != 1:
        raise MaskError(f"mask {item!r}", "causal or one of {window: w}, {sink: s}, {prefix: p}, "
                        "{gna: {...}}, {blocks: {...}}")  # fmt: skip
    kind, value = next(iter(item.items()))
    if kind in _SIZED:
        return _SIZED[kind](_integer(str(kind), value))
    if kind == "gna":
        return _gna_from(value)
    if kind == "blocks":
        return _blocks_from(value)
    raise MaskError(f"mask: unknown restriction {kind!r}", f"one of {', '.join(KINDS)}")


_SIZED: Mapping[Any, type[Window] | type[Sink] | type[Prefix]] = {"window": Window, "sink": Sink, "prefix": Prefix}


def _gna_from(value: Any) -> Gna:
    entries = _fields("gna", value, required=("layout", "window"), optional=("stride", "dilation", "causal"))
    layout = _per_dimension("gna: layout", entries["layout"], None)
    rank = len(layout)
    causal = _per_dimension("gna: causal", entries.get("causal", False), rank, flags=True)
    if any(c not in (0, 1) for c in causal):
        raise MaskError(f"gna: causal is {entries['causal']!r}", "true or false (or 1 and 0), once or per dimension")
    return Gna(
        layout,
        _per_dimension("gna: window", entries["window"], rank),
        _per_dimension("gna: stride", entries.get("stride", 1), rank),
        _per_dimension("gna: dilation", entries.get("dilation", 1), rank),
        tuple(bool(c) for c in causal),
    )


def _blocks_from(value: Any) -> Blocks:
    entries = _fields("blocks", value, required=("size",), optional=("density", "keep"))
    density, keep = entries.get("density"), entries.get("keep")
    if density is not None and (isinstance(density, bool) or not isinstance(density, int | float)):
        raise MaskError(f"blocks: density is {density!r}", "a number above 0 and up to 1")
    pairs: tuple[tuple[int, int], ...] | None = None
    if keep is not None:
        if not isinstance(keep, Sequence) or not all(isinstance(b, Sequence) and len(b) == 2 for b in keep):
            raise MaskError(f"blocks: keep is {keep!r}", "a list of [row, column] pairs, such as [[0, 0], [1, 0]]")
        pairs = tuple((_integer("blocks: keep", i), _integer("blocks: keep", j)) for i, j in keep)
        pairs = tuple(sorted(set(pairs)))
    return Blocks(_integer("blocks: size", entries["size"]), None if density is None else float(density), pairs)


def _fields(name: str, value: Any, required: Sequence[str], optional: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MaskError(f"{name} {value!r}", f"a mapping with {', '.join((*required, *optional))}")
    for key in value:
        if key not in (*required, *optional):
            raise MaskError(f"{name}: unknown key {key!r}", f"one of {', '.join((*required, *optional))}")
    for key in required:
        if key not in value:
            raise MaskError(f"{name}: no {key}", f"a mapping with {', '.join((*required, *optional))}")
    return value


def _per_dimension(name: str, value: Any, rank: int | None, flags: bool = False) -> tuple[int, ...]:
    """30x48x80, [30, 48, 80] or one value for all dimensions, as a tuple."""
    if isinstance(value, str):
        parts: Sequence[Any] = value.lower().split("x")
        if not all(re.fullmatch(r"\s*[0-9]{1,40}\s*", part) for part in parts):
            raise MaskError(f"{name} is {value!r}", "integers such as 30x48x80 or [30, 48, 80]")
        value = [int(part) for part in parts]
    if isinstance(value, Sequence):
        return tuple(int(v) if flags and isinstance(v, bool) else _integer(name, v) for v in value)
    single = int(value) if flags and isinstance(value, bool) else _integer(name, value)
    return (single,) * (rank or 1)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise MaskError(f"{name} is {value!r}", "an integer")
    return int(value)


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIZE:
        raise MaskError(f"{name} is {value!r}", f"an integer of {least} or more, up to 2^40")


def _by(values: Sequence[int]) -> str:
    return "x".join(str(v) for v in values)
