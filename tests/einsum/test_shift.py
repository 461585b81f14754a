"""Which cascades ignore a constant added to all scores of a query, found out by computing."""

from __future__ import annotations

import pytest

from einsight.einsum.compose import IllegalComposition
from einsight.einsum.library import fragment, listing, load
from einsight.einsum.shift import ignores_row_constants

SCORED = [c for c in listing() if c.mark("score")]


@pytest.mark.parametrize("cascade", SCORED, ids=lambda c: c.name)
def test_softmax_does_and_nothing_else(cascade) -> None:  # type: ignore[no-untyped-def]
    assert ignores_row_constants(cascade) == (cascade.computes == "softmax_attention")


@pytest.mark.parametrize(("name", "ignored"), [("alibi", True), ("low_rank_scale", False), ("softcap", False), ("sink", False)])
def test_what_acts_later_can_end_it(name: str, ignored: bool) -> None:
    assert ignores_row_constants(load("one_pass"), (fragment(name),)) == ignored


def test_a_cascade_without_a_score_refuses() -> None:
    with pytest.raises(IllegalComposition, match="score"):
        ignores_row_constants(load("linear"))
