"""What a stream from HBM costs once: beside the bytes, not with them, and nothing where L2 holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from einsight.sim.family import Family, load_family
from einsight.sim.hardware import Quantity, load_gpu
from einsight.sim.mapping import Mapping
from einsight.sim.predict import estimate_of
from einsight.sim.rows import Rows, times
from einsight.sim.workload import Workload

GPU = load_gpu("b200")
FILL = 6e-6


def rows(keys: list[int]) -> Rows:
    n = np.array(keys, dtype=np.float64)
    one, text = np.ones_like(n), np.full(len(n), "bf16")
    return Rows(8 * one, one, n, 32 * one, 8 * one, 128 * one, 128 * one, 0 * one, 0 * one, text, text, text)


def family(fill: float) -> Family:
    found = load_family("trtllm_gen")
    given = {"fill_s": fill, "unhidden_memory": 0.0}
    changed = {name: Quantity(value, f"{value}", "assumed", "this test") for name, value in given.items()}
    return replace(found, constants={**found.constants, **changed}, fits=())


def test_a_stream_from_hbm_pays_once_whatever_its_length() -> None:
    """268 MB and 2.1 GB on 132 MB of L2."""
    far = rows([8192, 65536])
    assert times(far, GPU, family(FILL)) - times(far, GPU, family(0.0)) == pytest.approx(FILL, rel=0.02)


def test_what_l2_holds_pays_nothing() -> None:
    """34 MB, warm."""
    near = rows([1024])
    assert times(near, GPU, family(FILL)) == pytest.approx(times(near, GPU, family(0.0)))


@pytest.mark.parametrize("target", ["a100-sxm-80gb", "gb200"])
def test_more_queries_or_heads_never_thin_it_out(target: str) -> None:
    """They read the same keys again from L2: HBM has to start all the same."""
    gpu, of = load_gpu(target), replace(load_family("flash2"), fits=())
    constants = of.constants | {"fill_s": Quantity(FILL, "6 us", "assumed", "this test")}
    of, mapping = replace(of, constants=constants), Mapping(16, 64, splits=4, pack_gqa=True)

    def time(queries: int, heads: int) -> float:
        w = Workload.attention(batch=4, heads=heads, kv_heads=1, seq_q=queries, seq_kv=512, head_dim=128)
        return float(estimate_of(w, gpu, of, mapping).time_s[0])

    assert time(2, 4) <= time(8, 4) <= time(32, 4) and time(8, 4) <= time(8, 8) <= time(8, 16)
