"""What a GPU's units reach in practice: bandwidths, tensor-core, special-function and fp32 rates, as measurements.

A case says what it loads and how; running it gives a `Measurement` whose `work` over time is the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from einsight.tuner.measure import NoGpuError, Policy, now, time_call, under_load
from einsight.tuner.record import Environment, Measurement, Status

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One case: `probe` of kernels/probes.py with `arguments`; needs a device of at least `capability`.

    unit        the entry of the probe's work that is the rate of interest, per second
    """

    name: str
    probe: str
    arguments: Mapping[str, Any]
    unit: str
    policy: Policy
    capability: int = 80


QUICK = Policy(cache="warm", budget_s=0.3, max_samples=100)
# Long enough that the clock falls to what the power limit sustains.
SUSTAINED = Policy(cache="warm", warmup_s=4.0, budget_s=2.0, min_samples=100, max_samples=400)


def cases(here: Environment) -> tuple[Ceiling, ...]:
    """The cases for a device, about half a minute in all. Sizes follow its L2 and number of SMs."""
    l2, sms = here.l2_bytes, here.sms
    memory = tuple(
        Ceiling(f"copy-{size}MiB", "copy", {"size_bytes": size * MIB}, "bytes", QUICK) for size in (256, 1024, 4096)
    ) + tuple(
        Ceiling(f"hbm-read-{size}MiB", "read_ring", _ring(size * MIB, size * MIB, sms), "bytes", QUICK)
        for size in (1024, 4096)
    )
    cache = tuple(
        Ceiling(f"l2-read-1of{part}", "read_ring", _ring(l2 // part, 64 * l2, sms), "bytes", QUICK)
        for part in (16, 8, 4, 2)
    )
    dots = tuple(
        Ceiling(f"matmul-{dtype}-{n}", "matmul", {"n": n, "dtype": dtype}, "flops", QUICK,
                89 if dtype.startswith("float8") else 80)
        for dtype in ("bfloat16", "float16", "float8_e4m3fn") for n in (4096, 8192)
    )  # fmt: skip
    units = (
        Ceiling("exp2", "exp2_rate", {"rounds": 256, "sms": sms}, "special_ops", QUICK),
        Ceiling("fma-fp32", "fma_rate", {"rounds": 1024, "sms": sms}, "vector_ops", QUICK),
        Ceiling("launch", "nothing", {}, "launches", QUICK),
        Ceiling("matmul-bfloat16-8192-sustained", "matmul", {"n": 8192, "dtype": "bfloat16"}, "flops", SUSTAINED),
    )
    return memory + cache + dots + units


def _ring(footprint: int, total: int, sms: int) -> dict[str, int]:
    return {"footprint_bytes": footprint, "total_bytes": total, "sms": sms}


def run(here: Environment, chosen: tuple[Ceiling, ...]) -> Iterator[Measurement]:
    """Measure each case on the current device; clocks are read while it runs. A case that fails is a record too."""
    for case in chosen:
        yield measure(case, here, _build)


def measure(
    case: Ceiling, here: Environment, build: Callable[[Ceiling], tuple[Callable[[], object], Mapping[str, float]]]
) -> Measurement:
    """One case as a record: samples, or a status with its reason."""
    status, reason = Status.OK, ""
    samples: tuple[float, ...] = ()
    work: Mapping[str, float] = {}
    if here.capability < case.capability:
        status = Status.UNSUPPORTED
        reason = f"needs compute capability {case.capability / 10:.1f}, the device has {here.capability / 10:.1f}"
    else:
        try:
            call, work = build(case)
            samples = time_call(call, case.policy)
            here = under_load(here, call, min(samples))
        except NoGpuError:
            raise
        except Exception as error:  # out of memory, an operation the library lacks: the other cases still count
            status, reason = Status.FAILED, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Measurement(
        kernel=f"ceiling:{case.name}", workload={"probe": case.probe, **case.arguments}, configuration={},
        status=status, cache=case.policy.cache, environment=here, at=now(), samples_s=samples,
        reason=reason, work=dict(work),
    )  # fmt: skip


def _build(case: Ceiling) -> tuple[Callable[[], object], Mapping[str, float]]:
    from einsight.kernels import probes  # needs torch and triton

    probe = getattr(probes, case.probe)(**case.arguments)
    return probe.call, probe.work
