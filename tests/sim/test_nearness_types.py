"""Which fit answers for element types that none was fitted with: what counts is the width of the products and of the cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from einsight.reports import measured
from einsight.reports.compare import parts, rows_of
from einsight.sim.family import load_family, names
from einsight.sim.hardware import load_gpu
from einsight.sim.kernel_names import framework_name
from einsight.sim.nearness import Fit, Ground, distance, same_kernels

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "measured"


def test_a_kernel_with_one_type_for_all_answers_with_the_fit_of_the_caches_type() -> None:
    """FlashAttention-3 casts 16-bit queries to an 8-bit cache's type: its prefill then runs 8-bit products."""
    _, note = load_family("flash3").on(load_gpu("h100-sxm"), "prefill", "bf16", "fp8_e4m3", "VLLM")
    assert "prefill fp8_e4m3/fp8_e4m3" in note and "none for" not in note


@pytest.mark.parametrize("cached", ["fp16", "fp8_e5m2"])
def test_another_type_of_the_same_width_is_no_distance(cached: str) -> None:
    here = {"fp16": "bf16", "fp8_e5m2": "fp8_e4m3"}[cached]
    asked, _ = load_family("trtllm_gen").on(load_gpu("b200"), "decode", "fp16", cached, "TRTLLM")
    fitted, note = load_family("trtllm_gen").on(load_gpu("b200"), "decode", "bf16", here, "TRTLLM")
    assert "widened" not in note
    assert {n: asked.constant(n) for n in fitted.constants} == {n: fitted.constant(n) for n in fitted.constants}


def test_every_fit_on_a_table_is_of_rows_that_the_rules_still_give_to_the_family() -> None:
    """When a rule moves rows to another family, the old family's fit on them is of another kernel, and has to go."""
    files = sorted(REFERENCE.glob("*.csv.gz"))
    if not files:
        pytest.skip("no measured tables")
    there = set()
    for file in files:
        table = measured.read([file])
        for part in parts(table):
            if part.family and part.gpu is not None:
                some = table.take(part.index[:1])
                rows = rows_of(some)
                types = (str(rows.dtype[0]), str(rows.kv_dtype[0]))
                there.add((part.family, part.gpu.architecture.name, part.phase, framework_name(str(some.framework[0])), types))
    fits = {(n, f.architecture, f.phase, f.framework, f.dtypes) for n in names() for f in load_family(n).fits if f.framework}
    assert fits <= there


def test_binaries_of_one_major_version_make_another_device_not_another_architecture() -> None:
    """B300 (10.3) runs what was built for B200 (10.0), in as much shared memory; L40S (8.9) has less of it than A100 (8.0)."""
    _, note = load_family("trtllm_blackwell").on(load_gpu("b300"), "prefill", "bf16", "bf16", "TRTLLM")
    assert "none for sm_103" in note and "widened x1.25" in note
    flash2 = load_family("flash2")
    on_a100 = replace(flash2, fits=tuple(f for f in flash2.fits if f.architecture == "sm_80"))
    _, note = on_a100.on(load_gpu("l40s"), "prefill", "bf16", "bf16", "VLLM")
    assert "widened x2.5" in note


def test_a_fit_on_an_architecture_without_a_compute_capability_is_as_near_as_any_other() -> None:
    """"gfx942", as a file fitted on another vendor's GPU says: its own ground, and nobody else's binaries."""
    mine = Ground("gfx942", "gfx942", "mfma", "mi300x", 65536.0)
    fit = Fit("gfx942", "prefill", ("bf16", "bf16"), {}, "a file")
    assert not any(distance(fit, mine, "prefill", ("bf16", "bf16"), ""))
    assert distance(fit, mine._replace(name="sm_90", compute_capability="9.0"), "prefill", ("bf16", "bf16"), "")[1] > 0
    assert not same_kernels("gfx942", mine._replace(name="gfx950", compute_capability="gfx950"))
