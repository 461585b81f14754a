"""Offline compilation: what comes out for each architecture, and that every way of failing is an answer."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from einsight.kernels import resources
from einsight.kernels.resources import Estimate, Request, closed_form, compile_offline
from einsight.kernels.spaces import Config, Heads, matrix_instruction, shared_bytes, tmem_columns

needs_compiler = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="torch and triton are not installed (extra `gpu`)",
)
CONFIGS = (Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(32, 64, 2, 1))


def request(config: Config, capability: int, *, e: int = 128, f: int = 128, causal: bool = True) -> Request:
    arguments: dict[str, Any] = {
        "sizes": [1, 8, 2, 4096, 4096, e, f],
        "dtype": "float16",
        "mask": {"right": 0} if causal else {},
        "config": [config.block_m, config.block_n, config.num_warps, config.num_stages],
    }
    return Request("einsight.kernels.attention", "compile_named", arguments, capability)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, Config], Estimate]:
    cache = tmp_path_factory.mktemp("builds")
    wanted = {(cc, config): request(config, cc) for cc in (80, 90, 100) for config in CONFIGS}
    answers = {id(r): e for r, e in compile_offline(wanted.values(), workers=2, cache=cache)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources.subprocess, "Popen", None)  # the second time nothing is compiled
        again = dict(enumerate(e for _, e in compile_offline(wanted.values(), workers=1, cache=cache)))
    assert len(again) == len(wanted)
    return {name: answers[id(r)] for name, r in wanted.items()}


@needs_compiler
def test_every_build_compiles_and_its_shared_memory_is_the_closed_form(compiled: Any) -> None:
    heads = Heads(128, 128)
    for (capability, config), estimate in compiled.items():
        assert estimate.status == "ok", estimate
        assert estimate.source == "compiled" and estimate.registers and 0 < estimate.registers <= 255
        tcgen05 = matrix_instruction(config, capability) == "tcgen05"
        extra = estimate.shared_bytes - shared_bytes(heads, config, capability)
        assert 0 <= extra <= (4096 if tcgen05 else 0), (capability, config)
        assert estimate.tmem_columns == tmem_columns(heads, config, capability)
        assert estimate.warps == config.num_warps
        assert estimate.blocks_per_sm <= closed_form(heads, config, capability).blocks_per_sm


@needs_compiler
def test_the_inner_loop_does_the_arithmetic_of_one_tile(compiled: Any) -> None:
    """Per thread: one exponential a score and one a row it holds; two fp32 multiplications a row pass over the output
    (mma.sync and wgmma hold two rows a thread); tensor-core work in instructions of 16 x 8 x 16 on sm_80."""
    for (capability, config), estimate in compiled.items():
        if config.block_m < 64:
            continue
        loop, threads = estimate.loop, 32 * config.num_warps
        scores, outputs = config.block_m * config.block_n // threads, config.block_m * 128 // threads
        repeats_rows = capability == 80 and config.block_m < 128  # warps along the output's columns: see shared_bytes
        rows = 1 if capability == 100 else 2
        if not repeats_rows:
            assert loop["MUFU.EX2"] == scores + rows, (capability, config)
            assert loop["FMUL"] == outputs + rows, (capability, config)
        if capability == 80:
            dots = 2 * config.block_m * config.block_n * 128
            assert loop["HMMA"] == dots // (16 * 8 * 16) // config.num_warps
        else:
            assert loop["HGMMA" if capability == 90 else "UTCHMMA"] > 0


@needs_compiler
def test_everything_at_once_compiles() -> None:
    """Window, softcap, sink, lengths, ragged head dimensions, heads inside the sequence: the largest kernel there is."""
    arguments = {
        "sizes": [2, 6, 2, 1000, 1400, 96, 40], "dtype": "bfloat16", "mask": {"left": 127, "right": 16, "align": "first"},
        "config": [64, 32, 4, 2], "softcap": 30.0, "sink": True, "lengths": True, "layout": "bmhe",
    }  # fmt: skip
    order = [Request("einsight.kernels.attention", "compile_named", arguments, cc, False) for cc in (80, 90, 100)]
    for request_, estimate in compile_offline(order):
        assert estimate.status == "ok", (request_.capability, estimate)
        assert estimate.stack_bytes == 0


@needs_compiler
def test_failures_have_a_status_and_a_reason() -> None:
    too_large = request(Config(128, 128, 8, 4), 90)
    trap = request(Config(256, 128, 8, 2), 100)
    gave_up = request(Config(64, 64, 1, 1), 80, causal=False)  # 384 accumulators in one warp's threads
    unknown = Request("einsight.kernels.attention", "no_such_function", {}, 90)
    answers = {id(r): e for r, e in compile_offline([too_large, trap, gave_up, unknown])}
    assert answers[id(too_large)].status == "shared_memory" and "294912" in answers[id(too_large)].reason
    assert answers[id(trap)].status == "tensor_memory" and "640 columns" in answers[id(trap)].reason
    assert answers[id(gave_up)].status == "gave_up" and "stack" in answers[id(gave_up)].reason
    assert answers[id(unknown)].status == "compile_failed" and "no_such_function" in answers[id(unknown)].reason
    assert all(e.reason for e in answers.values())


@needs_compiler
def test_triton_cache_is_left_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    small = request(Config(64, 32, 4, 1), 80, e=32, f=32, causal=False)
    ((_, estimate),) = compile_offline([small], workers=1, triton_cache=kept)
    assert estimate.status == "ok" and list(kept.rglob("*.cubin"))
    list(compile_offline([small], workers=1))
    assert not list(scratch.glob("einsight-triton-*"))


def test_a_hash_follows_the_triton_functions_that_a_kernel_imports() -> None:
    """flashbias and attention launch the same forward kernel; of attention.py flashbias only takes functions of the host."""
    folder = Path(resources.__file__).parent
    shared = ("attention_forward", "attention_tiles", "tiles")
    for module, names in {"flashbias": (*shared, "attention_gradients"), "attention": shared}.items():
        texts = b"".join((folder / f"{name}.py").read_bytes() for name in (module, *names))
        assert resources.source_hash(f"einsight.kernels.{module}") == hashlib.sha256(texts).hexdigest()[:16]
    with pytest.raises(ModuleNotFoundError, match="no such kernel module"):
        resources.source_hash("einsight.kernels.nothing")


STUB = '''
import json, os, sys, time
for line in sys.stdin:
    what = json.loads(line)["function"]
    if what == "hang": time.sleep(60)
    if what == "abort": os._exit(134)
    print(json.dumps({"registers": 32, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 1024, "tmem_columns": 0,
                      "warps": 4, "loop": {}, "triton": "stub"}), flush=True)
'''


def test_a_hanging_and_an_aborting_compiler_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    run = resources.subprocess.Popen
    monkeypatch.setattr(resources.subprocess, "Popen", lambda command, **rest: run([sys.executable, script], **rest))
    order = [Request("json", what, {}, 90) for what in ("fine", "hang", "abort", "fine")]
    begin = time.perf_counter()
    got = {id(r): e for r, e in compile_offline(order, workers=1, timeout_s=1.0)}
    assert [got[id(r)].status for r in order] == ["ok", "timeout", "compile_failed", "ok"]
    assert "after 1 s" in got[id(order[1])].reason and "134" in got[id(order[2])].reason
    assert time.perf_counter() - begin < 50  # the hanging one would take 60


@needs_compiler
def test_what_cannot_be_disassembled_is_still_compiled(tmp_path: Path) -> None:
    from einsight.kernels.offline import inner_loop, listing

    unknown = tmp_path / "k.cubin"
    unknown.write_bytes(b"for an architecture that the tool has not heard of")
    assert listing(unknown) == "" and inner_loop("") == {}


@needs_compiler
def test_one_stage_with_wide_keys_takes_at_most_what_the_closed_form_says() -> None:
    for capability, e, f in ((80, 192, 64), (90, 128, 64)):
        heads, config = Heads(e, f), Config(32, 32, 2, 1)
        ((_, built),) = compile_offline([request(config, capability, e=e, f=f)], workers=1)
        assert built.shared_bytes is not None and built.shared_bytes < shared_bytes(heads, config, capability), (e, f)


def test_closed_form_names_what_is_wrong() -> None:
    fine = closed_form(Heads(128, 128), Config(128, 64, 8, 2), 90)
    assert (fine.status, fine.source, fine.registers, fine.shared_bytes) == ("ok", "closed_form", None, 98304)
    assert fine.blocks_per_sm == 2  # 228 KiB over 96 KiB and the 1 KiB that the driver keeps
    assert closed_form(Heads(128, 128), Config(128, 128, 8, 4), 90).status == "shared_memory"
    assert closed_form(Heads(128, 128), Config(256, 128, 8, 1), 100).status == "tensor_memory"
    assert closed_form(Heads(64, 64), Config(64, 64, 8, 1), 90).status == "excluded"
