"""The search against recorded spaces, beside random search and TPE in the same run; and what an ask costs.

    python benchmarks/bench_tuner.py                     every recorded space, 50 seeds, 200 evaluations (about 40 minutes)
    python benchmarks/bench_tuner.py --write             the same, and the tables of docs/tuner.md from it
    python benchmarks/bench_tuner.py --space convolution_a100 --seeds 10

Spaces: the folder `tuner_spaces` of the reference data (EINSIGHT_REFERENCE). Finished parts are kept in --results, so a
run that was stopped goes on. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from einsight.tuner.pool import Pool
from einsight.tuner.prior import noisy
from einsight.tuner.recorded import Recorded, load
from einsight.tuner.replay import Replay, paired_difference, random_curve, replay
from einsight.tuner.space import Space, enumerated

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", ROOT.parent / "shared" / "reference")) / "tuner_spaces"
AT = (16, 32, 64, 100, 200)
METHODS = ("pool", "pool, noisy:0.9", "tpe", "random")
BARS = {"gemm": 95.0, "convolution": 88.0, "dedispersion": 90.0}  # percent of the optimum after 200, no prior
PRIOR_BARS = {32: 94.0, 100: 97.0, 200: 99.0}
EASY = 97.0  # where random search gets this far, nothing is asked of the comparison
CHUNK = 5  # seeds between two writes of the results file
ASK_BAR_S, ASK_SPACE, ASKS, ASK_RUNS = 0.05, 10, 200, 3
BEGIN, END = "<!-- bench_tuner: begin -->", "<!-- bench_tuner: end -->"


def runs(recorded: Recorded, method: str, trials: int, seeds: range) -> Replay:
    name, _, prior = method.partition(", ")
    times = recorded.times_s
    believed = (lambda seed: noisy(times, float(prior.partition(":")[2]), seed)) if prior else None
    return replay(recorded, name, trials, seeds, believed)


def part(recorded: Recorded, method: str, given: argparse.Namespace) -> dict[str, Any]:
    """Percent of the optimum after AT evaluations, a list per seed; kept in the results file every few seeds."""
    key = f"{recorded.name}/{method}/{given.trials}"
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    found: dict[str, Any] = kept.setdefault(key, {"percent": [], "seconds": 0.0})
    while (done := len(found["percent"])) < given.seeds and not given.kept_only:
        more = range(done, min(done + CHUNK, given.seeds))
        begin = time.perf_counter()
        fraction = runs(recorded, method, given.trials, more).fraction
        found["seconds"] += time.perf_counter() - begin
        found["percent"] += (100 * fraction[:, [min(k, given.trials) - 1 for k in AT]]).round(4).tolist()
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(kept))
    count = min(len(found["percent"]), given.seeds)
    return {"percent": found["percent"][:count], "seconds": found["seconds"] / max(len(found["percent"]), 1)}


def tables(given: argparse.Namespace) -> Iterator[str]:
    """Markdown lines; after them, `missed` lists the bars that were not reached."""
    missed: list[str] = given.missed
    yield "Mean percent of the optimum after so many evaluations, +- half the 95 % interval."
    yield ""
    yield "| space | method | " + " | ".join(map(str, AT)) + " | s per run |"
    yield "|---|---|" + "---|" * (len(AT) + 1)
    compared = []
    for recorded in spaces(given.space):
        chance = random_curve(recorded, given.trials)
        percent = {}
        for method in METHODS:
            found = part(recorded, method, given)
            if len(found["percent"]) < 2:
                continue
            percent[method] = np.array(found["percent"]).reshape(-1, len(AT))
            yield row(recorded, method, percent[method], found)
        exact = " | ".join(f"{chance[min(k, given.trials) - 1]:.1f}" for k in AT)
        yield f"| {recorded.name} | random, exact | {exact} | |"
        missed += judge(recorded, percent, given)
        compared.append((recorded.name, percent, float(chance[-1])))
    yield from ["", f"After {given.trials} evaluations, ours less the other, same seeds:", ""]
    yield "| space | less TPE | less random | random reaches |"
    yield "|---|---|---|---|"
    for name, percent, chance_end in compared:
        told = [paired_difference(*both(percent, method)) for method in ("tpe", "random")]
        yield f"| {name} | " + " | ".join(f"{mean:+.1f} +- {half:.1f}" for mean, half in told) + f" | {chance_end:.1f} |"


def row(recorded: Recorded, method: str, percent: np.ndarray, found: dict[str, Any]) -> str:
    half = 1.96 * percent.std(0, ddof=1) / np.sqrt(len(percent))
    cells = [f"{m:.1f} +- {h:.1f}" for m, h in zip(percent.mean(0), half, strict=True)]
    method += f" ({len(percent)} seeds)"
    return f"| {recorded.name} | {method} | {' | '.join(cells)} | {found['seconds']:.1f} |"


def both(percent: dict[str, np.ndarray], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the other after all evaluations, at the seeds that both have."""
    count = min(len(percent["pool"]), len(percent[method]))
    return percent["pool"][:count, -1], percent[method][:count, -1]


def judge(recorded: Recorded, percent: dict[str, np.ndarray], given: argparse.Namespace) -> list[str]:
    """The bars of this space that are missed."""
    ours, name = percent["pool"][:, -1], recorded.name
    bar = next((bar for kind, bar in BARS.items() if name.startswith(kind)), 0.0)
    missed = [f"{name}: {ours.mean():.1f} % < {bar}"] if ours.mean() < bar else []
    if percent["random"][:, -1].mean() < EASY:
        for method in ("tpe", "random"):
            mean, half = paired_difference(*both(percent, method))
            if mean <= half:
                missed.append(f"{name}: above {method} by {mean:.1f} +- {half:.1f}")
    for k, bar in PRIOR_BARS.items():
        mean = percent["pool, noisy:0.9"][:, AT.index(k)].mean() if "pool, noisy:0.9" in percent else bar
        if mean < bar:
            missed.append(f"{name}, prior, after {k}: {mean:.1f} % < {bar}")
    return missed if given.trials == AT[-1] else []


def spaces(chosen: list[str] | None) -> Iterator[Recorded]:
    for path in sorted(REFERENCE.glob("*.json.gz")):
        if not chosen or path.name.split(".")[0] in chosen:
            yield load(path)


def large() -> tuple[Space, np.ndarray]:
    """A space of 10,000 configurations and their times, nan where one fails."""
    ten = range(1, ASK_SPACE + 1)
    space = enumerated("large", [{"a": a, "b": b, "c": c, "d": d} for a in ten for b in ten for c in ten for d in ten])
    a, b, c, d = space.points.T
    return space, np.where((a + b) % 7 == 0, np.nan, 1 + (a - 3) ** 2 + abs(b - c) + 0.1 * d)


def ask_times(space: Space, times: np.ndarray) -> np.ndarray:
    """Processor seconds (one thread) of each of 200 proposals without prior."""
    pool, taken = Pool(space.coordinates, None, 0, space.features), []
    for _ in range(ASKS):
        begin = time.process_time()
        proposed = pool.propose()
        taken.append(time.process_time() - begin)
        assert proposed is not None
        pool.observe(proposed, float(np.log(times[proposed])) if np.isfinite(times[proposed]) else None)
    return np.array(taken)


def prior_time(space: Space, times: np.ndarray) -> float:
    """Processor seconds (one thread) that a search with a prior takes before its first proposal."""
    prior = noisy(times, 0.9, 0)
    begin = time.process_time()
    Pool(space.coordinates, prior, 0, space.features)
    return time.process_time() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--space", action="append", help="only this one; repeatable")
    parser.add_argument("--results", type=Path, default=ROOT / "out" / "bench_tuner.json", help="finished parts")
    parser.add_argument("--kept-only", action="store_true", help="run nothing: tables of what the results file has")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/tuner.md")
    given = parser.parse_args()
    given.missed = []
    lines = []
    asks = np.min([ask_times(*large()) for _ in range(ASK_RUNS)], axis=0)  # the same: what differs is the machine's other work
    middle, high, most = (1e3 * np.quantile(asks, q) for q in (0.5, 0.99, 1.0))
    told = f"Processor time of an ask on 10,000 configurations ({ASKS} asks, each the least of {ASK_RUNS} runs): "
    told += f"mean {1e3 * asks.mean():.1f} ms, median {middle:.1f}, 99 % under {high:.0f}, worst {most:.0f}. "
    told += f"With a prior its trend once, before the first: {min(prior_time(*large()) for _ in range(ASK_RUNS)):.1f} s."
    if asks.max() > ASK_BAR_S:
        given.missed.append(told)
    for line in [told, "", *([] if REFERENCE.is_dir() else [f"no recorded spaces in {REFERENCE}"])]:
        print(line)
        lines.append(line)
    for line in tables(given):
        print(line, flush=True)
        lines.append(line)
    for bar in given.missed:
        print(f"missed: {bar}", file=sys.stderr)
    if given.write:
        page = ROOT / "docs" / "tuner.md"
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 1 if given.missed else 0


if __name__ == "__main__":
    sys.exit(main())
