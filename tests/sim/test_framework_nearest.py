"""What a framework adds where it was not fitted: of equally near entries, that of the next compute capability."""

from __future__ import annotations

import pytest

from einsight.sim import framework
from einsight.sim.framework import Addition, added

PAIR = ("bf16", "bf16")


def entry(architecture: str, copies: float, rows: int) -> Addition:
    return Addition("flash2", architecture, "prefill", PAIR, {"launch_s": 5e-6, "kv_copy": copies}, f"t.csv: {rows} rows of x")


@pytest.mark.parametrize(("asked", "copies"), [("sm_80", 1.0), ("sm_86", 2.0), ("sm_90", 2.0), ("sm_100", 2.0)])
def test_the_next_compute_capability_answers(monkeypatch: pytest.MonkeyPatch, asked: str, copies: float) -> None:
    made = entry("sm_80", 1.0, 1200), entry("sm_89", 2.0, 1200)
    monkeypatch.setattr(framework, "additions", lambda name: made)
    assert added("Any", "flash3", asked, "prefill", PAIR)["kv_copy"] == copies


def test_of_one_architecture_the_entry_of_most_rows_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework, "additions", lambda name: (entry("sm_89", 1.0, 400), entry("sm_89", 2.0, 1200)))
    assert added("Any", "flash3", "sm_90", "prefill", PAIR)["kv_copy"] == 2.0
