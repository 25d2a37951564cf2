"""Four long documents as one context, and many agents: computed once, kept once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agentmem.config import Settings
from agentmem.core import PageHash
from agentmem.testing.gateway import Client, RunningGateway, running_gateway

DOCUMENTS = 4
PAGES_OF_PAPER = 100
WORDS_PER_PAGE_OF_PAPER = 120
SESSIONS = 20
PAGE_TOKENS = 64
WORDS = ("the", "session", "keeps", "tokens", "of", "a", "conversation", "and", "pages", "of", "it")


def document(number: int) -> dict[str, str]:
    source = random.Random(number)
    words = (source.choice(WORDS) for _ in range(PAGES_OF_PAPER * WORDS_PER_PAGE_OF_PAPER))
    return {"title": f"Document {number}", "text": " ".join(words)}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    settings = Settings(
        data_dir=tmp_path / "data",
        engine="fake",
        page_tokens=PAGE_TOKENS,
        context_tokens=400_000,
    )
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("acme") as made:
        made.http.timeout = httpx2.Timeout(120.0)
        yield made


@pytest.fixture
def offers(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Counter[PageHash]:
    """How often each page was handed down to be stored."""
    counted: Counter[PageHash] = Counter()
    original = gateway.pages.offer

    def offer(hashes: Sequence[PageHash]) -> None:
        counted.update(hashes)
        original(hashes)

    monkeypatch.setattr(gateway.pages, "offer", offer)
    return counted


async def call(client: Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    response = await client.http.request(method, path, json=body)
    assert response.status_code in (200, 201), response.text
    found: dict[str, Any] = response.json()
    return found


async def test_twenty_sessions_from_one_context(
    gateway: RunningGateway, client: Client, offers: Counter[PageHash]
) -> None:
    body = {"documents": [document(number) for number in range(DOCUMENTS)], "name": "library"}
    context = await call(client, "POST", "/v1/contexts", body)
    tokens, shared = context["tokens"], context["pages"]
    print(f"the context has {tokens} tokens in {shared} pages")
    assert tokens > DOCUMENTS * PAGES_OF_PAPER * WORDS_PER_PAGE_OF_PAPER
    assert shared >= tokens // PAGE_TOKENS - 1

    async def agent(number: int) -> tuple[int, int]:
        """Two turns of one session; how many tokens they computed and had from the cache."""
        session = await client.create(context=context["id"])
        computed = cached = 0
        for turn in range(2):
            made = await client.turn(session, f"Agent {number}, question {turn}?")
            usage = made["usage"]
            hits = sum(usage["cached_tokens"].values())
            cached += hits
            computed += usage["prompt_tokens"] - hits
        return computed, cached

    found = await asyncio.gather(*map(agent, range(SESSIONS)))
    for computed, cached in found:
        assert cached >= 2 * shared * PAGE_TOKENS, "all of the context, in both turns"
        assert computed <= 2 * (3 * PAGE_TOKENS), "only what is new, and the page that is not full"
    pages = len(gateway.pages.pages)
    print(f"{SESSIONS} sessions: {pages} pages stored, {sum(c for c, _ in found)} tokens computed")
    assert max(offers.values()) == 1, "no page was made twice"
    assert shared <= pages <= shared + SESSIONS * 4, "the context's pages are there once"


async def test_without_a_session_and_over_every_surface(client: Client) -> None:
    body = {"documents": [document(9)], "retention": "persistent"}
    context = await call(client, "POST", "/v1/contexts", body)
    shared = context["pages"] * PAGE_TOKENS
    assert context["retention"] == "persistent"
    chat = {"context": context["id"], "messages": [{"role": "user", "content": "Hello?"}]}
    made = await call(client, "POST", "/v1/chat/completions", {**chat, "max_tokens": 4})
    assert made["usage"]["prompt_tokens_details"]["cached_tokens"] >= shared
    response = {"context": context["id"], "input": "Hello?", "max_output_tokens": 16}
    made = await call(client, "POST", "/v1/responses", response)
    assert made["usage"]["input_tokens_details"]["cached_tokens"] >= shared


async def test_what_sessions_share_outlives_the_context(
    gateway: RunningGateway, client: Client
) -> None:
    context = await call(client, "POST", "/v1/contexts", {"documents": [document(5)]})
    shared = context["pages"]
    session = await client.create(context=context["id"])
    await client.turn(session, "Hello?")
    deleted = await call(client, "DELETE", f"/v1/contexts/{context['id']}")
    assert deleted["pages_deleted"] <= 1, "a session still builds on them"
    turn = await client.turn(session, "Still there?")
    assert sum(turn["usage"]["cached_tokens"].values()) >= shared * PAGE_TOKENS
    assert (await client.http.delete(f"/v1/sessions/{session}")).status_code == 200
    async with asyncio.timeout(5):
        while gateway.pages.pages:
            await asyncio.sleep(0.02)
