"""What a bias streams: a matrix passes once, whatever the rows of a tile; factors and points are no cache of a framework's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einsight.sim.additions import Addition
from einsight.sim.bias_times import with_matrix
from einsight.sim.mapping import Mapping
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

HEADS, SEQ = 8, 4096
BYTES = HEADS * SEQ * SEQ * 2.0


def moved(memory: str, target: str, mapping: Mapping | None = None, head_dim: int = 64) -> tuple[float, float]:
    """Bytes without the bias, and what the bias adds."""
    work = Workload.attention(heads=HEADS, seq_q=SEQ, head_dim=head_dim)
    plain, biased = (predict(w, target, mapping=mapping).bytes_by_memory[memory] for w in (work, with_matrix(work)))
    return plain, biased - plain


@pytest.mark.parametrize("rows", [16, 64, 128])
def test_a_bias_is_written_to_shared_memory_once_and_read_once(rows: int) -> None:
    mapping = Mapping(block_m=rows, block_n=64, splits=1, blocks_per_sm=1)
    _, added = moved("shared memory", "a100-sxm-80gb:flash2", mapping)
    assert added == pytest.approx(2 * BYTES)
    keys, _ = moved("shared memory", "a100-sxm-80gb:flash2", mapping)
    per_key = 2 * 64 * 2.0 * HEADS * SEQ * (SEQ / rows)  # K and V, of every block of rows
    assert keys == pytest.approx(per_key * (1 + rows / 16))  # keys are read again for every 16 rows


@pytest.mark.parametrize(("target", "head_dim"), [("a100-sxm-80gb:flash2", 64), ("b200:trtllm_blackwell", 256)])
def test_a_bias_passes_the_l2_port_once_also_where_blocks_load_keys_together(target: str, head_dim: int) -> None:
    _, added = moved("L2", target, head_dim=head_dim)
    assert added == pytest.approx(BYTES)


@pytest.mark.parametrize("bias", [Addition("low_rank", (("r", 4),)), Addition("distance", (("x", 3),))])
def test_a_framework_copies_keys_and_values_and_no_factors(bias: Addition) -> None:
    """Widths that differ from those of keys launch no further kernel: at small sizes that would be most of a time."""
    work = Workload.attention(heads=4, seq_q=512, head_dim=64)
    plain, biased = (predict(replace(work, bias=b), "h100-sxm") for b in ((), (bias,)))
    launches = [next(b.time_s for b in p.bounds if b.name == "launch") for p in (plain, biased)]
    assert launches[0] == launches[1]
    assert biased.time_s < 1.2 * plain.time_s
