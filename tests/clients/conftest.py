"""Clients of the gateway that AGENTMEM_URL and AGENTMEM_API_KEY name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import conformance
import openai
import pytest
import wire

TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["AGENTMEM_URL"]


@pytest.fixture(scope="session")
def key() -> str:
    return os.environ["AGENTMEM_API_KEY"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def exchanges() -> Iterator[wire.Wire]:
    """What passes; at the end every answer is held against the clients' types."""
    seen = wire.Wire()
    yield seen
    for exchange in seen.exchanges:
        conformance.check(exchange)


@pytest.fixture
def client(url: str, key: str, exchanges: wire.Wire) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(transport=wire.Transport(exchanges))
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=key, http_client=http, timeout=TIMEOUT_SECONDS
    ) as made:
        yield made


@pytest.fixture
async def async_client(
    url: str, key: str, exchanges: wire.Wire
) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(transport=wire.AsyncTransport(exchanges))
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, http_client=http, timeout=TIMEOUT_SECONDS
    ) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    """The name of the model that is served."""
    return client.models.list().data[0].id


@pytest.fixture
def without_retries(client: openai.OpenAI) -> Callable[[], openai.OpenAI]:
    return lambda: client.with_options(max_retries=0)
