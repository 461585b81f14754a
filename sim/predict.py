"""`predict(workload, target)`: the vectorised estimate at one workload's sizes, put into words."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import replace
from functools import lru_cache, partial
from math import prod

import numpy as np

from einsight.einsum import library
from einsight.einsum.compose import compose
from einsight.einsum.counts import Count
from einsight.einsum.expression import Expression
from einsight.einsum.ir import Cascade
from einsight.sim.estimate import Estimate, estimate, mapping_of
from einsight.sim.family import Family, load_family, usable
from einsight.sim.file_state import State, state
from einsight.sim.hardware import Gpu, load_gpu, load_hardware
from einsight.sim.interval import ends
from einsight.sim.mapping import Mapping
from einsight.sim.mask import DENSE, Mask
from einsight.sim.mask_pairs import live_points
from einsight.sim.mask_predicate import predicate
from einsight.sim.plan import Plan, plan
from einsight.sim.prediction import Bound, Later, Prediction
from einsight.sim.traffic import OUTER, elements
from einsight.sim.units import format_si, format_time
from einsight.sim.work import KEY, QUERY
from einsight.sim.workload import Workload

FUSED_BASELINE, UNFUSED_BASELINE = "one_pass", "stable"
"""Dense attention that speedups are measured against: FlashAttention-2's cascade fused, the textbook softmax unfused."""
UNFUSED_FAMILY = "unfused"
UNMEASURED = 0.5
"""Relative half width of the interval where no measurement of a kernel of the kind exists, as in families without a fit."""
BASELINE_SIZES = ("b", "h", "g", "j", "m", "n", "e", "f")


class IllegalMapping(ValueError):  # noqa: N818  (an answer with a reason)
    """The workload cannot run on this target and family; the message says why."""


def predict(workload: Workload, target: str, family: str | None = None, mapping: Mapping | None = None) -> Prediction:
    """What the workload costs on `target` ("h100-sxm", "h100-sxm:flash2" or a profile file).

    family   kernel family; default: the workload's, else the profile's for the phase
    mapping  tiles and splits; default: by the family's rules
    Raises SpecError for an unknown name, IllegalMapping when the family cannot run it there.
    """
    name, _, chosen = target.partition(":")
    if load_hardware(name).kind == "array":
        from einsight.sim.array_hardware import load_array  # loaded for arrays only: a GPU's answer should not wait
        from einsight.sim.array_predict import predict_array

        if mapping is not None:
            raise IllegalMapping(f"{name} is an array, whose mapping is its design's; leave the mapping out")
        return predict_array(workload, load_array(name), family or chosen)
    gpu = load_gpu(name)
    fam, made, note = family_on(workload, gpu, family or chosen or workload.family or gpu.family[workload.phase])
    return _worded(workload, gpu, name, fam, made, estimate_of(workload, gpu, fam, mapping, made), note)


def family_on(workload: Workload, gpu: Gpu, name: str) -> tuple[Family, Plan, str]:
    """(the family with the constants fitted nearest to this GPU and workload, the plan, where they come from).

    Raises IllegalMapping when the family cannot run there.
    """
    family = load_family(name)
    made = plan_of(workload, family)
    if reason := family.why_unusable(gpu, made.dtype, made.kv_dtype):
        others = usable(gpu, made.dtype, made.kv_dtype)
        instead = f"with {made.dtype} run there: {', '.join(others)}" if others else f"no family runs with {made.dtype} there"
        raise IllegalMapping(f"{reason}; {instead}")
    fitted, note = family.on(gpu, workload.phase, made.dtype, made.kv_dtype)
    return fitted, made, note


def plan_of(workload: Workload, family: Family) -> Plan:
    """The kernels of the workload's cascade under the family's fusion; masks are left to the tiles."""
    workload.check()
    files = (workload.cascade, *(added.kind for added in workload.bias))
    states = tuple(state(name) for name in files)
    _accepts(files, states, workload.canonical_mask)
    return _plan_of(files, states, family.fuses, tuple(workload.dtypes.items()), workload.dtype)


@lru_cache(maxsize=512)
def _plan_of(
    files: tuple[str, ...], states: tuple[State, ...], fused: bool, dtypes: tuple[tuple[str, str], ...], default: str
) -> Plan:
    return plan(_composed(files, None), fused, dict(dtypes), default)


@lru_cache(maxsize=2048)
def _accepts(files: tuple[str, ...], states: tuple[State, ...], mask: Mask) -> None:
    """Raises IllegalComposition when the cascade cannot carry the mask; the tiles alone would not notice."""
    _composed(files, predicate(mask))


def _composed(files: tuple[str, ...], where: Expression | None) -> Cascade:
    base, *fragments = files
    return compose(library.load(base), [library.fragment(name) for name in fragments], where)


def estimate_of(
    workload: Workload, gpu: Gpu, family: Family, mapping: Mapping | None = None, made: Plan | None = None
) -> Estimate:
    """The estimate at the workload's own sizes: arrays of length one. `made`: the plan, where it is known already."""
    sizes = {name: np.array([float(value)]) for name, value in workload.rank_sizes.items()}
    mask = workload.canonical_mask
    return estimate(made or plan_of(workload, family), mask, sizes, workload.cache == "warm", gpu, family, mapping)


def _worded(
    workload: Workload, gpu: Gpu, profile: str, family: Family, made: Plan, found: Estimate, note: str
) -> Prediction:
    time = float(found.time_s[0])
    bounds = _bounds(found, gpu, family, found.cases.dtype)
    least = UNMEASURED if made.main.grid == "column" else 0.0  # what forward kernels were fitted to says nothing here
    low, high = (float(end[0]) for end in ends(found, family, least))
    flops, by_class = operations(workload, made)
    return Prediction(
        workload=workload.name,
        key=workload.key,
        target=gpu.name,
        family=family.name,
        cascade=workload.base.name,
        time_s=time,
        time_low_s=low,
        time_high_s=high,
        bound=bounds[0],
        bounds=bounds,
        flops_matmul=flops,
        flops_by_class=by_class,
        bytes_by_memory=_traffic(found),
        passes=made.passes.passes,
        peak_flops_per_s=gpu.tensor_flops_per_s(found.cases.dtype),
        speedup=Later(partial(speedups, workload, gpu, profile, time)),
        mapping=mapping_of(found.cases, 0, family, family.fuses).as_json(),
        assumptions=_assumptions(gpu, family, made, found, note),
        energy_pj=gpu.tdp_w.value * time * 1e12,
        energy_note=f"upper bound: TDP {gpu.tdp_w.text} x time",
    )


def _traffic(found: Estimate) -> dict[str, float]:
    """Bytes per memory, the farthest first."""
    total = {"HBM": 0.0, "L2": 0.0, "shared memory": 0.0}
    for kernel in found.kernels:
        moved = {"HBM": kernel.hbm_bytes, "L2": kernel.l2_bytes, "shared memory": kernel.shared_bytes}
        for name, value in moved.items():
            total[name] += float(np.ravel(value)[0])
    return total


def operations(workload: Workload, made: Plan) -> tuple[float, dict[str, float]]:
    """(matmul FLOPs, applications per operator class), the mask's absent points left out.

    The matmul FLOPs follow the flash-attention convention: 2 per multiply-accumulate at the pairs that exist. A fused kernel
    computes what it needs of a pair in every head and sequence, also what is the same in all of them (the product of factors
    that sequences share): it counts as often.
    """
    sizes = workload.rank_sizes
    sizes |= {f"{KEY}0": made_chunk(sizes[KEY]), f"{KEY}1": -(-sizes[KEY] // made_chunk(sizes[KEY]))}
    density = live_points(workload.mask, sizes[QUERY], sizes[KEY]) / (sizes[QUERY] * sizes[KEY])
    matmul, by_class = 0.0, dict[str, float]()
    fused = any(kernel.grid != "einsum" for kernel in made.works)
    for entry, terms in _terms(made):
        number = _value(terms, sizes) if terms is not None else float(entry.formula.evaluate(sizes))
        if entry.einsum in made.pairs:
            number *= density * (_shared_by(terms, sizes) if fused and terms else 1.0)
        by_class[entry.klass] = by_class.get(entry.klass, 0.0) + number
        if entry.matmul:
            matmul += 2.0 * number
    return matmul, by_class


Terms = tuple[tuple[int, tuple[str, ...]], ...]
"""Coefficient and size symbols of every product of a formula."""


@lru_cache(maxsize=512)
def _terms(made: Plan) -> tuple[tuple[Count, Terms | None], ...]:
    """Every count with its plain terms; None where a condition of the cascade's own needs its points counted."""
    out = []
    for entry in made.counts:
        plain = tuple((c, tuple(str(f) for f, power in m for _ in range(power))) for m, c in entry.formula.terms)
        out.append((entry, None if entry.formula.point_sets else plain))
    return tuple(out)


def _shared_by(terms: Terms, sizes: MappingType[str, int]) -> int:
    """How many heads and sequences one evaluation could serve."""
    return prod(sizes[rank] for rank in OUTER if all(rank not in symbols for _, symbols in terms))


def _value(terms: Terms, sizes: MappingType[str, int]) -> float:
    total = 0
    for coefficient, symbols in terms:
        for symbol in symbols:
            coefficient *= sizes[symbol]
        total += coefficient
    return float(total)


def made_chunk(keys: int) -> int:
    """The chunk of the key rank that operation totals assume where a cascade partitions it: 128, as kernels do."""
    return min(128, keys)


def speedups(workload: Workload, gpu: Gpu, profile: str, time: float) -> dict[str, float]:
    """Times of dense attention of the same sizes over `time`: every pair, no bias; fused and unfused. Empty for a cascade
    whose results are others than attention's, such as gradients."""
    out: dict[str, float] = {}
    if {t.name for t in workload.base.outputs} != {t.name for t in library.load(FUSED_BASELINE).outputs}:
        return out
    sizes = {name: size for name, size in workload.sizes.items() if name in BASELINE_SIZES}
    operands = {t.name for t in library.load(FUSED_BASELINE).inputs}
    dtypes = {name: dtype for name, dtype in workload.dtypes.items() if name in operands}
    dense = replace(workload, cascade=FUSED_BASELINE, sizes=sizes, dtypes=dtypes, mask=DENSE, bias=(), family=None)
    for name, cascade, family in (
        ("over_dense_unfused", UNFUSED_BASELINE, UNFUSED_FAMILY),
        ("over_dense_fused", FUSED_BASELINE, gpu.family[workload.phase]),
    ):
        out[name] = _baseline(replace(dense, cascade=cascade), profile, state(profile), family) / time
    return out


@lru_cache(maxsize=4096)
def _baseline(workload: Workload, target: str, edited: State, family: str) -> float:
    gpu = load_gpu(target)
    fam, made, _ = family_on(workload, gpu, family)
    return float(estimate_of(workload, gpu, fam, None, made).time_s[0])


# -- words -----------------------------------------------------------------------------------------------------------


def _bounds(found: Estimate, gpu: Gpu, family: Family, dtype: str) -> tuple[Bound, ...]:
    """Every resource with the time it alone needs, the largest first."""
    reasons = _reasons(found, gpu, family, dtype)
    bounds = [Bound(name, float(value[0]), reasons(name, float(value[0]))) for name, value in found.bounds_s.items()]
    return tuple(sorted(bounds, key=lambda b: -b.time_s))


def _reasons(found: Estimate, gpu: Gpu, family: Family, dtype: str):  # type: ignore[no-untyped-def]
    arch, sms, hz = gpu.architecture, gpu.sms.value, gpu.boost_hz.value
    per_sm: MappingType[str, tuple[float, str, str]] = {
        "tensor cores": (gpu.tensor_flops_per_cycle[dtype].value, "FLOP", gpu.tensor_flops_per_cycle[dtype].kind),
        "special functions": (arch.special_ops_per_cycle.value, "op", arch.special_ops_per_cycle.kind),
        "fp32 pipe": (arch.vector_ops_per_cycle.value, "op", arch.vector_ops_per_cycle.kind),
        "shared memory": (arch.shared_bytes_per_cycle.value, "B", arch.shared_bytes_per_cycle.kind),
        "L2": (arch.l2_bytes_per_cycle.value, "B", arch.l2_bytes_per_cycle.kind),
    }

    def because(name: str, seconds: float) -> str:
        if name in per_sm:
            rate, unit, kind = per_sm[name]
            total = rate * sms * hz
            return (
                f"{name}: {format_si(seconds * total, unit)} of the tiles run at {format_si(total, unit + '/s')} "
                f"({gpu.sms.text} SMs x {rate:g} {unit}/cycle ({kind}) x {gpu.boost_hz.text} ({gpu.boost_hz.kind}))"
            )
        if name == "HBM":
            rate = gpu.hbm_bytes_per_s.value
            return f"HBM: {format_si(seconds * rate, 'B')} at {gpu.hbm_bytes_per_s.text} ({gpu.hbm_bytes_per_s.kind})"
        if name == "longest block":
            shorter = "smaller tiles" if any(k.name == "column" for k in found.kernels) else "more splits"
            return f"longest block: {seconds * hz:,.0f} cycles of dependent tiles at {gpu.boost_hz.text}; {shorter} shorten it"
        launch = family.constants["launch_s"]
        return f"launch: {format_time(launch.value)} per call ({launch.kind}: {launch.source})"

    return because


def _assumptions(gpu: Gpu, family: Family, made: Plan, found: Estimate, note: str) -> tuple[str, ...]:
    unfitted = [n for n, c in family.constants.items() if c.kind == "assumed"]
    own = dict.fromkeys(entry.einsum for entry, terms in _terms(made) if terms is None)
    notes = [f"conditions of the cascade's own do not skip tiles: {', '.join(own)}"] if own else []
    notes += ["a kernel that holds keys and walks queries: its constants are those of forward kernels, none was measured"] * (
        made.main.grid == "column"
    )
    slow = f"{gpu.sustained_hz(found.cases.dtype) / 1e6:.0f} MHz in long runs of busy tensor cores"
    notes += [f"clock: boost, {gpu.boost_hz.text}, falling to {slow}", *([note] if note else [])]
    if unfitted:
        notes.append(f"family {family.name}: constants not fitted on measurements: {', '.join(unfitted)}")
    if not found.cases.tiles.exact:
        notes.append("tiles counted on evenly spaced query blocks")
    if (taken := _operand_bytes(made, found)) > gpu.hbm_bytes.value:
        notes.append(f"operands and results take {format_si(taken, 'B')}, more than the {gpu.hbm_bytes.text} of {gpu.name}")
    return (*notes, *found.notes)


def _operand_bytes(made: Plan, found: Estimate) -> float:
    """Bytes of the cascade's inputs and outputs, each held once; what an unfused kernel stores between is not in it."""
    sizes = found.cases.sizes
    held = (t for t in (*made.cascade.inputs, *made.cascade.outputs) if sizes.keys() >= set(t.ranks))
    return sum(made.widths[t.name] * float(np.ravel(elements(t, sizes))[0]) for t in held)


