"""Texts that clients keep for us: sealed, so that they are opaque and bound to their tenant.

    "am1" + base64url(nonce[12] | AES-256-GCM(text))      keys: HMAC(root key, purpose, tenant)

The nonce follows from the text, so that the same text seals to the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentmem.core import TenantId
from agentmem.errors import InvalidRequest
from agentmem.sessions.secrets import Secrets

Purpose = Literal["compaction", "reasoning"]
_VERSION = "am1"
_NONCE_BYTES = 12
_TAG_BYTES = 16


class Sealer:
    """Seals and opens for all tenants."""

    def __init__(self, secrets: Secrets) -> None:
        self._root_key = secrets.root_key

    def seal(self, tenant_id: TenantId, purpose: Purpose, text: str) -> str:
        """The sealed text, in characters that JSON leaves alone."""
        plain = text.encode()
        nonce = hmac.digest(self._key(tenant_id, purpose, "nonce"), plain, "sha256")[:_NONCE_BYTES]
        sealed = AESGCM(self._key(tenant_id, purpose, "text")).encrypt(nonce, plain, None)
        return _VERSION + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, tenant_id: TenantId, purpose: Purpose, sealed: str, *, param: str) -> str:
        """The text. Raises InvalidRequest, naming `param`, for anything that `seal` did not make
        for this tenant and purpose."""
        raw = b""
        if sealed.startswith(_VERSION):
            try:
                raw = base64.b64decode(sealed[len(_VERSION) :], altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raw = b""
        # Another spelling of the same bytes (in the last character's spare bits) is another text.
        spelled = _VERSION + base64.urlsafe_b64encode(raw).decode()
        if len(raw) >= _NONCE_BYTES + _TAG_BYTES and spelled == sealed:
            cipher = AESGCM(self._key(tenant_id, purpose, "text"))
            try:
                return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None).decode()
            except InvalidTag:
                pass
        raise InvalidRequest(
            "The encrypted content was not made here for this tenant, or was changed.",
            param=param,
            code="invalid_encrypted_content",
        )

    def _key(self, tenant_id: TenantId, purpose: Purpose, use: str) -> bytes:
        named = f"agentmem seal {_VERSION}\n{purpose}\n{use}\n{tenant_id}"
        return hmac.digest(self._root_key, named.encode(), hashlib.sha256)
