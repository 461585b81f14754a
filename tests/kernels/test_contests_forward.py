"""The contests of decode and sigmoid attention on small problems, interpreted: every run is right where it runs."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels.references import largest_error
from einsight.kernels.spaces import LIMITS, Config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES: dict[str, tuple[dict[str, Any], Config]] = {
    "contest_decode": ({"sizes": (1, 4, 2, 1, 100, 32, 32)}, Config(16, 32, 2, 2)),
    "contest_sigmoid": ({"sizes": (1, 2, 1, 60, 60, 32, 32), "causal": True}, Config(32, 32, 2, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_small_round(monkeypatch: pytest.MonkeyPatch, device: str, name: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("contests"), "DEVICE", device)
    module, case = importlib.import_module(name), importlib.import_module("sweep_cases").Case
    about, config = CASES[name]
    given = module.contest(case("small", dtype="float16", **about)).setup()
    rivals = {n: call for n, call in given.rivals.items() if not n.startswith("sdpa")}  # CPU builds of torch lack them
    for call in (given.ours(config), *rivals.values()):
        for got, exact, allowed in zip(call(), given.exact, given.allowed, strict=True):
            assert largest_error(got, exact) <= allowed
    assert given.context


@pytest.mark.parametrize("kind", ["decay", "gates"])
def test_a_small_round_of_linear_attention(monkeypatch: pytest.MonkeyPatch, device: str, kind: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("contests"), "DEVICE", device)
    module = importlib.import_module("contest_linear")
    made = module.contest(module.Case("small", kind, (1, 2, 128, 32, 32), "float16"))
    given = made.setup()
    for call in (given.ours(Config(32, 32, 4, 1)), *given.rivals.values()):
        (got,) = call()
        assert largest_error(got, given.exact[0]) <= given.allowed[0]
    assert len(made.key) == 16  # a prediction joins it


@pytest.mark.parametrize("name", [*CASES, "contest_linear"])
def test_every_contest_has_builds_and_requests(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for contest in importlib.import_module(name).contests():
        for capability in LIMITS:
            assert contest.candidates(capability), (contest.name, capability)
        assert contest.requests(contest.candidates(90)[0], 90)


def test_a_measured_sigmoid_joins_no_prediction_of_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key depends on what the cascade computes: split_kv and one_pass share theirs, sigmoid has its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name, alike in (("contest_decode", True), ("contest_sigmoid", False)):
        for contest in importlib.import_module(name).contests():
            softmax = replace(contest, workload={**contest.workload, "cascade": "one_pass"})
            assert contest.key and (contest.key == softmax.key) is alike


def test_contests_of_linear_attention_join_with_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("contest_linear")
    found = {contest.kernel: contest.key for contest in module.contests()}
    assert set(found) == {"lightning", "gla"} and len(set(found.values())) == 2
    assert all(len(key) == 16 for key in found.values())
