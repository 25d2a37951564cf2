"""Small model directories, made in the test that needs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ModelMaker = Callable[..., Path]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-05,
    "dtype": "bfloat16",
    "vocab_size": 49152,
    "eos_token_id": 2,
}


@pytest.fixture
def make_model(tmp_path: Path) -> ModelMaker:
    """Writes a complete model directory whose config is LLAMA with changes (None removes a key)."""

    def make(name: str = "model", **changes: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        config = {k: v for k, v in {**LLAMA, **changes}.items() if v is not None}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "tokenizer.json").write_text("{}")
        (directory / "chat_template.jinja").write_text("{{ messages }}")
        (directory / "model.safetensors").write_bytes(b"weights")
        return directory

    return make
