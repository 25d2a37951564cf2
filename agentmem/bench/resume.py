"""`agentmem bench resume`: how soon an agent that comes back is answered, on a real SGLang.

Everything is killed and started again, page cache dropped; then the same prompt: SGLang with its
own `file` backend against SGLang with agentmem, in turns. Beside them what no storage can beat: a
hit in HBM, and the prompt's bytes at the raw disk's speed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agentmem.bench.engines import Answer, Backend, Server, model_options, random_prompt
from agentmem.bench.limits import MIB, Memory, best_read, drop_page_cache, raw_read, raw_write
from agentmem.bench.report import Goal, Moved, Row, missing_row, ratio_row, report
from agentmem.bench.store_system import BenchFailed, Node, claim, wait_durable
from agentmem.errors import AgentmemError

Load = Literal["always", "never", "auto"]
GOALS = {
    "resume_disk": Goal("s", 3.0),
    "resume_disk_floor": Goal("s", 1.5, more=False),
}
ROUNDS = 5
TOKENS = 7000
LOADS = {
    "always": "SGLang asks, and every page that is found is loaded",
    "never": "no storage: what is not in HBM is recomputed",
    "auto": "as the product decides: it loads every page that is found, as `always`",
}
_WARM_UP_TOKENS = 200
_SECONDS_MAX = 120.0


@dataclass(slots=True)
class _Seen:
    """Seconds per round, and where the tokens of the last round came from."""

    stock: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    hbm: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    from_stock: dict[str, int] = field(default_factory=dict)
    from_ours: dict[str, int] = field(default_factory=dict)
    cold: float = 0.0


class ResumeBench:
    """One prompt, stored once by each system; then rounds of losing everything."""

    def __init__(
        self, directory: Path, model: str, tokens: int, load: Load, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._node = Node(directory / "system", model=model)
        self._options, vocabulary = model_options(self._node.settings, say)
        self.model_name = self._options.model_name
        self._directory = directory
        self._load = load
        self._prompt = random_prompt(1, tokens, vocabulary)
        self._warm_up = random_prompt(2, _WARM_UP_TOKENS, vocabulary)
        self._pages = (tokens - 1) // self._options.page_tokens
        self.bytes = self._pages * self._options.page_tokens * self._options.kv_bytes_per_token
        self.tokens = tokens
        self._stored: Answer | None = None

    def run(self, rounds: int) -> _Seen:
        """Stores the prompt with both systems, then measures round by round."""
        seen = _Seen()
        self._store_stock()
        self._store_ours(seen)
        raw, buffer, setting = self._raw()
        for number in range(rounds):
            self._say(f"round {number + 1} of {rounds}")
            self._stock(seen)
            drop_page_cache([raw])
            rate = raw_read(raw, buffer, self.bytes, setting.block_bytes, setting.threads)
            seen.raw.append(self.bytes / rate)
            self._ours(seen)
        self._node.remove()
        return seen

    def _server(self, backend: Backend) -> Server:
        return Server(
            self._options,
            self._directory / "engines",
            backend,
            file_dir=self._directory / "hicache",
        )

    def _store_stock(self) -> None:
        self._say("SGLang with its own storage computes the prompt")
        server = self._server("file")
        try:
            server.start()
            server.generate(self._prompt)
            if not server.wait_for_files(self._pages, _SECONDS_MAX):
                raise BenchFailed(f"SGLang stored {len(server.files())} of {self._pages} pages")
        finally:
            server.kill()

    def _store_ours(self, seen: _Seen) -> None:
        self._say("SGLang with agentmem computes the prompt")
        server = self._server("agentmem")
        try:
            self._node.start()
            server.start()
            server.generate(self._warm_up)
            self._stored = server.generate(self._prompt)
            seen.cold = self._stored.seconds
            keys = server.keys(self._prompt)
            claim(self._node, "resume", keys)
            wait_durable(self._node, keys)
        finally:
            server.kill()
            self._node.kill()

    def _stock(self, seen: _Seen) -> None:
        server = self._server("file")
        drop_page_cache(server.files())
        try:
            server.start()
            server.generate(self._warm_up)
            answer = server.generate(self._prompt)
        finally:
            server.kill()
        seen.stock.append(answer.seconds)
        seen.from_stock = answer.cached

    def _ours(self, seen: _Seen) -> None:
        self._node.forget_shared_memory()
        drop_page_cache(self._node.packs())
        backend: Backend = "none" if self._load == "never" else "agentmem"
        try:
            self._node.start()
            seen.disk.append(self._turn(backend, seen))
        finally:
            self._node.kill()

    def _turn(self, backend: Backend, seen: _Seen) -> float:
        server = self._server(backend)
        try:
            server.start()
            server.generate(self._warm_up)
            answer = server.generate(self._prompt)
            seen.hbm.append(server.generate(self._prompt).seconds)
        finally:
            server.kill()
        assert self._stored is not None, "the prompt was stored before"
        if answer.token_ids != self._stored.token_ids:
            raise BenchFailed(f"resumed, the reply is {answer.token_ids}")
        wanted = self._pages * self._options.page_tokens
        if self._load != "never" and answer.storage != wanted:
            raise BenchFailed(f"{answer.storage} of {wanted} tokens came from storage")
        stats = self._node.client.stats()
        seen.from_ours = {
            tier: stats[f"loaded_{tier}_pages"] * self._options.page_tokens
            for tier in ("dram", "disk", "object")
            if f"loaded_{tier}_pages" in stats
        }
        return answer.seconds

    def _raw(self) -> tuple[Path, Memory, Any]:
        path, buffer = self._directory / "raw", Memory(64 * MIB)
        buffer.fill(self._directory.name.encode() * 1000)
        raw_write(path, buffer, self.bytes, 4 * MIB, 4)
        return path, buffer, best_read(path, buffer, self.bytes)


def run_resume_bench(
    *,
    rounds: int = ROUNDS,
    tokens: int = TOKENS,
    model: str = "",
    load: Load = "auto",
    directory: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Rows of `GOALS`. `model` empty: SmolLM2-135M. Everything lies below `directory`."""
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-", dir=directory) as scratch:
        try:
            bench = ResumeBench(Path(scratch), model, tokens, load, say)
            rows = _rows(bench, bench.run(rounds))
        except (AgentmemError, OSError) as error:
            rows = [missing_row(name, str(error), goal) for name, goal in GOALS.items()]
    result = report(rows, rounds=rounds)
    return {**result, "load": {"asked": load, "means": LOADS[load]}}


def _rows(bench: ResumeBench, seen: _Seen) -> list[Row]:
    hbm = statistics.median(seen.hbm)
    floors = [hbm + raw for raw in seen.raw]
    moved = Moved(bench.bytes)
    base = (
        f"{bench.tokens} tokens of {bench.model_name}, {bench.bytes / 1e6:.0f} MB of pages; "
        f"cold {seen.cold:.2f} s, HBM hit {hbm:.3f} s"
    )
    disk = ratio_row(
        "resume_disk",
        seen.disk,
        seen.stock,
        GOALS["resume_disk"],
        detail=(
            f"first token after a kill -9 and a start of everything, shared memory gone, page "
            f"cache dropped; beside it SGLang's own `file` backend, which had "
            f"{seen.from_stock['storage']} tokens, after the same; {base}"
        ),
        inverse=True,
        moved=moved,
    )
    floor = ratio_row(
        "resume_disk_floor",
        seen.disk,
        floors,
        GOALS["resume_disk_floor"],
        detail=f"the same; beside it an HBM hit and the bytes at the raw disk's speed; {base}",
        moved=moved,
    )
    return [replace(row, cached_tokens=seen.from_ours) for row in (disk, floor)]
