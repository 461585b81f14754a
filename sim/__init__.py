"""How long it takes, and why: workloads, hardware, mappings and the models that join them.

    from einsight.sim import Workload, predict
    print(predict(Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal"), "h100-sxm"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from einsight.sim.mapping import Mapping as Mapping
    from einsight.sim.predict import predict as predict
    from einsight.sim.prediction import Prediction as Prediction
    from einsight.sim.sweep import parse_axis as parse_axis
    from einsight.sim.sweep import sweep as sweep
    from einsight.sim.workload import Workload as Workload
    from einsight.sim.workload_file import load_workloads as load_workloads

_HOME = {
    "Mapping": "mapping", "Prediction": "prediction", "Workload": "workload", "load_workloads": "workload_file",
    "parse_axis": "sweep", "predict": "predict", "sweep": "sweep",
}  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that importing one module of the folder does not import all."""
    if name not in _HOME:
        raise AttributeError(f"module 'einsight.sim' has no attribute {name!r}")
    return getattr(import_module(f"einsight.sim.{_HOME[name]}"), name)
