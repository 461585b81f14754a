"""FlashBias (arXiv 2505.12044, NeurIPS 2025): its published measurements beside our predictions.

Published figures are those of the authors' repository (its benchmark tables inverted to milliseconds, its read-me, and its
figures read off, marked so). The micro-benchmark does not name its GPU; the kernels' header names the A100, which is what we
assume. Nothing of FlashBias itself is fitted: two constants of the baseline that it is compared with, PyTorch's SDPA with an
additive mask, come from that baseline's own forward times at N = 4096 and 16384, and every other row is predicted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from einsight.sim.bias_times import concatenated, with_factors, with_matrix
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import Gpu, Quantity, load_hardware
from einsight.sim.mapping import Mapping as Tiles
from einsight.sim.predict import estimate_of, predict
from einsight.sim.workload import Workload

PUBLISHED: Mapping[str, Any] = json.loads((Path(__file__).parent / "templates" / "flashbias.json").read_text("utf-8"))


def _by_length(values: Mapping[str, float]) -> dict[int, float]:
    return {int(n): value for n, value in values.items()}


ASSUMED_TARGET: str = PUBLISHED["assumed_target"]
MICRO = {"batch": 2, "heads": 4, "head_dim": 32, "dtype": "fp16", "cache": "warm"}
RANK = 8
FITTED_ON = (4096, 16384)
"""Sequence lengths whose baseline times two constants are fitted on."""

SDPA_DENSE_MS = _by_length(PUBLISHED["sdpa_dense_ms"])
SDPA_FACTORS_MS = _by_length(PUBLISHED["sdpa_factors_ms"])
TRITON_FACTORS_MS = _by_length(PUBLISHED["triton_factors_ms"])
TRITON_FACTORS_SPEEDUP = _by_length(PUBLISHED["triton_factors_speedup"])
"""Where the repository's table gives the ratio only."""
TRITON_DENSE_MS = _by_length(PUBLISHED["triton_dense_ms"])
EAGER_MS = _by_length(PUBLISHED["eager_ms"])
BACKWARD = {what: _by_length(values) for what, values in PUBLISHED["forward_backward_ms"].items()}
"""Milliseconds of forward and backward together; below 8192 both ways of factors are slower than SDPA with the matrix."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure and ours. `ratio`: predicted over published; None where one is missing.

    basis   what the figure is: "fitted" rows took part in the fit, "predicted" ones did not, "published only" have no
            prediction and `note` says why
    """

    table: str
    what: str
    size: str
    unit: str
    published: float | None
    predicted: float | None
    basis: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.predicted / self.published if self.predicted is not None and self.published else None

    @property
    def same_sign(self) -> bool | None:
        """Of a speedup: whether both say faster, or both slower. None where the two are not of the same thing."""
        if self.unit != "x" or self.table == WHOLE or self.predicted is None or self.published is None:
            return None
        return (self.predicted > 1.0) == (self.published > 1.0)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "same_sign": self.same_sign}


# -- kernels of the micro-benchmark -----------------------------------------------------------------------------------

SDPA_TILES = Tiles(64, 64, blocks_per_sm=4)
"""PyTorch's memory-efficient kernel on compute capability 8.0: 64 x 64 tiles of 4 warps, 16 warps to an SM."""
TRITON_TILES = Tiles(128, 128, blocks_per_sm=2)
"""The largest of the kernel's autotuning space; accumulators in registers leave room for two blocks."""

SDPA_NOTES = (
    "SDPA with a mask, and with operands of 40 and values of 32 columns, runs PyTorch's memory-efficient kernel: one family,"
    " so that what is fitted on the baseline also predicts the concatenated factors"
)
TRITON_CONSTANTS = {
    "unhidden": (1.0, "num_stages = 1: loads, products and softmax of a block follow each other"),
    "unhidden_memory": (1.0, "num_stages = 1: nothing is prefetched"),
    "tile_cycles": (1500.0, "five exposed trips of 300 cycles to L2: keys, factors, values, a scale out and in"),
}
HOST_S = 1e-4
"""Host time of one call of the Triton wrapper: ten framework calls (permute, contiguous, casts, allocations) of 5 us and one
launch with an autotuning look-up, 50 us; assumed. The GPU works meanwhile, so that the longer of the two counts."""
HALF_RATE = 2
"""Factors are multiplied in TF32, at half the rate of fp16: counted as twice the padded rank."""


def with_constants(family: Family, values: Mapping[str, tuple[float, str]], kind: str) -> Family:
    """The family with some constants replaced; each with its reason."""
    given = {name: Quantity(value, f"{value:g}", kind, why) for name, (value, why) in values.items()}
    return replace(family, constants={**family.constants, **given})


@dataclass(frozen=True, slots=True)
class Baseline:
    """SDPA with a bias matrix, and how it was fitted: `residuals` are predicted over published at `FITTED_ON`."""

    family: Family
    constants: Mapping[str, float]
    residuals: tuple[float, ...]


@lru_cache(maxsize=4)
def baseline(target: str = ASSUMED_TARGET) -> Baseline:
    """Two constants of the SDPA kernel, fitted on its own forward times with the matrix at `FITTED_ON`."""
    from scipy.optimize import least_squares  # half a second of import, only for this report

    def family(x: Sequence[float]) -> Family:
        why = f"fitted on SDPA with a matrix at N = {FITTED_ON[0]} and {FITTED_ON[1]}"
        why_serial = "no software pipelining before Ampere's asynchronous copies"
        serial = {"unhidden": (1.0, why_serial), "unhidden_memory": (1.0, why_serial)}
        first = with_constants(load_family("flash2"), serial, "assumed")
        fitted = {"vector_per_score": (float(x[0]), why), "tile_cycles": (float(x[1]), why)}
        return with_constants(first, fitted, "fitted")

    def off(x: Sequence[float]) -> list[float]:
        return [float(np.log(_sdpa_dense(n, family(x), target) / SDPA_DENSE_MS[n])) for n in FITTED_ON]

    found = least_squares(off, (20.0, 1000.0), bounds=((0.0, 0.0), (60.0, 5000.0)))
    constants = dict(zip(("vector_per_score", "tile_cycles"), map(float, found.x), strict=True))
    return Baseline(family(found.x), constants, tuple(float(np.exp(r)) for r in off(found.x)))


def triton_family() -> Family:
    """The repository's Triton kernel: our Triton family, without software pipelining. Nothing is fitted."""
    return with_constants(load_family("triton"), TRITON_CONSTANTS, "assumed")


def plain(n: int) -> Workload:
    return Workload.attention(seq_q=n, **MICRO)  # type: ignore[arg-type]


def _ms(workload: Workload, family: Family, tiles: Tiles, target: str) -> float:
    gpu = load_hardware(target)
    assert isinstance(gpu, Gpu)
    return float(estimate_of(workload, gpu, family, tiles).time_s[0]) * 1e3


def _sdpa_dense(n: int, family: Family, target: str) -> float:
    return _ms(with_matrix(plain(n)), family, SDPA_TILES, target)


def micro_ms(target: str = ASSUMED_TARGET) -> dict[str, Callable[[int], float]]:
    """Predicted forward milliseconds by kernel, as functions of N."""
    sdpa, triton = baseline(target).family, triton_family()
    padded = HALF_RATE * 16  # rank 8 is padded to 16 in the kernel

    def on_triton(workload: Workload) -> float:
        return max(HOST_S * 1e3, _ms(workload, triton, TRITON_TILES, target))

    return {
        "SDPA with the matrix": lambda n: _sdpa_dense(n, sdpa, target),
        "SDPA with factors": lambda n: _ms(concatenated(plain(n), RANK), sdpa, SDPA_TILES, target),
        "Triton with factors": lambda n: on_triton(with_factors(plain(n), padded)),
        "Triton with the matrix": lambda n: on_triton(with_matrix(plain(n))),
        "eager with the matrix": lambda n: predict(with_matrix(plain(n)), f"{target}:unfused").time_s * 1e3,
    }


# -- tables -----------------------------------------------------------------------------------------------------------

FORWARD, MEMORY, WHOLE, PUBLISHED_ONLY = (
    "micro-benchmark, forward", "training memory by N", "whole models, attention alone predicted", "not predicted",
)  # fmt: skip


def micro_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Milliseconds of the baseline and speedups over it, forward."""
    ms = micro_ms(target)
    dense = {n: ms["SDPA with the matrix"](n) for n in SDPA_DENSE_MS}
    rows = [
        Row(FORWARD, "SDPA with the matrix", f"N {n}", "ms", published, dense[n], "fitted" if n in FITTED_ON else "predicted")
        for n, published in SDPA_DENSE_MS.items()
    ]
    for what, times in (("SDPA with factors", SDPA_FACTORS_MS), ("Triton with factors", TRITON_FACTORS_MS)):
        speedups = {n: SDPA_DENSE_MS[n] / t for n, t in times.items()}
        speedups |= TRITON_FACTORS_SPEEDUP if times is TRITON_FACTORS_MS else {}
        rows += [
            Row(FORWARD, f"{what} over SDPA with the matrix", f"N {n}", "x", speedups[n], dense[n] / ms[what](n), "predicted",
                "launch-bound" if n in TRITON_FACTORS_SPEEDUP else "")
            for n in sorted(speedups)
        ]  # fmt: skip
    rows += [
        Row(FORWARD, "Triton: factors over the matrix", f"N {n}", "x", t / TRITON_FACTORS_MS[n],
            ms["Triton with the matrix"](n) / ms["Triton with factors"](n), "predicted")
        for n, t in TRITON_DENSE_MS.items()
    ]  # fmt: skip
    rows += [
        Row(FORWARD, "Triton with factors over eager", f"N {n}", "x", t / TRITON_FACTORS_MS[n],
            ms["eager with the matrix"](n) / ms["Triton with factors"](n), "predicted")
        for n, t in EAGER_MS.items()
    ]  # fmt: skip
    return rows


RANKS, SWEEP_LENGTHS = (8, 16, 32, 64), (16384, 32768)


def rank_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Time against R: published curves are flat from R = 8 to 64 within what the figure resolves."""
    sdpa = baseline(target).family
    rows = []
    for n in SWEEP_LENGTHS:
        first = _ms(concatenated(plain(n), RANKS[0]), sdpa, SDPA_TILES, target)
        for rank in RANKS[1:]:
            grown = _ms(concatenated(plain(n), rank), sdpa, SDPA_TILES, target) / first
            note = "figure: a whole Transformer of unstated shape, nearly independent of R; ours is its attention alone"
            rows.append(Row("time by rank", f"rank {rank} over rank 8", f"N {n}", "ratio", 1.0, grown, "predicted", note))
    return rows


TRAIN_MEMORY_GB = {what: _by_length(values) for what, values in PUBLISHED["train_memory_gb"].items()}


def memory_rows() -> list[Row]:
    """What the bias adds to training memory: how it grows from N = 8192 to 16384, which no unstated size enters."""
    added = {k: {n: TRAIN_MEMORY_GB[k][n] - TRAIN_MEMORY_GB["no bias"][n] for n in (8192, 16384)} for k in TRAIN_MEMORY_GB}
    small, large = 8192, 16384
    note = "digitised; GPU and shape not stated"
    return [
        Row(MEMORY, "memory added by the matrix", "N 16384 over 8192", "ratio",
            added["FA with the matrix"][large] / added["FA with the matrix"][small], (large / small) ** 2, "predicted",
            f"{note}; 2 N^2 a head: bias and gradient"),
        Row(MEMORY, "memory added by factors", "N 16384 over 8192", "ratio", added["factors"][large] / added["factors"][small],
            float(large // small), "predicted", f"{note}; 4 N R a head; the difference of 0.1 and 0.3 GB is a digit each"),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers of SwinV2-B at 384 x 384 with windows of 24 x 24: windows of all images are the batch."""

    layers: int
    batch: int
    heads: int
    tokens: int


SWIN = (Stage(2, 64 * 16, 4, 576), Stage(2, 64 * 4, 8, 576), Stage(18, 64, 16, 576), Stage(2, 64, 32, 144))
SWIN_RANK = 16
SWIN_S: Mapping[str, float] = PUBLISHED["swin_s"]


def swin_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """SwinV2-B, batch 64: seconds per batch of the whole model, and those of its attention as we predict them."""

    def total(bias: Callable[[Workload], Workload], family: str) -> float:
        work = ((s, Workload.attention(batch=s.batch, heads=s.heads, seq_q=s.tokens, head_dim=32, dtype="fp16")) for s in SWIN)
        return sum(s.layers * predict(bias(w), f"{target}:{family}").time_s for s, w in work)

    eager, factors = total(with_matrix, "unfused"), total(lambda w: with_factors(w, SWIN_RANK), "triton")
    saved = SWIN_S["official code"] - SWIN_S["factors"]
    note = "A100 stated; the published baseline also differs from ours outside attention"
    return [
        Row(WHOLE, "SwinV2-B: time saved per batch", "window 24, R 16", "s", saved, eager - factors, "predicted", note),
        Row(WHOLE, "SwinV2-B: unfused matrix over factors", "window 24, R 16", "x", SWIN_S["official code"] / SWIN_S["factors"],
            eager / factors, "predicted", "published: the whole model; predicted: attention alone, so more"),
    ]  # fmt: skip


CAR_TOKENS, CAR_HEADS, CAR_HEAD_DIM, CAR_LAYERS = 32186, 8, 16, 8


def car_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Driving-car solver: the matrix does not fit, factors of rank 5 do."""
    work = Workload.attention(heads=CAR_HEADS, seq_q=CAR_TOKENS, head_dim=CAR_HEAD_DIM, dtype="fp16", name="car")
    matrix_gb = CAR_HEADS * CAR_TOKENS**2 * 4 / 1e9
    factors_gb = CAR_HEADS * 2 * CAR_TOKENS * 5 * 4 / 1e9
    seconds = CAR_LAYERS * predict(with_factors(work, 5), f"{target}:triton").time_s
    dense = CAR_LAYERS * predict(with_matrix(work), f"{target}:triton").time_s
    return [
        Row(WHOLE, "car PDE: fp32 matrix of one layer", f"N {CAR_TOKENS}", "GB", None, matrix_gb, "predicted",
            "published: out of memory, in training and inference; GPU not stated. Its gradient is as large again"),
        Row(WHOLE, "car PDE: factors of one layer", "R 5", "GB", None, factors_gb, "predicted",
            "published: 2.97 GB in training and 1.13 GB in inference for the whole model"),
        Row(WHOLE, "car PDE: matrix over factors, if it fitted", f"N {CAR_TOKENS}, 8 layers", "x", None, dense / seconds,
            "predicted", "published: out of memory, no time to compare; factors: 12.7 s per 100 inferences, whole model"),
    ]  # fmt: skip


AF3_S: Mapping[str, float] = PUBLISHED["alphafold_s"]
AF3_TOKENS, AF3_HEADS, AF3_HEAD_DIM, AF3_RANK = 384, 4, 32, 96


def alphafold_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """AlphaFold-3 (Protenix): triangle attention, one bias per head shared by the N rows of the pair representation."""
    work = Workload.attention(batch=AF3_TOKENS, heads=AF3_HEADS, seq_q=AF3_TOKENS, head_dim=AF3_HEAD_DIM, dtype="bf16")
    fused, factors = (predict(w, target).time_s for w in (with_matrix(work), concatenated(work, AF3_RANK)))
    size = f"N {AF3_TOKENS} assumed, R {AF3_RANK}"
    note = (
        "GPU and N not stated; published: the whole inference, ours: triangle attention alone. Its rows share the matrix, it"
        " stays in L2, and rank 96 costs more than reading it: the published gain must come from not producing the bias"
    )
    with_matrix_s = AF3_S["FA with the matrix"]
    rows = [Row(WHOLE, "AlphaFold-3: factors over FA with the matrix", size, "x", with_matrix_s / AF3_S["factors"],
                fused / factors, "predicted", note)]  # fmt: skip
    eager = predict(with_matrix(work), f"{target}:unfused").time_s
    rows.append(Row(WHOLE, "AlphaFold-3: factors over open code", size, "x", AF3_S["open code"] / AF3_S["factors"],
                    eager / factors, "predicted", note))  # fmt: skip
    return rows


def gpt2_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """ALiBi in attention of GPT-2's size, causal, forward: speedups over SDPA, which gets causality and bias as one mask."""
    shape = {"batch": 1, "heads": 50, "seq_q": 4096, "head_dim": 32, "dtype": "fp16", "cache": "warm"}
    full, causal = (Workload.attention(mask=m, **shape) for m in (None, "causal"))  # type: ignore[arg-type]
    sdpa, triton = baseline(target).family, triton_family()
    dense = _ms(with_matrix(full), sdpa, SDPA_TILES, target)
    found = {
        "Triton with factors": _ms(with_factors(causal, HALF_RATE * 16), triton, TRITON_TILES, target),
        "Triton with the matrix": _ms(with_matrix(causal), triton, TRITON_TILES, target),
        "SDPA with factors": _ms(concatenated(causal, 8), sdpa, SDPA_TILES, target),
    }
    tflops = PUBLISHED["gpt2_alibi_tflops"]
    published = {what: tflops[what] / tflops["SDPA with the matrix"] for what in found}
    note = (
        "figure, +-1 TFLOP/s; GPU not stated; R 2 padded to 8 (SDPA) or 16 (Triton). Ours lets kernels that know of causality"
        " skip half the tiles, and SDPA with one mask for both none; the published gains are smaller than that"
    )
    return [
        Row("ALiBi, GPT-2 size, forward", f"{what} over SDPA with the matrix", "N 4096", "x", published[what], dense / ms,
            "predicted", note)
        for what, ms in found.items()
    ]  # fmt: skip


def unpredicted_rows() -> list[Row]:
    """Published rows that we have no model for, and why."""
    rows = [
        Row(PUBLISHED_ONLY, f"{what}, forward and backward, over SDPA with the matrix", f"N {n}", "x",
            BACKWARD["SDPA with the matrix"][n] / BACKWARD[what][n], None, "published only", "no model of the backward pass")
        for what in ("SDPA with factors", "Triton with factors")
        for n in BACKWARD[what]
    ]  # fmt: skip
    rows.append(Row(PUBLISHED_ONLY, "both, forward and backward", "N below 8192", "x", None, None, "published only",
                    "published as slower than SDPA; no model of the backward pass"))  # fmt: skip
    rows += [
        Row(PUBLISHED_ONLY, f"{what}, forward, over Triton with factors", "N 16384", "x", ms / TRITON_FACTORS_MS[16384], None,
            "published only", "no family for this kernel")
        for what, ms in (("xFormers", PUBLISHED["xformers_ms"]["16384"]), ("torch.compile", PUBLISHED["compile_ms"]["16384"]))
    ]  # fmt: skip
    return rows


def rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Every published figure that we know of, with ours where a model reaches it."""
    return [
        *micro_rows(target), *gpt2_rows(target), *rank_rows(target), *memory_rows(), *swin_rows(target), *car_rows(target),
        *alphafold_rows(target), *unpredicted_rows(),
    ]  # fmt: skip


def assumptions(target: str = ASSUMED_TARGET) -> tuple[str, ...]:
    """What the comparison rests on."""
    found = baseline(target)
    fitted = ", ".join(f"{name} {value:.3g}" for name, value in found.constants.items())
    residual = ", ".join(f"{r:.3f}" for r in found.residuals)
    return (
        f"the micro-benchmark does not state its GPU: {target} assumed (the kernels' header names the A100)",
        f"fitted on SDPA with the matrix, forward, at N = {FITTED_ON[0]} and {FITTED_ON[1]}, nothing else: {fitted}; predicted"
        f" over published there: {residual}",
        SDPA_NOTES,
        *(f"Triton kernel, assumed: {name} {value:g}, {why}" for name, (value, why) in TRITON_CONSTANTS.items()),
        f"Triton kernel, assumed: {HOST_S * 1e6:.0f} us of host work a call; the longer of host and GPU counts",
        "Triton kernel: the factors' product runs in TF32, half the rate of fp16, and is counted as twice the padded rank",
        "the assumed constants were chosen with the published table in view: a consistency check, not a blind test",
    )
