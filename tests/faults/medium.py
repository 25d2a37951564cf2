"""A medium that fails as it is told to: `shim.c`, built, preloaded and steered."""

from __future__ import annotations

import functools
import mmap
import shlex
import struct
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
_WORDS = (
    "ops",
    "kill_at",
    "write_errno",
    "sync_errno",
    "open_errno",
    "space_errno",
    "read_errno",
    "per_mille",
    "seed",
)
_FLAGS = "-O2 -shared -fPIC -Wall -Wextra -Werror -std=gnu11 -pthread"


@functools.cache
def library() -> Path:
    """The compiled shim, made once per process."""
    target = Path(tempfile.mkdtemp(prefix="agentmem-shim-")) / "shim.so"
    command = ["gcc", *shlex.split(_FLAGS), "-o", str(target), str(_SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


class Medium:
    """Everything below `root`, as one process that is started with `environment` sees it.

    `set(write_errno=errno.EIO, ...)` makes calls fail from then on, `per_mille` of them (0: all);
    `heal()` ends that. `kill_after(n)` kills the process at its n-th change of the medium from now.
    """

    def __init__(self, root: Path, directory: Path, *, journal: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        control = directory / "control"
        control.write_bytes(bytes(4 * len(_WORDS)))
        self.journal = directory / "journal"
        self.environment = {
            "LD_PRELOAD": str(library()),
            "FAULT_ROOT": str(root),
            "FAULT_CONTROL": str(control),
        }
        if journal:
            self.environment["FAULT_JOURNAL"] = str(self.journal)
        with control.open("r+b") as file:
            self._words = mmap.mmap(file.fileno(), 4 * len(_WORDS))

    def __getitem__(self, word: str) -> int:
        return int(struct.unpack_from("<I", self._words, 4 * _WORDS.index(word))[0])

    def set(self, **words: int) -> None:
        for word, value in words.items():
            struct.pack_into("<I", self._words, 4 * _WORDS.index(word), value)

    def kill_after(self, changes: int) -> None:
        self.set(kill_at=self["ops"] + changes)

    def heal(self) -> None:
        self.set(**{word: 0 for word in _WORDS if word not in ("ops", "seed")})

    def close(self) -> None:
        self._words.close()
