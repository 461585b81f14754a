import json
from pathlib import Path

import pytest

from einsight.sim.additions import WorkloadError
from einsight.sim.model_config import load_model, model_from, model_workloads
from einsight.sim.strict_yaml import SpecError

MODELS = Path(__file__).parents[2] / "examples" / "models"

SMALL = {
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 6,
    "torch_dtype": "float16",
}  # fmt: skip


def windows(**changes):
    return model_from({**SMALL, **changes}).windows


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda p: p.stem)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_shipped_models_give_composable_workloads(path, phase):
    model = load_model(path)
    groups = model.groups(phase, batch=2, seq=16384)
    assert sum(layers for _, layers in groups) == model.layers
    for workload, _ in groups:
        workload.composed()
        assert workload.sizes["m"] == (16384 if phase == "prefill" else 1) and workload.sizes["n"] == 16384


def test_llama_is_grouped_query_attention():
    ((workload, layers),) = model_workloads(MODELS / "llama-3.1-8b.json", "prefill", 1, 8192)
    assert layers == 32
    assert workload.sizes == {"b": 1, "h": 32, "g": 8, "j": 4, "m": 8192, "n": 8192, "e": 128, "f": 128}
    assert workload.mask.as_json() == ["causal"] and workload.dtype == "bf16" and not workload.bias


def test_windows_become_groups_only_where_they_exclude_something():
    long = model_workloads(MODELS / "gemma-3-27b-it.json", "prefill", 1, 8192)
    assert [(w.mask.window, layers) for w, layers in long] == [(1024, 52), (None, 10)]
    ((_, layers),) = model_workloads(MODELS / "gemma-3-27b-it.json", "prefill", 1, 1024)
    assert layers == 62
    ((mistral, _),) = model_workloads(MODELS / "mistral-7b-v0.1.json", "decode", 1, 32768)
    assert mistral.mask.window == 4096 and mistral.phase == "decode"


def test_softcap_is_a_fragment():
    (windowed, half), (whole, other) = model_workloads(MODELS / "gemma-2-9b-it.json", "prefill", 1, 8192)
    assert (half, other) == (21, 21) and windowed.mask.window == 4096 and whole.mask.window is None
    assert whole.bias[0].as_json() == {"kind": "softcap", "cap": 50.0}


def test_latent_attention_is_expanded_and_says_so():
    model = load_model(MODELS / "deepseek-v3.json")
    assert (model.heads, model.kv_heads, model.head_dim, model.value_dim) == (128, 128, 128 + 64, 128)
    assert "expanded" in model.notes[0] and "512" in model.notes[0]
    assert "MLA expanded" in model.groups("prefill", 1, 64)[0].workload.name


def test_defaults_of_the_configuration_classes():
    model = model_from({k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    assert model.kv_heads == model.heads == 8 and model.head_dim == 512 // 8
    assert model_from({**SMALL, "head_dim": 96}).head_dim == 96
    assert model_from({**SMALL, "head_dim": None}).head_dim == 64
    assert model_from({"model_type": "llava", "torch_dtype": "bfloat16", "text_config": SMALL}).dtype == "float16"
    assert not model_from({**SMALL, "model_type": "bert"}).causal


def test_which_layers_have_a_window():
    assert windows() == (None,) * 6
    assert windows(sliding_window=128) == (128,) * 6
    assert windows(sliding_window=None, use_sliding_window=True) == (None,) * 6
    assert windows(sliding_window=128, use_sliding_window=False, max_window_layers=2) == (None,) * 6
    assert windows(sliding_window=128, use_sliding_window=True, max_window_layers=4) == (None,) * 4 + (128,) * 2
    assert windows(sliding_window=128, use_sliding_window=True, max_window_layers=0) == (128,) * 6
    assert windows(sliding_window=128, sliding_window_pattern=3) == (128, 128, None) * 2
    assert windows(sliding_window=128, model_type="gemma2") == (128, None) * 3
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 2
    assert windows(sliding_window=128, layer_types=kinds) == (128, None, None) * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": None}, ["num_attention_heads", "no such key", "Llama"]),
        ({"num_hidden_layers": 10**30}, ["num_hidden_layers", "at most 10000 layers"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers", "no such key"]),
        ({"hidden_size": None}, ["hidden_size", "no such key"]),
        ({"hidden_size": 500}, ["hidden_size", "500", "multiple of num_attention_heads = 8", "head_dim"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divisor"]),
        ({"num_attention_heads": "8"}, ["num_attention_heads", "'8'", "whole number"]),
        ({"kv_lora_rank": 512}, ["qk_nope_head_dim", "no such key"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "1 entries", "6 layers"]),
        ({"layer_types": ["linear_attention"] * 6}, ["layer_types", "'linear_attention'", "full_attention"]),
        ({"layer_types": ["sliding_attention"] * 6}, ["sliding_window", "no such key"]),
        ({"sliding_window": True}, ["sliding_window", "True"]),
        ({"attn_logit_softcapping": -1}, ["attn_logit_softcapping", "-1", "positive"]),
        ({"attn_logit_softcapping": float("nan")}, ["attn_logit_softcapping", "nan", "positive"]),
        ({"attn_logit_softcapping": 10**400}, ["attn_logit_softcapping", "positive"]),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": "4"}, ["max_window_layers", "'4'"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder", "one stack"]),
    ],
)
def test_bad_configurations_name_the_key(change, words):
    with pytest.raises(SpecError) as caught:
        model_from({**SMALL, **change}, "config.json")
    for word in ("config.json", "expected", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '{"a": 1', "\xff", "[" * 100_000])
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_missing_type(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        load_model(tmp_path / "config.json")
    untyped = {k: v for k, v in SMALL.items() if k != "torch_dtype"}
    with pytest.raises(WorkloadError, match="torch_dtype"):
        model_from(untyped).groups("prefill", 1, 64)
    assert model_from(untyped).groups("prefill", 1, 64, dtype="fp8")[0].workload.dtype == "fp8_e4m3"


def test_a_bare_config_is_named_after_its_folder(tmp_path):
    (tmp_path / "My-Model").mkdir()
    path = tmp_path / "My-Model" / "config.json"
    path.write_text(json.dumps(SMALL))
    assert load_model(path).name == "My-Model"


@pytest.mark.parametrize("text", ["int8", 1.5, ["bf16"]])
def test_a_type_that_is_not_modelled_is_said_with_the_way_out(text):
    model = model_from(SMALL | {"torch_dtype": text}, name="odd")
    with pytest.raises(WorkloadError, match=r"torch_dtype .* in the configuration of odd.*give it with --dtype"):
        model.groups("prefill", 1, 128)
    assert model.groups("prefill", 1, 128, dtype="bf16")


def test_a_model_type_of_any_kind_is_read():
    assert model_from(SMALL | {"model_type": ["llama"]}).causal
