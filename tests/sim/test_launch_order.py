"""What the order of a grid's blocks leaves in L2: fetches against a simulated cache, and FlashAttention-2's order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from einsight.einsum.ir import Tensor
from einsight.sim.estimate import estimate
from einsight.sim.family import load_family
from einsight.sim.hardware import load_gpu
from einsight.sim.mask import Causal, Mask, Window
from einsight.sim.rows import attention_plan
from einsight.sim.traffic import Cache, Grid, fetches

SIZES = {"B": 3, "G": 2, "J": 4, "M": 5, "N": 6}
KEYS, QUERIES = Tensor("K", ("B", "G", "N")), Tensor("Q", ("B", "G", "J", "M"))


def grid(order: tuple[str, ...]) -> Grid:
    """One block at a time, no mask: every block reads the keys of its head."""
    one, sizes = np.ones(()), {r: np.array(float(n)) for r, n in SIZES.items()}
    extents = [(rank, sizes[rank]) for rank in (*order, "M")]
    return Grid(extents, [(KEYS, 1.0), (QUERIES, 1.0)], sizes, one, one, sizes["M"], one)


def simulated(order: tuple[str, ...], capacity: int) -> float:
    """Fetches per element of the keys from a cache that keeps what was used last."""
    held: OrderedDict[tuple[object, ...], int] = OrderedDict()
    fetched = 0
    for at in product(*(range(SIZES[rank]) for rank in (*order, "M"))):
        place = dict(zip((*order, "M"), at, strict=True))
        for item, size in ((("K", place["B"], place["G"]), SIZES["N"]), (("Q", *at), 1)):
            if item not in held:
                fetched += size if item[0] == "K" else 0
                held[item] = size
            held.move_to_end(item)
        while sum(held.values()) > capacity:
            held.popitem(last=False)
    return fetched / (SIZES["N"] * SIZES["B"] * SIZES["G"])


@pytest.mark.parametrize("order", [("B", "G", "J"), ("G", "J", "B"), ("J", "B", "G")])
@pytest.mark.parametrize("capacity", [3, 9, 14, 40, 75, 200])
def test_fetches_are_those_of_a_cache_that_keeps_what_was_used_last(order: tuple[str, ...], capacity: int) -> None:
    """Every tile reads all keys of its head, which are in use all the time where no other sequence runs in between."""
    found = float(fetches(KEYS, 1.0, grid(order), "N", Cache(float(capacity), usable=1.0, ramp=1e-9)))
    assert found == pytest.approx(simulated(order, capacity))


def test_heads_of_a_group_read_their_keys_again_once_a_round_of_all_sequences_passes_l2() -> None:
    """FlashAttention-2 on L40S (96 MiB), head dimension 128, a window: a round of 32,768 tokens is 32 MiB, of 262,144 256."""
    family = replace(load_family("flash2"), fits=())
    gpu = load_gpu("l40s")

    def fetched(tokens: int, order: tuple[str, ...]) -> float:
        sizes = {"B": tokens // 8192, "G": 1, "J": 8, "M": 8192, "N": 8192, "E": 128, "F": 128}
        one = {rank: np.array([float(n)]) for rank, n in sizes.items()}
        mask = Mask((Causal(), Window(128)))
        found = estimate(attention_plan("bf16", "bf16", "bf16"), mask, one, False, gpu, replace(family, order=order))
        return float(found.kernels[0].hbm_bytes[0]) / (tokens * 128 * 2)

    queries_and_results, keys_and_values = 16.0, 2.0
    assert family.order == ("G", "J", "B")
    assert fetched(32768, ("G", "J", "B")) == pytest.approx(queries_and_results + keys_and_values, rel=0.01)
    assert fetched(262144, ("G", "J", "B")) == pytest.approx(queries_and_results + 8 * keys_and_values, rel=0.01)
    assert fetched(262144, ("B", "G", "J")) == pytest.approx(queries_and_results + keys_and_values, rel=0.01)
