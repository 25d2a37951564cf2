"""A tiny Llama of random weights with a tokenizer of its own, for quick tests of the real engine.

It says nothing sensible and is served like any other model. Made with numpy, not torch, so that
a test need not wait for torch to be imported; the same bytes for the same seed everywhere.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from agentmem.engine.sglang.model.cache import build_once
from agentmem.engine.sglang.model.files import sha256_of

# Raised whenever the code below makes something else of the same seed and text.
_REVISION = 1
_CORPUS = Path(__file__).with_name("tiny_corpus.txt")

_VOCABULARY = 2048
_HIDDEN = 256
_FEED_FORWARD = 688
_LAYERS = 4
_HEADS = 4
_KV_HEADS = 2
_HEAD_DIM = 64
_CONTEXT_TOKENS = 32_768
# Large enough that what is sampled depends on the whole context, so that wrong KV shows at once:
# at the usual 0.02 a random model repeats one token whatever it was told.
_WEIGHT_DEVIATION = 0.1

_SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_END_OF_TURN = "<|im_end|>"

# As SmolLM2's: a default system prompt goes in front of a conversation that has none.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_model(directory: Path, *, seed: int = 0) -> Path:
    """`directory`, holding the model of this seed; made if it is not there, damaged or outdated."""

    def build(partial: Path) -> None:
        _write_json(partial / "config.json", _config())
        _write_json(
            partial / "generation_config.json",
            {"bos_token_id": _id("<s>"), "eos_token_id": _id(_END_OF_TURN)},
        )
        _write_tokenizer(partial)
        _write_weights(partial / "model.safetensors", seed)

    recipe = f"tiny llama, revision {_REVISION}, seed {seed}, text {sha256_of(_CORPUS)}"
    return build_once(directory.absolute(), recipe=recipe, build=build, progress=lambda _: None)


def _id(token: str) -> int:
    return _SPECIAL.index(token)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": _id("<s>"),
        "dtype": "bfloat16",
        "eos_token_id": _id(_END_OF_TURN),
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _FEED_FORWARD,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "mlp_bias": False,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KV_HEADS,
        "pad_token_id": _id("<pad>"),
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": _VOCABULARY,
    }


def _write_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(_CORPUS)], trainer)
    size = tokenizer.get_vocab_size()
    # A model with more ids than its tokenizer would sample some that cannot be decoded.
    assert size == _VOCABULARY, f"{_CORPUS.name} gives {size} tokens, not {_VOCABULARY}"
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": _END_OF_TURN,
            "model_max_length": _CONTEXT_TOKENS,
            "pad_token": "<pad>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (directory / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every weight of the model by its name in a Llama checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (_VOCABULARY, _HIDDEN),
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
    }
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (_HIDDEN,),
            f"{prefix}.mlp.down_proj.weight": (_HIDDEN, _FEED_FORWARD),
            f"{prefix}.mlp.gate_proj.weight": (_FEED_FORWARD, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (_FEED_FORWARD, _HIDDEN),
            f"{prefix}.post_attention_layernorm.weight": (_HIDDEN,),
            f"{prefix}.self_attn.k_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (_HIDDEN, _HEADS * _HEAD_DIM),
            f"{prefix}.self_attn.q_proj.weight": (_HEADS * _HEAD_DIM, _HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
        }
    return shapes


def _write_weights(path: Path, seed: int) -> None:
    """Writes a safetensors file: the header's length, the header, the tensors in its order."""
    source = np.random.Philox(seed)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    tensors: list[bytes] = []
    offset = 0
    for name, shape in sorted(_shapes().items()):
        is_norm = len(shape) == 1
        values = np.ones(shape, np.float32) if is_norm else _uniform(source, shape)
        content = _bfloat16(values)
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + len(content)],
        }
        offset += len(content)
        tensors.append(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors))


def _uniform(source: np.random.Philox, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Evenly spread values. From raw bits: numpy promises those, not what it derives from them."""
    raw = np.asarray(source.random_raw(math.prod(shape)), dtype=np.uint64)
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    width = _WEIGHT_DEVIATION * math.sqrt(3.0)
    return ((unit * 2.0 - 1.0) * width).astype(np.float32).reshape(shape)


def _bfloat16(values: NDArray[np.float32]) -> bytes:
    """The upper halves of the floats, rounded to the nearest even, little-endian."""
    bits = values.astype("<f4").view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()
