"""Recorded spaces: formats read and written, replay judged by formulas, priors as they are described."""

from __future__ import annotations

import ast
import gzip
import json
import os
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from einsight.kernels.lookup import Lookup, distance, tuned_config
from einsight.kernels.spaces import Config
from einsight.tuner import prior
from einsight.tuner.export import ExportError, export
from einsight.tuner.record import Environment, Measurement, RecordError, Status, append
from einsight.tuner.recorded import Outcome, Recorded, load, to_kernel_tuner, to_t4
from einsight.tuner.space import enumerated

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "tuner_spaces"
HERE = Environment("Test GPU", 90, 132, 80 << 30, 50 << 20, "1.0", "13.0", "2.11", "3.6", "3.12", "Linux 6")

LISTED = [{"block": b, "warps": w} for b in (16, 32, 64) for w in (1, 2, 4)]
FAILED = Outcome(Status.COMPILE_FAILED, (), "CompilationFailedConfig")
OUTCOMES = tuple(FAILED if r == 4 else Outcome(Status.OK, (1e-3 * (r + 1), 1.1e-3 * (r + 1))) for r in range(9))
TOY = Recorded("toy", "k", "gpu", enumerated("k", LISTED), OUTCOMES)


def reference(name: str) -> Path:
    file = REFERENCE / name
    if not file.exists():
        pytest.skip(f"no {file} (EINSIGHT_REFERENCE names the folder)")
    return file


@pytest.mark.parametrize("write", [to_kernel_tuner, to_t4])
def test_a_key_of_a_file_that_has_none_is_refused(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "toy.json"
    file.write_text(json.dumps(write(TOY)))
    with pytest.raises(RecordError, match=r"toy\.json: found a key, 4e4b.*expected none"):
        load(file, "4e4b")


@pytest.mark.parametrize(("suffix", "write"), [("cache.json", to_kernel_tuner), ("t4.json", to_t4)])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, write) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / f"toy.{suffix}"
    file.write_text(json.dumps(write(TOY)))
    again = load(file)
    assert again.space.parameters == TOY.space.parameters and (again.space.points == TOY.space.points).all()
    np.testing.assert_allclose(again.times_s, TOY.times_s, rtol=1e-12)
    assert [o.status for o in again.outcomes] == [o.status for o in TOY.outcomes]
    assert (again.kernel, again.device) == ("k", "gpu")


def test_samples_of_kernel_tuner_and_t4_are_read() -> None:
    cache, t4 = (load(reference(f"format_samples/{n}.json")) for n in ("kerneltuner_cache_sample", "T4_sample"))
    assert len(cache.space) == len(t4.space) == 5 and cache.device == "NVIDIA A100-PCIE-40GB"
    np.testing.assert_allclose(cache.times_s, t4.times_s)
    assert cache.space.configuration(1) == t4.space.configuration(1)
    assert len(cache.outcomes[0].samples_s) == 32


def test_rows_of_a_space_are_the_rows_of_its_file() -> None:
    file = reference("convolution_a100.json.gz")
    raw = json.loads(gzip.decompress(file.read_bytes()))
    found = load(file)
    assert len(found.space) == len(raw["rows"]) == 4362
    for r in (0, 17, 4361):
        *index, time, _ = raw["rows"][r]
        values = {n: v[i] for (n, v), i in zip(raw["param_values"].items(), index, strict=True)}
        assert found.space.configuration(r) == values and found.space.row(values) == r
        assert (found.outcomes[r].status is Status.OK) == (time is not None)
        if time is not None:
            assert found.times_s[r] == pytest.approx(time * 1e-3)
    failed = {o.status for o in found.outcomes if o.status is not Status.OK}
    assert failed == {Status.COMPILE_FAILED, Status.FAILED}


def test_our_records_are_a_space_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    for sweep in (0, 1):
        for r in (2, 0, 1):
            samples = (1e-3 * (r + 1 + sweep),)
            append(file, Measurement("k", {}, LISTED[r], Status.OK, "warm", HERE, "now", samples, sweep=sweep))
    found = load(file)
    assert [found.space.configuration(r) for r in range(3)] == [LISTED[2], LISTED[0], LISTED[1]]
    np.testing.assert_allclose(found.times_s, [3.5e-3, 1.5e-3, 2.5e-3])
    append(file, Measurement("other", {}, LISTED[0], Status.OK, "warm", HERE, "now", (1.0,)))
    with pytest.raises(RecordError, match="2 kernels, workloads or devices, expected one"):
        load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "expected JSON"), ("{}", "expected one of the keys"), ('{"cache": {}}', "has 'cache' but not its form"),
     ('{"results": [{}], "metadata": {"timeunit": "ms"}}', "not its form"), ("[1]", "expected one of the keys")],
)  # fmt: skip
def test_a_file_that_is_none_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(RecordError, match=message):
        load(file)
    with pytest.raises(RecordError, match="No such file"):
        load(tmp_path / "missing.json")


def test_exports_are_what_others_read(tmp_path: Path) -> None:
    measurements = [TOY.measure(r) for r in range(9)]
    export(measurements, "triton", tmp_path / "configs.py")
    tree = ast.parse((tmp_path / "configs.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert len(calls) == 8 and ast.literal_eval(calls[0].args[0]) == LISTED[0]  # nine, one of them failed
    with pytest.raises(ExportError, match="nothing to export"):
        export([TOY.measure(4)], "t4", tmp_path / "none.json")
    with pytest.raises(ExportError, match="expected one of triton, lookup"):
        export(measurements, "xml", tmp_path / "x")


def workload(m: int, mask: object = "causal") -> dict[str, object]:
    return {"sizes": {"b": 1, "h": 32, "g": 8, "m": m, "n": m, "e": 128, "f": 128}, "dtype": "bf16", "mask": mask}


def test_a_lookup_serves_the_nearest_shape_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "attention.json"
    for m, block in ((1024, 64), (8192, 128)):
        config = {"block_m": block, "block_n": 64, "num_warps": 4, "num_stages": 2}
        for time in (2e-3, 1e-3):  # the second replaces the first
            export([Measurement("attention", workload(m), config, Status.OK, "warm", HERE, "now", (time,))], "lookup", file)
    assert len(Lookup.read(file).entries) == 2
    monkeypatch.setenv("EINSIGHT_TUNED", str(tmp_path))
    assert tuned_config("attention", "Test GPU", workload(7000)) == Config(128, 64, 4, 2)
    assert tuned_config("attention", "Test GPU", workload(900)) == Config(64, 64, 4, 2)
    assert tuned_config("attention", "Test GPU", workload(64)) is None  # too far from both
    assert tuned_config("attention", "Other GPU", workload(1024)) is None
    assert tuned_config("attention", "Test GPU", workload(1024, None)) is None  # another mask
    assert distance(workload(1024), workload(2048)) == 2.0
    monkeypatch.setenv("EINSIGHT_TUNED", str(tmp_path / "nowhere"))
    assert tuned_config("attention", "Test GPU", workload(1024)) is None


def test_a_noisy_prior_has_its_correlation_and_its_own_noise_per_seed() -> None:
    times = np.exp(np.random.default_rng(0).normal(size=20_000))
    made = prior.noisy(times, 0.9, 1)
    assert np.corrcoef(np.log(times), made)[0, 1] == pytest.approx(0.9, abs=0.01)
    assert (made == prior.noisy(times, 0.9, 1)).all() and not (made == prior.noisy(times, 0.9, 2)).any()
    np.testing.assert_array_equal(prior.noisy(times, 1.0, 0), np.log(times))
    holed = np.where(np.arange(len(times)) % 10 == 0, np.nan, times)
    assert np.isfinite(prior.noisy(holed, 0.9, 0)).all()
    with pytest.raises(prior.PriorError, match="above 0, at most 1"):
        prior.noisy(times, 1.5, 0)


def test_another_device_is_a_prior() -> None:
    other = Recorded("b", "k", "other", enumerated("k", LISTED[:8]), OUTCOMES[:8])
    believed = np.exp(prior.other_device(other, TOY.space))
    times = TOY.times_s
    np.testing.assert_allclose(believed[:4], times[:4])
    assert believed[[4, 8]] == pytest.approx(np.nanmedian(times[:8]))  # failed there, unknown there
    with pytest.raises(prior.PriorError, match="none of the configurations"):
        prior.other_device(Recorded("c", "k", "x", enumerated("k", [{"block": 1, "warps": 9}]), OUTCOMES[:1]), TOY.space)


def test_random_search_by_formula_is_random_search_by_enumeration() -> None:
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    from einsight.tuner.replay import random_curve

    value = np.where(np.isfinite(TOY.times_s), np.nanmin(TOY.times_s) / TOY.times_s, 0.0)
    expected = [100 * sum(max(value[list(c)]) for c in combinations(range(9), k)) / comb(9, k) for k in range(1, 10)]
    np.testing.assert_allclose(random_curve(TOY, 9), expected, rtol=1e-9)


def test_a_replay_reports_by_its_definitions() -> None:
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    from einsight.tuner.replay import Replay, replay

    made = Replay(TOY, "by hand", (0, 1), ((4, 8, 1), (0, 4, 5)))
    best = 1.05e-3
    np.testing.assert_allclose(made.fraction, [[0, best / TOY.times_s[8], best / TOY.times_s[1]], [1, 1, 1]])
    assert made.percent_of_optimum == pytest.approx(100 * (0.5 + 1) / 2)
    assert made.evaluations_to(5) == (None, 0.5) and made.regret_at(3) == pytest.approx(0.5) and made.regret_at(1) == np.inf
    assert Replay(TOY, "x", (0,), ((3, 0),)).evaluations_to(1) == (2.0, 1.0)
    found = replay(TOY, "pool", 9, range(3)).as_json()
    assert all(sorted(rows) == list(range(9)) for rows in found["evaluated"])
    assert found["percent_of_optimum"] == 100 and len(found["curve"]) == 9
    assert [s["evaluated"] for s in found["seeds"]] == found["evaluated"]
    assert list(found["regret"].values())[1:] == [0.0] * 4  # after 8 of 9, and when all are known
    short = replay(TOY, "pool", 8, range(3)).as_json()["regret"]
    assert short["8"] == 0.0 and short["16"] is short["32"] is short["64"] is None


def test_a_store_reads_only_what_is_new_and_of_its_subject(tmp_path: Path) -> None:
    from einsight.tuner.store import Store, Subject

    file, subject = tmp_path / "r.jsonl", Subject("k", {}, "Test GPU")

    def made(r: int, **other: object) -> Measurement:
        told: dict[str, object] = {"kernel": "k", "workload": {}} | other
        return Measurement(**told, configuration=LISTED[r], status=Status.OK, cache="warm", environment=HERE, at="",
                           samples_s=(1e-3,))  # type: ignore[arg-type]  # fmt: skip

    one, two = Store(subject, file), Store(subject, file)
    one.add(made(0))
    assert two.find(LISTED[0]) is None
    two.refresh()
    assert two.find(LISTED[0]) == made(0)
    for alien in (made(1, kernel="other"), made(1, workload={"m": 1}), made(1, source_hash="x"), made(1, sweep=1)):
        append(file, alien)
    with file.open("ab") as raw:
        raw.write(b'{"format":1,"ker')  # a line that is being written
    two.refresh()
    assert two.find(LISTED[1]) is None and len(two.known) == 1
    with pytest.warns(UserWarning, match="cut off"):
        one.add(made(2))
    two.refresh()
    assert two.find(LISTED[2]) == made(2)
