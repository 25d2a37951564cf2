"""What tells that a request came before: `Idempotency-Key`, and the count of openai's SDKs."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request

from agentmem.errors import InvalidRequest
from agentmem.sessions.requests import RetryKey

IDEMPOTENCY_HEADER = "idempotency-key"
RETRY_COUNT_HEADER = "x-stainless-retry-count"
_KEY = re.compile(r"[\x20-\x7e]{1,255}\Z")
_COUNT = re.compile(r"[0-9]{1,6}\Z")


async def retry_key(request: Request) -> RetryKey | None:
    """Dependency: how a repeat of this request is recognised; None: it cannot be.

    Raises InvalidRequest for headers that say nothing that could be meant.
    """
    key = request.headers.get(IDEMPOTENCY_HEADER)
    count = request.headers.get(RETRY_COUNT_HEADER)
    if key is None and count is None:
        return None
    if key is not None and not _KEY.match(key):
        raise InvalidRequest(
            "The header Idempotency-Key takes 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
        )
    if count is not None and not _COUNT.match(count):
        raise InvalidRequest(
            f"The header {RETRY_COUNT_HEADER} takes a whole number.", param=RETRY_COUNT_HEADER
        )
    body: bytes = request.state.body
    return RetryKey(
        scope=f"{request.method} {request.url.path}",
        body_hash=hashlib.sha256(body).hexdigest(),
        attempt=int(count or 0),
        idempotency_key=key,
    )
