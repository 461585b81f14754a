"""Ceilings without a GPU: the cases are well formed, and each becomes a record whatever happens."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest

from einsight.tuner import ceilings
from einsight.tuner.ceilings import MIB, cases, measure
from einsight.tuner.measure import NoGpuError
from einsight.tuner.record import Environment, Status

HERE = Environment("Test GPU", 90, 132, 80 << 30, 50 * MIB, "1", "13.0", "2.11", "3.6", "3.12", "Linux 6")


def built(case: Any) -> Any:
    return lambda: None, {case.unit: 3e9}


def test_the_cases_cover_every_unit_and_say_what_they_count() -> None:
    chosen = cases(HERE)
    assert len({case.name for case in chosen}) == len(chosen)
    assert {case.unit for case in chosen} == {"bytes", "flops", "special_ops", "vector_ops", "launches"}
    assert {case.arguments["dtype"] for case in chosen if case.probe == "matmul"} == {
        "bfloat16", "float16", "float8_e4m3fn",
    }  # fmt: skip
    rings = [case.arguments["footprint_bytes"] for case in chosen if case.name.startswith("l2-read")]
    assert max(rings) <= HERE.l2_bytes / 2
    streams = [case.arguments["footprint_bytes"] for case in chosen if case.name.startswith("hbm-read")]
    assert min(streams) >= 16 * HERE.l2_bytes
    assert sum(case.policy.budget_s + case.policy.warmup_s for case in chosen) < 60


def test_arguments_are_those_of_the_probes() -> None:
    probes = pytest.importorskip("einsight.kernels.probes", reason="torch and triton are not installed (extra `gpu`)")
    for case in cases(HERE):
        bound = inspect.signature(getattr(probes, case.probe)).bind(**case.arguments)
        assert bound.arguments == dict(case.arguments)


def test_a_case_becomes_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(HERE, sm_clock_hz=1.7e9)
    monkeypatch.setattr(ceilings, "time_call", lambda call, policy: (2e-3, 1e-3, 3e-3))
    monkeypatch.setattr(ceilings, "under_load", lambda here, call, once_s: loaded)
    case = cases(HERE)[0]
    got = measure(case, HERE, built)
    assert got.status is Status.OK and got.rate(case.unit) == pytest.approx(3e9 / 2e-3)
    assert got.environment == loaded and got.workload["probe"] == case.probe and got.cache == "warm"


def test_what_a_device_lacks_or_a_library_refuses_is_a_record_too() -> None:
    def refused(case: Any) -> Any:
        raise RuntimeError("not implemented\nwith details")

    fp8 = next(case for case in cases(HERE) if "float8" in case.name)
    lacking = measure(fp8, replace(HERE, capability=80), built)
    assert lacking.status is Status.UNSUPPORTED and "8.9, the device has 8.0" in lacking.reason
    failed = measure(fp8, HERE, refused)
    assert failed.status is Status.FAILED and failed.reason == "RuntimeError: not implemented"


def test_no_gpu_at_all_is_not_a_record() -> None:
    def absent(case: Any) -> Any:
        raise NoGpuError("none")

    with pytest.raises(NoGpuError):
        measure(cases(HERE)[0], HERE, absent)
