"""The interval of a prediction: of its regime, never below a bound, wider away from the fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einsight.sim.family import family_file, load_family
from einsight.sim.hardware import load_gpu
from einsight.sim.interval import ends, limiting, shares
from einsight.sim.predict import estimate_of
from einsight.sim.regime import RESOURCES, Regime, Regimes
from einsight.sim.strict_yaml import SpecError
from einsight.sim.workload import Workload


def test_the_ends_follow_the_regime_and_respect_the_bounds() -> None:
    gpu = load_gpu("h100-sxm")
    long = Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, dtype="bf16")
    family, _ = load_family("flash3").on(gpu, "prefill", "bf16", "bf16")
    found = estimate_of(long, gpu, family)
    name = str(limiting(found)[0])
    time, largest = float(found.time_s[0]), float(found.bounds_s[name][0])
    share = largest / time
    assert 0.02 < share < 0.98
    inside, outside = Regime({name: (share - 0.01, share + 0.01)}, 0.01, 0.25), Regime({name: (share + 0.01, 1.0)}, 0.5, 0.5)
    low, high = ends(found, replace(family, regimes=Regimes((outside, inside))))
    assert float(high[0]) == pytest.approx(time * 1.25) and float(low[0]) == pytest.approx(max(time / 1.01, largest))
    low, _ = ends(found, replace(family, regimes=Regimes((replace(inside, below=9.0),))))
    assert float(low[0]) == pytest.approx(largest)
    half = family.constant("interval")
    _, high = ends(found, replace(family, regimes=Regimes((outside,))))
    assert float(high[0]) == pytest.approx(time * (1 + half))
    _, high = ends(found, replace(family, regimes=Regimes((inside,))), least=0.4)
    assert float(high[0]) == pytest.approx(time * 1.4)


@pytest.mark.parametrize("target", ["h100-sxm", "b200", "l40s"])
def test_shares_are_of_known_resources_and_no_more_than_the_whole_time(target: str) -> None:
    gpu = load_gpu(target)
    for name in ("flash2", "triton", "unfused"):
        family = load_family(name)
        if family.why_unusable(gpu, "bf16", "bf16"):
            continue
        found = shares(estimate_of(Workload.attention(heads=32, seq_q=2048, head_dim=128, dtype="bf16"), gpu, family))
        assert set(found) <= set(RESOURCES)
        assert all(0.0 <= float(s[0]) <= 1.0 for s in found.values())


def test_an_interval_widens_away_from_its_fit() -> None:
    family = load_family("flash2")
    fit = next(f for f in family.fits if f.architecture == "sm_89" and f.phase == "prefill")
    assert fit.regimes.listed
    own, _ = family.on(load_gpu("l40s"), "prefill", *fit.dtypes, fit.framework)
    other, note = family.on(load_gpu("rtx-pro-6000"), "prefill", *fit.dtypes, fit.framework)
    assert own.regimes.listed == fit.regimes.listed and "widened" in note
    more = {round(o.below - s.below, 6) for o, s in zip(other.regimes.listed, own.regimes.listed, strict=True)}
    assert len(more) == 1 and min(more) > 0.05


REFUSED = {
    "below: 0.1, above: -0.1": "a number that is not negative",
    "below: 0.1": "the key above",
    "below: 0.1, above: 0.1, HBN: [0, 0.5]": 'did you mean "HBM"',
    "below: 0.1, above: 0.1, HBM: [0.5, 0.5]": "two shares of the time",
    "below: 0.1, above: 0.1, HBM: 0.5": "a list",
}


@pytest.mark.parametrize("entry", REFUSED)
def test_a_regime_in_a_family_file_is_two_sides_and_shares_of_resources(tmp_path, entry: str) -> None:  # type: ignore[no-untyped-def]
    text = family_file("flash2").read_text(encoding="utf-8")
    head, found, tail = text.partition("      - {below: ")
    assert found
    file = tmp_path / "f.yaml"
    file.write_text(head + "      - {" + entry + tail[tail.index("}") :], encoding="utf-8")
    with pytest.raises(SpecError) as refused:
        load_family(str(file))
    assert REFUSED[entry].lower() in str(refused.value).lower() and "regimes[0]" in str(refused.value)
