"""Connections that break at a random byte, and are retried: one request is one turn, paid once."""

from __future__ import annotations

import asyncio
import random
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentmem.config import Settings
from agentmem.testing.gateway import RunningGateway, running_gateway
from tests.integration.clients.served import ServedGateway, served_gateway
from tests.integration.gateway.dropping import Request, make_request, until_answered

REQUESTS = 1_000
AT_ONCE = 24
KILLED_REQUESTS = 120
# It is killed when so many of them have their answer.
KILLED_AFTER = (20, 70)


@pytest.fixture
def source() -> random.Random:
    seed = secrets.randbelow(1 << 31)
    print(f"seed {seed}")
    return random.Random(seed)


def counts(data_dir: Path) -> dict[str, int]:
    """Rows of the catalog, read past all of our own code."""
    with sqlite3.connect(data_dir / "catalog.db") as database:
        return {
            "turns": database.execute("select count(*) from turns").fetchone()[0],
            "usage_events": database.execute("select count(*) from usage_events").fetchone()[0],
            "turns_of_events": database.execute(
                "select count(distinct turn_id) from usage_events"
            ).fetchone()[0],
        }


async def answer_all(
    host: str, port: int, key: str, requests: list[Request], ids: list[str]
) -> None:
    """Sends all, some at a time; puts the ids of their answers into `ids` as they come."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(request: Request) -> None:
        async with gate:
            answer = await until_answered(host, port, key, request)
        assert answer.status == 200, answer
        request.answer_id = answer.response_id()
        ids.append(request.answer_id)

    await asyncio.gather(*map(one, requests))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    settings = Settings(data_dir=tmp_path / "data", engine="fake", page_tokens=16)
    # Some milliseconds a turn, so that retries also meet turns that still run.
    async with running_gateway(settings, token_seconds=0.002) as running:
        yield running


async def test_a_thousand_dropped_connections(
    gateway: RunningGateway, source: random.Random
) -> None:
    requests = [
        make_request(source, number, drops=source.choice((1, 1, 2, 3)))
        for number in range(REQUESTS)
    ]
    async with await gateway.client("acme") as client:
        port = int(gateway.url.rsplit(":", 1)[1])
        ids: list[str] = []
        await answer_all("127.0.0.1", port, client.key, requests, ids)
    attempts = sum(request.attempts + 1 for request in requests)
    found = counts(gateway.gateway.settings.data_dir)
    print(f"{REQUESTS} requests, {attempts} attempts, {found}")
    assert attempts > 1.5 * REQUESTS, "connections were dropped"
    assert found == {
        "turns": REQUESTS,
        "usage_events": REQUESTS,
        "turns_of_events": REQUESTS,
    }
    assert len(set(ids)) == REQUESTS, "each request has an answer of its own"
    seen = [request for request in requests if request.seen_ids]
    print(f"{len(seen)} had seen the beginning of an answer")
    assert len(seen) > REQUESTS / 10
    for request in seen:
        assert request.seen_ids == {request.answer_id.encode()}, "the answer that had begun"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path, page_tokens=16) as running:
        yield running


async def test_the_gateway_is_killed_in_the_middle(
    served: ServedGateway, source: random.Random
) -> None:
    requests = [
        make_request(source, number, drops=source.choice((0, 1, 2)), length=400)
        for number in range(KILLED_REQUESTS)
    ]
    ids: list[str] = []
    answering = asyncio.create_task(
        answer_all(served.settings.host, served.settings.port, served.key, requests, ids)
    )
    for answered in KILLED_AFTER:
        while len(ids) < answered:
            await asyncio.sleep(0.005)
        assert not answering.done(), "it is killed while it works"
        await asyncio.to_thread(served.kill)
        await asyncio.to_thread(served.start)
    await answering
    found = counts(served.settings.data_dir)
    attempts = sum(request.attempts + 1 for request in requests)
    print(f"{KILLED_REQUESTS} requests, {attempts} attempts, {found}")
    assert found == {
        "turns": KILLED_REQUESTS,
        "usage_events": KILLED_REQUESTS,
        "turns_of_events": KILLED_REQUESTS,
    }
    assert len(set(ids)) == KILLED_REQUESTS
