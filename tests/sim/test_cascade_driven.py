"""One line of a cascade file changes, and operation counts, passes and predicted times follow by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from einsight.einsum.library import FOLDER
from einsight.sim.predict import predict
from einsight.sim.prediction import Prediction
from einsight.sim.workload import Workload

HEADS, SEQ, DIM = 16, 4096, 64
SCORES, ROWS, TILES = HEADS * SEQ * SEQ, HEADS * SEQ, SEQ // 128  # of the whole workload; operation totals assume N0 = 128
TARGETS = ("h100-sxm", "b200", "mi300x")  # no change is hidden there; on an A100 one exponential more is

SPREAD = "SPREAD[m] = abs(SN[m,n] - SD[m])\n"  # needs the finished sum: a second pass
FILES = {
    **{path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.casc")},
    "watched": (FOLDER / "naive_deferred.casc").read_text(encoding="utf-8") + SPREAD,
}

# file, the line's part that changes, what takes its place, how the counts change, passes over K before and after
CHANGES = {
    "a line is deleted": ("watched", SPREAD, "", {"abs": -SCORES, "sub": -SCORES, "add": -(SCORES - ROWS)}, (2, 1)),
    "no maximum is subtracted": ("stable", "exp(QK[m,n] - GM[m])", "exp(QK[m,n])", {"sub": -SCORES}, (3, 2)),
    "nothing is divided": ("naive", "SN[m,n] / SD[m]", "SN[m,n]", {"div": -SCORES}, (2, 1)),
    "one exponential more": ("one_pass", "exp(BQK[n1,n0,m] - RM[n1+1,m])", "exp(exp(BQK[n1,n0,m]) - RM[n1+1,m])",
                             {"exp": SCORES}, (1, 1)),
    "the maximum of all, not the running one": (
        "two_pass", "exp(LM[n1,m] - GM[m])", "exp(GM[m])", {"exp": -ROWS * (TILES - 1), "sub": -ROWS * TILES}, (2, 2)),
}  # fmt: skip


def made(folder: Path, text: str, target: str) -> Prediction:
    file = folder / "edited.casc"
    file.write_text(text, encoding="utf-8")
    return predict(Workload.attention(cascade=str(file), heads=HEADS, seq_q=SEQ, head_dim=DIM), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_line_changes_what_follows_from_it(what: str, target: str, tmp_path: Path) -> None:
    name, old, new, difference, passes = CHANGES[what]
    text = FILES[name]
    assert text.count(old) == 1
    before, after = made(tmp_path, text, target), made(tmp_path, text.replace(old, new), target)
    assert changed(before.flops_by_class, after.flops_by_class) == difference
    assert (before.passes["K"], after.passes["K"]) == passes
    more = sum(difference.values()) > 0
    assert (after.time_s > before.time_s) if more else (after.time_s < before.time_s)


def changed(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The differences per operator class that are not zero."""
    classes = sorted({*before, *after})
    return {k: d for k in classes if (d := after.get(k, 0.0) - before.get(k, 0.0))}
