"""Which configuration a launch takes: the one given, else the tuned one of the lookup file, else the default."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import decode, gna, linear, sigmoid  # noqa: E402
from einsight.kernels import tuned as module  # noqa: E402
from einsight.kernels.attention import forward_pass  # noqa: E402
from einsight.kernels.attention_backward import passes  # noqa: E402
from einsight.kernels.attention_launch import Bias, Setting, meta  # noqa: E402
from einsight.kernels.attention_space import AttentionConfig, backward_configs  # noqa: E402
from einsight.kernels.band import Band, band  # noqa: E402
from einsight.kernels.builds import config_of, told  # noqa: E402
from einsight.kernels.gna_space import box_config  # noqa: E402
from einsight.kernels.lookup import Entry, Lookup  # noqa: E402
from einsight.kernels.spaces import Config, default_config  # noqa: E402
from einsight.kernels.tuned import mask_in_words, tuned  # noqa: E402

SIZES = (1, 8, 2, 512, 512, 64, 64)
FOUND, GIVEN = Config(32, 64, 2, 3), Config(32, 32, 4, 1)
HALF = torch.float16


def write(folder: Path, kernel: str, bias: Any = None, mask: Any = "causal", dtype: str = "fp16") -> None:
    sizes = dict(zip(("b", "h", "g", "m", "n", "e", "f"), SIZES, strict=True))
    workload = {"sizes": sizes, "dtype": dtype, "mask": mask, "bias": bias}
    build = {"block_m": 32, "block_n": 64, "num_warps": 2, "num_stages": 3}
    entries = (Entry("Test GPU", workload, build, 1e-3),)
    (folder / f"{kernel}.json").write_text(json.dumps(Lookup(kernel, entries).as_json()))


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EINSIGHT_TUNED", str(tmp_path))
    monkeypatch.setattr(module, "device_name", lambda device: "Test GPU")
    return tmp_path


def launched(config: Config | None = None, M: int = 512, bias: Bias | None = None, **rest: Any) -> tuple[int, ...]:
    """(rows, keys, warps, stages) of the forward launch."""
    q, k, out, lse = (meta(1, 8, M, 64, kind=HALF), meta(1, 2, 512, 64, kind=HALF), meta(1, 8, M, 64, kind=HALF),
                      meta(1, 8, M, kind=torch.float32))  # fmt: skip
    sink = rest.pop("sink", None)
    setting = Setting(rest.pop("mask", band(causal=True)), 0.125, rest.pop("softcap", None))
    one = forward_pass(q, k, k, setting, config, out, lse, sink=sink, bias=bias)
    fixed = one.keywords["V"]
    return fixed.BLOCK_M.value, fixed.BLOCK_N.value, one.options["num_warps"], one.options["num_stages"]


def as_tuple(config: Config) -> tuple[int, ...]:
    return config.block_m, config.block_n, config.num_warps, config.num_stages


def test_given_before_tuned_before_default(folder: Path) -> None:
    default = as_tuple(default_config(64, 64))
    assert launched() == default
    write(folder, "attention")
    assert launched() == as_tuple(FOUND) and launched(GIVEN) == as_tuple(GIVEN)
    assert launched(M=400) == as_tuple(FOUND) and launched(M=64) == default  # near, and far from what was tuned
    assert launched(softcap=30.0) == launched(mask=Band()) == launched(sink=meta(8, kind=torch.float32)) == default
    write(folder, "attention", [{"kind": "softcap", "cap": 30.0}, {"kind": "sink"}], [{"window": 32}, "causal"][::-1])
    rest = {"softcap": 30.0, "sink": meta(8, kind=torch.float32), "mask": band(causal=True, window=32)}
    assert launched(**rest) == as_tuple(FOUND) and launched() == default  # the file was read again


def test_kernels_with_a_bias_and_the_backward_have_files_of_their_own(folder: Path) -> None:
    factors = Bias(meta(1, 8, 512, 16, kind=HALF), meta(1, 8, 512, 16, kind=HALF))
    matrix = Bias(meta(1, 8, 512, 512, kind=HALF))
    write(folder, "flashbias", {"kind": "low_rank", "r": 9})  # a tile of 16 columns holds ranks up to 16
    write(folder, "attention_with_bias", [{"kind": "dense_bias"}])
    assert launched(bias=factors) == launched(bias=matrix) == as_tuple(FOUND) != launched()
    q, k, row = meta(1, 8, 512, 64, kind=HALF), meta(1, 2, 512, 64, kind=HALF), meta(1, 8, 512, kind=torch.float32)

    def backward() -> tuple[int, int]:
        one, _ = passes(q, q, k, k, row, row, Setting(band(causal=True), 0.125), None, None, (q, k, k, None, None))
        return one.keywords["V"].BLOCK_M.value, one.options["num_stages"]

    default, _ = backward_configs(64, 64)
    assert backward() == (default.block_m, default.num_stages)
    write(folder, "attention_backward")
    assert backward() == (FOUND.block_m, FOUND.num_stages)


def test_a_broken_file_is_a_warning_and_no_gpu_needs_no_lookup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "attention.json").write_text("{")
    with pytest.warns(RuntimeWarning, match=r"attention.json: .*expected a lookup file; default configurations are used"):
        assert launched() == as_tuple(default_config(64, 64))
    monkeypatch.undo()
    assert module.device_name(torch.device("cpu")) == ""
    assert tuned("attention", torch.zeros(1).half(), SIZES, Band()) is None


def test_a_build_with_flags_is_recorded_as_integers_and_comes_back() -> None:
    build = AttentionConfig(128, 64, 8, 2, descriptors=True)
    assert told(build) == {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 2, "descriptors": 1,
                           "warp_specialize": 0}  # fmt: skip
    assert config_of(told(build)) == build and config_of(told(FOUND)) == FOUND
    assert not isinstance(config_of(told(FOUND)), AttentionConfig)


def test_a_band_in_the_words_of_a_workload() -> None:
    assert mask_in_words(Band()) == [] and mask_in_words(band(causal=True)) == ["causal"]
    assert mask_in_words(band(causal=True, window=7)) == ["causal", {"window": 7}]
    assert mask_in_words(band(window=7)) == [{"window": 7}] and mask_in_words(Band(3, 1)) is None


GRID = {"layout": [12, 20], "window": [6, 20], "stride": [2, 4]}
OTHERS: dict[str, tuple[str, Any, int]] = {  # cascade, mask, queries of the workload that was tuned
    "sigmoid": ("sigmoid", "causal", 240),
    "decode": ("split_kv", "causal", 1),
    "lightning": ("lightning", None, 240),
    "gla": ("gla", None, 240),
    "gna": ("one_pass", [{"gna": GRID}], 240),
}


def launched_other(name: str, monkeypatch: pytest.MonkeyPatch, window: int = 6) -> tuple[int, ...]:
    """(rows, keys or columns, warps, stages) of a launch of a kernel without gradients, 8 heads on 2, 240 keys."""
    q, few, k = meta(1, 8, 240, 64, kind=HALF), meta(1, 8, 1, 64, kind=HALF), meta(1, 2, 240, 64, kind=HALF)
    last, lse = meta(1, 8, 64, 64, kind=torch.float32), meta(1, 8, 1, kind=torch.float32)
    setting = Setting(band(causal=True), 0.125)
    if name == "gna":
        seen: list[Any] = []
        monkeypatch.setattr(gna, "tiles_of", lambda x, mask, tile: x)
        monkeypatch.setattr(gna, "_pass", lambda *rest: SimpleNamespace(run=lambda: seen.append(rest[5])))
        monkeypatch.setattr(gna, "check_inputs", lambda *rest: None)
        gna.gna(q, k, k, (12, 20), (window, 20), (2, 4))
        return as_tuple(seen[0])
    if name == "sigmoid":
        one = sigmoid._pass(q, k, k, setting, None, None, q)
    elif name == "decode":
        one = decode._passes(few, k, k, setting, "stream", None, None, few, lse)[0]
    else:
        gates = meta(1, 2, 240, 64, kind=torch.float32) if name == "gla" else None
        decay = meta(8, kind=torch.float32) if name == "lightning" else None
        one = linear._passes(q, k, k, decay, gates, 1.0, None, None, q, last)[-1]
    keys = one.keywords
    rows, columns = (keys["CHUNK"], keys["BLOCK_F"]) if "CHUNK" in keys else (keys["BLOCK_M"], keys["BLOCK_N"])
    return rows, columns, one.options["num_warps"], one.options["num_stages"]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_every_kernel_takes_what_tune_wrote_for_it(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml", reason="workloads need pyyaml")
    from einsight.sim.workload import Workload
    from einsight.tuner.problem import written

    cascade, mask, queries = OTHERS[name]
    default = launched_other(name, monkeypatch)
    workload = Workload.attention(
        heads=8, kv_heads=2, seq_q=queries, seq_kv=240, head_dim=64, dtype="fp16", cascade=cascade, mask=mask
    )
    build = box_config((4, 8), (8, 4), 2, 1) if name == "gna" else FOUND
    entries = (Entry("Test GPU", written(workload), told(build), 1e-3),)
    (folder / f"{name}.json").write_text(json.dumps(Lookup(name, entries).as_json()))
    assert default != as_tuple(build) == launched_other(name, monkeypatch)
    if name == "gna":  # another neighborhood
        assert launched_other(name, monkeypatch, window=7) != as_tuple(build)


def test_a_launch_without_work_is_like_no_other(folder: Path) -> None:
    write(folder, "attention")
    assert tuned("attention", meta(1, 8, 512, 64, kind=HALF), (1, *SIZES[1:]), band(causal=True)) == FOUND
    assert tuned("attention", meta(1, 8, 512, 64, kind=HALF), (0, *SIZES[1:]), band(causal=True)) is None
