"""A secret of 32 random bytes in a file of its own, mode 0600: made once, never half."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from agentmem.errors import ConfigurationInvalid

SECRET_BYTES = 32


def load_secret(path: Path) -> bytes:
    """Reads a secret, making it where it is missing. Several processes may call it at once.

    Raises ConfigurationInvalid when the folder cannot be used, or the file is readable by others
    or not 32 bytes long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _load(path)
    except OSError as error:
        raise ConfigurationInvalid(
            f"The secret folder {path.parent} cannot be used: {error.strerror}."
        ) from error


def read_secret_text(path: Path) -> str:
    """A secret that somebody else gave us, on one line of a file of its own.

    Raises ConfigurationInvalid when the file cannot be read, is readable by others, or has none.
    """
    try:
        _check_mode(path)
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"The secret file {path} cannot be read: {error}.") from error
    if not secret or "\n" in secret:
        raise ConfigurationInvalid(f"The secret file {path} does not have a secret on one line.")
    return secret


def _check_mode(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigurationInvalid(
            f"The secret file {path} is open to others (mode {mode:04o}).",
            hint=f"Run: chmod 600 {path}",
        )


def _load(path: Path) -> bytes:
    if not path.exists():
        _create(path)
    _check_mode(path)
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
