"""`einsight tune KERNEL` with everything a GPU run has, on a GPU that is imagined: worker, record, resume, race, export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

from einsight.kernels.catalog import KERNELS
from einsight.kernels.lookup import tuned_config
from einsight.kernels.resources import Estimate, Request
from einsight.kernels.spaces import Config

FAKES = Path(__file__).parents[1] / "tuner"
Einsight = Callable[..., Any]
ONE_BY_ONE = ("--ahead", "1", "--no-stop")  # so that the order, and with it what is found, is the same in every run
SHAPE = ("attention", "--heads", "32", "--kv-heads", "8", "--seq", "4096", "--causal")
BEST = {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 3}
FILES = {
    "attention": "{sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}, mask: [causal]}",
    "flashbias": "{sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}, bias: {kind: low_rank, r: 16}}",
    "attention_with_bias": "{sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}, bias: {kind: dense_bias}}",
    "sigmoid": "{cascade: sigmoid, sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}}",
    "decode": "{sizes: {b: 4, h: 32, g: 8, m: 1, n: 8192, e: 128}, phase: decode}",
    "lightning": "{cascade: lightning, sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}}",
    "gla": "{cascade: gla, sizes: {b: 1, h: 8, g: 8, m: 512, n: 512, e: 64}}",
    "gna": "{sizes: {b: 1, h: 4, g: 4, m: 240, n: 240, e: 64}, mask: [{gna: {layout: 12x20, window: 6x10}}]}",
}


@pytest.fixture(autouse=True)
def imagined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An H200 whose worker imagines its times, and a compiler that always succeeds but for 256 rows."""
    from einsight.cli import tune_kernel
    from einsight.tuner import gpu

    monkeypatch.syspath_prepend(str(FAKES))
    from faked_gpu import HERE

    def compiled(requests: tuple[Request, ...], **_: Any) -> Iterator[tuple[Request, Estimate]]:
        for request in requests:
            short = request.arguments["config"][0] == 256
            yield request, Estimate("shared_memory" if short else "ok", "too much" if short else "", "compiled")

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), *sys.path]))
    monkeypatch.setenv("EINSIGHT_TUNED", str(tmp_path / "tuned"))
    monkeypatch.setattr(tune_kernel, "gpu_here", lambda: HERE)
    monkeypatch.setattr(gpu, "FACTORY", "faked_gpu:Imagined")
    monkeypatch.setattr(gpu, "compile_offline", compiled)
    yield


def test_a_search_finds_the_best_keeps_it_and_the_kernel_takes_it(einsight: Einsight, tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    words = ("tune", *SHAPE, "--record", str(record), "--trials", "16", *ONE_BY_ONE, "--as", "lookup")
    told = einsight(*words, "--json").json
    assert told["measured"] <= 16 and told["best"]["configuration"] == BEST
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {line["status"] for line in lines} <= {"ok", "incorrect", "out_of_resources"}
    wrong = [line for line in lines if line["status"] == "incorrect"]
    assert all(line["configuration"]["num_stages"] == 4 for line in wrong)
    assert all(line["environment"]["device"] == "NVIDIA H200" and line["source_hash"] for line in lines)
    again = einsight(*words, "--json").json
    assert again["resumed"] == told["measured"] and len(record.read_text().splitlines()) - len(lines) <= 4  # the race only
    workload = lines[0]["workload"]
    assert tuned_config("attention", "NVIDIA H200", workload) == Config(**BEST)
    assert tuned_config("attention", "NVIDIA H200", workload | {"mask": "causal"}) == Config(**BEST)
    assert tuned_config("attention", "NVIDIA H100", workload) is None


def test_the_race_decides_and_what_it_decides_is_written(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower of two finalists by single measurements, and every time of the race is longer than any of the search."""
    monkeypatch.setattr("einsight.tuner.gpu.FACTORY", "faked_gpu:Turned")
    told = einsight("tune", *SHAPE, "--trials", "16", *ONE_BY_ONE, "--as", "lookup", "--json").json
    assert told["best"]["configuration"] == BEST | {"num_stages": 2}
    assert tuned_config("attention", "NVIDIA H200", told["best"]["workload"]) == Config(**BEST | {"num_stages": 2})


def test_a_race_that_fails_takes_nothing_away(
    einsight: Einsight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("einsight.tuner.gpu.FACTORY", "faked_gpu:Raceless")
    record = tmp_path / "r.jsonl"
    words = ("tune", *SHAPE, "--trials", "16", *ONE_BY_ONE, "--record", str(record))
    shown = einsight(*words)
    assert shown.code == 0 and "Fastest" in shown.out and "the launch timed out" in shown.out
    assert einsight(*words, "--json").json["best"]["configuration"] == BEST
    assert {json.loads(line)["status"] for line in record.read_text().splitlines()[16:]} == {"failed"}


def test_a_record_replayed_exports_the_same_lookup(einsight: Einsight, tmp_path: Path) -> None:
    record, file = tmp_path / "r.jsonl", tmp_path / "tuned" / "attention.json"
    assert einsight("tune", *SHAPE, "--record", str(record), "--trials", "16", *ONE_BY_ONE).code == 0
    assert einsight("tune", "--replay", str(record), "--export", str(file), "--as", "lookup").code == 0
    workload = json.loads(record.read_text().splitlines()[0])["workload"]
    assert tuned_config("attention", "NVIDIA H200", workload) == Config(**BEST)
    searched = einsight("tune", "--replay", str(record), "--trials", "8", "--seeds", "2", "--prior", "simulator", "--json").json
    assert searched["kernel"] == "attention" and searched["percent_of_optimum"] > 90


def test_what_was_predicted_yields_to_what_was_measured(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "tuned" / "attention.json"
    predict = ("tune", *SHAPE, "--target", "h200-sxm", "--predict-only", "--as", "lookup")
    assert "predicted" in einsight(*predict).out
    (entry,) = json.loads(file.read_text())["entries"]
    assert entry["predicted"] and entry["device"] == "NVIDIA H200"
    guess = tuned_config("attention", "NVIDIA H200", entry["workload"])
    assert guess == Config(**entry["configuration"])
    assert einsight("tune", *SHAPE, "--trials", "16", *ONE_BY_ONE, "--as", "lookup").code == 0
    assert einsight(*predict).code == 0  # leaves the measured entry alone
    (entry,) = json.loads(file.read_text())["entries"]
    assert not entry["predicted"] and entry["configuration"] == BEST


@pytest.mark.parametrize("kernel", sorted(FILES))
def test_every_kernel_is_measured(kernel: str, einsight: Einsight, tmp_path: Path) -> None:
    assert set(FILES) == set(KERNELS)
    file = tmp_path / "w.yaml"
    cascade = "" if "cascade" in FILES[kernel] else "cascade: one_pass, "
    file.write_text(f"{{name: w, dtype: fp16, {cascade}{FILES[kernel][1:]}")
    told = einsight("tune", kernel, "--workload", str(file), "--trials", "8", *ONE_BY_ONE, "--as", "lookup", "--json").json
    assert told["best"]["kernel"] == kernel and 4 <= told["measured"] <= 8
    found = tuned_config(kernel, "NVIDIA H200", told["best"]["workload"])
    assert found is not None and found.num_warps == told["best"]["configuration"]["num_warps"]


def test_few_configurations_for_the_shapes_of_a_file(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text("".join(
        f"- {{name: s{m}, cascade: one_pass, sizes: {{b: 1, h: 8, g: 8, m: {m}, n: 4096, e: 128}}, dtype: bf16}}\n"
        for m in (256, 1024)
    ))  # fmt: skip
    words = ("tune", "attention", "--shapes", str(file), "--keep", "1", "--trials", "16", *ONE_BY_ONE, "--as", "lookup")
    told = einsight(*words, "--json").json
    assert len(told["kept"]) == 1 and told["worst_loss"] == 0 and len(told["dispatch"]) == 2
    entries = json.loads((tmp_path / "tuned" / "attention.json").read_text())["entries"]
    assert [e["workload"]["sizes"]["m"] for e in entries] == [256, 1024]
    refused = einsight("tune", "attention", "--shapes", str(file), "--as", "triton", "--export", "x.py")
    assert refused.code == 2 and "one entry per shape" in refused.err


def test_what_the_kernel_cannot_run_is_told_before_anything_starts(einsight: Einsight) -> None:
    said = einsight("tune", *SHAPE, "--bias", "alibi")
    assert said.code == 2 and "kernel attention runs softcap and sink" in said.err


def test_a_gpu_that_no_profile_lists_is_searched_without_the_simulator(
    einsight: Einsight, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faked_gpu import HERE

    monkeypatch.setattr("einsight.cli.tune_kernel.gpu_here", lambda: replace(HERE, device="Unheard Of"))
    shown = einsight("tune", *SHAPE, "--trials", "4", *ONE_BY_ONE)
    assert shown.code == 0 and "no profile lists Unheard Of: the search begins without the simulator" in shown.err
    refused = einsight("tune", *SHAPE, "--prior", "simulator")
    assert refused.code == 2 and "simulator on Unheard Of" in refused.err
    silent = einsight("tune", *SHAPE, "--trials", "4", *ONE_BY_ONE, "--prior", "none")
    assert silent.code == 0 and "no profile" not in silent.err


def test_another_gpu_than_the_one_at_hand_is_not_searched(einsight: Einsight) -> None:
    refused = einsight("tune", *SHAPE, "--target", "b200")
    assert refused.code == 2 and "--predict-only beside it" in refused.err


def test_a_launch_takes_what_was_tuned(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the search to the kernel: the words in which a launch asks are those in which a workload is written."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from einsight.kernels import tuned
    from einsight.kernels.band import band

    words = ("--trials", "16", *ONE_BY_ONE, "--as", "lookup")
    assert einsight("tune", *SHAPE, "--window", "512", "--bias", "softcap:cap=30", *words).code == 0
    monkeypatch.setattr(tuned, "device_name", lambda device: "NVIDIA H200")
    q, sizes = torch.empty(1, dtype=torch.bfloat16), (1, 32, 8, 4096, 4096, 128, 128)
    capped = (("softcap", "cap", 30.0),)
    assert tuned.tuned("attention", q, sizes, band(True, 512), capped) == Config(**BEST)
    assert tuned.tuned("attention", q, sizes, band(True, None), capped) is None
    assert tuned.tuned("attention", q, sizes, band(True, 512)) is None
