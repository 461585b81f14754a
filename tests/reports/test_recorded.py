"""Records as rows of a measured table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from einsight.reports.compare import compare
from einsight.reports.recorded import read_records
from einsight.tuner.record import Environment, Measurement, Status, append

HERE = Environment("NVIDIA H200", 90, 132, 1, 1, "", "", "", "", "", "")
SIZES = {"b": 1, "h": 32, "g": 8, "m": 8192, "n": 8192, "e": 128, "f": 128}
PROBLEM = {"cascade": "one_pass", "sizes": SIZES, "dtype": "bf16", "phase": "prefill", "mask": ["causal"], "cache": "warm"}


def line(seconds: float = 2e-3, cache: str = "warm", **changes: Any) -> Measurement:
    return Measurement("attention", PROBLEM | changes, {"block_m": 64}, Status.OK, cache, HERE, "2026-07-01", (seconds,))


def kept(folder: Path, *lines: Measurement) -> Path:
    for each in lines:
        append(folder / "r.jsonl", each)
    return folder / "r.jsonl"


def test_the_fastest_build_of_a_problem_is_its_row(tmp_path: Path) -> None:
    rows, left_out = read_records(kept(tmp_path, line(3e-3), line(2e-3), line(4e-3, mask=["causal", {"window": 1024}])))
    assert len(rows) == 2 and left_out == {}
    assert rows.latency_ms.tolist() == pytest.approx([2.0, 4.0]) and rows.window.tolist() == [0, 1024]
    sizes = (rows.heads_q[0], rows.heads_kv[0], rows.seq_q[0], rows.seq_kv[0], rows.head_dim[0])
    assert rows.device[0] == "NVIDIA H200" and sizes == (32, 8, 8192, 8192, 128)
    assert compare(rows, family="triton").known.all()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cache": "cold"}, "cold"),
        ({"mask": []}, "causal"),
        ({"mask": ["causal", {"sink": 4}]}, "causal"),
        ({"bias": [{"kind": "alibi"}]}, "bias"),
        ({"sizes": SIZES | {"f": 64}}, "width"),
        ({"sizes": {}}, "sizes"),
        ({"dtype": {"Q": "bf16"}}, "element types"),
    ],
)
def test_what_has_no_column_is_left_out_with_a_reason(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    rows, left_out = read_records(kept(tmp_path, line(**changes)))
    assert len(rows) == 0 and sum(left_out.values()) == 1 and why in next(iter(left_out))
