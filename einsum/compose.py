"""Composition: a base cascade, the fragments a workload adds to it, its mask and its outer ranks, as one plain cascade.

    compose(load("one_pass"), [fragment("alibi"), fragment("softcap")], mask=causal)

A fragment says `extends score S[m,n]` and ends in a new mark, `score SB[m,n]`. Splicing puts its Einsums right after
the host's marked tensor and lets everything that read that tensor read the fragment's mark. In a host whose score is
written BQK[n1,n0,m] the fragment's own tensors get the same indices, and its inputs are read at the position
n1*N0+n0 in place of n.

A mask is a predicate over positions. It goes to the Einsum that produces the score; readers inherit it (`resolve`), and
what a fragment computes per score element without reading it, such as a low-rank bias, is restricted in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from einsight.einsum.expression import (
    Access,
    Apply,
    Expression,
    Symbol,
    accesses,
    conjunction,
    conjuncts,
    rewrite,
    substitute,
    variables,
)
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Mark, Rank, Reduction, Statement, rewrite_statement
from einsight.einsum.resolve import resolve

OUTER_RANKS = ("B", "G", "J")
"""Batch, head of K and V, query head within its group: MHA has J = 1, MQA has G = 1."""

QUERY_RANK = "M"

_ROLES = {
    "score": "one value per query and key, which a mask, a bias or a softcap acts on",
    "denominator": "a sum over the keys, by which the output is divided",
    "maximum": "the row maximum that is subtracted before exp",
}


class IllegalComposition(ValueError):  # noqa: N818  (an answer with a reason, not a fault)
    """The cascade cannot carry what is asked of it; the message says why."""


def compose(
    base: Cascade,
    fragments: Sequence[Cascade] = (),
    mask: Expression | None = None,
    outer: bool = True,
    shared: Mapping[str, Iterable[str]] | None = None,
) -> Cascade:
    """The cascade with fragments spliced in, in the order given, then masked, then with outer ranks b, g, j.

    mask    predicate over the positions of the score's ranks (m, n) and over sizes; None leaves the cascade dense
    outer   make batch and head ranks explicit in every tensor: one that walks a query rank and every output carries
            b, g, j, any other input b, g, what `over` says in the file goes before; intermediates carry what they read
    shared  outer ranks that a tensor does not carry in this workload, by tensor name: {"B": ["b"]} for a bias that is
            the same for the whole batch

    Raises IllegalComposition.
    """
    if base.extends is not None:
        raise IllegalComposition(f"{base.name} is a fragment; expected a cascade to compose it with")
    cascade = base
    spliced: list[tuple[Access, str]] = []
    for fragment in fragments:
        mark = _host_mark(cascade, fragment)
        cascade, names = _splice(cascade, fragment, mark)
        spliced += [(mark, name) for name in names]
    if mask is not None:
        cascade = _masked(cascade, mask, base.mark("score"))
    for mark, name in spliced:
        cascade = _restricted(cascade, name, mark.tensor)
    if outer:
        return _with_outer_ranks(cascade, shared or {})
    if shared:
        raise IllegalComposition(f"{base.name} is composed without outer ranks, so {', '.join(shared)} can share none")
    return cascade


def position_names(cascade: Cascade) -> tuple[str, ...]:
    """Position variables that a mask of this cascade may use, one per rank that its score walks: ('m', 'n')."""
    score = cascade.mark("score")
    walked = variables(score) if score else frozenset()
    return tuple(r.variable for r in cascade.ranks if cascade.position(r.name, walked) is not None)


# -- splicing -----------------------------------------------------------------------------------------------------


def _host_mark(host: Cascade, fragment: Cascade) -> Access:
    if fragment.extends is None:
        raise IllegalComposition(f"{fragment.name} is a cascade; expected a fragment (with an `extends` line)")
    extended = _required(host, fragment, fragment.extends, "extends")
    for wanted in fragment.reads:
        _required(host, fragment, wanted, "reads")
    return extended


def _required(host: Cascade, fragment: Cascade, wanted: Mark, verb: str) -> Access:
    if (found := host.mark(wanted.role)) is None:
        raise IllegalComposition(
            f"{host.name} marks no {wanted.role} ({_ROLES[wanted.role]}), and fragment {fragment.name} {verb} it"
        )
    return found


def _splice(host: Cascade, fragment: Cascade, mark: Access) -> tuple[Cascade, tuple[str, ...]]:
    """The host with the fragment in it, and the names of the Einsums that came with the fragment."""
    assert fragment.extends is not None
    role = fragment.extends.role
    fragment = _with_names_of_its_own(fragment, host)
    graft = _Graft.of(host, fragment, mark)
    new_mark = fragment.mark(role)
    if new_mark is None:
        raise IllegalComposition(f"fragment {fragment.name} extends the {role} but does not end in a new `{role}` line")
    body = tuple(graft.einsum(e) for e in fragment.einsums)
    result = graft.access(new_mark)
    statements = _inserted(host, fragment, mark, body, result)
    host_ranks = {r.name for r in host.ranks}
    composed = replace(
        host,
        name=f"{host.name}_{fragment.name}",
        paper="; ".join(p for p in (host.paper, fragment.paper) if p),
        stable=host.stable and fragment.stable,
        ranks=(*host.ranks, *(r for r in fragment.ranks if r.name not in host_ranks)),
        inputs=(*host.inputs, *fragment.inputs),
        lets=(*host.lets, *(replace(let, expression=graft.expression(let.expression)) for let in fragment.lets)),
        statements=statements,
        marks=tuple(Mark(role, result) if m.role == role else m for m in host.marks),
    )
    return composed, tuple(e.name for e in body)


def _with_names_of_its_own(fragment: Cascade, host: Cascade) -> Cascade:
    """Tensors, lets and ranks of the fragment that the host also has get the fragment's name in front.

    The ranks of the marks are the host's own: they are what the fragment hangs on.
    """
    assert fragment.extends is not None
    prefix = fragment.name.upper()
    common = {v.upper() for mark in (fragment.extends, *fragment.reads) for v in variables(mark.access)}
    tensors = _fresh(prefix, [*(t.name for t in fragment.inputs), *(e.name for e in fragment.einsums)], _tensors(host))
    sizes = {r.name for r in host.ranks} | {let.name for let in host.lets}
    ranks = _fresh(prefix, [r.name for r in fragment.ranks if r.name not in common], sizes)
    symbols = ranks | _fresh(prefix, [let.name for let in fragment.lets], sizes)
    symbols |= {old.lower(): new.lower() for old, new in ranks.items()}

    def change(node: Expression) -> Expression:
        if isinstance(node, Access):
            return replace(node, tensor=tensors.get(node.tensor, node.tensor))
        return replace(node, name=symbols.get(node.name, node.name)) if isinstance(node, Symbol) else node

    def renamed(mark: Mark) -> Mark:
        access = rewrite(mark.access, change)
        assert isinstance(access, Access)
        return replace(mark, access=access)

    def statement(einsum: Einsum) -> Einsum:
        reductions = tuple(Reduction(r.op, tuple(symbols.get(v, v) for v in r.variables)) for r in einsum.reductions)
        return replace(rewrite_statement(einsum, change), reductions=reductions)

    names = {**ranks, **{let.name: symbols.get(let.name, let.name) for let in fragment.lets}}
    return replace(
        fragment,
        ranks=tuple(replace(r, name=names.get(r.name, r.name)) for r in fragment.ranks),
        inputs=tuple(
            replace(t, name=tensors.get(t.name, t.name), ranks=tuple(names.get(r, r) for r in t.ranks))
            for t in fragment.inputs
        ),
        lets=tuple(replace(t, name=names[t.name], expression=rewrite(t.expression, change)) for t in fragment.lets),
        statements=tuple(statement(e) for e in fragment.einsums),
        marks=tuple(renamed(m) for m in fragment.marks),
        extends=fragment.extends,
        reads=fragment.reads,
    )


def _fresh(prefix: str, names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """New names for those that are taken: B -> LOW_RANK_B, and a second time LOW_RANK_LOW_RANK_B."""
    used = set(taken)
    renamed = {}
    for name in names:
        new = name
        while new in used:
            new = f"{prefix}_{new}"
        if new != name:
            renamed[name] = new
    return renamed


def _tensors(cascade: Cascade) -> set[str]:
    declared = {t.name for t in (*cascade.inputs, *cascade.outputs)}
    initial = {s.output.tensor for s in cascade.statements if isinstance(s, Initial)}
    return declared | initial | {e.name for e in cascade.einsums}


@dataclass(frozen=True, slots=True)
class _Graft:
    """How a fragment is written in the host's indices.

    positions    m, n of the fragment's marks as the host walks them: {"m": m, "n": n1*N0+n0}
    parts        the same as variables only, in the order of the host's mark: {"m": (m,), "n": (n1, n0)}
    order        the host's mark's variables in order: (n1, n0, m)
    marks        the fragment's names of the host's marked tensors, with the host's access
    own          tensors that the fragment computes
    """

    fragment: str
    positions: Mapping[str, Expression]
    parts: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]
    marks: Mapping[str, tuple[Access, Access]]
    own: frozenset[str]

    @classmethod
    def of(cls, host: Cascade, fragment: Cascade, mark: Access) -> _Graft:
        assert fragment.extends is not None
        order = tuple(i.name for i in mark.indices if isinstance(i, Symbol) and i.is_variable)
        positions, parts = {}, {}
        for index in sorted(variables(fragment.extends.access)):
            rank = index.upper()
            position = host.position(rank, frozenset(order))
            if position is None:
                raise IllegalComposition(
                    f"fragment {fragment.name} acts per {index}, but {mark.tensor} of {host.name} "
                    f"does not walk rank {rank}"
                )
            positions[index] = position
            parts[index] = tuple(v for v in order if v in variables(position))
        marks = {m.access.tensor: (m.access, host.mark(m.role) or mark) for m in fragment.reads}
        marks[fragment.extends.access.tensor] = (fragment.extends.access, mark)
        own = frozenset(e.name for e in fragment.einsums)
        return cls(fragment.name, positions, parts, order, marks, own)

    def einsum(self, einsum: Einsum) -> Einsum:
        """The fragment's Einsum over the host's variables."""
        reductions = tuple(
            Reduction(r.op, tuple(p for v in r.variables for p in self.parts.get(v, (v,)))) for r in einsum.reductions
        )
        return replace(
            einsum,
            output=self.access(einsum.output),
            expression=self.expression(einsum.expression),
            reductions=reductions,
            predicate=None if einsum.predicate is None else self.expression(einsum.predicate),
        )

    def expression(self, node: Expression) -> Expression:
        if isinstance(node, Access):
            return self.access(node)
        if isinstance(node, Apply):
            return Apply(node.op, tuple(self.expression(a) for a in node.args), node.span)
        return substitute(node, self.positions)

    def access(self, access: Access) -> Access:
        """Inputs are read at positions; marks and the fragment's own tensors take the host's indices."""
        if access.tensor in self.marks:
            named, of_host = self.marks[access.tensor]
            if named.indices != access.indices:
                raise IllegalComposition(
                    f"fragment {self.fragment} reads {access.tensor} at another element than its own line; "
                    "splicing needs the same indices as in its `extends` or `reads` line"
                )
            return of_host
        if access.tensor not in self.own:
            indices = tuple(substitute(i, self.positions) for i in access.indices)
            return replace(access, indices=indices)
        if not all(isinstance(i, Symbol) and i.is_variable for i in access.indices):
            raise IllegalComposition(
                f"fragment {self.fragment} indexes its own {access.tensor} by an expression; expected plain variables"
            )
        of_mark = {p for i in access.indices if isinstance(i, Symbol) for p in self.parts.get(i.name, ())}
        leading = tuple(Symbol(v) for v in self.order if v in of_mark)
        others = tuple(i for i in access.indices if isinstance(i, Symbol) and i.name not in self.parts)
        return replace(access, indices=(*leading, *others))


def _inserted(
    host: Cascade, fragment: Cascade, mark: Access, body: tuple[Einsum, ...], result: Access
) -> tuple[Statement, ...]:
    """The host's statements with `body` after the producer of the mark, and later reads of the mark reading `result`.

    A mark of a running tensor at its last step (RD[N1,m]) is complete after its block; any other mark of a block is
    complete within it, step by step.
    """
    where, block = _place_of_mark(host, fragment, mark)
    reader = _Rerouting(mark, result)
    if block is None:
        after = tuple(rewrite_statement(s, reader.change) for s in host.statements[where + 1 :])
        statements: tuple[Statement, ...] = (*host.statements[: where + 1], *body, *after)
    else:
        _check_within_step(host, fragment, block, body)
        names = [e.name for e in block.body]
        last = max(names.index(n) for n in _needed(fragment, host, mark) if n in names)
        steps = [e if e.name == mark.tensor else rewrite_statement(e, reader.change) for e in block.body]
        block = replace(block, body=(*steps[: last + 1], *body, *steps[last + 1 :]))
        after = tuple(rewrite_statement(s, reader.change) for s in host.statements[where + 1 :])
        statements = (*host.statements[:where], block, *after)
    if not reader.found:
        raise IllegalComposition(
            f"nothing in {host.name} reads {mark.tensor} once it is complete (it is used inside the loop only), "
            f"so fragment {fragment.name} would have no effect"
        )
    return statements


def _needed(fragment: Cascade, host: Cascade, mark: Access) -> tuple[str, ...]:
    reads = (host.mark(m.role) for m in fragment.reads)
    return (mark.tensor, *(m.tensor for m in reads if m is not None))


def _place_of_mark(host: Cascade, fragment: Cascade, mark: Access) -> tuple[int, Iterate | None]:
    """Number of the statement after which (or, with a block, inside which) all that the fragment reads is there."""
    places = []
    inside: Iterate | None = None
    for name in _needed(fragment, host, mark):
        for number, statement in enumerate(host.statements):
            if isinstance(statement, Iterate) and any(e.name == name for e in statement.body):
                places.append(number)
                if name == mark.tensor and statement.variable in variables(mark):
                    inside = statement
            elif isinstance(statement, Einsum) and statement.name == name:
                places.append(number)
    if not places:
        raise IllegalComposition(f"{host.name} marks {mark.tensor}, but no Einsum computes it")
    if inside is not None:
        for role, access in ((m.role, host.mark(m.role)) for m in fragment.reads):
            if access is not None and inside.variable not in variables(access):
                raise IllegalComposition(
                    f"fragment {fragment.name} acts on {mark.tensor} inside the loop of {host.name} and reads the "
                    f"{role}, which is complete only after it"
                )
    return max(places), inside


def _check_within_step(host: Cascade, fragment: Cascade, block: Iterate, body: Iterable[Einsum]) -> None:
    for einsum in body:
        if block.variable in einsum.reduced:
            raise IllegalComposition(
                f"{einsum.name} of fragment {fragment.name} needs all steps of {block.variable} at once, "
                f"but {host.name} computes its score step by step"
            )


@dataclass(slots=True)
class _Rerouting:
    """Turns reads of the marked element into reads of the fragment's result, and notes whether there were any."""

    mark: Access
    result: Access
    found: bool = False

    def change(self, node: Expression) -> Expression:
        if not isinstance(node, Access) or node.tensor != self.mark.tensor:
            return node
        values: dict[str, Expression] = {}
        for marked, read in zip(self.mark.indices, node.indices, strict=True):
            if isinstance(marked, Symbol) and marked.is_variable:
                values[marked.name] = read
            elif marked != read:
                return node
        self.found = True
        indices = tuple(substitute(i, values) for i in self.result.indices)
        return replace(node, tensor=self.result.tensor, indices=indices)


# -- masks --------------------------------------------------------------------------------------------------------


def _masked(cascade: Cascade, mask: Expression, score: Access | None) -> Cascade:
    if score is None:
        raise IllegalComposition(f"{cascade.name} has no score ({_ROLES['score']}), so it cannot be masked")
    positions: dict[str, Expression] = {}
    for variable in sorted(variables(mask)):
        position = cascade.position(variable.upper(), variables(score))
        if position is None:
            allowed = ", ".join(position_names(cascade))
            raise IllegalComposition(
                f"the mask uses {variable}, which the score of {cascade.name} does not walk; expected one of {allowed}"
            )
        positions[variable] = position
    known = _tensors(cascade)
    if foreign := [a.tensor for a in accesses(mask) if a.tensor not in known]:
        raise IllegalComposition(f"the mask reads {', '.join(foreign)}, which {cascade.name} does not have")
    return _with_clauses(cascade, score.tensor, conjuncts(substitute(mask, positions)))


def _restricted(cascade: Cascade, name: str, marked: str) -> Cascade:
    """The spliced Einsum `name` exists only where the tensor it was spliced behind does (keys past the end, mask)."""
    resolved = {e.name: e for e in resolve(cascade).einsums}
    producer, einsum = resolved.get(marked), resolved.get(name)
    if producer is None or einsum is None:  # a pure view: its readers say where they read it
        return cascade
    present = conjuncts(einsum.predicate)
    missing = tuple(
        c
        for c in conjuncts(producer.predicate)
        if variables(c) <= einsum.variables & producer.output_variables and c not in present
    )
    return _with_clauses(cascade, name, missing)


def _with_clauses(cascade: Cascade, name: str, clauses: tuple[Expression, ...]) -> Cascade:
    def change(einsum: Einsum) -> Einsum:
        if einsum.name != name:
            return einsum
        return replace(einsum, predicate=conjunction((*conjuncts(einsum.predicate), *clauses)))

    return _with_einsums(cascade, change)


def _with_einsums(cascade: Cascade, change: Callable[[Einsum], Einsum]) -> Cascade:
    def statements() -> Iterator[Statement]:
        for statement in cascade.statements:
            if isinstance(statement, Iterate):
                yield replace(statement, body=tuple(change(e) for e in statement.body))
            else:
                yield change(statement) if isinstance(statement, Einsum) else statement

    return replace(cascade, statements=tuple(statements()))


# -- outer ranks --------------------------------------------------------------------------------------------------


def _with_outer_ranks(cascade: Cascade, shared: Mapping[str, Iterable[str]]) -> Cascade:
    if clash := [r for r in OUTER_RANKS if cascade.rank(r)]:
        raise IllegalComposition(
            f"{cascade.name} already has rank {', '.join(clash)}; expected a cascade per batch and head, composed once"
        )
    carried = _carried(cascade, shared)

    def change(node: Expression) -> Expression:
        if not isinstance(node, Access):
            return node
        leading = tuple(Symbol(v) for v in carried[node.tensor])
        return replace(node, indices=(*leading, *node.indices))

    def mark(m: Mark) -> Mark:
        access = change(m.access)
        assert isinstance(access, Access)
        return replace(m, access=access)

    inputs, outputs = (
        tuple(replace(t, ranks=(*(v.upper() for v in carried[t.name]), *t.ranks), outer=None) for t in tensors)
        for tensors in (cascade.inputs, cascade.outputs)
    )
    return replace(
        cascade,
        ranks=(*(Rank(r) for r in OUTER_RANKS), *cascade.ranks),
        inputs=inputs,
        outputs=outputs,
        statements=tuple(rewrite_statement(s, change) for s in cascade.statements),
        marks=tuple(mark(m) for m in cascade.marks),
    )


def _carried(cascade: Cascade, shared: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Outer variables of each tensor, in the order b, g, j."""
    order = tuple(r.lower() for r in OUTER_RANKS)
    query = cascade.rank(QUERY_RANK)
    query_ranks = {QUERY_RANK, *(query.parts if query else ())}
    declared: dict[str, frozenset[str]] = {}
    for tensor in (*cascade.inputs, *cascade.outputs):
        everywhere = tensor in cascade.outputs or query_ranks & set(tensor.ranks)
        default = order if everywhere else order[:2]
        declared[tensor.name] = frozenset(v.lower() for v in (default if tensor.outer is None else tensor.outer))
    for name, dropped in shared.items():
        if name not in declared:
            raise IllegalComposition(f"{cascade.name} has no input {name}; expected one of {', '.join(declared)}")
        declared[name] -= {v.lower() for v in dropped}
    found: dict[str, frozenset[str]] = dict.fromkeys(_tensors(cascade), frozenset()) | declared
    changed = True
    while changed:  # a running tensor is read before the line that computes it
        changed = False
        for einsum in cascade.einsums:
            read = (*einsum.reads, *(accesses(einsum.predicate) if einsum.predicate is not None else ()))
            union = found[einsum.name].union(*(found[a.tensor] for a in read))
            if einsum.name not in declared and union != found[einsum.name]:
                found[einsum.name], changed = union, True
    return {name: tuple(v for v in order if v in vs) for name, vs in found.items()}
