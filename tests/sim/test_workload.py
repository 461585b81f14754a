import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einsight.einsum import library
from einsight.einsum.compose import IllegalComposition
from einsight.einsum.counts import count
from einsight.einsum.evaluate import evaluate
from einsight.einsum.resolve import bind
from einsight.sim.additions import WorkloadError
from einsight.sim.mask import MaskError
from einsight.sim.mask_pairs import members
from einsight.sim.predict import predict
from einsight.sim.strict_yaml import SpecError
from einsight.sim.workload import Workload
from einsight.sim.workload_file import OPTIONAL_KEYS, REQUIRED_KEYS, load_workloads

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))

DESIGN = """\
name: llama-3.1-8b prefill 8k
cascade: one_pass
sizes: {b: 1, h: 32, g: 8, m: 8192, n: 8192, e: 128, f: 128}
dtype: bf16
mask: [causal, {window: 4096}]
bias: {kind: alibi}
phase: prefill
cache: cold
family: flash3
targets: [h100-sxm, h200-sxm, fusemax]
"""


def written(tmp_path, text, name="case.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def loaded(tmp_path, text):
    (workload,) = load_workloads(written(tmp_path, text))
    return workload


def test_every_key_of_the_design_is_read(tmp_path):
    workload = loaded(tmp_path, DESIGN)
    assert {line.partition(":")[0] for line in DESIGN.splitlines()} == {*REQUIRED_KEYS, *OPTIONAL_KEYS}
    assert workload.sizes == {"b": 1, "h": 32, "g": 8, "j": 4, "m": 8192, "n": 8192, "e": 128, "f": 128}
    assert workload.mask.causal and workload.mask.window == 4096 and workload.bias[0].kind == "alibi"
    assert (workload.phase, workload.cache, workload.family) == ("prefill", "cold", "flash3")
    assert workload.targets == ("h100-sxm", "h200-sxm", "fusemax")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_shipped_examples_load_and_compose(path):
    for workload in load_workloads(path):
        tiles = {"N0": 64} if any(rank.parts for rank in workload.composed().ranks) else {}
        sizes = bind(workload.composed(), workload.composed_sizes | tiles)
        assert sizes["B"] * sizes["G"] * sizes["J"] == workload.sizes["b"] * workload.sizes["h"]
        assert workload.targets


GOLDEN = {
    "0b7e94e1907381d0": Workload.attention(heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal"),
    "ccab2b49c9c97dce": Workload.attention(heads=32, kv_heads=8, seq_q=1, seq_kv=8192, head_dim=128, mask="causal"),
    "d43105219a4a3538": Workload.attention(heads=32, kv_heads=8, seq_q=4096, head_dim=128, mask="causal"),
    "5200bd5e14a5c45a": Workload.attention(
        heads=16, kv_heads=8, seq_q=8192, head_dim=256, mask=["causal", {"window": 4096}],
        bias={"kind": "softcap", "cap": 50.0}),
    "ebbcfbd0c5efd839": Workload.attention(heads=16, seq_q=65536, head_dim=64, cascade="linear"),
}  # fmt: skip


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_keys(key):
    """Keys join records that were written earlier: they may never change for the same problem."""
    assert GOLDEN[key].key == key


def test_key_hashes_exactly_the_problem(tmp_path):
    problem = {
        "computes": "softmax_attention",
        "sizes": {"b": 1, "h": 32, "g": 8, "m": 8192, "n": 8192, "e": 128, "f": 128},
        "dtype": {"Q": "bf16", "K": "bf16", "V": "bf16"},
        "mask": ["causal", {"window": 4096}],
        "bias": [{"kind": "alibi"}],
        "phase": "prefill",
        "cache": "cold",
    }
    assert json.loads(loaded(tmp_path, DESIGN).key_json) == problem
    assert " " not in loaded(tmp_path, DESIGN).key_json


def test_what_stands_beside_the_key():
    base = Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal")
    others = [
        replace(base, name="other"), replace(base, family="flash2"), replace(base, targets=("b200",)),
        replace(base, sizes={**base.sizes, "n0": 64}),
        *(replace(base, cascade=c.name) for c in library.listing() if c.computes == "softmax_attention"),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask=[{"window": 256}, "causal"]),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal", dtype="bfloat16"),
    ]  # fmt: skip
    assert len(others) >= 8
    assert {w.key for w in others} == {base.key}


def test_a_scalar_is_one_number_however_it_is_written():
    first, second = (
        Workload.attention(heads=4, seq_q=256, head_dim=64, bias={"kind": "softcap", "cap": cap}) for cap in (50, 50.0)
    )
    assert first.key == second.key and '"cap":50.0' in first.key_json


def test_what_changes_the_key():
    base = Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal")
    others = [
        replace(base, cascade="sigmoid"), replace(base, dtype="fp16"), replace(base, dtypes={"K": "fp8"}),
        replace(base, cache="warm"), Workload.attention(heads=4, seq_q=256, head_dim=64),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask=["causal", {"window": 255}]),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal", bias="alibi"),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal", bias={"kind": "low_rank", "r": 8}),
        Workload.attention(heads=4, seq_q=256, head_dim=64, mask="causal", bias={"kind": "low_rank", "r": 16}),
        *(replace(base, sizes={**base.sizes, name: 2}) for name in ("b", "e", "f")),
    ]  # fmt: skip
    assert len({w.key for w in (base, *others)}) == 1 + len(others)


def test_a_single_new_token_is_dense():
    causal = Workload.attention(heads=4, seq_q=1, seq_kv=256, head_dim=64, mask="causal")
    assert causal.phase == "decode" and causal.key == replace(causal, mask=causal.canonical_mask).key
    assert causal.canonical_mask.is_dense


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_equal_pairs_have_equal_keys(kv_heads, group, m, n, window):
    mask = ["causal", {"window": window}] if m <= n else [{"window": window}]
    one = Workload.attention(heads=kv_heads * group, kv_heads=kv_heads, seq_q=m, seq_kv=n, head_dim=8, mask=mask,
                             phase="prefill")  # fmt: skip
    two = replace(one, mask=one.canonical_mask, name="same")
    assert one.key == two.key and one.sizes["j"] == group


def test_composed_cascade_computes_the_masked_attention():
    np = pytest.importorskip("numpy")
    workload = Workload.attention(
        batch=2, heads=4, kv_heads=2, seq_q=9, seq_kv=12, head_dim=3, value_dim=2, cascade="stable",
        mask=["causal", {"window": 5}, {"sink": 2}], bias={"kind": "softcap", "cap": 2.0},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 2, 2, 9, 3)), rng.normal(size=(2, 2, 12, 3))
    v = rng.normal(size=(2, 2, 12, 2))
    got = evaluate(workload.composed(), workload.rank_sizes, {"Q": q, "K": k, "V": v, "CAP": np.array(2.0)})["AV"]
    scores = 2.0 * np.tanh(np.einsum("bgjme,bgne->bgjmn", q, k) / 2.0)
    scores = np.where(members(workload.mask, 9, 12), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bgjmn,bgnf->bgjmf", weights, v), rtol=1e-12)


def test_an_edited_cascade_file_is_seen(tmp_path):
    text = (library.FOLDER / "stable.casc").read_text()
    path = written(tmp_path, text, "mine.casc")
    workload = Workload.attention(heads=1, seq_q=8, head_dim=4, cascade=str(path))
    before = workload.composed()
    path.write_text(text.replace("exp(QK[m,n] - GM[m])", "sigmoid(QK[m,n] - GM[m])"))
    assert workload.composed() != before


def test_files_are_found_beside_the_workload_file(tmp_path, monkeypatch):
    written(tmp_path, (library.FOLDER / "stable.casc").read_text(), "mine.casc")
    written(tmp_path, (library.FOLDER / "fragments" / "softcap.casc").read_text(), "cap.casc")
    monkeypatch.chdir("/")
    text = "name: a\ncascade: mine.casc\nsizes: {h: 1, m: 8, n: 8, e: 4}\ndtype: fp16\nbias: [cap.casc, alibi]\n"
    workload = loaded(tmp_path, text)
    assert workload.base.name == "stable"
    assert workload.key == replace(workload, bias=(replace(workload.bias[0], kind="softcap"), workload.bias[1])).key


@pytest.mark.parametrize("line", ["family: binding", "family: ./mine.yaml", "targets: [fusemax:binding, ./mine.yaml:flash3]"])
def test_families_designs_and_files_may_be_named(tmp_path, line):
    text = "".join(f"{key}: {value}\n" for key, value in GOOD.items()) + line + "\n"
    workload = loaded(tmp_path, text)
    assert (workload.family or ", ".join(workload.targets)) == line.partition(": ")[2].strip("[]")


def test_sweeps_are_lists(tmp_path):
    item = "- {name: x, cascade: stable, sizes: {h: 1, m: 8, n: 8, e: 4}, dtype: fp16}\n"
    assert len(load_workloads(written(tmp_path, item * 3))) == 3


GOOD = {
    "name": "a", "cascade": "stable", "sizes": "{h: 4, g: 2, m: 8, n: 8, e: 4}", "dtype": "fp16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": "{h: 4, g: 3, m: 8, n: 8, e: 4}"}, ["sizes.g", "3 KV heads for h = 4", "divisor"]),
        ({"sizes": "{h: 4, m: 8, e: 4}"}, ["sizes", "no n"]),
        ({"sizes": "{h: 4, m: 8, n: 0, e: 4}"}, ["sizes.n", "at least 1"]),
        ({"sizes": "{h: 4, m: 8, n: 99999999999999999999, e: 4}"}, ["sizes.n", "2^40"]),
        ({"mask": "[{window: 99999999999999999999}]"}, ["mask", "2^40"]),
        ({"sizes": "{h: 4, m: 8, n: 8.5, e: 4}"}, ["sizes.n", "whole number"]),
        ({"sizes": "{h: 4, m: 8, n: 8, e: 4, j: 2}"}, ["sizes.j", "h / g = 1"]),
        ({"sizes": "{h: 4, m: 8, n: 8, e: 4, q: 2}"}, ["sizes.q", "rank of cascade stable"]),
        ({"sizes": "{H: 4, m: 8, n: 8, e: 4, h: 2}"}, ["sizes.H", "lower case"]),
        ({"sizes": "{h: 4, m: 9, n: 8, e: 4}", "mask": "[causal]"}, ["sizes.m", "first 1 would see none"]),
        ({"sizes": "{h: 4, m: 100, n: 800, e: 4}", "phase": "decode"}, ["sizes.m", "at most 64", "prefill"]),
        ({"cascade": "stabel"}, ["stabel", "no such cascade", ".yaml:", 'did you mean "stable"']),
        ({"dtype": "fp17"}, ["dtype", "fp17", "fp16, bf16"]),
        ({"dtype": "{Q: fp16}"}, ["dtype", "only Q", "also K, V"]),
        ({"dtype": "{default: fp16, X: bf16}"}, ["dtype.X", "tensor X", "Q, K, V"]),
        ({"dtype": "{default: fp16, K: int3}"}, ["dtype.K", "int3"]),
        ({"phase": "training"}, ["phase", "training", "prefill, decode"]),
        ({"cache": "hot"}, ["cache", "hot", "cold, warm"]),
        ({"mask": "[causal, {window: -4}]"}, ["mask", "window is -4", "1 or more"]),
        ({"mask": "[causal, {windw: 4}]"}, ["mask", "'windw'"]),
        ({"mask": "[{gna: {layout: 4x4, window: 2}}]"}, ["mask", "4x4", "16 tokens"]),
        ({"bias": "{kind: alibbi}"}, ["yaml:5: bias.kind", '"alibbi", no such fragment', 'did you mean "alibi"']),
        ({"bias": "[alibi, softcp]"}, ["yaml:5: bias[1]", '"softcp", no such fragment', 'did you mean "softcap"']),
        ({"bias": "{kind: low_rank}"}, ["bias", "without r", "rank R"]),
        ({"bias": "{kind: low_rank, r: 0}"}, ["bias", "r: 0", "at least 1"]),
        ({"bias": "{kind: alibi, slope: 2}"}, ["bias.slope", "no parameter"]),
        ({"bias": "{kind: softcap, cap: fifty}"}, ["bias.cap", "'fifty'", "a number"]),
        ({"bias": "[{kind: alibi}, {cap: 50.0}]"}, ["bias[1]", "kind: softcap"]),
        ({"cascade": "linear", "mask": "[causal]"}, ["mask", "score"]),
        ({"cascade": "linear", "bias": "{kind: alibi}"}, ["bias", "score"]),
        ({"targts": "[b200]"}, ["targts", "targets"]),
        ({"family": "flash33"}, [".yaml:5: family", '"flash33"', 'did you mean "flash3"', "binding"]),
        ({"targets": "[b200, h100]"}, [".yaml:5: targets[1]", '"h100"', 'did you mean "h100-sxm"']),
        ({"targets": "h100-sxm:nobody"}, [".yaml:5: targets", '"nobody"', "flash3"]),
        ({"name": None}, ["name"]),
    ],
)
def test_bad_files_say_what_where_and_what_was_expected(tmp_path, change, words):
    entries = {**GOOD, **change}
    text = "".join(f"{key}: {value}\n" for key, value in entries.items() if value is not None)
    with pytest.raises((SpecError, library.CascadeError)) as caught:
        load_workloads(written(tmp_path, text))
    for word in words:
        assert word in str(caught.value)
    if isinstance(caught.value, SpecError):
        assert "case.yaml:" in str(caught.value) and "expected" in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_edit_of_a_file_gives_a_traceback(tmp_path, data):
    """One piece of a good file replaced by anything: a workload, or one clear error."""
    pieces = re.findall(r"\w+|[^\w]", DESIGN)
    at = data.draw(st.integers(0, len(pieces) - 1))
    odd = st.sampled_from(["", "0", "-1", "1.5", "[]", "{}", "[[1]]", "{gna: 3}", "true", "null", "gna", ":", "'"])
    pieces[at] = data.draw(odd | st.text(max_size=4))
    try:
        for workload in load_workloads(written(tmp_path, "".join(pieces))):
            assert len(workload.key) == 16
    except (SpecError, library.CascadeError) as error:
        assert "case.yaml" in str(error) or "no such" in str(error)


def test_values_refuse_the_same():
    with pytest.raises(WorkloadError, match="divisor of h"):
        Workload.attention(heads=32, kv_heads=5, seq_q=8, head_dim=8)
    with pytest.raises(MaskError, match="window is 0"):
        Workload.attention(heads=32, seq_q=8, head_dim=8, mask={"window": 0})
    with pytest.raises(IllegalComposition, match="score"):
        Workload.attention(heads=32, seq_q=8, head_dim=8, mask="causal", cascade="linear").composed()
    with pytest.raises(WorkloadError, match="phase: found 'train'"):
        Workload.attention(heads=32, seq_q=8, head_dim=8, phase="train")


def test_a_cascade_of_ones_own_says_which_sizes_it_needs(tmp_path):
    path = tmp_path / "latent.casc"
    path.write_text(
        "cascade latent\nrank M, N, E, R\nin Q[m,e] C[n,r]\nin UK[r,e] over g\nout S[m]\nscore QK[m,n]\n"
        "K[n,e] = C[n,r] * UK[r,e]\nQK[m,n] = Q[m,e] * K[n,e]\nS[m] = QK[m,n] :: max(n)\n"
    )
    sizes = {"h": 4, "m": 8, "n": 8, "e": 16}
    with pytest.raises(WorkloadError, match="sizes: found no r; expected the size of rank R of cascade latent"):
        Workload("latent", str(path), sizes).composed()
    assert Workload("latent", str(path), sizes | {"r": 2}).composed().rank("R")


def test_a_cascade_without_keys_is_no_workload(tmp_path):
    path = tmp_path / "project.casc"
    path.write_text("cascade project\nrank M, E, F\nin Q[m,e]\nin W[e,f] over none\nout P[m,f]\nP[m,f] = Q[m,e] * W[e,f]\n")
    with pytest.raises(WorkloadError, match="cascade project, which has no rank N; expected a cascade over keys"):
        Workload("project", str(path), {"h": 4, "m": 8, "n": 8, "e": 16}).composed()


@pytest.mark.parametrize("cascade,own", [("one_pass", {}), ("backward_low_rank", {"r": 5})])
def test_fragments_with_ranks_of_one_name_have_sizes_of_their_own(cascade, own):
    """Two biases of rank 3 and 4, on a cascade that may have a rank R itself."""
    bias = [{"kind": "low_rank", "r": 3}, {"kind": "low_rank", "r": 4}]
    made = Workload.attention(heads=2, seq_q=6, head_dim=8, bias=bias)
    w = replace(made, cascade=cascade, sizes={**made.sizes, **own})
    sizes = {**w.rank_sizes, "N0": 6, "N1": 1}
    products = {c.einsum: c.formula.evaluate(sizes) for c in count(w.composed()) if c.matmul}
    applied = sorted(n for name, n in products.items() if name == "B" or name.endswith("_B"))
    assert applied == [2 * 6 * 6 * r for r in (3, 4, *own.values())]
    assert predict(w, "h100-sxm").time_s > 0


def test_integers_of_numpy_are_integers() -> None:
    plain = Workload.attention(heads=8, seq_q=512, head_dim=64, mask=["causal", {"window": 100}])
    counted = Workload.attention(
        heads=np.int32(8), seq_q=np.int64(512), head_dim=np.uint16(64), mask=["causal", {"window": np.int64(100)}]
    )  # type: ignore[arg-type]
    assert counted.key == plain.key and all(type(size) is int for size in counted.sizes.values())
    with pytest.raises(WorkloadError, match=r"sizes.m: found np.float64\(512.0\)"):
        Workload.attention(heads=8, seq_q=np.float64(512), head_dim=64)  # type: ignore[arg-type]
