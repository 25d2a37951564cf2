"""The fingerprint: everything that a page's bytes depend on besides its tokens.

Two workers with one fingerprint may exchange pages. Torch, driver and SGLang's own version are
not in it: an update must not throw away what sessions have stored.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from agentmem.core import FINGERPRINT_DIGEST_BYTES, Fingerprint
from agentmem.engine.sglang.model.check import ModelDescription, weight_files
from agentmem.engine.sglang.model.files import sha256_of, write_atomically
from agentmem.errors import ConfigurationInvalid

# Raised when the meaning of a field changes; every stored page is then recomputed.
_FINGERPRINT_VERSION = "1"


def fingerprint_of(
    model: ModelDescription,
    *,
    page_tokens: int,
    layout: str,
    kv_dtype: str,
    tp_size: int,
    weights_digest: str,
) -> Fingerprint:
    """The fingerprint of pages that `model` makes with these settings of the engine.

    `kv_dtype` is the KV cache's format: "auto" means the model's own dtype and gives the same
    fingerprint as naming it. `weights_digest` comes from the function of that name.
    """
    fields = {
        "version": _FINGERPRINT_VERSION,
        "architecture": model.architecture,
        "weights": weights_digest,
        "dtype": model.dtype,
        "kv_dtype": model.dtype if kv_dtype == "auto" else kv_dtype,
        "page_tokens": str(page_tokens),
        "layout": layout,
        "tp_size": str(tp_size),
        "layers": str(model.layers),
        "kv_heads": str(model.kv_heads),
        "head_dim": str(model.head_dim),
    }
    fields |= {f"config.{key}": value for key, value in model.kv_settings.items()}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.blake2b(
        canonical.encode(), digest_size=FINGERPRINT_DIGEST_BYTES, person=b"agentmem-fp"
    )
    return Fingerprint(digest=digest.digest(), fields=fields)


def weights_digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 (hex) over names and contents of the weight files in `path`.

    Each file's digest is kept in `cache_dir` under what the file system knows of it (name, size,
    times, inode), so that weights are read once and not at every start. The change time is among
    them: unlike the modification time, no program can set it back.
    """
    files = weight_files(path)
    if not files:
        raise ConfigurationInvalid(f"{path} holds no weight files.")
    where = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    cache = cache_dir / f"weights-{where}.json"
    known = _known_digests(cache)
    fresh: dict[str, str] = {}
    total = hashlib.sha256()
    for file in files:
        identity = _identity(file)
        digest = known.get(identity) or sha256_of(file)
        fresh[identity] = digest
        total.update(f"{file.name}\0{digest}\n".encode())
    if fresh != known:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, json.dumps(fresh, indent=1).encode())
    return total.hexdigest()


def _identity(file: Path) -> str:
    facts = file.stat()
    parts = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_dev, facts.st_ino)
    return f"{file.name}|{'|'.join(str(part) for part in parts)}"


def _known_digests(cache: Path) -> dict[str, str]:
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): str(value) for key, value in content.items()}
