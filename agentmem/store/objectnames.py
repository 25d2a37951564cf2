"""Which object a pack's number stands for: the page index knows packs by number, stores by name."""

from __future__ import annotations

import struct
from pathlib import Path

from agentmem.store.lmdbfile import open_environment

_NUMBER = struct.Struct(">I")
_MAP_BYTES = 1 << 30


class PackNames:
    """Numbers and names, durable. Written from one thread; raises lmdb.Error."""

    def __init__(self, path: Path) -> None:
        self._env = open_environment(path, _MAP_BYTES)
        with self._env.begin() as tx:
            rows = [(_NUMBER.unpack(key)[0], bytes(name).decode()) for key, name in tx.cursor()]
        self._names: dict[int, str] = dict(rows)
        self._numbers = {name: number for number, name in rows}
        self._next = max(self._names, default=0) + 1

    def close(self) -> None:
        """Closes the file."""
        self._env.close()

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def all(self) -> set[str]:
        """Every name."""
        return set(self._numbers)

    def numbers(self) -> set[int]:
        """Every number."""
        return set(self._names)

    def name(self, number: int) -> str | None:
        """The object of a number; None for one that is not known."""
        return self._names.get(number)

    def number(self, name: str) -> int | None:
        """The number of an object; None for one that is not known."""
        return self._numbers.get(name)

    def add(self, name: str) -> int:
        """A number for a name, the same each time until it is dropped."""
        number = self._numbers.get(name)
        if number is None:
            number, self._next = self._next, self._next + 1
            with self._env.begin(write=True) as tx:
                tx.put(_NUMBER.pack(number), name.encode())
            self._names[number] = name
            self._numbers[name] = number
        return number

    def drop(self, number: int) -> None:
        """Forgets a number and its object; one that is not known is fine."""
        with self._env.begin(write=True) as tx:
            tx.delete(_NUMBER.pack(number))
        name = self._names.pop(number, None)
        if name is not None:
            del self._numbers[name]
