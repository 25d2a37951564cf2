"""The fingerprint changes with what a page's bytes depend on, and with nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmem.core import Fingerprint
from agentmem.engine.sglang.model.check import inspect_model
from agentmem.engine.sglang.model.fingerprint import fingerprint_of, weights_digest
from agentmem.errors import ConfigurationInvalid

ModelMaker = Callable[..., Path]
ENGINE: dict[str, Any] = {
    "page_tokens": 64,
    "layout": "page_first_direct",
    "kv_dtype": "auto",
    "tp_size": 1,
    "weights_digest": "00" * 32,
}


def fingerprint(path: Path, **changes: Any) -> Fingerprint:
    return fingerprint_of(inspect_model(path), **{**ENGINE, **changes})


def test_has_16_bytes_and_stays_as_it_is(make_model: ModelMaker) -> None:
    # Were this to change, every page stored so far would be recomputed.
    assert fingerprint(make_model()).digest.hex() == "d3a52f9a2f30f0cda53ddc3042c43183"


@pytest.mark.parametrize(
    "changes",
    [
        {"page_tokens": 32},
        {"layout": "layer_first"},
        {"kv_dtype": "fp8_e4m3"},
        {"tp_size": 2},
        {"weights_digest": "11" * 32},
    ],
)
def test_changes_with_the_engines_settings(make_model: ModelMaker, changes: dict[str, Any]) -> None:
    path = make_model()
    assert fingerprint(path).digest != fingerprint(path, **changes).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 10_000.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-6},
        {"head_dim": 32},
        {"num_key_value_heads": 9},
        {"num_hidden_layers": 12},
        {"dtype": "float16"},
        {"architectures": ["Qwen3ForCausalLM"]},
        {"attention_bias": True},
        {"quantization_config": {"quant_method": "fp8"}},
        {"a_setting_that_nobody_here_knows": 1},
    ],
)
def test_changes_with_the_models_settings(make_model: ModelMaker, changes: dict[str, Any]) -> None:
    assert fingerprint(make_model()).digest != fingerprint(make_model("b", **changes)).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "9.9"},
        {"_name_or_path": "elsewhere"},
        {"max_position_embeddings": 4096},
        {"eos_token_id": 7},
        {"use_cache": False},
        {"initializer_range": 0.1},
        {"attention_dropout": 0.1},
        {"sliding_window": None},
    ],
)
def test_stays_with_what_leaves_kv_alone(make_model: ModelMaker, changes: dict[str, Any]) -> None:
    assert fingerprint(make_model()).digest == fingerprint(make_model("b", **changes)).digest


def test_positions_count_where_rope_is_stretched(make_model: ModelMaker) -> None:
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    shorter = make_model("b", **dynamic, max_position_embeddings=4096)
    assert fingerprint(make_model(**dynamic)).digest != fingerprint(shorter).digest


def test_auto_is_the_models_own_dtype(make_model: ModelMaker) -> None:
    path = make_model()
    assert fingerprint(path, kv_dtype="auto") == fingerprint(path, kv_dtype="bfloat16")


def test_fields_explain_it(make_model: ModelMaker) -> None:
    fields = fingerprint(make_model()).fields
    assert fields["page_tokens"] == "64"
    assert fields["config.rope_theta"] == "100000.0"


def test_weights_digest_covers_names_and_contents(make_model: ModelMaker, tmp_path: Path) -> None:
    path, cache = make_model(), tmp_path / "cache"
    digests = [weights_digest(path, cache)]
    (path / "model.safetensors").write_bytes(b"WEIGHTS")
    digests.append(weights_digest(path, cache))
    (path / "model.safetensors").rename(path / "other.safetensors")
    digests.append(weights_digest(path, cache))
    (path / "more.safetensors").write_bytes(b"more")
    digests.append(weights_digest(path, cache))
    assert len(set(digests)) == 4


def test_a_change_in_place_with_its_time_set_back_is_noticed(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    path, cache = make_model(), tmp_path / "cache"
    file = path / "model.safetensors"
    before, times = weights_digest(path, cache), file.stat()
    with file.open("r+b") as content:
        content.write(b"W")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_digest(path, cache) != before


def test_a_copy_elsewhere_has_the_same_digest(make_model: ModelMaker, tmp_path: Path) -> None:
    path, cache = make_model(), tmp_path / "cache"
    copy = shutil.copytree(path, tmp_path / "copy")
    assert weights_digest(path, cache) == weights_digest(copy, cache)


def test_unchanged_weights_are_read_once(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = make_model(), tmp_path / "cache"
    before = weights_digest(path, cache)
    module = "agentmem.engine.sglang.model.fingerprint.sha256_of"
    monkeypatch.setattr(module, lambda _: pytest.fail("weights were read again"))
    assert weights_digest(path, cache) == before


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_cache_is_ignored(make_model: ModelMaker, tmp_path: Path, damage: bytes) -> None:
    path, cache = make_model(), tmp_path / "cache"
    before = weights_digest(path, cache)
    for file in cache.iterdir():
        file.write_bytes(damage)
    assert weights_digest(path, cache) == before


def test_no_weights_no_digest(make_model: ModelMaker, tmp_path: Path) -> None:
    path = make_model()
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigurationInvalid, match="no weight files"):
        weights_digest(path, tmp_path / "cache")
