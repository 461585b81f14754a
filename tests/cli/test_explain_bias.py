"""`explain` of a workload with a low-rank bias also shows the fold into one contraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Einsight = Callable[..., Any]


@pytest.fixture
def workload(tmp_path: Path) -> str:
    file = tmp_path / "bias.yaml"
    file.write_text(
        "name: small\ncascade: one_pass\nsizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64, f: 64}\ndtype: bf16\n"
        "bias: {kind: low_rank, r: 16}\n",
        encoding="utf-8",
    )
    return str(file)


def test_the_fold_is_shown_with_its_counts(einsight: Einsight, workload: str) -> None:
    found = einsight("explain", workload, "--json").json
    fold = found["concatenated"]
    assert (fold["rank"], fold["sizes"]["E_R"]) == ("E_R", 80)
    pairs = 8 * 512 * 512
    assert fold["counts"]["macc"] == found["counts"]["macc"] == pairs * (64 + 16 + 64)
    assert found["counts"]["add"] - fold["counts"]["add"] == pairs
    assert "one contraction, over E_R = E + R" in einsight("explain", workload).out


def test_without_a_bias_nothing_is_added(einsight: Einsight) -> None:
    assert "concatenated" not in einsight("explain", "one_pass", "--json").json


def test_a_fragment_is_no_cascade_but_is_known(einsight: Einsight) -> None:
    ran = einsight("explain", "alibi")
    assert ran.code == 2 and "alibi is a fragment, which `einsight cascades alibi` shows" in ran.err
