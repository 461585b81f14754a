"""Our kernels on the GPU at hand as a device: builds compile beside, a worker process checks and times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from einsight.kernels.builds import config_of
from einsight.kernels.resources import Estimate, compile_offline, source_hash
from einsight.tuner.benches import BENCHES, FACTORY
from einsight.tuner.kernel_device import WorkerDevice
from einsight.tuner.problem import Problem, written
from einsight.tuner.record import Environment, Status
from einsight.tuner.store import Subject
from einsight.tuner.worker import Attempt, Worker

BUILD_STATUS = {"compile_failed": Status.COMPILE_FAILED, "timeout": Status.TIMEOUT}


def subject_of(problem: Problem, device: str) -> Subject:
    return Subject(
        problem.kernel.name, written(problem.workload), device, source_hash(problem.kernel.module),
        problem.workload.cache,
    )  # fmt: skip


@contextmanager
def device(problem: Problem, here: Environment, visible: str | None = None) -> Iterator[WorkerDevice]:
    """The GPU that `here` describes. Launches find what the compiling processes left in a shared Triton cache."""
    workload = written(problem.workload)
    # After Ctrl-C a compiler may still be writing there, which must not stand before the result.
    with tempfile.TemporaryDirectory(prefix="einsight-triton-", ignore_cleanup_errors=True) as cache:
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = cache
        try:
            with Worker(FACTORY, {"kernel": problem.kernel.name, "workload": workload}, visible=visible) as worker:
                build = _builder(problem, workload, Path(cache))
                yield WorkerDevice(
                    problem.space(), subject_of(problem, here.device), worker, here, build, problem.workload.key
                )
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before


def _builder(problem: Problem, workload: Mapping[str, Any], cache: Path) -> Any:
    def build(configuration: Mapping[str, Any]) -> Attempt | Mapping[str, Any]:
        asked = BENCHES[problem.kernel.name].requests(workload, config_of(configuration), problem.capability)
        found = {id(request): built for request, built in compile_offline(asked, workers=1, triton_cache=cache)}
        outcomes = [_outcome(found[id(request)]) for request in asked]
        return next((o for o in outcomes if isinstance(o, Attempt)), outcomes[0])

    return build


def _outcome(built: Estimate) -> Attempt | Mapping[str, Any]:
    if built.status == "ok":
        return built.as_json()
    status = BUILD_STATUS.get(built.status, Status.OUT_OF_RESOURCES)
    return Attempt(status, built.reason or built.status, resources=built.as_json())
