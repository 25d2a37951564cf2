"""Which model directories are served, and what is said of those that are not."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmem.engine.sglang.model.architectures import DENSE_ARCHITECTURES
from agentmem.engine.sglang.model.check import inspect_model
from agentmem.errors import ConfigurationInvalid, ModelUnsupported

ModelMaker = Callable[..., Path]


def test_describes_a_llama(make_model: ModelMaker) -> None:
    model = inspect_model(make_model())
    assert (model.name, model.architecture) == ("model", "LlamaForCausalLM")
    assert (model.layers, model.kv_heads, model.head_dim) == (30, 3, 64)
    assert (model.vocab_size, model.context_tokens, model.dtype) == (49152, 8192, "bfloat16")
    assert model.kv_bytes_per_token == 23_040
    assert model.eos_token_ids == (2,)
    assert model.path.is_absolute()


def test_end_of_sequence_ids_come_from_both_configs(make_model: ModelMaker) -> None:
    path = make_model(eos_token_id=[128_001])
    (path / "generation_config.json").write_text('{"eos_token_id": [128009, 128001]}')
    assert inspect_model(path).eos_token_ids == (128_001, 128_009)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 32_768),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        ({"rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 4096}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 8192),
        ({"max_position_embeddings": None}, 2048),
    ],
)
def test_context_is_counted_as_sglang_does(
    make_model: ModelMaker, changes: dict[str, Any], tokens: int
) -> None:
    assert inspect_model(make_model(**changes)).context_tokens == tokens


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "float16"),
        ({"dtype": "float32", "model_type": "gemma"}, "bfloat16"),
        ({"dtype": None}, "float16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
    ],
)
def test_dtype_is_what_sglang_computes_in(
    make_model: ModelMaker, changes: dict[str, Any], dtype: str
) -> None:
    assert inspect_model(make_model(**changes)).dtype == dtype


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"sliding_window": 8192},
        {"sliding_window": 0},
        {"layer_types": ["full_attention"] * 30},
        {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128},
        {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
    ],
)
def test_serves_dense_attention(make_model: ModelMaker, changes: dict[str, Any]) -> None:
    inspect_model(make_model(**changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, "over 4096 tokens"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "over 4096 tokens"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}, "latent attention"),
        ({"architectures": ["DeepseekV32ForCausalLM"], "index_topk": 2048}, "sparse attention"),
        ({"architectures": ["MambaForCausalLM"], "state_size": 16}, "Mamba"),
        ({"architectures": ["NemotronHForCausalLM"], "ssm_state_size": 128}, "Mamba"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["BertModel"]}, "embeddings"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "embeddings or scores"),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": {"a": 1}}, "images"),
        ({"architectures": ["NeverSeenForCausalLM"]}, "is not known here"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "quantised KV"),
        ({"quantization_config": {"kv_cache_quant_algo": "FP8"}}, "quantised KV"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_refuses_with_a_sentence(make_model: ModelMaker, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelUnsupported, match=why):
        inspect_model(make_model(**changes))


def test_an_unknown_model_is_told_which_are_known(make_model: ModelMaker) -> None:
    with pytest.raises(ModelUnsupported) as refusal:
        inspect_model(make_model(architectures=["NeverSeenForCausalLM"]))
    assert refusal.value.hint is not None
    assert "Qwen3" in refusal.value.hint


def test_refuses_an_adapter(make_model: ModelMaker) -> None:
    path = make_model()
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnsupported, match="LoRA adapter"):
        inspect_model(path)


@pytest.mark.parametrize(
    ("removed", "why"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "no weights"),
    ],
)
def test_an_incomplete_directory_is_a_matter_of_configuration(
    make_model: ModelMaker, removed: str, why: str
) -> None:
    path = make_model()
    (path / removed).unlink()
    with pytest.raises(ConfigurationInvalid, match=why):
        inspect_model(path)


def test_a_missing_shard_is_named(make_model: ModelMaker) -> None:
    path = make_model()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationInvalid, match=r"model-00002\.safetensors.*1 of 2"):
        inspect_model(path)


def test_a_template_in_the_tokenizers_config_counts(make_model: ModelMaker) -> None:
    path = make_model()
    (path / "chat_template.jinja").unlink()
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    inspect_model(path)


def test_neither_a_file_nor_nothing_is_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="There is no model"):
        inspect_model(tmp_path / "nowhere")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigurationInvalid, match="is a file"):
        inspect_model(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no JSON object"),
        ("{}", "names no architecture"),
        ('{"architectures": ["LlamaForCausalLM"]}', "num_attention_heads"),
    ],
)
def test_a_broken_config_is_said_to_be(make_model: ModelMaker, content: str, why: str) -> None:
    path = make_model()
    (path / "config.json").write_text(content)
    with pytest.raises(ConfigurationInvalid, match=why):
        inspect_model(path)


def test_every_known_architecture_is_one_of_sglangs() -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        pytest.skip("sglang is not installed")
    sources = Path(spec.origin).parent.joinpath("srt", "models").glob("*.py")
    served = {x for file in sources for x in re.findall(r"\w+ForCausalLM\b", file.read_text())}
    assert served >= DENSE_ARCHITECTURES
