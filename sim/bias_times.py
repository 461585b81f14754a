"""What a bias costs on a target: the matrix, its factors and no bias at all, as workloads that `predict` takes.

Factors run in two ways. In one kernel with two contractions per tile the fragment `low_rank` is the bias. Concatenated,
`[Q | PQ]` and `[K | PK]` are the operands of any unbiased kernel with dimension E + R (`einsum.concatenate`); factors of a
query head's own then cost grouped heads the sharing of K and V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from einsight.sim.additions import Addition
from einsight.sim.mapping import Mapping as Tiles
from einsight.sim.predict import predict
from einsight.sim.prediction import Prediction
from einsight.sim.workload import Workload

GRANULE = 16
"""Ranks up to the next multiple of 16 run alike: tensor cores contract 16 at a time, kernels pad the rank to it."""
MOST = 1024
"""Largest rank that is tried."""


def dense_kind(per_sequence: bool, per_head: bool) -> str:
    """The fragment of a bias matrix that is one per sequence, one per head, both, or one for all."""
    if not per_head:
        return "dense_bias_by_batch" if per_sequence else "dense_bias_shared"
    return "dense_bias_unshared" if per_sequence else "dense_bias"


def with_matrix(plain: Workload, kind: str = "dense_bias") -> Workload:
    """The workload with its bias read as a matrix."""
    return replace(plain, name=f"{plain.name}, dense bias", bias=(Addition(kind), *plain.bias))


def with_factors(plain: Workload, rank: int) -> Workload:
    """The workload with its bias as factors, a second contraction of the same kernel; rank 0 is no bias."""
    if not rank:
        return plain
    added = Addition("low_rank", (("r", rank),))
    return replace(plain, name=f"{plain.name}, rank {rank}", bias=(added, *plain.bias))


def concatenated(plain: Workload, rank: int) -> Workload:
    """The workload with its bias as further columns of Q and K, in an unbiased kernel."""
    wide = {**plain.sizes, "e": plain.sizes["e"] + rank, "g": plain.sizes["h"], "j": 1} if rank else plain.sizes
    return replace(plain, name=f"{plain.name}, rank {rank} concatenated", sizes=wide)


FORMS: Mapping[str, Callable[[Workload, int], Workload]] = {"low_rank": with_factors, "concatenated": concatenated}
"""The ways of running factors."""


@dataclass(frozen=True, slots=True)
class BiasTimes:
    """Predictions on one target.

    low_rank           the faster of the two forms at this rank; `form` names it
    computed           the bias made in the kernel from positions or a table, where its kind allows that
    break_even_rank    the largest rank, every smaller one included, at which factors beat the matrix; 0 when none does
    capped             the search ended there: no rank that the shape can have is slower
    curve              (rank, seconds) of the faster form, up to and past the break-even
    """

    target: str
    rank: int
    none: Prediction
    dense: Prediction
    forms: Mapping[str, Prediction]
    computed: Prediction | None
    break_even_rank: int
    capped: bool
    curve: tuple[tuple[int, float], ...]

    @property
    def form(self) -> str:
        return min(self.forms, key=lambda name: self.forms[name].time_s)

    @property
    def low_rank(self) -> Prediction:
        return self.forms[self.form]

    @property
    def useful(self) -> bool:
        """Whether factors of this rank are predicted to be faster than the matrix."""
        return self.rank <= self.break_even_rank

    @property
    def memory_bytes_saved(self) -> float:
        """Bytes of the farthest memory that factors spare."""
        first = next(iter(self.dense.bytes_by_memory))
        return self.dense.bytes_by_memory[first] - self.low_rank.bytes_by_memory[first]

    def as_json(self) -> dict[str, Any]:
        return {
            "none_s": self.none.time_s,
            "dense_s": self.dense.time_s,
            "low_rank_s": self.low_rank.time_s,
            "computed_s": None if self.computed is None else self.computed.time_s,
            "form": self.form,
            "forms_s": {name: p.time_s for name, p in self.forms.items()},
            "rank": self.rank,
            "speedup": self.dense.time_s / self.low_rank.time_s,
            "useful": self.useful,
            "bytes_saved": self.memory_bytes_saved,
            "bounds": {"none": self.none.bound.name, "dense": self.dense.bound.name, "low_rank": self.low_rank.bound.name},
            "curve": [{"rank": rank, "time_s": time} for rank, time in self.curve],
        }


def bias_times(
    plain: Workload, rank: int, target: str, kind: str = "dense_bias", computed: Addition | None = None,
    mapping: Tiles | None = None,
) -> BiasTimes:  # fmt: skip
    """Times of the workload without a bias, with the matrix and with factors of `rank`. Raises what `predict` raises.

    kind      fragment that reads the matrix (`dense_kind`)
    computed  fragment that makes the bias in the kernel
    """

    def at(workload: Workload) -> Prediction:
        return predict(workload, target, mapping=mapping)

    dense = at(with_matrix(plain, kind))

    def time(r: int) -> float:
        return min(at(form(plain, r)).time_s for form in FORMS.values())

    most = min(plain.sizes["m"], plain.sizes["n"], MOST)
    curve = list(_until_slower(time, dense.time_s, most))
    best = _break_even(time, dense.time_s, curve)
    forms = {name: at(form(plain, rank)) for name, form in FORMS.items()}
    made = None if computed is None else at(replace(plain, name=f"{plain.name}, computed", bias=(computed, *plain.bias)))
    return BiasTimes(target, rank, at(plain), dense, forms, made, best, best == most, tuple(curve))


def _until_slower(time: Callable[[int], float], limit: float, most: int) -> Iterator[tuple[int, float]]:
    """(rank, time) at multiples of the granule, to two past the first that is slower than the limit."""
    slower = 0
    for rank in range(GRANULE, most + GRANULE, GRANULE):
        rank = min(rank, most)
        taken = time(rank)
        yield rank, taken
        slower += taken >= limit
        if slower > 2:
            return


def _break_even(time: Callable[[int], float], limit: float, curve: list[tuple[int, float]]) -> int:
    """The last rank before the first that is not faster, found within its granule by halving."""
    low = 0
    for rank, taken in curve:
        if taken < limit:
            low = rank
            continue
        high = rank
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if time(middle) < limit else (low, middle)
        return low
    return low
