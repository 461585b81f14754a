"""The probes' loops hold the unit under test and nothing that could hide it."""

from __future__ import annotations

import importlib.util

import pytest

from einsight.kernels.resources import Request, compile_offline

CHAINS, UNROLL, BLOCK, THREADS = 1024, 32, 4096, 128


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="torch and triton are not installed (extra `gpu`)",
)
def test_each_loop_is_the_unit_it_claims_to_measure() -> None:
    order = [
        Request("einsight.kernels.probes", "compile_named", {"probe": probe}, capability)
        for capability in (80, 90, 100)
        for probe in ("read", "exp2", "fma")
    ]
    answers = {id(r): e for r, e in compile_offline(order)}
    steps = CHAINS // THREADS * UNROLL  # per thread and round
    for request in order:
        probe, loop = request.arguments["probe"], answers[id(request)].loop
        assert answers[id(request)].status == "ok" and answers[id(request)].stack_bytes == 0
        if probe == "exp2":
            assert loop["MUFU.EX2"] == steps and loop["total"] - loop.get("FADD", 0) <= steps + 8
            assert loop.get("FADD", 0) in (0, steps)  # the sign, where the compiler does not fold it
        elif probe == "fma":  # FFMA2 does two at once
            assert loop.get("FFMA", 0) + 2 * loop.get("FFMA2", 0) == steps and loop["total"] <= steps + 8
        else:
            assert loop["LDG"] == BLOCK // THREADS * 4 // 16 and loop["total"] <= 100
            assert not loop.get("LDGSTS") and not loop.get("STG")
