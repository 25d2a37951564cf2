"""What makes a request the same as one before."""

from __future__ import annotations

import hashlib

import pytest
from fastapi import Request

from agentmem.api.retries import retry_key
from agentmem.errors import InvalidRequest

BODY = b'{"a": 1}'


def request(path: str = "/v1/chat/completions", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": raw,
            "query_string": b"",
            "server": ("test", 80),
            "scheme": "http",
            "state": {"body": BODY},
        }
    )


async def test_without_a_header_nothing_is_a_repeat() -> None:
    assert await retry_key(request()) is None


async def test_the_count_of_the_sdk() -> None:
    key = await retry_key(request(x_stainless_retry_count="2"))
    assert key is not None
    assert (key.attempt, key.idempotency_key, key.choice) == (2, None, 0)
    assert key.body_hash == hashlib.sha256(BODY).hexdigest()
    assert key.scope == "POST /v1/chat/completions"


async def test_a_key() -> None:
    key = await retry_key(request(idempotency_key="once only"))
    assert key is not None
    assert (key.attempt, key.idempotency_key) == (0, "once only")


async def test_the_scope_is_the_path() -> None:
    keys = [await retry_key(request(f"/v1/sessions/{n}/turns", idempotency_key="k")) for n in "ab"]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("value", ["", "x" * 256, "\x07", "\xe9", "a\tb"])
async def test_keys_that_are_none(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await retry_key(request(idempotency_key=value))
    assert caught.value.param == "Idempotency-Key"


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "\xb2", "9" * 7])
async def test_counts_that_are_none(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await retry_key(request(x_stainless_retry_count=value))
    assert caught.value.param == "x-stainless-retry-count"
