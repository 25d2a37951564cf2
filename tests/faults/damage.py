"""Seeded damage to files at rest: flipped bits, cut-off ends, records in each other's place."""

from __future__ import annotations

import random
from pathlib import Path

from agentmem.pages.record import HEADER_BYTES, record_bytes
from agentmem.store.pack import PACK_HEADER_BYTES
from tests.integration.node.conftest import PAGE_BYTES

RECORD_BYTES = record_bytes(PAGE_BYTES)


def flip_bit(path: Path, dice: random.Random, *, inside_of: int | None = None) -> int:
    """Flips one bit anywhere, or in the header's fields or payload of the record at `inside_of`."""
    if inside_of is None:
        offset = dice.randrange(path.stat().st_size)
    elif dice.random() < 0.2:
        offset = inside_of + 8 + dice.randrange(100)
    else:
        offset = inside_of + HEADER_BYTES + dice.randrange(PAGE_BYTES)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << dice.randrange(8))]))
    return offset


def swap_records(path: Path, one: int, other: int) -> None:
    """Two whole, valid records, each at the place of the other."""
    with path.open("r+b") as file:
        parts = []
        for offset in (one, other):
            file.seek(offset)
            parts.append(file.read(RECORD_BYTES))
        for offset, part in zip((other, one), parts, strict=True):
            file.seek(offset)
            file.write(part)


def cut_off(path: Path, dice: random.Random) -> None:
    """Truncates a pack somewhere."""
    with path.open("r+b") as file:
        file.truncate(dice.randrange(PACK_HEADER_BYTES, path.stat().st_size))
