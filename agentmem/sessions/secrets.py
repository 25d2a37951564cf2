"""The three root secrets, one file each, and what is derived from them.

`pepper` hashes API keys, `salt_secret` makes tenants' salts (hence every page key: losing it
orphans every page), `root_key` is for encrypting pages at rest.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from agentmem.core import TenantId
from agentmem.errors import ConfigurationInvalid

SECRET_BYTES = 32
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
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        values = {name: _load(folder / name) for name in _NAMES}
    except OSError as error:
        raise ConfigurationInvalid(
            f"The secret folder {folder} cannot be used: {error.strerror}."
        ) from error
    return Secrets(**values)


def _load(path: Path) -> bytes:
    if not path.exists():
        _create(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigurationInvalid(
            f"The secret file {path} is open to others (mode {mode:04o}).",
            hint=f"Run: chmod 600 {path}",
        )
    content = path.read_bytes()
    if len(content) != SECRET_BYTES:
        raise ConfigurationInvalid(
            f"The secret file {path} has {len(content)} bytes, not {SECRET_BYTES}.",
            hint="Restore it from a backup: with another one, stored keys and pages are lost.",
        )
    return content


def _create(path: Path) -> None:
    """Writes the whole file under another name first: no reader ever sees half a secret."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link fails where the name exists, so the first of several processes wins.
            os.link(temporary, path)
        except FileExistsError:
            return
        _sync_folder(path.parent)
    finally:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
