"""Words that a run moves through DRAM and through the buffer, tensor by tensor.

The rules, for the cascade's tensors as the design places their Einsums:

- An operand is read by the array once per block of every spread rank that it lacks; it stays in the elements otherwise.
- A tensor over pairs passes through the buffer when it changes arrays or outlives a pass: one write, and one read for
  each other (array, pass) that uses it. What cannot stay, or changes arrays through memory, moves through DRAM instead.
- State that a loop carries is read and written once per step. Summaries of a chunk stay in registers, unless a later
  pass needs them.
- A sum over a rank that is spread over the 2-D array leaves one partial result per block, added up in the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from einsight.sim.array_case import Case
from einsight.sim.array_flow import CHUNK, INNER, OUTER, Datum, Ranks, Stage
from einsight.sim.work import KEY, QUERY


@dataclass(frozen=True, slots=True)
class Move:
    """Words of one tensor; `einsum` names who causes the movement, so that phases can be told apart."""

    tensor: str
    einsum: str
    dram_reads: float = 0.0
    dram_writes: float = 0.0
    buffer_reads: float = 0.0
    buffer_writes: float = 0.0


# -- operands --------------------------------------------------------------------------------------------------------


def place(case: Case, tensor: Datum, readers: tuple[Stage, ...]) -> str:
    """Where an input lives: by its ranks, and for keys by whether their Einsum sums over them (values) or not."""
    if QUERY in tensor.ranks:
        return case.residency.queries if KEY not in tensor.ranks else "tile"
    if KEY in tensor.ranks:
        summed = any(KEY in s.reduced for s in readers)
        return case.residency.values if summed else case.residency.keys
    return "whole"


def array_reads(case: Case, stage: Stage, ranks: Ranks) -> float:
    """Words that the array takes in: the operand once per block of each spread rank that it lacks, and once per block
    of queries where these pass by a stationary operand."""
    words = float(case.extent(ranks)) * heads_apart(case, stage, ranks)
    axes = case.axes(stage)
    for rank in stage.ranks - ranks - OUTER:
        if rank in axes:
            words *= case.blocks(rank, axes[rank])
        elif rank == QUERY and KEY in ranks:
            words *= case.row_blocks
    return words * (case.live_words(stage, ranks) if KEY in ranks or stage.walk == "pairs" else 1.0)


def heads_apart(case: Case, stage: Stage, ranks: Ranks) -> int:
    """How many heads take the same elements one after another. The query heads of a KV head share its keys, whose tiles
    all their rows pass; whatever else several heads or sequences share is taken by each on its own."""
    shared = OUTER & (stage.ranks - ranks)
    return case.extent(shared if QUERY in ranks or QUERY not in stage.ranks else shared - {"J"})


def inputs(case: Case) -> Iterator[Move]:
    for tensor in (t for t in case.flow.data.values() if t.role == "input"):
        readers = case.flow.readers(tensor.name)
        where = place(case, tensor, readers)
        if where == "stream":
            for stage in readers:
                yield Move(tensor.name, stage.name, dram_reads=array_reads(case, stage, tensor.ranks))
            continue
        taken = [array_reads(case, stage, tensor.ranks) for stage in readers]
        fills = float(case.extent(tensor.ranks))
        if tensor.ranks & {QUERY, KEY}:
            fills *= max(heads_apart(case, stage, tensor.ranks) for stage in readers)
        if where == "tile":
            fills *= len({s.loop for s in readers}) * refetch(case, tensor, readers)
        spilled = case.spilled if where == "whole" else 0.0  # what has no room is read again whenever the array wants it
        for k, stage in enumerate(readers):
            filled = fills if k == 0 else 0.0
            yield Move(tensor.name, stage.name, (1 - spilled) * filled + spilled * taken[k], 0.0, taken[k], filled)


def refetch(case: Case, tensor: Datum, readers: tuple[Stage, ...]) -> float:
    """How often an operand's tiles are fetched: once, or once per block of queries that has any pair with them."""
    if QUERY in tensor.ranks:
        return case.live(case.block_rows, case.sizes[INNER]).points if KEY in tensor.ranks else 1.0
    if all(QUERY not in s.ranks for s in readers):
        return 1.0
    return case.row_blocks * case.live(case.block_rows, case.sizes[INNER]).keys


# -- results ---------------------------------------------------------------------------------------------------------


def results(case: Case) -> Iterator[Move]:
    for stage in case.flow.stages:
        tensor = case.flow.data[stage.name]
        partial = partials(case, stage)
        words = float(case.extent(stage.out))
        if tensor.role == "output":
            buffered = words if partial or case.residency.outputs == "whole" else 0.0
            yield Move(
                stage.name, stage.name, 0.0, words, (partial - 1) * words if partial else 0.0,
                max(partial, 1) * words if buffered else 0.0,
            )  # fmt: skip
        elif tensor.over_pairs or (stage.walk == "keys" and KEY in stage.out):
            yield from _changes(case, stage, tensor)
        elif case.design.schedule.rule == "phases" and case.flow.changes_units(tensor):
            yield from _between_phases(case, stage, tensor)
        elif tensor.carried:
            yield from _state(case, stage, tensor)
        else:
            yield from _summary(case, stage, tensor, partial)


def partials(case: Case, stage: Stage) -> int:
    """Partial results per element that the 2-D array leaves for the buffer to add up; 0 when sums end in the array."""
    if stage.unit == "1d" or CHUNK in stage.out:
        return 0
    spread = [case.blocks(r, side) for r, side in case.axes(stage).items() if r in stage.reduced]
    found = 1
    for blocks in spread:
        found *= blocks
    return found if spread else 0


def _changes(case: Case, stage: Stage, tensor: Datum) -> Iterator[Move]:
    """A tensor over pairs (or keys), used on the other array or in a later pass."""
    uses = {(s.unit, s.loop): s for s in reversed(case.flow.readers(tensor.name))}
    uses.pop((stage.unit, stage.loop), None)
    if not uses:
        return
    words = case.extent(tensor.ranks) * _tiles(case, tensor)
    away = [s for (unit, _), s in uses.items() if unit != stage.unit]
    if away and tensor.over_pairs and case.residency.scores == "memory":
        yield Move(tensor.name, stage.name, dram_writes=words)
        for unit in sorted({s.unit for s in uses.values()}):
            there = [s for s in uses.values() if s.unit == unit]
            held = len(there) > 1  # read from DRAM once, if a row fits, and then from the buffer
            refetched = 1 + (len(there) - 1) * case.live_spilled
            yield Move(tensor.name, there[-1].name, words * refetched, 0.0, len(there) * words * held, words * held)
        return
    lost = case.spilled if away and tensor.over_pairs else case.live_spilled
    yield Move(tensor.name, stage.name, dram_writes=lost * words, buffer_writes=words)
    for use in uses.values():
        yield Move(tensor.name, use.name, dram_reads=lost * words, buffer_reads=words)


def _tiles(case: Case, tensor: Datum) -> float:
    """Share of a tensor over pairs that lies in tiles that run."""
    rows, columns = case.array.array_2d.sides
    return case.live(columns, rows).points if tensor.over_pairs else 1.0


def _state(case: Case, stage: Stage, tensor: Datum) -> Iterator[Move]:
    words = case.extent(tensor.ranks) * case.live_words(stage, tensor.ranks)
    reads = words if any(tensor.name in s.previous for s in case.flow.stages) else 0.0
    yield Move(tensor.name, stage.name, buffer_reads=reads, buffer_writes=words)
    for loop in {s.loop for s in case.flow.readers(tensor.name)} - {stage.loop}:
        reader = next(s for s in case.flow.readers(tensor.name) if s.loop == loop)
        yield Move(tensor.name, reader.name, buffer_reads=float(case.extent(tensor.rows)))


def _between_phases(case: Case, stage: Stage, tensor: Datum) -> Iterator[Move]:
    """A summary that another phase needs: through DRAM, like everything between phases."""
    words = case.extent(tensor.ranks) * case.live_words(stage, tensor.ranks)
    yield Move(tensor.name, stage.name, dram_writes=words)
    for unit in sorted({s.unit for s in case.flow.readers(tensor.name)}):
        reader = next(s for s in case.flow.readers(tensor.name) if s.unit == unit)
        yield Move(tensor.name, reader.name, dram_reads=words)


def _summary(case: Case, stage: Stage, tensor: Datum, partial: int) -> Iterator[Move]:
    """A result per row, per chunk or per head."""
    words = float(case.extent(tensor.ranks))
    later = [s for s in case.flow.readers(tensor.name) if s.loop != stage.loop]
    if partial:
        yield Move(tensor.name, stage.name, buffer_reads=(partial - 1) * words, buffer_writes=partial * words)
    elif later:
        yield Move(tensor.name, stage.name, buffer_writes=words)
    for loop in sorted({s.loop for s in later}):
        reader = next(s for s in later if s.loop == loop)
        many = reader.matmul and QUERY not in tensor.ranks
        reads = array_reads(case, reader, tensor.ranks) if many else words
        yield Move(tensor.name, reader.name, buffer_reads=reads)


def moves(case: Case) -> tuple[Move, ...]:
    """Every movement of the run."""
    return (*inputs(case), *results(case))
