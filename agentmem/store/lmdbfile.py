"""Opens LMDB files so that neither a loss of power nor damage keeps an agent from starting."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify

from agentmem.store.pack import sync_directory

logger = logging.getLogger(__name__)

_READ_BYTES = 4 << 20


def problems_of(path: Path) -> list[str]:
    """What is wrong with the structure of the LMDB file in a directory. Raises OSError."""
    _read_ahead(path / "data.mdb")
    try:
        return list(lmdb.verify.verify(str(path / "data.mdb")))
    except lmdb.verify.VerifyError as error:
        return [str(error)]


def _read_ahead(file: Path) -> None:
    """Brings the file into the page cache in large pieces: what follows reads it in no order."""
    piece = bytearray(_READ_BYTES)
    with file.open("rb", buffering=0) as reader:
        while reader.readinto(piece):
            pass


def set_aside(path: Path) -> None:
    """Keeps a file that cannot be used under another name. Raises OSError."""
    aside = path.with_name(f"{path.name}.bad-{time.time_ns()}")
    logger.error("%s is damaged: kept as %s, and made anew", path, aside.name)
    path.rename(aside)


def open_environment(path: Path, map_bytes: int) -> Any:
    """Opens the environment in a directory. Raises lmdb.Error, OSError.

    A new one appears whole or not at all, and its name is durable. A damaged one is set aside.
    """
    if (path / "data.mdb").exists() and (problems := problems_of(path)):
        logger.error("%s: %s", path, "; ".join(problems[:3]))
        set_aside(path)
    if not (path / "data.mdb").exists():
        _create(path, map_bytes)
    return lmdb.open(str(path), map_size=map_bytes, mode=0o600)


def _create(path: Path, map_bytes: int) -> None:
    making = path.with_name(f"{path.name}.new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True, mode=0o700)
    lmdb.open(str(making), map_size=map_bytes, mode=0o600).close()
    path.mkdir(exist_ok=True, mode=0o700)
    fd = os.open(making / "data.mdb", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    (making / "data.mdb").rename(path / "data.mdb")
    shutil.rmtree(making, ignore_errors=True)
    sync_directory(path)
    sync_directory(path.parent)
