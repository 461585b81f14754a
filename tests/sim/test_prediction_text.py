"""A prediction prints itself: every line, and targets of different kinds side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einsight.sim.prediction import Bound, Prediction, side_by_side


@pytest.fixture
def prediction() -> Prediction:
    """1e12 FLOP and 1e9 B in 1 ms on a unit of 2e15 FLOP/s: half of the peak, 1000 FLOP/B."""
    bound = Bound("HBM", 5e-4, "HBM: 1 GB at 2 TB/s (datasheet)")
    return Prediction(
        workload="w", key="k", target="t", family="f", cascade="c", time_s=1e-3, time_low_s=8e-4, time_high_s=2e-3,
        bound=bound, bounds=(bound,), flops_matmul=1e12, flops_by_class={}, bytes_by_memory={"HBM": 1e9},
        passes={"K": 2, "V": 1}, peak_flops_per_s=2e15, speedup={"over_dense_fused": 1.5},
        mapping={"block_m": 64, "fused": True, "pack_gqa": False}, assumptions=("a clock",),
    )  # fmt: skip


def test_prints_every_line(prediction: Prediction) -> None:
    lines = dict(line.split("  ", 1) for line in str(prediction).splitlines())
    assert {label: text.strip() for label, text in lines.items()} == {
        "workload": "w",
        "target": "t",
        "family": "f",
        "time (90 %)": "1 ms (800 us to 2 ms)",
        "limited by": "HBM: 1 GB at 2 TB/s (datasheet)",
        "matmul work": "1 TFLOP",
        "achieved": "1 PFLOP/s, 50 % of peak",
        "HBM traffic": "1 GB",
        "intensity": "1,000 FLOP/B",
        "passes": "K 2, V 1",
        "speedup over dense fused": "1.5x",
        "mapping": "block_m 64, fused",
        "assumed": "a clock",
    }


def test_layers_and_energy_have_lines_when_there(prediction: Prediction) -> None:
    rows = dict(replace(prediction, layers=32, time_all_layers_s=0.032, energy_pj=1e12, energy_note="TDP x time").rows())
    assert rows["all 32 layers"] == "32 ms" and rows["energy"] == "1 J (TDP x time)"


def test_targets_of_two_kinds_stand_side_by_side(prediction: Prediction) -> None:
    array = replace(prediction, bytes_by_memory={"DRAM": 2e9}, cycles={"2D": 5e6}, utilisation={"2D": 0.25}, area_mm2=10.0)
    rows = {row[0]: row[1:] for row in side_by_side([prediction, array])}
    assert rows["HBM traffic"] == ("1 GB", "") and rows["DRAM traffic"] == ("", "2 GB")
    assert rows["utilisation"] == ("", "2D 25 %") and rows["area"] == ("", "10 mm^2")
    assert rows["passes"] == ("K 2, V 1", "K 2, V 1")
    assert rows["time (90 %)"] == ("1 ms (800 us to 2 ms)", "")
    assert rows["time (full to no overlap)"] == ("", "1 ms (800 us to 2 ms)")


def test_lines_of_one_target_only_stand_where_others_have_theirs(prediction: Prediction) -> None:
    array = replace(prediction, bytes_by_memory={"DRAM": 2e9}, cycles={"2D": 5e6}, utilisation={"2D": 0.25})
    labels = [row[0] for row in side_by_side([prediction, array])]
    assert labels.index("DRAM traffic") == labels.index("HBM traffic") + 1
    assert labels.index("time (full to no overlap)") == labels.index("time (90 %)") + 1
    assert labels[0] == "family" and labels[-1] == "mapping"
