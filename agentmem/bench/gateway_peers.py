"""The two servers that the gateway bench compares, each a process of its own.

`gateway` is the gateway itself on a fake engine, `direct` the same fake engine behind a bare ASGI
application: same event loop, HTTP server and settings, so that the difference between them is the
gateway's own work. Pages are forgotten at once: what a node agent remembers is not the gateway's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop
from starlette.types import Receive, Scope, Send

from agentmem.app import build_app, serve_app
from agentmem.config import Settings
from agentmem.core import PageHash, PageKey, Tier
from agentmem.engine.base import GenerateRequest, Sampling
from agentmem.engine.fake import FakeEngine
from agentmem.lifeline import die_with_parent
from agentmem.sessions.ports import Freed, LostPage, NodeStats, PageResidency
from agentmem.telemetry import configure_logging
from agentmem.testing.fake_worker import FakeWorker
from agentmem.testing.models import FIRST_WORD_ID, write_tokenizer

CONTEXT_TOKENS = 1 << 18


class ForgetfulPages:
    """Implements `sessions.ports.Pages`; every page is durable, and none is ever given back."""

    async def claim(self, claim_id: str, keys: Sequence[PageKey], expires_at: float) -> None:
        """See `Pages.claim`."""

    async def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> Freed:
        """See `Pages.unclaim`."""
        return Freed(0, 0)

    async def residency(self, keys: Sequence[PageKey]) -> list[PageResidency]:
        """See `Pages.residency`."""
        return [PageResidency((Tier.DISK,), durable=True)] * len(keys)

    async def copy_page(self, source: PageKey, target: PageKey) -> None:
        """See `Pages.copy_page`."""

    async def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """See `Pages.wait_durable`."""
        return []

    async def sequence(self) -> int:
        """See `Pages.sequence`."""
        return 0

    async def loads(self, keys: Sequence[PageKey], since: int) -> dict[Tier, int]:
        """See `Pages.loads`."""
        return {}

    async def lost(self, after: int) -> list[LostPage]:
        """See `Pages.lost`."""
        return []

    async def stats(self) -> NodeStats:
        """See `Pages.stats`."""
        return NodeStats({}, {}, {})

    async def aclose(self) -> None:
        """See `Pages.aclose`."""

    def offer(self, hashes: Sequence[PageHash]) -> None:
        """See `engine.fake.PageStore.offer`."""

    def load(self, hashes: Sequence[PageHash]) -> int:
        """See `engine.fake.PageStore.load`."""
        return 0


class _Unrecorded(list[GenerateRequest]):
    """The engine's record of calls, for as many calls as one likes."""

    def append(self, _request: GenerateRequest) -> None:
        """Forgets it."""


class _Unopened(set[str]):
    """The engine's open sessions, which only a session that hibernates leaves."""

    def add(self, _session_id: str) -> None:
        """Forgets it."""


class _Input(msgspec.Struct):
    """The body of a direct request; its `number` is the first id, so that no two are alike."""

    number: str
    input_ids: list[int]
    max_tokens: int


class DirectApplication:
    """Token ids in, one event per token out, and nothing else."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._decoder = msgspec.json.Decoder(_Input)
        self._encode = msgspec.json.Encoder().encode
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if body:
            await self._generate(self._decoder.decode(body), send)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _generate(self, asked: _Input, send: Send) -> None:
        self._requests += 1
        request = GenerateRequest(
            f"direct-{self._requests}",
            [int(asked.number), *asked.input_ids],
            Sampling(max_tokens=asked.max_tokens, ignore_eos=True),
            salt="bench",
        )
        async for chunk in self._engine.generate(request):
            event = b"data: " + self._encode({"token_ids": chunk.token_ids}) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _serve(role: str, token_seconds: float) -> None:
    settings = Settings()
    model = settings.models_dir / "fake"
    write_tokenizer(model)
    pages: Any = ForgetfulPages()
    worker = FakeWorker(
        model,
        page_tokens=settings.page_tokens,
        context_tokens=CONTEXT_TOKENS,
        token_seconds=token_seconds,
        pages=pages,
        # Every token is text, so that the first one is seen when it is made.
        first_id=FIRST_WORD_ID,
    )
    # What grows in the engine is not the gateway's.
    worker.engine.calls, worker.engine.sessions = _Unrecorded(), _Unopened()
    if role == "direct":
        await serve_app(DirectApplication(worker.engine), settings)
        return
    app = build_app(settings, engine_factory=worker.engine_for, pages=pages)
    async with worker.running(app.state.gateway.catalog):
        await serve_app(app, settings)


def main(arguments: Sequence[str]) -> None:
    """The parent's pid, `gateway` or `direct`, and the seconds that a token takes; settings from
    the environment."""
    parent, role, token_seconds = arguments
    die_with_parent(int(parent))
    configure_logging("info")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(role, float(token_seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
