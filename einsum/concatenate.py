"""Two contractions into one score as a single contraction: FlashBias (arXiv 2505.12044), as a rewrite of cascades.

    QK[m,n] = Q[m,e] * K[n,e]               Q_PQ[m,e_r] = [Q | PQ]
    B[m,n]  = PQ[m,r] * PK[n,r]      ->     K_PK[n,e_r] = [K | PK]
    SB[m,n] = QK[m,n] + B[m,n]              SB[m,n]     = Q_PQ[m,e_r] * K_PK[n,e_r]        E_R = E + R

With `*` in place of `+` the ranks multiply instead of adding up: Q_PQ[m,e,r] = Q[m,e] * PQ[m,r], and SB sums over both.
Any unbiased kernel computes the right-hand side. Factors that each query head has its own of cost grouped heads their
sharing: K_PK then carries j, as the operand of such a kernel does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from einsight.einsum.expression import Access, Apply, Expression, Number, Symbol, accesses, conjunction, conjuncts, variables
from einsight.einsum.ir import Cascade, Einsum, Iterate, Rank, Statement, Tensor
from einsight.einsum.resolve import resolve
from einsight.einsum.splice import tensor_names


@dataclass(frozen=True, slots=True)
class Concatenation:
    """What `concatenation` found.

    cascade    the rewritten cascade: it reads the same inputs and computes the same outputs
    operands   the widened operands by name, with what they are made of: {"Q_PQ": ("Q", "PQ"), "K_PK": ("K", "PK")}
    rank       the concatenated rank and the two it joins: ("E_R", "E", "R"); None when the ranks multiply
    """

    cascade: Cascade
    operands: Mapping[str, tuple[str, str]]
    rank: tuple[str, str, str] | None

    def sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of the original cascade with that of the concatenated rank added."""
        found = {name.upper(): size for name, size in sizes.items()}
        if self.rank is not None and all(part in found for part in self.rank[1:]):
            joined, left, right = self.rank
            found[joined] = found[left] + found[right]
        return found

    @property
    def packed(self) -> Cascade:
        """The kernel alone: the widened operands are its inputs, laid out before it starts."""
        made = {e.name: e for e in self.cascade.einsums if e.name in self.operands}
        kept = tuple(s for s in self.cascade.statements if not (isinstance(s, Einsum) and s.name in made))
        read = {a.tensor for s in kept for e in (s.body if isinstance(s, Iterate) else (s,)) for a in accesses(e.expression)}
        wide = tuple(Tensor(name, tuple(v.upper() for v in _plain(e.output))) for name, e in made.items())
        inputs = (*wide, *(t for t in self.cascade.inputs if t.name in read))
        used = {r for t in (*inputs, *self.cascade.outputs) for r in t.ranks}
        ranks = tuple(r for r in self.cascade.ranks if not _joined_only(r, self.rank) or r.name in used)
        return replace(self.cascade, inputs=inputs, statements=kept, ranks=ranks)


def concatenate(cascade: Cascade) -> Cascade:
    """The cascade with every bias that is a contraction folded into the contraction of the score; itself if there is none.

    Sizes of the result: those of the cascade and, for each fold, the size E + R of the rank E_R (`concatenation`).
    """
    while (found := concatenation(cascade)) is not None:
        cascade = found.cascade
    return cascade


@lru_cache(maxsize=256)
def concatenation(cascade: Cascade) -> Concatenation | None:
    """The first fold of a composed cascade, with what it does to ranks and operands; None where there is nothing to fold.

    A fold needs a sum (or product) of two tensors, each the `+`-contraction of two inputs over one rank, read nowhere
    else.
    """
    resolved = resolve(cascade)
    for einsum, block in resolved.placed():
        if (site := _site(resolved, einsum, block)) is not None:
            return _folded(resolved, site)
    return None


# -- where ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Contraction:
    """`C[i,k] = left[i,..,rank] * right[k,..,rank]`, summed over `rank` only."""

    einsum: Einsum
    left: Access
    right: Access
    rank: str


@dataclass(frozen=True, slots=True)
class _Site:
    """`einsum` joins `first` and `second`; `pairs`: the operands that walk the same positions."""

    einsum: Einsum
    block: Iterate | None
    first: _Contraction
    second: _Contraction
    pairs: tuple[tuple[Access, Access], ...]


def _site(cascade: Cascade, einsum: Einsum, block: Iterate | None) -> _Site | None:
    match einsum.expression:
        case Apply(op="+" | "*", args=(Access() as one, Access() as two)) if not einsum.reduced and one.tensor != two.tensor:
            pass
        case _:
            return None
    found = [_contraction(cascade, access, einsum.name, block) for access in (one, two)]
    if found[0] is None or found[1] is None:
        return None
    first, second = found[0], found[1]
    for left, right in ((second.left, second.right), (second.right, second.left)):
        if _same_positions(cascade, first.left, left, first, second) and _same_positions(
            cascade, first.right, right, first, second
        ):
            return _Site(einsum, block, first, second, ((first.left, left), (first.right, right)))
    return None


def _contraction(cascade: Cascade, read: Access, reader: str, block: Iterate | None) -> _Contraction | None:
    """The contraction that computes what is read, when nothing else needs its result and its operands lie ready."""
    producer = next(((e, b) for e, b in cascade.placed() if e.name == read.tensor), None)
    if producer is None or producer[1] != block or producer[0].output.indices != read.indices:
        return None
    einsum = producer[0]
    others = [e for e in cascade.einsums if e.name != reader and read.tensor in {a.tensor for a in e.reads}]
    if others or read.tensor in {t.name for t in cascade.outputs} or len(einsum.reduced) != 1:
        return None
    (reduced,) = einsum.reduced
    match einsum.expression:
        case Apply(op="*", args=(Access() as left, Access() as right)):
            read_plainly = all(_ranks(cascade, a) and a.indices.count(Symbol(reduced)) == 1 for a in (left, right))
            free = all(reduced not in variables(c) for c in conjuncts(einsum.predicate))
            once = all(sum(reduced in variables(i) for i in a.indices) == 1 for a in (left, right))
            if read_plainly and free and once and einsum.reducer(reduced) == "+":
                return _Contraction(einsum, left, right, reduced)
    return None


def _same_positions(cascade: Cascade, a: Access, b: Access, first: _Contraction, second: _Contraction) -> bool:
    """Whether two operands are read at the same element of every rank that both have, and share more than outer ranks."""
    at, other = _positions(cascade, a, first.rank), _positions(cascade, b, second.rank)
    shared = at.keys() & other.keys()
    inner = {r for r in (*at, *other) if r not in ("B", "G", "J")}
    return inner <= shared and all(at[r] == other[r] for r in shared)


def _positions(cascade: Cascade, access: Access, reduced: str) -> dict[str, Expression]:
    """Rank -> index, the contracted rank left out."""
    ranks = _ranks(cascade, access)
    return {r: i for r, i in zip(ranks, access.indices, strict=True) if i != Symbol(reduced)}


def _ranks(cascade: Cascade, access: Access) -> tuple[str, ...]:
    """Ranks of an input, or of what an earlier fold made; empty for anything else."""
    for tensor in cascade.inputs:
        if tensor.name == access.tensor:
            return tensor.ranks
    made = next((e for e, b in cascade.placed() if e.name == access.tensor and b is None), None)
    if made is None or len(tuple(_plain(made.output))) != len(made.output.indices) or made.predicate is not None:
        return ()
    return tuple(v.upper() for v in _plain(made.output))


def _rank_of(cascade: Cascade, access: Access, reduced: str) -> str:
    return _ranks(cascade, access)[access.indices.index(Symbol(reduced))]


# -- the rewrite ------------------------------------------------------------------------------------------------------


def _folded(cascade: Cascade, site: _Site) -> Concatenation:
    taken = tensor_names(cascade) | {r.name for r in cascade.ranks}
    left, right = (_rank_of(cascade, c.left, c.rank) for c in (site.first, site.second))
    assert isinstance(site.einsum.expression, Apply)
    adds = site.einsum.expression.op == "+"
    joined = _fresh(f"{left}_{right}", taken) if adds else ""
    made: list[Einsum] = []
    reads: list[Access] = []
    operands: dict[str, tuple[str, str]] = {}
    for a, b in site.pairs:
        name = _fresh(f"{a.tensor}_{b.tensor}", taken | set(operands))
        at, other = _positions(cascade, a, site.first.rank), _positions(cascade, b, site.second.rank)
        order = [r for r in ("B", "G", "J") if r in at or r in other] + [r for r in at if r not in ("B", "G", "J")]
        operands[name] = (a.tensor, b.tensor)
        made.append(_joined(cascade, name, a, b, order, left, right, joined))
        new = (joined,) if adds else (left, right)
        reads.append(Access(name, (*((at.get(r) or other[r]) for r in order), *(Symbol(r.lower()) for r in new))))
    clauses = [c for e in (site.first.einsum, site.second.einsum, site.einsum) for c in conjuncts(e.predicate)]
    wide = Einsum(site.einsum.output, Apply("*", (reads[0], reads[1])), (), conjunction(tuple(clauses)))
    gone = {site.first.einsum.name, site.second.einsum.name}
    statements = tuple(_without(cascade, gone, wide, made))
    ranks = (*cascade.ranks, Rank(joined)) if adds else cascade.ranks
    rewritten = replace(cascade, name=f"{cascade.name}_concatenated", ranks=ranks, statements=statements)
    return Concatenation(rewritten, operands, (joined, left, right) if adds else None)


def _joined(
    cascade: Cascade, name: str, a: Access, b: Access, order: list[str], left: str, right: str, joined: str
) -> Einsum:
    """`Q_PQ[m,e_r] = select(e_r < E, Q[m,min(e_r,E-1)], PQ[m,max(e_r-E,0)])`, or the product over both ranks."""
    position: Mapping[str, Expression] = {r: Symbol(r.lower()) for r in order}
    if not joined:
        at = {**position, left: Symbol(left.lower()), right: Symbol(right.lower())}
        product = Apply("*", (_read(cascade, a, at), _read(cascade, b, at)))
        return Einsum(Access(name, tuple(at[r] for r in (*order, left, right))), product)
    c, width = Symbol(joined.lower()), Symbol(left)
    first = Apply("min", (c, Apply("-", (width, Number(1.0)))))
    second = Apply("max", (Apply("-", (c, width)), Number(0.0)))
    chosen = Apply("select", (
        Apply("<", (c, width)), _read(cascade, a, {**position, left: first}), _read(cascade, b, {**position, right: second}),
    ))  # fmt: skip
    return Einsum(Access(name, (*(position[r] for r in order), c)), chosen)


def _read(cascade: Cascade, access: Access, at: Mapping[str, Expression]) -> Access:
    return Access(access.tensor, tuple(at[r] for r in _ranks(cascade, access)))


def _without(cascade: Cascade, gone: set[str], wide: Einsum, made: list[Einsum]) -> Iterator[Statement]:
    """The statements without the two contractions, the wide one in place of their sum, its operands made before it."""

    def kept(einsums: tuple[Einsum, ...]) -> tuple[Einsum, ...]:
        return tuple(wide if e.name == wide.name else e for e in einsums if e.name not in gone)

    for statement in cascade.statements:
        members = statement.body if isinstance(statement, Iterate) else (statement,)
        if any(isinstance(e, Einsum) and e.name == wide.name for e in members):
            yield from made
        if isinstance(statement, Iterate):
            yield replace(statement, body=kept(statement.body))
        elif not isinstance(statement, Einsum):
            yield statement
        else:
            yield from kept((statement,))


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{name}_"
    return name


def _plain(output: Access) -> Iterator[str]:
    return (i.name for i in output.indices if isinstance(i, Symbol))


def _joined_only(rank: Rank, joined: tuple[str, str, str] | None) -> bool:
    return joined is not None and rank.name in joined[1:]
