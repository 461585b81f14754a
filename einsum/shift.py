"""Whether a cascade ignores what is added to all scores of a query: what lets a bias drop its row constants.

Softmax does, sigmoid and linear attention do not, and a sink in the denominator ends it for softmax. Rather than by name the
answer comes from the cascade's own arithmetic: a constant per query is spliced in behind the score, and the outputs are
compared on small random inputs. For functions as smooth as these, equality on random inputs is equality.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from einsight.einsum.compose import compose
from einsight.einsum.evaluate import evaluate
from einsight.einsum.ir import Cascade
from einsight.einsum.parse import parse
from einsight.einsum.resolve import required_sizes

_SHIFT = """fragment shift
rank M, N
in ROW[m]
extends score S[m,n]
SB[m,n] = S[m,n] + ROW[m]
score SB[m,n]
"""
_SIZES = {"M": 3, "N": 5, "N0": 2, "M0": 2}
_OTHER_SIZE = 2
_AGREE = 1e-9


@lru_cache(maxsize=64)
def ignores_row_constants(base: Cascade, fragments: tuple[Cascade, ...] = ()) -> bool:
    """Whether adding ROW[m] to every score of query m leaves all outputs as they are.

    fragments   what acts on the score after the bias in question, such as a softcap, and sinks
    Raises IllegalComposition when the cascade has no score.
    """
    shifted = compose(base, (parse(_SHIFT), *fragments), outer=False)
    rng = np.random.default_rng(0)
    sizes = {name: _SIZES.get(name, _OTHER_SIZE) for name in required_sizes(shifted)}
    inputs = {t.name: rng.normal(size=[sizes[r] for r in t.ranks]) for t in shifted.inputs}
    (row,) = {t.name for t in shifted.inputs if t.name.endswith("ROW")}
    moved = evaluate(shifted, sizes, inputs)
    still = evaluate(shifted, sizes, {**inputs, row: np.zeros_like(inputs[row])})
    return all(np.allclose(moved[name], still[name], rtol=_AGREE, atol=_AGREE) for name in still)
