"""Masks and fragments, each as cascade text and as plain Python, so that one can be tested against the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import attention_reference as reference
import numpy as np
from numpy.typing import NDArray

from einsight.einsum.expression import Expression
from einsight.einsum.parse import parse

Array = NDArray[np.float64]


def predicate(text: str) -> Expression:
    """A predicate over m and n from its text."""
    cascade = parse(f"cascade p\nrank M, N\nin A[m,n]\nout Z[m,n]\nZ[m,n] = A[m,n] where {text}\n")
    found = cascade.einsums[0].predicate
    assert found is not None
    return found


@dataclass(frozen=True)
class MaskCase:
    text: str | None
    keep: Callable[[int, int, int, int], bool]
    empties_rows: bool = False

    @property
    def expression(self) -> Expression | None:
        return None if self.text is None else predicate(self.text)

    def matrix(self, M: int, N: int) -> NDArray[np.bool_]:
        return np.array([[self.keep(m, n, M, N) for n in range(N)] for m in range(M)])


def _gna(m: int, n: int, M: int, N: int) -> bool:
    """Stride 2, window 3 on a line: two neighbouring queries share the window of their leader, shifted at the ends."""
    leader = min(2 * (m // 2) + 1, N - 1)
    start = min(max(leader - 1, 0), N - 3)
    return n in range(start, start + 3)


_GNA_START = "min(max(min(floordiv(m,2)*2+floordiv(2,2), N-1) - floordiv(3,2), 0), N-3)"

MASKS = {
    "dense": MaskCase(None, lambda m, n, M, N: True),
    "causal": MaskCase("n <= m+N-M", lambda m, n, M, N: n <= m + N - M),
    "window": MaskCase("n <= m+N-M && m+N-M-n < 3", lambda m, n, M, N: 0 <= m + N - M - n < 3),
    "sink_window": MaskCase(
        "n <= m+N-M && (n < 2 || m+N-M-n < 3)", lambda m, n, M, N: n <= m + N - M and (n < 2 or m + N - M - n < 3)
    ),
    "prefix": MaskCase("n < 3 || n <= m+N-M", lambda m, n, M, N: n < 3 or n <= m + N - M),
    "first_keys_hidden": MaskCase("n >= N-2", lambda m, n, M, N: n >= N - 2),
    "blocks": MaskCase(
        "n == 0 || floordiv(m,2) == 0 && floordiv(n,3) == 1 || floordiv(m,2) == 1 && floordiv(n,3) == 0",
        lambda m, n, M, N: n == 0 or (m // 2, n // 3) in {(0, 1), (1, 0)},
    ),
    "checkerboard": MaskCase("(floordiv(m,2) + n) % 2 == 0", lambda m, n, M, N: (m // 2 + n) % 2 == 0),
    "gna": MaskCase(f"{_GNA_START} <= n && n < {_GNA_START} + 3", _gna),
}


@dataclass(frozen=True)
class FragmentCase:
    """`inputs` draws what the fragments read; `score` is what they make of a score; `sink` names the sink's input."""

    fragments: tuple[str, ...]
    inputs: Callable[[np.random.Generator, Mapping[str, int]], dict[str, Array]]
    score: Callable[[Array, Mapping[str, Array]], Array]
    sizes: Mapping[str, int] = field(default_factory=dict)
    sink: str | None = None


def _normal(*ranks: str) -> Callable[[np.random.Generator, Mapping[str, int]], Array]:
    return lambda rng, sizes: rng.normal(size=[sizes[r] for r in ranks])


def _draw(**drawn: Callable[[np.random.Generator, Mapping[str, int]], Array]) -> Callable[..., dict[str, Array]]:
    return lambda rng, sizes: {name: draw(rng, sizes) for name, draw in drawn.items()}


def _cap(value: float) -> Callable[[np.random.Generator, Mapping[str, int]], Array]:
    return lambda rng, sizes: np.asarray(value)


def _alibi(S: Array, slope: Array) -> Array:
    return S + reference.alibi(slope, *S.shape[-2:])


def _low_rank(i: Mapping[str, Array]) -> Array:
    return np.array([[q @ k.T for q, k in zip(qs, ks, strict=True)] for qs, ks in zip(i["PQ"], i["PK"], strict=True)])


def _distance(S: Array, i: Mapping[str, Array]) -> Array:
    points = zip(i["PQ"], i["PK"], strict=True)
    squared = np.array([[[((q - k) ** 2).sum() for k in ks] for q in qs] for qs, ks in points])
    return S - i["ALPHA"][None, :, :, None, None] * squared[:, None, None]


def _toeplitz(S: Array, i: Mapping[str, Array]) -> Array:
    M, N = S.shape[-2:]
    return S + np.array([[[[t[n - m + M - 1] for n in range(N)] for m in range(M)] for t in ts] for ts in i["T"]])


def _window_table(S: Array, i: Mapping[str, Array]) -> Array:
    """Tokens of a window with W = 2 columns, row-major; the table's entry by row and column difference."""
    M, N = S.shape[-2:]
    last, width = (N - 1) // 2, 2
    entry = [
        [(m // width - n // width + last) * (2 * width - 1) + m % width - n % width + width - 1 for n in range(N)]
        for m in range(M)
    ]
    return S + i["T"][..., entry]


LOW_RANK = _draw(PQ=_normal("G", "J", "M", "R"), PK=_normal("G", "J", "N", "R"))

FRAGMENTS = {
    "none": FragmentCase((), _draw(), lambda S, i: S),
    "dense_bias": FragmentCase(
        ("dense_bias",), _draw(BIAS=_normal("G", "J", "M", "N")), lambda S, i: S + i["BIAS"]
    ),
    "dense_bias_unshared": FragmentCase(
        ("dense_bias_unshared",), _draw(BIAS=_normal("B", "G", "J", "M", "N")), lambda S, i: S + i["BIAS"]
    ),
    "dense_bias_by_batch": FragmentCase(
        ("dense_bias_by_batch",), _draw(BIAS=_normal("B", "M", "N")), lambda S, i: S + i["BIAS"][:, None, None]
    ),
    "dense_bias_shared": FragmentCase(
        ("dense_bias_shared",), _draw(BIAS=_normal("M", "N")), lambda S, i: S + i["BIAS"]
    ),
    "window_table": FragmentCase(
        ("window_table",),
        lambda rng, z: {"T": rng.normal(size=(z["G"], z["J"], 3 * ((z["M"] - 1) // 2 + (z["N"] - 1) // 2 + 1)))},
        _window_table,
        {"W": 2},
    ),
    "low_rank": FragmentCase(("low_rank",), LOW_RANK, lambda S, i: S + _low_rank(i), {"R": 2}),
    "low_rank_scale": FragmentCase(("low_rank_scale",), LOW_RANK, lambda S, i: S * _low_rank(i), {"R": 2}),
    "distance": FragmentCase(
        ("distance",),
        _draw(PQ=_normal("B", "M", "X"), PK=_normal("B", "N", "X"), ALPHA=_normal("G", "J")),
        _distance,
        {"X": 3},
    ),
    "toeplitz": FragmentCase(("toeplitz",), _draw(T=_normal("G", "J", "U")), _toeplitz),
    "alibi": FragmentCase(("alibi",), _draw(SLOPE=_normal("G", "J")), lambda S, i: _alibi(S, i["SLOPE"])),
    "softcap": FragmentCase(("softcap",), _draw(CAP=_cap(1.5)), lambda S, i: reference.softcap(S, 1.5)),
    "sink": FragmentCase(("sink",), _draw(SINK=_normal("G", "J")), lambda S, i: S, sink="SINK"),
    "softcap_alibi": FragmentCase(
        ("softcap", "alibi"),
        _draw(CAP=_cap(1.5), SLOPE=_normal("G", "J")),
        lambda S, i: _alibi(reference.softcap(S, 1.5), i["SLOPE"]),
    ),
    "alibi_softcap_sink": FragmentCase(
        ("alibi", "softcap", "sink"),
        _draw(CAP=_cap(1.5), SLOPE=_normal("G", "J"), SINK=_normal("G", "J")),
        lambda S, i: reference.softcap(_alibi(S, i["SLOPE"]), 1.5),
        sink="SINK",
    ),
}
