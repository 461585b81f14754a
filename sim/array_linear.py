"""Matrix products of a transformer layer around attention, on a spatial array.

Each is t x K times K x N, outputs held in the 2-D array while K passes (FuseMax's artifact, `matmul`). Weights stay in
the buffer if they fit beside one strip of inputs; otherwise inputs are cut and the weights fetched once per cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from einsight.sim.array_case import BINARY_BANDWIDTH, IllegalArray
from einsight.sim.array_hardware import Array
from einsight.sim.units import format_si

WORD_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class Product:
    """`count` products of a `rows` x `inner` input with an `inner` x `columns` weight."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class LinearRun:
    """Products one after another: bytes through DRAM, seconds, pJ by component; `busy_s`: seconds that the 2-D array
    would need with every element at work."""

    dram_bytes: float
    time_s: float
    busy_s: float
    energy_pj: Mapping[str, float]


def encoder_layer(tokens: int, model: int, heads: int, head_dim: int, feed_forward: int) -> tuple[Product, ...]:
    """Projections to Q, K, V, the output projection and the two products of the feed-forward network."""
    width = heads * head_dim
    return (
        Product("QKV", tokens, model, width, 3),
        Product("Z", tokens, width, model),
        Product("FFN1", tokens, model, feed_forward),
        Product("FFN2", tokens, feed_forward, model),
    )


def run_linear(products: Sequence[Product], array: Array, replicate: frozenset[str] = frozenset()) -> LinearRun:
    """All products on the array; raises IllegalArray where the buffer cannot hold one strip of a product."""
    runs = [(p.count, _product(p, array, replicate)) for p in products]
    names = runs[0][1].energy_pj
    return LinearRun(
        sum(n * r.dram_bytes for n, r in runs),
        sum(n * r.time_s for n, r in runs),
        sum(n * r.busy_s for n, r in runs),
        {name: sum(n * r.energy_pj[name] for n, r in runs) for name in names},
    )


def _product(product: Product, array: Array, replicate: frozenset[str]) -> LinearRun:
    t, inner, columns = product.rows, product.inner, product.columns
    rows_2d, columns_2d = array.array_2d.sides
    fetches = _weight_fetches(product, array)
    words = t * inner + fetches * inner * columns + t * columns
    steps = -(-t // columns_2d) * -(-columns // rows_2d)
    cycles = steps * inner * array.array_2d.costs["macc"].cycles
    if "no fill" not in replicate:
        cycles += rows_2d + columns_2d
    bandwidth = array.dram_bytes_per_s.value * (BINARY_BANDWIDTH if "binary bandwidth" in replicate else 1.0)
    time = max(WORD_BYTES * words / bandwidth, cycles / array.clock_hz.value)
    reads = steps * inner * (rows_2d + columns_2d)  # one word per row and per column in every step
    busy = t * inner * columns / array.array_2d.elements * array.array_2d.costs["macc"].cycles / array.clock_hz.value
    return LinearRun(WORD_BYTES * words, time, busy, _energy(product, array, replicate, words, reads, fetches))


def _weight_fetches(product: Product, array: Array) -> int:
    """How often the weights come from DRAM: once, or once per cut of the inputs (a power of two of rows)."""
    capacity = array.buffer_bytes.value / WORD_BYTES
    strip = array.array_2d.sides[1] * product.inner
    if product.inner * product.columns + strip <= capacity:
        return 1
    if product.inner + strip > capacity:
        raise IllegalArray(
            f"{array.name}: the buffer holds {format_si(array.buffer_bytes.value, 'B')}; one strip of {product.name} "
            f"needs {format_si(WORD_BYTES * (product.inner + strip), 'B')}"
        )
    cut = 1
    while 2 * cut * product.inner + strip <= capacity:
        cut *= 2
    return -(-product.rows // cut)


def _energy(
    product: Product, array: Array, replicate: frozenset[str], words: float, reads: float, fetches: int
) -> dict[str, float]:
    t, inner, columns = product.rows, product.inner, product.columns
    technology, row = array.technology, array.buffer_row_bytes.value
    read, write = (technology.buffer_access_pj(a, array.buffer_bytes.value, row) for a in ("read", "write"))
    products = float(t) * inner * columns
    written = t * inner + fetches * inner * columns
    per_operation = (
        technology.reads_per_operation.value * technology.register_read_pj.value
        + technology.writes_per_operation.value * technology.register_write_pj.value
    )
    return {
        "2-D array": products * array.energy_pj("2d", "macc"),
        "1-D array": 0.0,
        "registers": 0.0 if "registers" in replicate else products * per_operation,
        "buffer": WORD_BYTES * (read * reads + write * written) / row,
        "DRAM": technology.dram_pj_per_byte.value * WORD_BYTES * words,
    }
