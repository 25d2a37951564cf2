"""Page keys, computed from token ids: the same chain that SGLang 0.5.20 uses for its storage.

`h_i = SHA256(h_{i-1} || uint32-LE tokens of page i)`, full pages only, seeded by the tenant's salt
(`sglang/srt/mem_cache/utils.py`, `storage_namespace_seed` and `get_hash_str`). SGLang's hash says
nothing of model, weights, dtype or layout, so a page key is the fingerprint's digest plus the hash.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence

from agentmem.core import PAGE_HASH_BYTES, Fingerprint, PageHash, PageKey

_NAMESPACE = b"sglang-cache-namespace-v1"


def namespace_seed(salt: str) -> bytes:
    """The 32-byte seed of a salt's chain. Raises ValueError for an empty salt.

    SGLang takes an empty salt for none at all, and tenants would share pages.
    """
    if not salt:
        raise ValueError("the salt must not be empty: SGLang treats an empty salt as none")
    encoded = salt.encode("utf-8")
    return hashlib.sha256(
        _NAMESPACE + b"\x00" + b"\x01" + len(encoded).to_bytes(8, "little") + encoded
    ).digest()


def page_hashes(token_ids: Sequence[int], page_tokens: int, prior: bytes) -> list[PageHash]:
    """Hashes of the full pages of `token_ids`, the chain going on from `prior` (32 bytes)."""
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    raw = words.tobytes()
    step = page_tokens * words.itemsize
    hashes: list[PageHash] = []
    for end in range(step, len(raw) + 1, step):
        prior = hashlib.sha256(prior + raw[end - step : end]).digest()
        hashes.append(PageHash(prior))
    return hashes


def page_key(fingerprint: Fingerprint, page_hash: bytes) -> PageKey:
    """The key under which a page is stored: fingerprint digest (16 bytes) plus hash (32 bytes)."""
    if len(page_hash) != PAGE_HASH_BYTES:
        raise ValueError(f"a page hash has {PAGE_HASH_BYTES} bytes, not {len(page_hash)}")
    return PageKey(fingerprint.digest + page_hash)


def page_keys(
    fingerprint: Fingerprint, salt: str, token_ids: Sequence[int], page_tokens: int
) -> list[PageKey]:
    """Keys of all full pages of a log: what the control plane derives instead of storing."""
    return keys_of_hashes(fingerprint, page_hashes(token_ids, page_tokens, namespace_seed(salt)))


def keys_of_hashes(fingerprint: Fingerprint, hashes: Iterable[bytes]) -> list[PageKey]:
    """Prefixes each hash with the fingerprint's digest."""
    digest = fingerprint.digest
    return [PageKey(digest + page_hash) for page_hash in hashes]
