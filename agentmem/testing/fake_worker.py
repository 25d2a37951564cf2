"""A worker without a process: the fake engine, registered in the catalog as a ready one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.catalog.records import Worker
from agentmem.core import Fingerprint, WorkerId
from agentmem.engine.base import Engine
from agentmem.engine.fake import FakeEngine, ParserFactory
from agentmem.sessions.chat import Chat
from agentmem.testing.hermes import open_hermes_parser
from agentmem.testing.models import EOS_TOKEN, FIRST_TEXT_ID, TURN_TOKEN
from agentmem.testing.pages import InMemoryPages

KV_BYTES_PER_TOKEN = 1_024
_ID_PREFIX = "wkr_fake_"
_HEARTBEAT_SECONDS = 1.0
_FORGOTTEN_SECONDS = 10.0


def fake_fingerprint(page_tokens: int) -> Fingerprint:
    """The fingerprint of the fake engine's pages."""
    described = f"fake engine, {page_tokens} tokens a page"
    digest = hashlib.sha256(described.encode()).digest()[:16]
    return Fingerprint(digest, {"engine": "fake", "page_tokens": str(page_tokens)})


class FakeWorker:
    """The fake engine with its pages, for one gateway process. `model_path` holds a tokenizer.

    `parser` opens its parsers: Hermes' format and `<think>` where none is given.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        model: str = "fake",
        page_tokens: int = 64,
        context_tokens: int = 32_768,
        hbm_tokens: int = 0,
        token_seconds: float = 0.0,
        parser: ParserFactory = open_hermes_parser,
        pages: InMemoryPages | None = None,
        first_id: int = FIRST_TEXT_ID,
    ) -> None:
        self._chat = Chat.load(model_path)
        fingerprint = fake_fingerprint(page_tokens)
        self.pages = pages or InMemoryPages(
            fingerprint, page_bytes=page_tokens * KV_BYTES_PER_TOKEN
        )
        eos = self._chat.token_id(EOS_TOKEN)
        self._turn = self._chat.token_id(TURN_TOKEN)
        self.engine = FakeEngine(
            vocabulary=(first_id, self._chat.vocabulary_size),
            eos_token_ids=() if eos is None else (eos,),
            page_tokens=page_tokens,
            hbm_tokens=hbm_tokens or 1 << 20,
            decode=lambda ids: self._chat.decode(ids, special=False),
            encode=self._chat.encode_now,
            last_message=self._last_message,
            parser=parser,
            store=self.pages,
            token_seconds=token_seconds,
        )
        self.worker = Worker(
            id=WorkerId(_ID_PREFIX + secrets.token_hex(4)),
            url="fake:",
            model=model,
            model_path=str(model_path),
            fingerprint=fingerprint,
            page_tokens=page_tokens,
            context_tokens=context_tokens,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
            hbm_tokens=hbm_tokens,
            host_pool_tokens=2 * (hbm_tokens or context_tokens),
            node_socket="",
            state="ready",
            pid=os.getpid(),
            tool_parser="hermes",
            reasoning_parser="qwen3",
        )

    def engine_for(self, _worker: Worker) -> Engine:
        """The factory for `build_app`: whatever worker is asked for, this engine answers."""
        return self.engine

    def _last_message(self, prompt: Sequence[int]) -> str:
        """The last message of a prompt: what stands between the last two turn markers."""
        places = (at for at in range(len(prompt) - 1, -1, -1) if prompt[at] == self._turn)
        end = next(places, len(prompt))
        return self._chat.decode(prompt[next(places, 0) : end], special=True)

    @asynccontextmanager
    async def running(self, catalog: Catalog) -> AsyncIterator[None]:
        """Registers the worker and keeps its heart beating; forgets it at the end."""
        async with catalog.transaction() as tx:
            for other in await tx.workers.list():
                silent = now_us() - other.heartbeat_at > _FORGOTTEN_SECONDS * 1e6
                if other.id.startswith(_ID_PREFIX) and silent:
                    await tx.workers.remove(other.id)
            generation = await tx.workers.register(self.worker)
        self.worker = replace(self.worker, generation=generation)
        heart = asyncio.create_task(self._beat(catalog))
        try:
            yield
        finally:
            heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heart
            async with catalog.transaction() as tx:
                await tx.workers.remove(self.worker.id)

    async def _beat(self, catalog: Catalog) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            async with catalog.transaction(durable=False) as tx:
                await tx.workers.heartbeat(
                    self.worker.id, self.worker.generation, state=self.worker.state
                )
