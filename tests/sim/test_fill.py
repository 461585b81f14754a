"""What a stream from HBM costs once: beside the bytes, not with them, and nothing where L2 holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from einsight.sim.family import Family, load_family
from einsight.sim.hardware import Quantity, load_gpu
from einsight.sim.rows import Rows, times

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
