"""How long it takes, and why: workloads, hardware, mappings and the models that join them.

    from einsight.sim import Workload, predict
    print(predict(Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal"), "h100-sxm"))

`predict` and `sweep` are functions and also names of modules of this folder. Importing them here, once, is what makes
`einsight.sim.predict` the function, whatever was imported before.
"""

from __future__ import annotations

from einsight.sim.mapping import Mapping
from einsight.sim.predict import predict
from einsight.sim.prediction import Prediction
from einsight.sim.sweep import parse_axis, sweep
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads

__all__ = ["Mapping", "Prediction", "Workload", "load_workloads", "parse_axis", "predict", "sweep"]
