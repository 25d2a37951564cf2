"""Loaded by schemathesis in .venv-clients: what every answer must be, besides what the document
says of it."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import schemathesis

# Deeply nested values; with Python's own limit the tool fails on them, not the gateway.
sys.setrecursionlimit(20_000)

WITHOUT_KEY = os.environ.get("AGENTMEM_FUZZ_WITHOUT_KEY") == "1"
# Paths that need no key: they say nothing of any tenant.
OPEN_PATHS = {"/healthz", "/readyz", "/metrics"}
# What only somebody who reads our code should see.
INTERNALS = re.compile(
    r"Traceback \(most recent|File \"|site-packages|sqlalchemy|sqlite3|aiosqlite|pydantic_core"
    r"|starlette|object at 0x|agentmem\.[a-z]+\.[a-z]+"
)


@schemathesis.check
def leaks_no_internals(_context: Any, response: Any, _case: Any) -> None:
    """No answer tells of the code behind it."""
    found = INTERNALS.search(response.text)
    assert found is None, f"the answer says {found and found[0]!r}"


@schemathesis.check
def has_a_request_id(_context: Any, response: Any, _case: Any) -> None:
    """Every answer has the id that finds it in the log."""
    (request_id,) = response.headers.get("x-request-id", [""])
    assert request_id.startswith("req_"), f"x-request-id is {request_id!r}"


@schemathesis.check
def errors_have_one_shape(_context: Any, response: Any, _case: Any) -> None:
    """`{"error": {message, type, param, code}}`, and a message that says something."""
    if response.status_code >= 400:
        body = response.json()
        assert set(body) == {"error"}, f"the body has {sorted(body)}"
        assert {"message", "type", "param", "code"} <= set(body["error"])
        assert body["error"]["message"]


@schemathesis.check
def needs_a_key(_context: Any, response: Any, case: Any) -> None:
    """Without a key nothing is told and nothing is done."""
    if WITHOUT_KEY and case.path not in OPEN_PATHS:
        # 429: whoever asks without a key again and again waits.
        assert response.status_code in (401, 404, 405, 413, 429), (
            f"{case.method} {case.path} answered {response.status_code} without a key"
        )
