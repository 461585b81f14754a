"""FlashBias (arXiv 2505.12044, NeurIPS 2025): its published measurements beside our predictions.

Published figures are those of the authors' repository (its benchmark tables inverted to milliseconds, its read-me, and its
figures read off, marked so). The micro-benchmark does not name its GPU; the kernels' header names the A100, which is what we
assume. Nothing of FlashBias itself is fitted (`flashbias_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from einsight.reports.flashbias_backward import (
    SDPA_TRIPS,
    STEP_MS,
    TRITON_BACKWARD_TILES,
    TRITON_BACKWARD_WARPS,
    TRITON_LOADS,
    gradients,
    memory_efficient_ms,
    passes,
    products,
    sdpa_family,
    training_ms,
)
from einsight.reports.flashbias_kernels import (
    ASSUMED_TARGET,
    FITTED_ON,
    HALF_RATE,
    HOST_S,
    PADDED_RANK,
    PUBLISHED,
    SDPA_DENSE_MS,
    SDPA_NOTES,
    SDPA_TILES,
    TRIP_CYCLES,
    TRITON_CONSTANTS,
    TRITON_TILES,
    TRITON_WARPS,
    baseline,
    by_length,
    micro_ms,
    milliseconds,
    plain,
    triton_family,
)
from einsight.sim.bias_times import concatenated, with_factors, with_matrix
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

SDPA_FACTORS_MS = by_length(PUBLISHED["sdpa_factors_ms"])
TRITON_FACTORS_MS = by_length(PUBLISHED["triton_factors_ms"])
TRITON_DENSE_MS = by_length(PUBLISHED["triton_dense_ms"])
EAGER_MS = by_length(PUBLISHED["eager_ms"])
TRAINING_MS = {what: by_length(values) for what, values in PUBLISHED["forward_backward_ms"].items()}
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


# -- tables -----------------------------------------------------------------------------------------------------------

FORWARD, TRAINING = "micro-benchmark, forward", "micro-benchmark, forward and backward"
MEMORY, WHOLE, PUBLISHED_ONLY = "training memory by N", "whole models, attention alone predicted", "not predicted"


def micro_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Milliseconds of the baseline and speedups over it, forward."""
    ms = micro_ms(target)
    dense = {n: ms["SDPA with the matrix"](n) for n in SDPA_DENSE_MS}
    rows = [
        Row(FORWARD, "SDPA with the matrix", f"N {n}", "ms", published, dense[n],
            "fitted" if n in FITTED_ON and target == ASSUMED_TARGET else "predicted")
        for n, published in SDPA_DENSE_MS.items()
    ]  # fmt: skip
    for what, times in (("SDPA with factors", SDPA_FACTORS_MS), ("Triton with factors", TRITON_FACTORS_MS)):
        speedups = {n: SDPA_DENSE_MS[n] / t for n, t in times.items()}
        rows += [
            Row(FORWARD, f"{what} over SDPA with the matrix", f"N {n}", "x", speedups[n], dense[n] / ms[what](n), "predicted",
                "below N 2048: bound by launches and the host" if n < 2048 else "")
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
        first = milliseconds(concatenated(plain(n), RANKS[0]), sdpa, SDPA_TILES, target)
        for rank in RANKS[1:]:
            grown = milliseconds(concatenated(plain(n), rank), sdpa, SDPA_TILES, target) / first
            note = "figure: a whole Transformer of unstated shape, nearly independent of R; ours is its attention alone"
            rows.append(Row("time by rank", f"rank {rank} over rank 8", f"N {n}", "ratio", 1.0, grown, "predicted", note))
    return rows


TRAIN_MEMORY_GB = {what: by_length(values) for what, values in PUBLISHED["train_memory_gb"].items()}


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
    shape = {"batch": 1, "heads": 50, "seq_q": 4096, "head_dim": 32, "dtype": "fp16", "cache": "cold"}
    full, causal = (Workload.attention(mask=m, **shape) for m in (None, "causal"))  # type: ignore[arg-type]
    sdpa, triton = baseline(target).family, triton_family()
    dense = milliseconds(with_matrix(full), sdpa, SDPA_TILES, target)
    found = {
        "Triton with factors": milliseconds(with_factors(causal, HALF_RATE * PADDED_RANK), triton, TRITON_TILES, target),
        "Triton with the matrix": milliseconds(with_matrix(causal), triton, TRITON_TILES, target),
        "SDPA with factors": milliseconds(concatenated(causal, 8), sdpa, SDPA_TILES, target),
    }
    tflops = PUBLISHED["gpt2_alibi_tflops"]
    published = {what: tflops[what] / tflops["SDPA with the matrix"] for what in found}
    note = (
        "figure, +-1 TFLOP/s; GPU not stated; R 2 padded to 8 (SDPA) or 16 (Triton). Ours lets kernels that know of causality"
        " skip half the tiles, and SDPA with one mask for both none; the published gains are smaller than that"
    )
    return [
        *(
            Row("ALiBi, GPT-2 size, forward", f"{what} over SDPA with the matrix", "N 4096", "x", published[what], dense / ms,
                "predicted", note)
            for what, ms in found.items()
        ),
        Row("ALiBi, GPT-2 size, forward", "Triton: factors over the matrix", "N 4096", "x",
            tflops["Triton with factors"] / tflops["Triton with the matrix"],
            found["Triton with the matrix"] / found["Triton with factors"], "predicted",
            "both kernels skip the tiles above the diagonal, and the matrix there is not read"),
    ]  # fmt: skip


def training_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Forward and backward together: milliseconds of the baseline, speedups over it, and one kernel's passes side by side."""
    ms, measured = training_ms(target), TRAINING_MS["SDPA with the matrix"]
    dense = {n: ms["SDPA with the matrix"](n) for n in measured}
    rows = [Row(TRAINING, "SDPA with the matrix", f"N {n}", "ms", t, dense[n], "predicted") for n, t in measured.items()]
    rows += [
        Row(TRAINING, f"{what} over SDPA with the matrix", f"N {n}", "x", measured[n] / t, dense[n] / ms[what](n), "predicted",
            "below N 8192 the host binds; the Triton kernel's fences and barriers cost more than the round trips counted here")
        for what in ("SDPA with factors", "Triton with factors")
        for n, t in TRAINING_MS[what].items()
    ]  # fmt: skip
    rows += [
        Row(TRAINING, "Triton: factors over the matrix", f"N {n}", "x", t / TRAINING_MS["Triton with factors"][n],
            ms["Triton with the matrix"](n) / ms["Triton with factors"](n), "predicted")
        for n, t in TRAINING_MS["Triton with the matrix"].items()
    ]  # fmt: skip
    return [*rows, *passes_rows(target), *memory_efficient_rows(target)]


FORWARD_MS = {
    "SDPA with the matrix": SDPA_DENSE_MS, "SDPA with factors": SDPA_FACTORS_MS, "Triton with factors": TRITON_FACTORS_MS,
    "Triton with the matrix": TRITON_DENSE_MS,
}  # fmt: skip
GPU_BINDS = (8192, 16384)
"""Lengths at which no backward pass waits for the host."""


def passes_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Backward over forward of each kernel; published: from the time of both passes together and that of the forward pass."""
    return [
        Row(TRAINING, f"{what}: backward over forward", f"N {n}", "ratio", TRAINING_MS[what][n] / there[n] - 1.0,
            passes(what, n, target), "predicted", "published: both passes together less the forward pass")
        for what, there in FORWARD_MS.items()
        for n in GPU_BINDS
    ]  # fmt: skip


def memory_efficient_rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Times of the memory-efficient kernel that others published; no constant was chosen on them."""
    return [
        Row(TRAINING, f"memory-efficient kernel elsewhere: {m['what']}", f"N {m['seq']}, E {m['head_dim']}", "ms", m["ms"],
            memory_efficient_ms(m, target), "predicted", m["source"])
        for m in PUBLISHED["memory_efficient_ms"]
    ]  # fmt: skip


def unpredicted_rows() -> list[Row]:
    """Published rows that we have no model for, and why."""
    rows = [
        Row(PUBLISHED_ONLY, f"{what}, forward, over Triton with factors", "N 16384", "x", ms / TRITON_FACTORS_MS[16384], None,
            "published only", "no family for this kernel")
        for what, ms in (("xFormers", PUBLISHED["xformers_ms"]["16384"]), ("torch.compile", PUBLISHED["compile_ms"]["16384"]))
    ]  # fmt: skip
    tflops = PUBLISHED["gpt2_alibi_backward_tflops"]
    rows += [
        Row(PUBLISHED_ONLY, f"ALiBi, GPT-2 size, forward and backward: {what} over SDPA", "N 4096", "x",
            tflops[what] / tflops["SDPA with the matrix"], None, "published only",
            "figure, +-1 TFLOP/s; GPU not stated, and SDPA refuses a mask beside causality: what ran is not known")
        for what in ("SDPA with factors", "Triton with factors", "Triton with the matrix")
    ]  # fmt: skip
    return rows


def rows(target: str = ASSUMED_TARGET) -> list[Row]:
    """Every published figure that we know of, with ours where a model reaches it."""
    return [
        *micro_rows(target), *training_rows(target), *gpt2_rows(target), *rank_rows(target), *memory_rows(),
        *swin_rows(target), *car_rows(target), *alphafold_rows(target), *unpredicted_rows(),
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
        f"Triton kernel: a warp has rows of its own, {TRITON_TILES.block_m // TRITON_WARPS} forward and"
        f" {TRITON_BACKWARD_TILES.block_m // TRITON_BACKWARD_WARPS} backward, and reads the other operand from shared memory"
        " for itself",
        "Triton kernel: the forward pass multiplies factors in TF32, half the rate of fp16, counted as twice the padded rank",
        "backward: library cascades on the same families with the same constants, none fitted on a backward pass; a score-sized"
        " result that becomes an operand costs what it costs forward, twice (weights and their slopes) instead of once",
        f"SDPA's backward kernel, from its code: 3 blocks to an SM instead of {SDPA_TILES.blocks_per_sm}; the latency fitted"
        f" forward is shared out over its {products(plain(1024), found.family)} products and counts for each of the"
        f" {products(gradients('backward', 1024), found.family)} backward; beside them {'; '.join(SDPA_TRIPS)}:"
        f" {sdpa_family(target).constant('tile_cycles'):.0f} cycles a tile",
        f"Triton's backward kernel, from its code: {len(TRITON_LOADS)} exposed loads a tile, and a fence before each scalar"
        f" addition of a thread, of a trip of {TRIP_CYCLES:.0f} cycles each, assumed",
        f"forward and backward: the longer of GPU and host; a step of the backward pass takes the host {STEP_MS * 1e3:.0f} us,"
        " read off the eager implementation at N = 256, a row that is not predicted; steps counted: nodes of the autograd graph"
        " (11, 21 and 11 in the order of the tables) and 15 framework calls in the Triton kernel's Python node; at N = 4096 the"
        " signs rest on this count",
        "the assumed constants were chosen with the published table in view: a consistency check, not a blind test",
    )
