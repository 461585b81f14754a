"""Random cascades: the analysis against the unrolled oracle.

The cascades mix pointwise Einsums, full and tile-wise reductions, shifts, fixed coordinates, a second variable over the
same tensor, loops with a running value read inside, after and at the end, and tensors with or without a query rank.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import reduce

import pass_oracle as oracle
import pytest

from einsight.einsum.expression import Access, Apply, Expression, Number, Symbol
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate, Rank, Reduction, Statement, Tensor
from einsight.einsum.passes import analyse

N, N1, N0, M = (Symbol(s) for s in ("N", "N1", "N0", "M"))
n, n1, n0, m = (Symbol(s) for s in ("n", "n1", "n0", "m"))
ONE, ZERO = Number(1.0), Number(0.0)


@dataclass(frozen=True)
class Made:
    """A tensor that later Einsums can read: what it carries of N (`point`, `tile`, `scalar`, `running`) and of M."""

    name: str
    carries: str
    query: bool


@dataclass
class Generator:
    rng: random.Random
    tiled: bool
    made: list[Made] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    shifts: int = 0
    count: int = 0
    looping: bool = False

    def whole(self) -> tuple[Expression, ...]:
        return (n1, n0) if self.tiled else (n,)

    def step(self) -> Symbol:
        return n1 if self.tiled else n

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def read(self, made: Made, reduces: bool) -> Access:
        """One read of a tensor, at the reader's coordinate or, now and then, at some other."""
        query = (m,) if made.query else ()
        if made.name in ("X", "Y"):
            return Access(made.name, (Apply("+", (Apply("*", (n1, N0)), n0)) if self.tiled else n, *query))
        if made.carries == "scalar":
            return Access(made.name, query)
        if made.carries == "tile":
            return Access(made.name, (self.rng.choice([n1] * 9 + [ZERO]), *query))
        if made.carries == "running":  # the value after this step, or the final one
            last = N1 if self.tiled else N
            return Access(made.name, (self.rng.choice([Apply("+", (self.step(), ONE)), last, last]), *query))
        chance = self.rng.random()
        if chance < 0.08:
            corners = [(ZERO, ZERO), (n1, ZERO), (ZERO, n0)] if self.tiled else [(ZERO,)]
            return Access(made.name, (*self.rng.choice(corners), *query))
        if chance < 0.16 and not self.tiled and not self.looping and self.shifts < 1:
            self.shifts += 1
            return Access(made.name, (Apply(self.rng.choice("+-"), (n, ONE)), *query))
        if chance < 0.22 and not self.tiled and not self.looping and not made.query and reduces:
            return Access(made.name, (m,))  # the same tensor under a second variable, which the reader sums
        return Access(made.name, (*self.whole(), *query))

    def value(self, kinds: tuple[str, ...], reduces: bool, count: int) -> Expression | None:
        pool = [t for t in self.made if t.carries in kinds]
        if not pool:
            return None
        pool += pool[-2:] * 2  # recent tensors more often: deeper cascades
        terms: list[Expression] = [self.read(self.rng.choice(pool), reduces) for _ in range(count)]
        return reduce(lambda a, b: Apply(self.rng.choice("+*-"), (a, b)), terms)

    def einsum(self, carries: str, kinds: tuple[str, ...]) -> Einsum | None:
        """`carries` says what the output keeps of N; whatever else the right-hand side walks is reduced."""
        query = self.rng.random() < 0.4
        value = self.value(kinds, not query, self.rng.randint(1, 3))
        if value is None:
            return None
        if isinstance(value, Access):
            value = Apply("exp", (value,))  # a bare read would be a view
        keeps = {"point": self.whole(), "tile": (n1,), "scalar": ()}[carries]
        name = self.name("T")
        output = Access(name, (*keeps, *((m,) if query else ())))
        einsum = Einsum(output, value)
        op = self.rng.choice(["+", "max"])
        if op == "max" and einsum.reduced:
            einsum = Einsum(output, value, (Reduction("max", tuple(sorted(einsum.reduced))),))
        self.made.append(Made(name, carries, query))
        return einsum

    def add(self) -> None:
        anything = ("point", "scalar", "tile", "running")
        choices: list[tuple[str, tuple[str, ...]]] = [("point", anything), ("scalar", anything)]
        choices += [("scalar", ("scalar",))]
        if self.tiled:
            choices += [("tile", ("point", "tile")), ("tile", ("tile", "scalar", "running")), ("scalar", ("tile",))]
        if self.rng.random() < 0.2:
            self.loop()
            return
        found = self.einsum(*self.rng.choice(choices))
        if found is not None:
            self.statements.append(found)

    def loop(self) -> None:
        """A running value over the rank, with Einsums that feed it and perhaps one that uses it while it runs."""
        step, after = self.step(), Apply("+", (self.step(), ONE))
        outside = [t for t in self.made if t.carries == "running"]
        self.made = [t for t in self.made if t.carries != "running"]
        self.looping = True
        body = [e for e in (self.einsum("point", ("point", "scalar")) for _ in range(self.rng.randint(0, 2))) if e]
        local, running = self.name("L"), self.name("R")
        value = self.value(("point",), False, 2)
        assert value is not None
        body.append(Einsum(Access(local, (step,)), value))  # over the tile, or the query rank, or nothing
        body.append(Einsum(Access(running, (after,)), Apply("+", (Access(running, (step,)), Access(local, (step,))))))
        if self.rng.random() < 0.6:
            points = [t for t in self.made if t.carries == "point" and t.name not in ("X", "Y")]
            if points:
                base = self.rng.choice(points)
                user = self.name("W")
                index = (*self.whole(), *((m,) if base.query else ()))
                read = Access(running, (self.rng.choice([step, after]),))
                body.append(Einsum(Access(user, index), Apply("*", (Access(base.name, index), read))))
                self.made.append(Made(user, "point", base.query))
        self.made += [*outside, Made(local, "tile" if self.tiled else "point", False), Made(running, "running", False)]
        self.looping = False
        self.statements.append(Initial(Access(running, (ZERO,)), ZERO))
        self.statements.append(Iterate(step.name, N1 if self.tiled else N, tuple(body)))

    def cascade(self) -> Cascade:
        self.made = [Made("X", "point", False), Made("Y", "point", False), Made("Q", "scalar", True)]
        for _ in range(self.rng.randint(3, 8)):
            self.add()
        ranks = (Rank("N", ("N1", "N0") if self.tiled else ()), Rank("M"))
        inputs = (Tensor("X", ("N",)), Tensor("Y", ("N",)), Tensor("Q", ("M",)))
        return Cascade("random", ranks, inputs, (), tuple(self.statements))


def random_cascade(seed: int) -> Cascade:
    rng = random.Random(seed)
    return Generator(rng, tiled=rng.random() < 0.5).cascade()


def random_sizes(cascade: Cascade) -> dict[str, int]:
    return {"N": 6, "N1": 3, "N0": 2, "M": 2} if cascade.ranks[0].parts else {"N": 6, "M": 6}


@pytest.mark.parametrize("batch", range(11))
def test_the_analysis_agrees_with_the_unrolled_oracle(batch: int) -> None:
    for seed in range(batch * 100, batch * 100 + 100):
        cascade = random_cascade(seed)
        found, expected = analyse(cascade), oracle.passes(cascade, random_sizes(cascade))
        if found.assumed:  # conservative, and says so
            assert found.passes.keys() == expected.keys(), seed
            assert all(found.passes[t] >= k for t, k in expected.items()), seed
        else:
            assert dict(found.passes) == expected, seed


def test_the_random_cascades_are_not_all_alike() -> None:
    found = [analyse(random_cascade(seed)) for seed in range(1100)]
    totals = [f.total for f in found]
    assert all(totals.count(k) >= 20 for k in (0, 1, 2, 3))
    assert sum(not f.assumed for f in found) >= 1000
