"""Which models have the attention that agentmem can keep: a K and a V per token, layer and head.

Everything else is refused, the unknown included: a model is served when it is known to be dense,
not when nothing speaks against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmem.errors import ConfigurationInvalid, ModelUnsupported

# Names as SGLang 0.5.20 registers them (a test compares). Mixtures of experts are among them:
# experts replace the feed-forward part, attention stays dense.
_DENSE = """
    ApertusForCausalLM ArceeForCausalLM CohereForCausalLM Ernie4_5_ForCausalLM
    Ernie4_5_MoeForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM GraniteForCausalLM
    GraniteMoeForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM LlamaForCausalLM
    MiMoForCausalLM MistralForCausalLM MixtralForCausalLM Olmo2ForCausalLM OlmoForCausalLM
    OlmoeForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM Qwen2ForCausalLM
    Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM SolarForCausalLM StableLmForCausalLM
    Starcoder2ForCausalLM
"""
DENSE_ARCHITECTURES = frozenset(_DENSE.split())

_WHY_WINDOW = (
    "a page outside of the window is no longer kept by the engine, so the session cannot be "
    "restored as it was"
)
_LATENT_KEYS = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim")
_SPARSE_KEYS = ("index_topk", "index_n_heads", "sparse_attention_config", "compress_ratios")
_RECURRENT_KEYS = (
    "attn_layer_period",
    "conv_kernel",
    "hybrid_override_pattern",
    "full_attention_interval",
    "layers_block_type",
    "linear_attn_config",
    "linear_num_value_heads",
    "mamba_d_state",
    "mamba_expand",
    "mamba_num_heads",
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
)
_WINDOW_KEYS = ("sliding_window", "sliding_window_size", "window_size", "attention_window")
_EMBEDDING_SUFFIXES = ("Model", "ForMaskedLM", "ForSequenceClassification", "RewardModel")


def refuse_unless_dense(name: str, config: Mapping[str, Any]) -> str:
    """The model's architecture; raises ModelUnsupported unless it is known to be dense."""
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
        raise ConfigurationInvalid(f"{name}: config.json names no architecture.")
    architecture: str = listed[0]
    refuse = (
        _why_not_a_generator(architecture, config)
        or _why_not_keys_and_values(config)
        or _why_windowed(config)
    )
    if refuse:
        raise ModelUnsupported(f"{name} ({architecture}) cannot be served: {refuse}.")
    if architecture not in DENSE_ARCHITECTURES:
        known = ", ".join(sorted(x.removesuffix("ForCausalLM") for x in DENSE_ARCHITECTURES))
        raise ModelUnsupported(
            f"{name} ({architecture}) cannot be served: its kind of attention is not known here, "
            "and KV kept wrongly would give wrong answers.",
            hint=f"Known to have dense attention: {known}.",
        )
    return architecture


def _why_not_a_generator(architecture: str, config: Mapping[str, Any]) -> str | None:
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder, whose cross-attention KV belongs to no token of the log"
    if any(config.get(key) for key in ("text_config", "vision_config", "audio_config")):
        return (
            "it takes images or sound, and a page key covers token ids only, so two pictures "
            "would share pages"
        )
    if architecture.endswith(_EMBEDDING_SUFFIXES):
        return "it makes embeddings or scores, not text, so it has no session to keep"
    return None


def _why_not_keys_and_values(config: Mapping[str, Any]) -> str | None:
    if key := _first_set(config, _LATENT_KEYS):
        return f"it uses multi-head latent attention (MLA; {key} is set), not supported yet"
    if key := _first_set(config, _SPARSE_KEYS):
        return f"it uses sparse attention ({key} is set), not supported yet"
    if key := _first_set(config, _RECURRENT_KEYS):
        return (
            f"it has Mamba or linear-attention layers ({key} is set), whose state is not cut "
            "into pages; not supported yet"
        )
    return None


def _why_windowed(config: Mapping[str, Any]) -> str | None:
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and (others := sorted({str(x) for x in kinds} - {"full_attention"})):
        if any("sliding" in kind or "chunked" in kind for kind in others):
            return f"it has layers of {', '.join(others)}: {_WHY_WINDOW}; not supported yet"
        return f"it has layers of {', '.join(others)}; only full_attention is supported yet"
    if config.get("use_sliding_window") is False:
        return None
    positions = config.get("max_position_embeddings")
    for key in (*_WINDOW_KEYS, "attention_chunk_size"):
        window = config.get(key)
        if not isinstance(window, int) or isinstance(window, bool) or window <= 0:
            continue
        if isinstance(positions, int) and window >= positions:
            continue  # as wide as the context: no window at all
        return f"its attention looks back over {window} tokens only ({key}): {_WHY_WINDOW}"
    return None


def _first_set(config: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if config.get(key)), None)
