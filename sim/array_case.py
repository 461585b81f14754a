"""One workload on one array and design: sizes, blocks, live tiles, the mapping, and the applications of each Einsum.

Query heads that share a KV head share the array's columns: `j` and `m` are packed into rows of queries. An Einsum takes
one step per block of its spread ranks and per value of the others, times the cycles of its operators; an absent tile
of the mask takes none, a partly masked or ragged one takes all of its own.

Time counts tiles, work and words count what is in them. A ragged tile holds the array for a whole pass: FuseMax spreads
queries and keys in space and walks the head dimension in time, one value a step, so that the steps of a tile do not
depend on how many elements have a pair (its published sizes are multiples and never show it). The elements without one
apply nothing, and the buffer and DRAM hand over only the rows and keys that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from einsight.sim.array_design import Design, Residency
from einsight.sim.array_flow import CHUNK, INNER, OUTER, Flow, Ranks, Stage
from einsight.sim.array_hardware import Array
from einsight.sim.mask import Mask
from einsight.sim.mask_pairs import live_points
from einsight.sim.tiles import Covered, covered
from einsight.sim.work import KEY, QUERY

ARTIFACT = frozenset({
    "binary bandwidth", "tiling buffer", "one cycle", "energy left out", "row blocks", "wrap", "registers", "no fill",
})  # fmt: skip
"""Switches that replicate what the published numbers contain; docs/spatial-arrays.md explains each."""

BINARY_BANDWIDTH = 2**30 / 1e9
"""FuseMax's artifact takes the paper's 400 GB/s for 400 GiB/s."""


class IllegalArray(ValueError):  # noqa: N818  (an answer with a reason)
    """The workload cannot run on this array and design; the message says why and what would help."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Everything that a model of one workload reads.

    sizes      ranks by upper-case name, bound; N0 is the side of the 2-D array that takes keys
    residency  the mapping, its `rows` a number: query rows per block (a multiple of the columns, or all)
    spilled    share of tensors over pairs that do not fit on chip; `live_spilled`: of those that outlive a pass only
    replicate  switches of `ARTIFACT`
    """

    array: Array
    design: Design
    flow: Flow
    sizes: Mapping[str, int]
    widths: Mapping[str, float]
    mask: Mask
    residency: Residency
    replicate: frozenset[str] = frozenset()
    limit_buffer: bool = False
    spilled: float = 0.0
    live_spilled: float = 0.0
    _live: dict[tuple[int, int], Covered] = field(default_factory=dict)

    # -- sizes

    @property
    def rows(self) -> int:
        """Query rows per KV head: every query head of the group."""
        return self.sizes[QUERY] * self.sizes["J"]

    @property
    def block_rows(self) -> int:
        rows = self.residency.rows
        return self.rows if isinstance(rows, str) else min(int(rows), self.rows)

    @property
    def row_blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def extent(self, ranks: Ranks) -> int:
        """Points of these ranks."""
        return prod(self.sizes[r] for r in ranks)

    def words(self, tensor: str) -> int:
        return self.extent(self.flow.data[tensor].ranks)

    # -- how an Einsum is spread

    def axes(self, stage: Stage) -> dict[str, int]:
        """Rank -> side of the array that it is spread over. A rank that the design asks for and the Einsum lacks makes
        room for the largest that is left."""
        sides = self.array.grid(stage.unit).sides
        if stage.unit == "1d":
            wanted = [QUERY if self.design.lanes == "query" else KEY]
            return self._spread(stage, wanted, sides[1:])
        dataflow = self.residency.dataflow if stage.matmul else "tile"
        if dataflow == "output":
            wanted = [QUERY, *sorted(stage.out - OUTER - {QUERY})]
        elif dataflow == "weight":
            wanted = [KEY, *sorted(stage.ranks - OUTER - {QUERY, KEY})]
        else:
            wanted = [QUERY, KEY]
        return self._spread(stage, wanted, sides[::-1])

    def _spread(self, stage: Stage, wanted: list[str], sides: tuple[int, ...]) -> dict[str, int]:
        inner = stage.ranks - OUTER - {CHUNK}
        chosen = [r for r in wanted if r in inner][: len(sides)]
        rest = sorted(inner - set(chosen), key=lambda r: -(self.rows if r == QUERY and "J" in stage.ranks else self.sizes[r]))
        if stage.unit == "2d":  # a result's rank beside the queries stays in time: its values leave one after another
            rest = [r for r in rest if not (QUERY in chosen and KEY in chosen)]
        chosen += rest[: len(sides) - len(chosen)]
        return dict(zip(chosen, sides, strict=False))

    def blocks(self, rank: str, side: int) -> int:
        size = self.rows if rank == QUERY else self.sizes[rank]
        return -(-size // side)

    def steps(self, stage: Stage) -> dict[str, int]:
        """The sizes with every spread rank counted in blocks."""
        found = dict(self.sizes)
        for rank, side in self.axes(stage).items():
            if rank == QUERY and "J" in stage.ranks:
                found["J"] = 1
            found[rank] = self.blocks(rank, side) if rank != QUERY or "J" in stage.ranks else -(-found[rank] // side)
        return found

    # -- the mask

    def live(self, block_rows: int, block_keys: int) -> Covered:
        """Shares, of all tiles of this shape and of their rows, keys and points, in tiles that hold a pair of the mask."""
        if self.mask.is_dense or not self.design.skips_masked:
            return Covered(1.0, 1.0, 1.0, 1.0)
        at = (block_rows, block_keys)
        if at not in self._live:
            n = self.sizes[KEY]
            found = covered(self.mask, self.sizes[QUERY], n, *at, self.sizes["J"])
            down, across = -(-self.rows // block_rows), -(-n // block_keys)
            self._live[at] = Covered(
                found.tiles / (down * across), found.rows / (self.rows * across), found.keys / (down * n),
                found.points / (self.rows * n),
            )  # fmt: skip
        return self._live[at]

    def _walked(self, stage: Stage) -> Covered:
        axes = self.axes(stage)
        if stage.walk not in ("pairs", "chunks"):
            return Covered(1.0, 1.0, 1.0, 1.0)
        return self.live(axes.get(QUERY, 1), axes.get(KEY, 1) if stage.walk == "pairs" else self.sizes[INNER])

    def live_steps(self, stage: Stage) -> float:
        """Share of the Einsum's steps that the mask leaves: a ragged tile takes as many as any."""
        return self._walked(stage).tiles

    def live_words(self, stage: Stage, ranks: Ranks) -> float:
        """Share of an operand or result with these ranks that passes, tile by tile of the Einsum, under the mask."""
        found = self._walked(stage)
        if QUERY in ranks:
            return found.points if KEY in ranks else found.rows
        return found.keys if KEY in ranks else found.tiles

    def existing(self, stage: Stage) -> float:
        """Share of the Einsum's points that exist; of a chunk's summary, of the rows that are worked on."""
        if stage.walk != "pairs":
            return self.live_words(stage, stage.ranks)
        m, n = self.sizes[QUERY], self.sizes[KEY]
        return 1.0 if self.mask.is_dense else float(live_points(self.mask, m, n)) / (m * n)

    # -- work

    def applications(self, stage: Stage) -> list[tuple[str, float]]:
        """(operator class, applications). A design that skips nothing computes what the mask then discards."""
        share = self.existing(stage) if self.design.skips_masked else 1.0
        return [(klass, formula.evaluate(self.sizes) * share) for klass, formula in stage.work]

    def element_cycles(self, stage: Stage) -> float:
        """Cycles of all elements together in which one of them does something that counts."""
        return sum(n * self.cycles_of(stage, klass) for klass, n in self.applications(stage))

    def cycles(self, stage: Stage) -> float:
        """Cycles that the Einsum holds its array, idle elements included."""
        steps = self.steps(stage)
        total = float(sum(formula.evaluate(steps) * self.cycles_of(stage, klass) for klass, formula in stage.work))
        return total * self.live_steps(stage)

    def cycles_of(self, stage: Stage, klass: str) -> float:
        """Cycles of one application; none for what the published model lets pass together with another operator."""
        if "one cycle" in self.replicate:
            classes = {k for k, _ in stage.work}
            if any(klass in pair[1:] and set(pair) <= classes for pair in self.design.artifact.one_cycle):
                return 0.0
        return self.array.grid(stage.unit).costs[klass].cycles

    def with_mapping(self, residency: Residency, spilled: float = 0.0, live_spilled: float = 0.0) -> Case:
        return replace(self, residency=residency, spilled=spilled, live_spilled=live_spilled)


def check_functions(flow: Flow, array: Array, design: Design) -> None:
    """Raises IllegalArray for the first Einsum whose array lacks a function that it needs."""
    for stage in flow.stages:
        grid = array.grid(stage.unit)
        missing = [klass for klass, _ in stage.work if klass not in grid.costs]
        if not missing:
            continue
        other = array.array_1d if stage.unit == "2d" else array.array_2d
        elsewhere = f"; the {other.name} has it" if all(k in other.costs for k in missing) else ""
        raise IllegalArray(
            f"{array.name}: the {grid.name} has no {', '.join(missing)}, which {stage.name} of cascade "
            f"{flow.cascade.name} needs{elsewhere} (design {design.name} puts {stage.name} there). It has "
            f"{', '.join(grid.costs)}. Another design or cascade avoids it, or the profile can give the array the "
            f"function (functions: {{{missing[0]}: ...}})"
        )
