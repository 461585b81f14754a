"""Positions in pieces that a 16-bit type holds exactly, so that a bias by position survives long sequences.

fp16 has 11 significant bits and ends at 65504, bf16 has 8. A position beyond them is rounded, and near the diagonal, where
attention looks, that rounding is the whole bias. A position as digits in a base that the type holds,
p = d_0 + base * d_1 + ..., is exact digit by digit, and the powers of the base go to the other side, beside the slope:

    -slope * (i - j) = sum over k of  digit_k(i) * (-slope * base^k)  +  (slope * base^k) * digit_k(j)

The rank is 2 per digit. Terms of one digit stand next to each other, so that an fp32 accumulation cancels i against j before
it grows: the sum is exact near the diagonal when it runs in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from einsight.sim.bias_exact import Array, BiasError, Factors, alibi_slopes, positions


@dataclass(frozen=True, slots=True)
class Format:
    """A 16-bit element type: significant bits (the hidden one included), largest number, smallest exponent of a full one."""

    significant: int
    largest: float
    least_exponent: int

    @property
    def base(self) -> int:
        """Whole numbers up to the base are exact. Digits run from -base/2 to base/2 - 1, the highest one to the base."""
        return int(2**self.significant)


FORMATS = {"fp16": Format(11, 65504.0, -14), "bf16": Format(8, 3.3895313892515355e38, -126)}


def rounded(values: ArrayLike, dtype: str) -> Array:
    """The nearest numbers of the type (ties to even), in fp64; beyond its largest number infinite."""
    form = _format(dtype)
    exact = np.asarray(values, dtype=np.float64)
    _, exponent = np.frexp(exact)
    step = np.exp2(np.maximum(exponent - 1, form.least_exponent) - (form.significant - 1))
    near = np.round(exact / step) * step
    return np.asarray(np.where(np.abs(near) > form.largest, np.copysign(np.inf, near), near))


def ulp(values: ArrayLike, dtype: str) -> Array:
    """Distance of neighbouring numbers of the type around these values."""
    form = _format(dtype)
    _, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.exp2(np.maximum(exponent - 1, form.least_exponent) - (form.significant - 1)))


def digits(values: ArrayLike, dtype: str) -> tuple[NDArray[np.int64], ...]:
    """Signed digits, lowest first: values = sum of digit_k * base^k, each at most the base in size: exact in the type."""
    base = _format(dtype).base
    rest = np.asarray(values, dtype=np.int64)
    found: list[NDArray[np.int64]] = []
    while np.abs(rest).max(initial=0) > base:
        low = (rest + base // 2) % base - base // 2
        found.append(low)
        rest = (rest - low) // base
    return (*found, rest)


def split_alibi(
    heads: int, queries: int, keys: int, dtype: str, softmax: bool = False, slopes: ArrayLike | None = None
) -> Factors:
    """Factors of -slope_h * (i - j) whose every entry is a number of `dtype`; rank 2 a digit.

    softmax   leave out the terms of the query, half the rank. The sum is then slope * j, large for late keys, and only
              as good as the accumulator: at 128k positions fp32 resolves 2^-8. Keep them where that matters.
    Raises BiasError when an entry does not fit into the type.
    """
    slope = rounded(alibi_slopes(heads) if slopes is None else slopes, dtype)
    i, j = positions(queries, keys)
    middle = keys // 2
    base = _format(dtype).base
    of_i, of_j = digits(i - middle, dtype), digits(j - middle, dtype)
    number = max(len(of_i), len(of_j))
    query, key = [], []
    for k in reversed(range(number)):  # the highest first: i and j cancel while the sum is still exact
        weight = slope * float(base) ** k
        if not softmax:
            query.append(np.broadcast_to(_digit(of_i, k, len(i)), (heads, len(i))))
            key.append(np.broadcast_to(-weight[:, None], (heads, len(j))))
        query.append(np.broadcast_to(weight[:, None], (heads, len(i))))
        key.append(np.broadcast_to(_digit(of_j, k, len(j)), (heads, len(j))))
    made = Factors(np.stack(query, axis=-1), np.stack(key, axis=-1))
    for name, side in (("query factor", made.query), ("key factor", made.key)):
        if not (np.isfinite(side).all() and np.array_equal(rounded(side, dtype), side)):
            raise BiasError(name, f"entries up to {np.abs(side).max():g}", f"numbers of {dtype}")
    return made


def _digit(of: tuple[NDArray[np.int64], ...], k: int, length: int) -> Array:
    return of[k].astype(np.float64) if k < len(of) else np.zeros(length)


def accumulated(factors: Factors, queries: NDArray[np.integer], keys: NDArray[np.integer]) -> NDArray[np.float32]:
    """The bias at pairs (queries[p], keys[p]), [heads, pairs], as fp32 accumulation of exact products gives it, in order."""
    total: NDArray[np.float32] | None = None
    for r in range(factors.rank):
        product = factors.query[:, queries, r] * factors.key[:, keys, r]
        total = (product if total is None else total.astype(np.float64) + product).astype(np.float32)
    assert total is not None
    return total


def _format(dtype: str) -> Format:
    if dtype not in FORMATS:
        raise BiasError("dtype", repr(dtype), " or ".join(FORMATS))
    return FORMATS[dtype]
