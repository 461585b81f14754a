"""A streamed tensor with an element per score, such as a bias matrix: each element passes once, whatever the rows of a tile."""

from __future__ import annotations

import pytest

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
