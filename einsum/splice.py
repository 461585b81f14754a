"""Splicing: a fragment's Einsums, rewritten in the indices of the host, behind the tensor that the host marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from einsight.einsum.expression import Access, Apply, Expression, Symbol, accesses, rewrite, substitute, variables
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Mark, Reduction, Statement, rewrite_statement

ROLES = {
    "score": "one value per query and key, which a mask, a bias or a softcap acts on",
    "denominator": "a sum over the keys, by which the output is divided",
    "maximum": "the row maximum that is subtracted before exp",
    "slope": "the gradient of the score, from which those of the operands follow",
}
"""What the marks of a cascade stand for."""


class IllegalComposition(ValueError):  # noqa: N818  (an answer with a reason, not a fault)
    """The cascade cannot carry what is asked of it; the message says why."""


def host_mark(host: Cascade, fragment: Cascade) -> Access:
    """The host's access that the fragment extends. Raises IllegalComposition when the host lacks a mark it needs."""
    if fragment.extends is None:
        raise IllegalComposition(f"{fragment.name} is a cascade; expected a fragment (with an `extends` line)")
    extended = _required(host, fragment, fragment.extends, "extends")
    for wanted in fragment.reads:
        _required(host, fragment, wanted, "reads")
    if host.mark("slope") and not _adds(fragment):
        raise IllegalComposition(
            f"{host.name} computes gradients, and fragment {fragment.name} does more than add to the {fragment.extends.role}: "
            "its own derivative would be missing; write it into a cascade of its own"
        )
    return extended


def _adds(fragment: Cascade) -> bool:
    """Whether the fragment's new mark is the extended tensor plus or minus something without it: a derivative of 1."""
    assert fragment.extends is not None
    mark, extended = fragment.mark(fragment.extends.role), fragment.extends.access
    made = next((e for e in fragment.einsums if mark is not None and e.name == mark.tensor), None)
    others = (a.tensor for e in fragment.einsums if e is not made for a in e.reads)
    if made is None or extended.tensor in others or made.reduced:
        return False
    match made.expression:
        case Apply(op="+" | "-", args=(Access() as first, rest)):
            return first == extended and all(a.tensor != extended.tensor for a in accesses(rest))
    return False


def _required(host: Cascade, fragment: Cascade, wanted: Mark, verb: str) -> Access:
    if (found := host.mark(wanted.role)) is None:
        raise IllegalComposition(
            f"{host.name} marks no {wanted.role} ({ROLES[wanted.role]}), and fragment {fragment.name} {verb} it"
        )
    return found


def splice(host: Cascade, fragment: Cascade, mark: Access) -> tuple[Cascade, tuple[str, ...]]:
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


def own_ranks(fragment: Cascade) -> tuple[str, ...]:
    """Ranks that a fragment brings, all but those of the marks it hangs on. A composition has them behind the host's,
    fragment by fragment and under another name where the host has that one already."""
    assert fragment.extends is not None
    common = {v.upper() for mark in (fragment.extends, *fragment.reads) for v in variables(mark.access)}
    return tuple(r.name for r in fragment.ranks if r.name not in common)


def _with_names_of_its_own(fragment: Cascade, host: Cascade) -> Cascade:
    """Tensors, lets and ranks of the fragment that the host also has get the fragment's name in front.

    The ranks of the marks are the host's own: they are what the fragment hangs on.
    """
    prefix = fragment.name.upper()
    tensors = _fresh(prefix, sorted(tensor_names(fragment)), tensor_names(host))
    sizes = {r.name for r in host.ranks} | {let.name for let in host.lets}
    ranks = _fresh(prefix, own_ranks(fragment), sizes)
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
    own, used = tuple(names), set(taken)
    renamed = {}
    for name in own:
        if name in used:
            new = f"{prefix}_{name}"
            while new in used or new in own:
                new = f"{prefix}_{new}"
            renamed[name] = new
    return renamed


def tensor_names(cascade: Cascade) -> set[str]:
    """Inputs, outputs and everything computed."""
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
