"""The interval of a prediction: the shortest that holds its share of the rows, by limiting resource, never below a bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from einsight.sim.family import load_family
from einsight.sim.hardware import load_gpu
from einsight.sim.interval import COVERED, FEWEST, by_resource, ends, limiting, shortest
from einsight.sim.predict import estimate_of
from einsight.sim.strict_yaml import SpecError
from einsight.sim.workload import Workload


def test_the_shortest_interval_holds_its_share_and_no_shorter_one_does() -> None:
    rng = np.random.default_rng(0)
    miss = np.concatenate([rng.exponential(0.1, 900), -rng.exponential(0.02, 100)])  # measured is slower, mostly
    below, above = shortest(miss)
    low, high = -np.log1p(below), np.log1p(above)
    assert np.mean((miss >= low - 1e-9) & (miss <= high + 1e-9)) >= COVERED
    assert above > 2 * below
    everything = np.sort(miss)
    held = int(np.ceil(COVERED * (len(miss) + 1)))  # of the rows seen and the one to come
    brute = min(everything[i + held - 1] - everything[i] for i in range(len(miss) - held + 1))
    assert high - low == pytest.approx(brute, rel=1e-9)


def test_an_interval_contains_the_prediction_even_where_every_row_lies_above() -> None:
    miss = np.geomspace(0.1, 0.2, 100)  # densest at its beginning
    below, above = shortest(miss)
    assert below == 0.0 and above == pytest.approx(np.expm1(miss[int(np.ceil(COVERED * 101)) - 1]))


def test_a_resource_that_limits_few_rows_takes_the_common_interval() -> None:
    miss = np.concatenate([np.linspace(-0.1, 0.1, FEWEST), np.linspace(-0.5, 0.5, FEWEST - 1)])
    names = np.array(["HBM"] * FEWEST + ["launch"] * (FEWEST - 1))
    whole, sides = by_resource(miss, names)
    assert set(sides) == {"HBM"} and max(sides["HBM"]) < whole


def test_the_ends_follow_the_limiting_resource_and_respect_the_bounds() -> None:
    gpu = load_gpu("h100-sxm")
    long = Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, dtype="bf16")
    family, _ = load_family("flash3").on(gpu, "prefill", "bf16", "bf16")
    found = estimate_of(long, gpu, family)
    name = str(limiting(found)[0])
    time, largest = float(found.time_s[0]), float(found.bounds_s[name][0])
    low, high = ends(found, replace(family, misses={name: (0.01, 0.25)}))
    assert float(high[0]) == pytest.approx(time * 1.25) and float(low[0]) == pytest.approx(max(time / 1.01, largest))
    low, _ = ends(found, replace(family, misses={name: (9.0, 0.25)}))
    assert float(low[0]) == pytest.approx(largest)
    half = family.constant("interval")
    _, high = ends(found, replace(family, misses={}))
    assert float(high[0]) == pytest.approx(time * (1 + half))


def test_an_interval_widens_away_from_its_fit() -> None:
    family = load_family("flash2")
    fit = next(f for f in family.fits if f.architecture == "sm_89" and f.phase == "prefill")
    assert fit.misses
    own, _ = family.on(load_gpu("l40s"), "prefill", *fit.dtypes, fit.framework)
    other, note = family.on(load_gpu("rtx-pro-6000"), "prefill", *fit.dtypes, fit.framework)
    assert dict(own.misses) == dict(fit.misses) and "widened" in note
    assert all(o > s for name, mine in own.misses.items() for o, s in zip(other.misses[name], mine, strict=True) if s)


def test_misses_in_a_family_file_are_two_numbers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from einsight.sim.family import family_file

    text = family_file("flash2").read_text(encoding="utf-8")
    head, found, tail = text.partition("misses: {HBM: [")
    assert found
    file = tmp_path / "f.yaml"
    file.write_text(head + "misses: {HBM: [-" + tail, encoding="utf-8")
    with pytest.raises(SpecError, match="two numbers that are not negative"):
        load_family(str(file))
