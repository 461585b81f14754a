"""Kernels whose blocks hold keys and walk queries, as a backward pass does for the gradients of keys and values.

Such a kernel is one that holds queries and walks keys, of the problem with the two ranks exchanged: `turned`. Everything
that the model knows of blocks, tiles and traffic then applies unchanged. Two things are new: what a block adds to memory
tile by tile because other blocks add to the same rows (`Sweep.sums`: the gradient of the queries), and what it writes tile
by tile (`Sweep.writes`: the gradient of a bias matrix).

Which Einsums such a kernel holds follows from the cascade: those that sum over queries and keep keys, what they need per
pair of query and key, and what else is made of that. The query heads of a KV head are walked one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from einsight.einsum.expression import Expression, Symbol
from einsight.einsum.ir import Cascade, Einsum, Iterate, Statement, Tensor, rewrite_statement
from einsight.einsum.resolve import resolve
from einsight.sim import work
from einsight.sim.cases import Cases
from einsight.sim.grid import Tiles, grid_of
from einsight.sim.mask import Mask
from einsight.sim.schedule import ONE, Array
from einsight.sim.work import KEY, QUERY, KernelWork, Reuse, Sweep, walks

HEADS_OF_A_KEY = "HJ"
"""The rank J of a tensor that a block keeps while it walks the queries of all J heads, such as factors of the keys."""


@lru_cache(maxsize=256)
def kernels(cascade: Cascade, fused: bool) -> tuple[KernelWork, ...]:
    """The kernels of a composed cascade, in execution order; the kernel that holds keys last."""
    resolved = resolve(cascade)
    held = _held(resolved) if fused else frozenset()
    if not held:
        return work.kernels(cascade, fused)
    rest = tuple(e for e in resolved.einsums if e.name not in held)
    before = tuple(work.single_kernel(resolved, e) for e in rest if not walks(resolved, e, KEY))
    rows = tuple(e for e in rest if walks(resolved, e, KEY))
    by_rows = (work.fused_kernel(resolved, "query", rows),) if rows else ()
    return (*before, *by_rows, _column(resolved, held))


def summed_over_queries(cascade: Cascade) -> tuple[str, ...]:
    """Names of the tensors that keep keys and sum over queries: what no kernel that holds queries can finish."""
    resolved = resolve(cascade)
    return tuple(e.name for e in resolved.einsums if walks(resolved, e, QUERY) and _sums_queries(resolved, e))


def _held(cascade: Cascade) -> frozenset[str]:
    """Names of the Einsums of the kernel that holds keys; empty for a cascade that sums nothing over queries."""
    pairs = {e.name for e in cascade.einsums if walks(cascade, e, QUERY) and walks(cascade, e, KEY)}
    found = set(summed_over_queries(cascade))
    if not found:
        return frozenset()
    per_pair = {e.name: {a.tensor for a in e.reads} & pairs for e in cascade.einsums if e.name in pairs}
    while True:
        more = found.union(*(per_pair[name] for name in found))
        shared = {n for n in more if not _sums(cascade, n)}
        more |= {name for name, reads in per_pair.items() if reads & shared}
        if more == found:
            return frozenset(found)
        found = more


def _sums_queries(cascade: Cascade, einsum: Einsum) -> bool:
    keeps = cascade.position(KEY, einsum.output_variables) is not None
    return keeps and bool(einsum.reduced & cascade.family(QUERY))


def _sums(cascade: Cascade, name: str) -> bool:
    """Whether the tensor has no element per pair any more."""
    einsum = next(e for e in cascade.einsums if e.name == name)
    return bool(einsum.reduced & (cascade.family(QUERY) | cascade.family(KEY)))


def _column(cascade: Cascade, held: frozenset[str]) -> KernelWork:
    """The kernel, with the names of queries and keys exchanged."""
    exchanged = _exchanged(cascade)
    made = work.fused_kernel(exchanged, "column", tuple(e for e in exchanged.einsums if e.name in held))
    (sweep,) = made.sweeps
    walked = [t for t in made.outputs if KEY in t.ranks]
    writes = tuple(_of_block(t) for t in walked if QUERY in t.ranks)
    sums = tuple(_of_block(t) for t in walked if QUERY not in t.ranks)
    reuse = _reuse(exchanged, sweep)
    sweep = replace(sweep, streams=_of_blocks(sweep.streams), writes=writes, sums=sums, reuse=reuse)
    kept = _of_blocks(t for t in made.outputs if t not in walked)
    return replace(made, sweeps=(sweep,), residents=_of_blocks(made.residents), outputs=kept)


def _reuse(cascade: Cascade, sweep: Sweep) -> Reuse:
    """How the products of the kernel (of the exchanged cascade) use their operands."""
    products = {c.einsum for c in sweep.share.counts if c.matmul}
    reads = [(e, a.tensor) for e in cascade.einsums if e.name in products for a in e.reads]
    streamed = {t.name: t for t in sweep.streams}
    uses = [name for _, name in reads]
    again = [streamed[n] for k, n in enumerate(uses) if n in streamed and n in uses[:k]]
    across = [work.tensor_of(cascade, n) for e, n in reads if e.reduced & cascade.family(QUERY)]
    pairs = {n for n in uses if {QUERY, KEY} <= set(work.tensor_of(cascade, n).ranks)} - set(streamed)
    return Reuse(_of_blocks(again), _of_blocks(across), len(pairs))


def _of_blocks(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(_of_block(t) for t in tensors)


def _of_block(tensor: Tensor) -> Tensor:
    """The tensor as a block of keys sees it: the heads that share a key are walked with their queries."""
    if "J" not in tensor.ranks:
        return tensor
    ranks = tuple(r for r in tensor.ranks if r != "J")
    return replace(tensor, ranks=ranks if KEY in ranks else (HEADS_OF_A_KEY, *ranks))


_OTHER = {QUERY: KEY, KEY: QUERY}


def _exchanged(cascade: Cascade) -> Cascade:
    """The cascade with its query rank called N and its key rank called M, chunks included."""

    def name(old: str) -> str:
        upper = _OTHER.get(old.upper()[:1], "") + old[1:] if old.upper() in chunks else old
        return upper.lower() if old.islower() else upper

    chunks = {s for r in cascade.ranks if r.name in _OTHER for s in (r.name, *r.parts)}

    def change(node: Expression) -> Expression:
        return replace(node, name=name(node.name)) if isinstance(node, Symbol) else node

    def tensors(of: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, ranks=tuple(map(name, t.ranks))) for t in of)

    def statement(s: Statement) -> Statement:
        changed = rewrite_statement(s, change)
        if isinstance(changed, Einsum):
            return einsum(changed)
        if isinstance(changed, Iterate):
            return replace(changed, variable=name(changed.variable), body=tuple(map(einsum, changed.body)))
        return changed

    def einsum(e: Einsum) -> Einsum:
        return replace(e, reductions=tuple(replace(r, variables=tuple(map(name, r.variables))) for r in e.reductions))

    return replace(
        cascade, name=f"{cascade.name}_turned", inputs=tensors(cascade.inputs), outputs=tensors(cascade.outputs), marks=(),
        ranks=tuple(replace(r, name=name(r.name), parts=tuple(map(name, r.parts)), like=name(r.like)) for r in cascade.ranks),
        statements=tuple(map(statement, cascade.statements)),
    )  # fmt: skip


# -- cases ------------------------------------------------------------------------------------------------------------


def turned(cases: Cases, mask: Mask, skips: bool) -> Cases:
    """The cases of the kernel that holds `block_m` keys and walks `block_n` queries at a time, never split."""
    s = cases.sizes
    sizes = {**s, QUERY: s[KEY], KEY: s[QUERY] * s["J"], "J": np.ones_like(s["J"]), HEADS_OF_A_KEY: s["J"]}
    none = np.zeros(cases.block_m.shape)
    return replace(
        cases, sizes=sizes, tiles=_tiles(mask if skips else Mask(), cases), splits=none + 1.0, pack=none > 0,
        touched=none + 1.0, shared_by=None, idle_parts=none, visited=None,
    )  # fmt: skip


def _tiles(mask: Mask, cases: Cases) -> Tiles:
    """The tiles of one KV head. A pair of tiles is visited or not whichever side a block holds, so the totals are those of
    a grid of the same tiles whose blocks hold queries; the longest block is the one all of whose queries may see it."""
    s, held, walked = cases.sizes, cases.block_m, cases.block_n
    found = grid_of(mask, s[QUERY], s[KEY], walked, held, ONE)
    all_queries = np.ceil(s[QUERY] / walked)
    longest, shortest = all_queries, all_queries
    if not mask.is_dense:
        blocks = np.ceil(s[KEY] / held)
        shortest = np.minimum(np.floor(found.total / blocks), all_queries)
        if mask.window is not None and not mask.sink and not mask.prefix:
            seen = np.ceil((held + (2 - mask.causal) * mask.window) / walked) + 1.0  # queries up to a window away
            longest = np.maximum(np.minimum(all_queries, seen), np.ceil(found.total / blocks))
    steps = 1.0 + (np.ceil(held / walked) if mask.causal else 0.0)  # the ends of rows and keys, and the diagonal
    blocks = np.ceil(s[KEY] / held)
    masked = np.minimum(found.total, blocks * steps)
    counts: dict[str, Array] = {
        "total": found.total, "masked": masked, "longest": longest, "longest_masked": np.minimum(longest, steps),
        "shortest": shortest, "shortest_masked": np.minimum(shortest, steps),
    }  # fmt: skip
    return Tiles(blocks=blocks, exact=found.exact, **{name: value * s["J"] for name, value in counts.items()})
