"""What a framework adds where it was not fitted: of equally near entries that of the next compute capability, and around a
kernel that it was never fitted with the median of what its kernels have."""

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
    assert added("Any", "flash2", asked, "prefill", PAIR)["kv_copy"] == copies


def test_of_one_architecture_the_entry_of_most_rows_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework, "additions", lambda name: (entry("sm_89", 1.0, 400), entry("sm_89", 2.0, 1200)))
    assert added("Any", "flash2", "sm_90", "prefill", PAIR)["kv_copy"] == 2.0


def test_around_a_kernel_without_an_entry_each_constant_is_the_median_over_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fit takes for a cost per token what another takes for copies; the launch constant is of its architecture's entry."""

    def of(family: str, architecture: str, **constants: float) -> Addition:
        return Addition(family, architecture, "prefill", PAIR, constants, "t.csv: 1200 rows of x")

    made = (
        of("triton", "sm_89", launch_s=4e-6, token_cycles=1.5), of("flash2", "sm_80", launch_s=9e-6, kv_copy=1.0),
        of("flash3", "sm_90", kv_copy=0.8, token_cycles=0.4), entry("sm_89", 1.2, 1200),
    )  # fmt: skip
    monkeypatch.setattr(framework, "additions", lambda name: made)
    found = added("Any", "flashinfer", "sm_89", "prefill", PAIR)
    assert found["kv_copy"] == pytest.approx(0.9) and found["token_cycles"] == pytest.approx(0.2) and found["launch_s"] > 0
    assert "launch_s" not in added("Any", "flashinfer", "sm_120", "prefill", PAIR)
    assert dict(added("Any", "triton", "sm_89", "prefill", PAIR)) == {"launch_s": 4e-6, "token_cycles": 1.5}
