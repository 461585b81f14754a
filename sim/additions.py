"""What a workload adds to its cascade: fragments with values for their own ranks and scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einsight.einsum.compose import own_ranks
from einsight.einsum.expression import Access, Apply, walk
from einsight.einsum.ir import Cascade


class WorkloadError(ValueError):
    """A workload that cannot be. `field` is the dotted place in the written form, such as `sizes.g`."""

    def __init__(self, field: str, found: str, expected: str, hint: str = "") -> None:
        self.field, self.found, self.expected, self.hint = field, found, expected, hint
        super().__init__(field, found, expected, hint)

    def __str__(self) -> str:
        return f"{self.field}: found {self.found}; expected {self.expected}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True, slots=True)
class Addition:
    """A fragment that the workload adds to its cascade, with values for its own ranks and unshared scalars.

    kind         name of a library fragment, or the path of a fragment file
    parameters   lower-case names: {"r": 16} for a rank R, {"cap": 50.0} for a scalar CAP[]
    """

    kind: str
    parameters: tuple[tuple[str, float], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **dict(self.parameters)}

    def canonical(self, fragment: Cascade) -> dict[str, Any]:
        """As the key takes it: under the fragment's own name, sizes whole and scalars as floats (50 and 50.0 are one cap)."""
        ranks = {r.name.lower() for r in fragment.ranks}
        return {"kind": fragment.name, **{k: v if k in ranks else float(v) for k, v in self.parameters}}


def additions_from(spec: Any) -> tuple[Addition, ...]:
    """Fragments from their written form: a name, a mapping with `kind` and parameters, or a list of these."""
    if isinstance(spec, str | Mapping | Addition):
        spec = [spec]
    if not isinstance(spec, Sequence):
        raise WorkloadError("bias", repr(spec), "a fragment such as {kind: alibi}, or a list of them")
    return tuple(_addition(f"bias[{k}]" if len(spec) > 1 else "bias", item) for k, item in enumerate(spec))


def _addition(place: str, item: Any) -> Addition:
    if isinstance(item, Addition):
        return item
    if isinstance(item, str):
        return Addition(item)
    if not isinstance(item, Mapping) or not isinstance(item.get("kind"), str):
        raise WorkloadError(place, repr(item), "a fragment such as {kind: softcap, cap: 50.0}")
    for name, value in item.items():
        if name != "kind" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise WorkloadError(f"{place}.{name}", repr(value), "a number")
    return Addition(item["kind"], tuple(sorted((k, v) for k, v in item.items() if k != "kind")))


def check_parameters(place: str, added: Addition, fragment: Cascade) -> None:
    """Raises WorkloadError: own ranks must be given, scalars that no head carries may be, nothing else exists."""
    ranks = [name.lower() for name in own_ranks(fragment)]
    scalars = [t.name.lower() for t in fragment.inputs if not t.ranks and t.outer == ()]
    given = dict(added.parameters)
    for name in given:
        if name not in (*ranks, *scalars):
            expected = f"one of {', '.join((*ranks, *scalars))}" if (*ranks, *scalars) else "no parameter"
            raise WorkloadError(f"{place}.{name}", f"parameter {name}", f"{expected} (fragment {added.kind})")
    for name in scalars:
        if given.get(name) == 0 and name.upper() in _divisors(fragment):
            raise WorkloadError(f"{place}.{name}", "0", f"another number: fragment {added.kind} divides by it")
    for rank in ranks:
        if not isinstance(given.get(rank, 0), int) or given.get(rank, 0) < 1:
            found = f"{rank}: {given[rank]}" if rank in given else f"fragment {added.kind} without {rank}"
            raise WorkloadError(place, found, f"{rank} (the size of its rank {rank.upper()}), at least 1")


def _divisors(fragment: Cascade) -> frozenset[str]:
    """Tensors that stand alone below a division."""
    nodes = (node for einsum in fragment.einsums for node in walk(einsum.expression))
    below = (node.args[1] for node in nodes if isinstance(node, Apply) and node.op == "/")
    return frozenset(node.tensor for node in below if isinstance(node, Access))
