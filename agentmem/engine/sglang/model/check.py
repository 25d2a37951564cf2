"""Reads a Hugging Face model directory and refuses what cannot be served, with a sentence why.

Only `config.json` and its neighbours are read: no weights, no torch, no model code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmem.engine.sglang.model.architectures import refuse_unless_dense
from agentmem.errors import ConfigurationInvalid, ModelUnsupported

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# The order in which SGLang looks, and what it assumes where a config has none of them.
_CONTEXT_KEYS = (
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
)
_CONTEXT_TOKENS_DEFAULT = 2048

# Keys of config.json that leave the bytes of a token's KV as they are. All others count, also
# those that nobody here has heard of: to recompute needlessly costs time, to load wrongly is a lie.
_IRRELEVANT = """
    _attn_implementation _commit_hash _from_model_config _model_name_or_path _name_or_path
    attention_dropout attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    hidden_dropout id2label initializer_range label2id length_penalty max_length
    max_position_embeddings min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_router_logits
    output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16
    use_cache vocab_size
"""
_KV_IRRELEVANT = frozenset(_IRRELEVANT.split())


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What the rest of agentmem needs to know of a model. `path` is absolute.

    `dtype` is what SGLang computes in by default, `kv_bytes_per_token` is for a KV cache of that
    dtype. `kv_settings` are the settings of config.json that a page's bytes depend on, each as
    canonical JSON. `eos_token_ids` is sorted and may be empty.
    """

    name: str
    path: Path
    architecture: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    dtype: str
    kv_bytes_per_token: int
    eos_token_ids: tuple[int, ...]
    kv_settings: Mapping[str, str]


def inspect_model(path: Path) -> ModelDescription:
    """Describes the model at `path`.

    Raises ModelUnsupported where its KV cannot be kept, ConfigurationInvalid where the directory
    is not a complete model.
    """
    path = path.absolute()
    config = _config_of(path)
    architecture = refuse_unless_dense(path.name, config)
    _refuse_quantized_kv(path.name, config)
    _check_files(path)
    heads = _whole(config, "num_attention_heads", path)
    hidden = _whole(config, "hidden_size", path)
    layers = _whole(config, "num_hidden_layers", path)
    kv_heads = _whole(config, "num_key_value_heads", path, default=heads)
    head_dim = _whole(config, "head_dim", path, default=hidden // heads)
    dtype = _serving_dtype(config, path)
    return ModelDescription(
        name=path.name,
        path=path,
        architecture=architecture,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_whole(config, "vocab_size", path),
        context_tokens=_context_tokens(config),
        dtype=dtype,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * DTYPE_BYTES[dtype],
        eos_token_ids=_eos_token_ids(path, config),
        kv_settings=_kv_settings(config),
    )


def _config_of(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigurationInvalid(f"There is no model at {path}.")
    if not path.is_dir():
        raise ConfigurationInvalid(
            f"{path} is a file; a model is a Hugging Face directory with a config.json.",
            hint="Convert single-file formats such as GGUF to safetensors first.",
        )
    if (path / "adapter_config.json").exists():
        raise ModelUnsupported(
            f"{path} is a LoRA adapter: adapters are not supported yet, because a page's KV "
            "depends on the adapter that computed it.",
            hint="Merge the adapter into its base model and serve the result.",
        )
    if not (path / "config.json").exists():
        raise ConfigurationInvalid(
            f"{path} has no config.json, so it is not a Hugging Face model directory."
        )
    return _json_object(path / "config.json")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationInvalid(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationInvalid(f"{path} holds no JSON object.")
    return content


def weight_files(path: Path) -> list[Path]:
    """The files below `path` that hold weights, sorted by name."""
    return sorted(x for x in path.iterdir() if x.suffix in WEIGHT_SUFFIXES and x.is_file())


def _check_files(path: Path) -> None:
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise ConfigurationInvalid(
            f"{path} has no tokenizer (one of {', '.join(TOKENIZER_FILES)})."
        )
    if not _has_chat_template(path):
        raise ConfigurationInvalid(
            f"{path} has no chat template, so messages cannot be turned into a prompt. It is "
            "probably a base model.",
            hint="Serve its instruct variant, or put its template into chat_template.jinja.",
        )
    if not weight_files(path):
        raise ConfigurationInvalid(
            f"{path} holds no weights (files ending in {', '.join(WEIGHT_SUFFIXES)})."
        )
    for index in path.glob("*.index.json"):
        named = set(_json_object(index).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (path / name).exists())
        if missing:
            raise ConfigurationInvalid(
                f"{path} is incomplete: {index.name} names {missing[0]}, which is not there "
                f"({len(missing)} of {len(named)} weight files are missing)."
            )


def _has_chat_template(path: Path) -> bool:
    if any((path / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = path / "tokenizer_config.json"
    return settings.exists() and bool(_json_object(settings).get("chat_template"))


def _refuse_quantized_kv(name: str, config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config") or {}
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        if quantization.get(key):
            raise ModelUnsupported(
                f"{name} asks for a quantised KV cache ({key} in its quantization_config): its "
                "pages depend on scales that the fingerprint does not cover yet."
            )


def _whole(config: Mapping[str, Any], key: str, path: Path, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationInvalid(
            f"{path / 'config.json'}: {key} must be a positive whole number, not {value!r}."
        )
    return value


def _serving_dtype(config: Mapping[str, Any], path: Path) -> str:
    """What SGLang's `--dtype auto` makes of the config's dtype."""
    written = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = written.removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise ModelUnsupported(
            f"{path.name} has dtype {written}; supported are {', '.join(DTYPE_BYTES)}."
        )
    if dtype == "float32":
        gemma = str(config.get("model_type", "")).startswith("gemma")
        return "bfloat16" if gemma else "float16"
    return dtype


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope if isinstance(rope, Mapping) else {}


def _rope_type(config: Mapping[str, Any]) -> str:
    rope = _rope(config)
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _context_tokens(config: Mapping[str, Any]) -> int:
    rope = _rope(config)
    factor = rope.get("factor") or 1
    if "original_max_position_embeddings" in rope or _rope_type(config) == "llama3":
        factor = 1  # max_position_embeddings counts the stretched positions already
    for key in _CONTEXT_KEYS:
        if isinstance(value := config.get(key), int):
            return int(value * factor)
    return _CONTEXT_TOKENS_DEFAULT


def _eos_token_ids(path: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    found: set[int] = set()
    generation = path / "generation_config.json"
    for source in (config, _json_object(generation) if generation.exists() else {}):
        value = source.get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(found))


def _kv_settings(config: Mapping[str, Any]) -> dict[str, str]:
    counting = {k: v for k, v in config.items() if k not in _KV_IRRELEVANT and v is not None}
    if _rope_type(config) != "default":
        # Stretched rope may derive its frequencies from the number of positions; plain rope never.
        counting["max_position_embeddings"] = config.get("max_position_embeddings")
    return {
        key: json.dumps(value, sort_keys=True, separators=(",", ":"))
        for key, value in sorted(counting.items())
    }
