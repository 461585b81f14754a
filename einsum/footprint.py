"""Least traffic to memory, and the buffer it takes, for what a cascade must walk more than once.

The query rank is cut into blocks; each block walks the keys once a pass, all Einsums of a pass fused. What outlives a
pass is treated in one of four ways, and the traffic and the buffer of each follow from the cascade's ranks, passes and
live sets (FuseMax, MICRO 2024, section III; traffic against buffer as in Orojenesis, ISCA 2024):

    recompute  read the inputs again in every pass and rebuild what is missing
    buffer     keep whole fibers of the live tensors on chip
    spill      write the live tensors once, read them back in every later pass
    resident   keep the inputs that walk the rank on chip, whole, and rebuild from them

`compulsory` is every input and output once. `unfused` runs each Einsum alone: everything it reads and writes moves.
Figures are for one head and a dense mask: outer ranks count as 1, and `live` scales what a mask leaves out. Block and
tile sizes may be NumPy arrays, which broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from einsight.einsum.compose import OUTER_RANKS
from einsight.einsum.counts import count
from einsight.einsum.expression import variables
from einsight.einsum.ir import Cascade, Einsum, Initial
from einsight.einsum.passes import Live, PassAnalysis, analyse
from einsight.einsum.relations import Relation, edges, family
from einsight.einsum.resolve import bind, resolve

POLICIES = ("recompute", "buffer", "spill", "resident")

Number = Any
"""An int or float, or an array of them, one per (block, tile)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes moved between memory and the buffer, per tensor, and bytes of buffer that this takes."""

    by_tensor: Mapping[str, Number]
    buffer_bytes: Number

    @property
    def traffic_bytes(self) -> Number:
        return sum(self.by_tensor.values())


@dataclass(frozen=True, slots=True)
class Footprint:
    """Traffic and buffer of one head under each policy.

    extra      operations that `recompute` and `resident` repeat, per class
    summaries  bytes of tile summaries (a tensor over N1 that two loops over N1 read); part of every policy's buffer
    """

    compulsory_bytes: Number
    unfused_bytes: Number
    recompute: Cost
    buffer: Cost
    spill: Cost
    resident: Cost
    extra: Mapping[str, Number]
    summaries: Number

    def policy(self, name: str) -> Cost:
        costs: dict[str, Cost] = {p: getattr(self, p) for p in POLICIES}
        return costs[name]

    def __str__(self) -> str:
        """One line a policy; for figures of one block and tile, not arrays."""
        rows = [f"{'compulsory':<11}{_binary(self.compulsory_bytes):>12}"]
        for name in POLICIES:
            cost = self.policy(name)
            row = f"{name:<11}{_binary(cost.traffic_bytes):>12} with a buffer of {_binary(cost.buffer_bytes)}"
            if self.extra and name in ("recompute", "resident"):
                row += ", again " + ", ".join(f"{k} {v:.3g}" for k, v in self.extra.items())
            rows.append(row)
        return "\n".join([*rows, f"{'unfused':<11}{_binary(self.unfused_bytes):>12}"])


@dataclass(frozen=True, slots=True)
class Point:
    """The least traffic that a buffer of this size allows, and how: policy, query block, key tile."""

    buffer_bytes: float
    traffic_bytes: float
    policy: str
    block: int
    tile: int


def footprint(
    cascade: Cascade,
    sizes: Mapping[str, SupportsIndex],
    block: Number,
    tile: Number = None,
    *,
    widths: float | Mapping[str, float] = 2.0,
    rank: str = "N",
    over: str = "M",
    live: float = 1.0,
) -> Footprint:
    """Traffic and buffer, in bytes, of one head whose `over` rank runs in blocks of `block`.

    tile    coordinates of `rank` on chip at a time: the chunk of a partitioned rank (default: the one in `sizes`),
            otherwise only a size of the buffer (default 1)
    widths  bytes per element, for all tensors or by tensor
    live    share of the (over, rank) pairs that a mask keeps

    Raises SizeError for sizes that do not fit the cascade, ValueError for a tensor without a width.
    """
    return _Frame(resolve(cascade), sizes, block, tile, widths, rank, over, live).footprint()


def curve(
    cascade: Cascade,
    sizes: Mapping[str, SupportsIndex],
    *,
    widths: float | Mapping[str, float] = 2.0,
    rank: str = "N",
    over: str = "M",
    policies: Iterable[str] = POLICIES,
) -> tuple[Point, ...]:
    """Least traffic against buffer size, over power-of-two blocks and tiles: each point moves less than the one before.

    A chunk that `sizes` fixes (N0, or N1) stays fixed.
    """
    resolved = resolve(cascade)
    given = {k.upper(): int(v.__index__()) for k, v in sizes.items()}
    found = resolved.rank(rank)
    fixed = any(p in given for p in (found.parts if found else ()))
    blocks = np.array(_powers(given[over]))
    tiles = np.array([0] if fixed else _powers(given[rank]))
    grid_block, grid_tile = (a.ravel() for a in np.meshgrid(blocks, tiles, indexing="ij"))
    result = footprint(
        resolved, sizes, grid_block, None if fixed else grid_tile, widths=widths, rank=rank, over=over
    )
    chunk = _bound(resolved, sizes, None, rank)[found.parts[-1]] if fixed and found else 1
    points = []
    for name in policies:
        cost = result.policy(name)
        columns = np.broadcast_arrays(cost.buffer_bytes, cost.traffic_bytes, grid_block, grid_tile)
        for b, t, q, k in zip(*columns, strict=True):
            points.append(Point(float(b), float(t), name, int(q), int(k) or chunk))
    return _frontier(points)


def least_traffic(points: Iterable[Point], buffer_bytes: float) -> Point | None:
    """The point of a curve with the least traffic that fits; None when not even the smallest buffer does."""
    fitting = [p for p in points if p.buffer_bytes <= buffer_bytes]
    return min(fitting, key=lambda p: p.traffic_bytes, default=None)


def _binary(count: float) -> str:
    """Bytes with a binary unit: 16.02 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(int(count).bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 2 ** (10 * power):.{2 if power else 0}f} {units[power]}"


def _powers(limit: int) -> list[int]:
    return sorted({*(1 << k for k in range(limit.bit_length())), limit})


def _frontier(points: list[Point]) -> tuple[Point, ...]:
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.buffer_bytes, p.traffic_bytes)):
        if not kept or point.traffic_bytes < kept[-1].traffic_bytes:
            kept.append(point)
    return tuple(kept)


def _bound(cascade: Cascade, sizes: Mapping[str, SupportsIndex], tile: Number, rank: str) -> dict[str, Number]:
    """Every size of one head, with the rank in chunks of `tile` if one is given."""
    given = {k.upper(): v for k, v in sizes.items() if k.upper() not in OUTER_RANKS}
    given |= {r: 1 for r in OUTER_RANKS if cascade.rank(r)}
    found = cascade.rank(rank)
    if tile is None or found is None or not found.parts:
        return dict(bind(cascade, given))
    outer, inner = found.parts
    whole = {k: v for k, v in given.items() if k not in found.parts}
    bound: dict[str, Number] = dict(bind(cascade, {**whole, inner: whole.get(rank, 1)}))
    return bound | {outer: -(-bound[rank] // tile), inner: tile}


class _Frame:
    """The cascade with its sizes: how many bytes each tensor has, whole, in a block, in a tile."""

    def __init__(
        self,
        cascade: Cascade,
        sizes: Mapping[str, SupportsIndex],
        block: Number,
        tile: Number,
        widths: float | Mapping[str, float],
        rank: str,
        over: str,
        live: float,
    ) -> None:
        self.cascade, self.rank, self.over, self.live, self.widths = cascade, rank, over, live, widths
        self.found: PassAnalysis = analyse(cascade, rank)
        self.walk = family(cascade, rank)
        self.einsums = {e.name: e for e in cascade.einsums}
        self.loops = {e.name: loop.variable for e, loop in cascade.placed() if loop is not None}
        self.running = {s.output.tensor for s in cascade.statements if isinstance(s, Initial)}
        declared = cascade.rank(rank)
        self.parts = declared.parts if declared else ()
        self.sizes = _bound(cascade, sizes, tile, rank)
        self.block = block
        self.tile = self.sizes[self.parts[-1]] if self.parts else (1 if tile is None else tile)
        self.blocks = -(-self.sizes[over] // block)
        self.shapes: dict[str, tuple[str, ...]] = {t.name: t.ranks for t in cascade.inputs}
        for einsum in cascade.einsums:
            names = [sorted(variables(i)) for i in einsum.output.indices]
            self.shapes[einsum.name] = tuple(n[0].upper() for n in names if n)

    # -- sizes of tensors

    def bytes(self, tensor: str, **cut: Number) -> Number:
        """Bytes of the tensor, with the extents in `cut` in place of the whole ranks."""
        if not isinstance(self.widths, Mapping):
            width = self.widths
        elif tensor in self.widths:
            width = self.widths[tensor]
        else:
            raise ValueError(f"tensor {tensor} of cascade {self.cascade.name} has no width; give its bytes per element")
        result: Number = width * (self.live if self.keyed(tensor) and self.queried(tensor) and not cut else 1)
        for r in self.shapes[tensor]:
            result = result * cut.get(r, self.sizes[r])
        return result

    def in_block(self, tensor: str) -> Number:
        """Bytes for one query block; of a running value, one step of its loop."""
        step = {self.loops[tensor].upper(): 1} if tensor in self.running else {}
        return self.bytes(tensor, **{self.over: self.block}, **step)

    def in_tile(self, tensor: str) -> Number:
        cut = {self.over: self.block, self.rank: self.tile}
        if self.parts:
            cut |= {self.parts[0]: 1, self.parts[1]: self.tile}
        return self.bytes(tensor, **cut)

    def keyed(self, tensor: str) -> bool:
        """Whether the tensor carries the whole rank."""
        return self.walk.walked(frozenset(r.lower() for r in self.shapes[tensor]))

    def queried(self, tensor: str) -> bool:
        return self.over in self.shapes[tensor]

    def sweeps(self, tensor: str, readers: Iterable[str]) -> Number:
        """How often one pass of these Einsums reads the tensor: once a query block, unless it has the query rank."""
        repeated = not self.queried(tensor) and any(self.over.lower() in self.einsums[r].variables for r in readers)
        return np.maximum(self.blocks * self.live, 1) if repeated else 1

    # -- traffic

    def footprint(self) -> Footprint:
        once = {t.name: self.bytes(t.name) for t in (*self.cascade.inputs, *self.cascade.outputs)}
        outputs = {t.name: self._output(t.name) for t in self.cascade.outputs}
        base, summaries = self._base(), self._summaries()
        fibers = self._fibers()
        names = [t.name for t in self.cascade.inputs]
        again = {x: self.bytes(x) * self._passes(x) for x in names}
        kept = {x: self.bytes(x) * self._sweeps_of(x, None) for x in names}
        spilled = {x: self.bytes(x) * self._direct(x) for x in names}
        on_chip = [x for x in names if self.keyed(x) and not self.queried(x)]
        return Footprint(
            compulsory_bytes=sum(once.values()),
            unfused_bytes=sum(self._alone(e) for e in self.cascade.einsums),
            recompute=Cost(again | outputs, base + summaries),
            buffer=Cost(kept | outputs, base + summaries + fibers),
            spill=Cost(spilled | {t.tensor: self._spilled(t) for t in self.found.live} | outputs, base + summaries),
            resident=Cost(
                again | outputs | {x: self.bytes(x) for x in on_chip},
                base + summaries + sum(self.bytes(x) - self.in_tile(x) for x in on_chip),
            ),
            extra=self._extra(),
            summaries=summaries,
        )

    def _output(self, tensor: str) -> Number:
        """Written once; one that walks the rank but not the query is accumulated in memory, block after block."""
        accumulated = self.keyed(tensor) and not self.queried(tensor)
        return self.bytes(tensor) * (2 * self.blocks - 1 if accumulated else 1)

    def _passes(self, tensor: str) -> Number:
        """Reads of an input that is read again in each pass over it."""
        touching = self.found.touches.get(tensor)
        if touching is None:
            return self._sweeps_of(tensor, None)
        numbers = range(1, self.found.passes[tensor] + 1)
        return sum(self.sweeps(tensor, [e for e, k in touching.items() if k == number]) for number in numbers)

    def _readers(self, tensor: str) -> list[Einsum]:
        return [e for e in self.cascade.einsums if any(a.tensor == tensor for a in e.reads)]

    def _sweeps_of(self, tensor: str, stage: int | None) -> Number:
        """Reads of a tensor by the Einsums of one stage (None: of all stages together, in one go)."""
        readers = [e.name for e in self._readers(tensor) if stage is None or self.found.stage[e.name] == stage]
        return self.sweeps(tensor, readers) if self.keyed(tensor) else 1

    def _stages(self, tensor: str) -> list[int]:
        return sorted({self.found.stage[e.name] for e in self._readers(tensor)} - {0})

    def _direct(self, tensor: str) -> Number:
        """Reads of an input when nothing is rebuilt: one for each stage that names it."""
        stages = self._stages(tensor) if self.keyed(tensor) else []
        return sum(self._sweeps_of(tensor, stage) for stage in stages) if stages else 1

    def _spilled(self, live: Live) -> Number:
        later = (stage for stage in live.read_in if stage > live.born)
        return self.bytes(live.tensor) * (1 + sum(self._sweeps_of(live.tensor, stage) for stage in later))

    def _alone(self, einsum: Einsum) -> Number:
        return self.bytes(einsum.name) + sum(self.bytes(t) for t in {a.tensor for a in einsum.reads})

    # -- buffers

    def _base(self) -> Number:
        """A query block's own data, its reductions and running values, one tile of each key input and of the scores."""
        walking = [e for e in self.cascade.einsums if self.walk.outer & (e.variables | {self.loops.get(e.name, "")})]
        read = {a.tensor for e in walking for a in e.reads}
        inputs = [t.name for t in self.cascade.inputs]
        held = [x for x in inputs if x in read and not self.keyed(x)]
        held += [e.name for e in walking if e.name in self.running or not self.walk.outer & e.output_variables]
        scores = self._largest(self.in_tile(e.name) for e in self.cascade.einsums if self.keyed(e.name))
        return sum(self.in_block(t) for t in held) + sum(self.in_tile(x) for x in inputs if self.keyed(x)) + scores

    def _summaries(self) -> Number:
        if not self.parts:
            return 0
        return sum(self.in_block(t.tensor) for t in analyse(self.cascade, self.parts[0]).live)

    def _fibers(self) -> Number:
        """The most that is alive between two passes: a fiber of the rank for each query of the block."""
        lives = [(t.tensor, t.born, max(t.read_in)) for t in self.found.live]
        for tensor in (t.name for t in self.cascade.inputs if self.keyed(t.name)):
            stages = self._stages(tensor)
            if len(stages) > 1:
                lives.append((tensor, stages[0], stages[-1]))
        borders = range(1, self.found.loops)
        return self._largest(sum(self.in_block(t) for t, born, last in lives if born <= k < last) for k in borders)

    @staticmethod
    def _largest(values: Iterable[Number]) -> Number:
        result: Number = 0
        for value in values:
            result = np.maximum(result, value)
        return result

    # -- recomputation

    def _extra(self) -> dict[str, Number]:
        """Operations of the Einsums that a later stage repeats because it reads what they made in an earlier one."""
        repeated = self._repeated()
        counts = count(self.cascade)
        extra: dict[str, Number] = {}
        for name, times in repeated.items():
            for klass, number in counts.filter(einsum=name).evaluate(self.sizes).items():
                extra[klass] = extra.get(klass, 0) + times * number
        return extra

    def _repeated(self) -> dict[str, int]:
        sources: dict[str, set[str]] = {}
        for edge in edges(self.cascade, self.rank):
            if edge.relation is Relation.POINTWISE:
                sources.setdefault(edge.reader.einsum.name, set()).add(edge.writer.einsum.name)
        stage = self.found.stage
        times: dict[str, int] = {}
        for now in range(2, self.found.loops + 1):
            wanted = {w for r, ws in sources.items() if stage[r] == now for w in ws if stage[w] < now}
            rebuilt: set[str] = set()
            while wanted:
                name = wanted.pop()
                rebuilt.add(name)
                wanted |= {w for w in sources.get(name, ()) if w not in rebuilt}
            for name in rebuilt:
                times[name] = times.get(name, 0) + 1
        return times
