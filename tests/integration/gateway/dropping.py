"""A client whose connections break at a chosen byte, and which retries as openai's SDK does."""

from __future__ import annotations

import asyncio
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

_ATTEMPTS_MAX = 300
_SECONDS_MAX = 30.0
# Where nobody listens just now (a gateway that was killed), it is tried again after this long.
_PAUSE_SECONDS = 0.2
_ID = re.compile(rb'"id":"((?:resp_|chatcmpl-)[0-9a-z]{26})"')


class Dropped(Exception):
    """The connection broke, by the client's will or the server's."""


@dataclass(slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def response_id(self) -> str:
        """The id of the response or chat completion in it."""
        if self.headers["content-type"].startswith("text/event-stream"):
            data = [x[6:] for x in self.body.decode().split("\n") if x.startswith("data: ")]
            assert data[-1] == "[DONE]", data[-3:]
            first = json.loads(data[0])
        else:
            first = json.loads(self.body)
        return str(first["response"]["id"] if "response" in first else first["id"])


@dataclass(slots=True)
class Request:
    """One request, the same bytes each time but for the count of retries.

    `cuts` are the bytes after which its connections break, one per attempt: counted over the
    request and then the response. `seen_ids` are the ids in what came before they broke.
    """

    path: str
    body: bytes
    cuts: list[int]
    attempts: int = 0
    seen_ids: set[bytes] = field(default_factory=set)
    answer_id: str = ""

    def encode(self, key: str) -> bytes:
        """What is sent."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
            f"x-stainless-retry-count: {self.attempts}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + self.body


def make_request(source: random.Random, number: int, *, drops: int, length: int = 12) -> Request:
    """A request that no other is like: chat or responses, streamed or not."""
    stream = source.random() < 0.5
    text = f"Request {number}: " + " ".join(source.choice("abcdefgh") for _ in range(20))
    common: dict[str, Any] = {"model": "fake", "stream": stream, "ignore_eos": True}
    if source.random() < 0.5:
        path = "/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": length}
    else:
        path = "/v1/responses"
        body = {"input": text, "max_output_tokens": max(16, length)}
    encoded = json.dumps({**common, **body}).encode()
    # A response is some kilobytes; a cut behind its end is none.
    around = len(encoded) + 200 + (9_000 if stream else 1_500)
    return Request(path, encoded, [source.randrange(around) for _ in range(drops)])


async def until_answered(host: str, port: int, key: str, request: Request) -> Answer:
    """Sends it until a whole answer came through all its cuts."""
    while True:
        cut = request.cuts[request.attempts] if request.attempts < len(request.cuts) else None
        try:
            async with asyncio.timeout(_SECONDS_MAX):
                answer = await _once(host, port, request, key, cut)
        except ConnectionRefusedError:
            await asyncio.sleep(_PAUSE_SECONDS)
        except (Dropped, ConnectionError):
            pass
        else:
            # 409 and 503 are what the SDK comes back after.
            if answer.status not in (409, 503):
                return answer
            await asyncio.sleep(_PAUSE_SECONDS)
        request.attempts += 1
        assert request.attempts < _ATTEMPTS_MAX, f"no answer to {request.body!r}"


async def _once(host: str, port: int, request: Request, key: str, cut: int | None) -> Answer:
    sent = request.encode(key)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if cut is not None and cut < len(sent):
            writer.write(sent[:cut])
            await writer.drain()
            raise Dropped
        writer.write(sent)
        await writer.drain()
        left = None if cut is None else cut - len(sent)
        received = b""
        while left is None or len(received) < left:
            part = await reader.read(4_096 if left is None else min(4_096, left - len(received)))
            if not part:
                return _parse(received)
            received += part
        request.seen_ids.update(_ID.findall(received)[:1])
        raise Dropped
    finally:
        # Not a polite goodbye: the other side finds out when it writes or reads.
        writer.transport.abort()


def _parse(received: bytes) -> Answer:
    """The answer on a connection that the server closed. Raises Dropped where it is not whole."""
    head, gap, rest = received.partition(b"\r\n\r\n")
    if not gap:
        raise Dropped
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = _unchunked(rest) if headers.get("transfer-encoding") == "chunked" else rest
    if "content-length" in headers and len(body) != int(headers["content-length"]):
        raise Dropped
    return Answer(int(first.split(" ")[1]), headers, body)


def _unchunked(rest: bytes) -> bytes:
    body = b""
    while True:
        size, gap, rest = rest.partition(b"\r\n")
        if not gap:
            raise Dropped
        length = int(size, 16)
        if length == 0:
            return body
        if len(rest) < length + 2:
            raise Dropped
        body += rest[:length]
        rest = rest[length + 2 :]
