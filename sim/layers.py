"""A whole model's attention: its kinds of layers predicted one by one, and their times added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einsight.sim.model_config import LayerGroup
from einsight.sim.predict import predict
from einsight.sim.prediction import Prediction

LEFT_OUT = "attention only: projections and feed-forward layers are not included"


def predict_layers(groups: Sequence[LayerGroup], target: str, notes: Sequence[str] = ()) -> tuple[Prediction, ...]:
    """One prediction per kind of layer, for one layer of it; `time_all_layers_s` adds up the layers of all kinds."""
    made = [predict(group.workload, target) for group in groups]
    layers = sum(group.layers for group in groups)
    total_s = sum(p.time_s * group.layers for p, group in zip(made, groups, strict=True))
    return tuple(
        replace(
            p,
            workload=p.workload if len(groups) == 1 else f"{p.workload} ({group.layers} of {layers} layers)",
            layers=layers,
            time_all_layers_s=total_s,
            assumptions=(LEFT_OUT, *notes, *p.assumptions),
        )
        for p, group in zip(made, groups, strict=True)
    )
