"""The three root secrets, one file each, and what is derived from them.

`pepper` hashes API keys, `salt_secret` makes tenants' salts (hence every page key: losing it
orphans every page), `root_key` is for encrypting pages at rest.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from agentmem.core import TenantId
from agentmem.secretfile import load_secret

_NAMES = ("pepper", "salt_secret", "root_key")


@dataclass(frozen=True, slots=True)
class Secrets:
    """32 random bytes each; never logged (`repr` hides them)."""

    pepper: bytes = field(repr=False)
    salt_secret: bytes = field(repr=False)
    root_key: bytes = field(repr=False)

    def tenant_salt(self, tenant_id: TenantId) -> str:
        """The hex HMAC that seeds a tenant's page keys. Callers never choose or see it."""
        return hmac.new(self.salt_secret, tenant_id.encode(), hashlib.sha256).hexdigest()

    def tenant_tag(self, tenant_id: TenantId) -> bytes:
        """16 bytes that tell node agents pages of one tenant from another's, and nothing else."""
        message = b"agentmem tenant tag\x00" + tenant_id.encode()
        return hmac.new(self.root_key, message, hashlib.sha256).digest()[:16]

    def key_hash(self, api_key: str) -> bytes:
        """32 bytes to store instead of an API key."""
        return hmac.new(self.pepper, api_key.encode(), hashlib.sha256).digest()


def load_secrets(folder: Path) -> Secrets:
    """Reads the secrets, making those that are missing. Several processes may call it at once.

    Raises ConfigurationInvalid when a file is readable by others or is not 32 bytes long.
    """
    return Secrets(**{name: load_secret(folder / name) for name in _NAMES})
