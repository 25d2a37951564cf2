"""The load generator of the gateway bench: a process of its own that does next to nothing.

It writes prepared bytes to sockets, and of what comes back it only counts events and notes times.
Jobs come as lines of JSON on stdin, results go as lines of JSON to stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import uvloop

_MARK = b"data: "
_END = b"0\r\n\r\n"
_BLANK_LINE = b"\r\n\r\n"
_LAG_SECONDS = 0.005
# Where the number of a request goes in its body, so that every prompt is another one.
NUMBER = "0000000000"


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds: to its first token, and to the end of its reply."""

    first_seconds: float
    total_seconds: float
    events: int


class Connection(asyncio.Protocol):
    """One connection, kept alive, with one request at a time.

    `skip`: events before the first token (the gateway announces the turn before the engine runs).
    """

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Timing] | None = None
        self._tail = b""
        self._events = 0
        self._begun = self._first = 0.0
        self._status = b""
        # Bytes left of a reply whose length was told; None: it ends with a last chunk.
        self._left: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._status:
            self._status = data[:12]
            head, _, data = data.partition(_BLANK_LINE)
            told = head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0]
            self._left = int(told) if told else None
        if self._left is not None:
            self._left -= len(data)
        seen = self._tail + data
        self._events += seen.count(_MARK)
        if not self._first and self._events > self._skip:
            self._first = time.perf_counter()
        # Too short for another whole mark, long enough for the end.
        self._tail = seen[-5:]
        ended = seen.endswith(_END) if self._left is None else self._left == 0
        if ended and self._done is not None and not self._done.done():
            now = time.perf_counter()
            first = (self._first or now) - self._begun
            if not self._status.endswith(b"200"):
                self._done.set_exception(OSError(f"{self._status!r}: {seen[-600:]!r}"))
                return
            self._done.set_result(Timing(first, now - self._begun, self._events))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or OSError("the server hung up"))

    async def ask(self, request: bytes) -> Timing:
        """Sends a request and waits for the whole reply. Raises OSError when it is not a 200."""
        assert self._transport is not None, "connected before it is used"
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._events, self._first, self._status = b"", 0, 0.0, b""
        self._begun = time.perf_counter()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Hangs up."""
        if self._transport is not None:
            self._transport.close()


def request_bytes(job: dict[str, Any]) -> tuple[bytes, bytes]:
    """What goes before and behind the number of a request."""
    body: str = job["body"]
    head = (
        f"POST {job['path']} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {job['key']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\n\r\n"
    )
    before, _, behind = (head + body).partition(NUMBER)
    return before.encode(), behind.encode()


async def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """`streams` connections, evenly apart within `spread_seconds`, with `requests` in all.

    The answer has quantiles of the seconds to the first token, the mean of all of the reply, and
    what the generator itself cost: the share of a core, and by how much its event loop was late
    (99 % of the time by less).
    """
    loop = asyncio.get_running_loop()
    before, behind = request_bytes(job)
    numbers = iter(range(job["first_number"], job["first_number"] + job["requests"]))
    timings: deque[Timing] = deque()

    async def stream(place: int) -> None:
        await asyncio.sleep(job["spread_seconds"] * place / job["streams"])
        _, connection = await loop.create_connection(
            lambda: Connection(job["skip"]), job["host"], job["port"]
        )
        for number in numbers:
            digits = f"{number:0{len(NUMBER)}d}".encode()
            timings.append(await connection.ask(before + digits + behind))
        connection.close()

    lags: list[float] = []
    watch = asyncio.create_task(_watch_lag(lags))
    used, begun = _cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(stream(place) for place in range(job["streams"])))
    seconds = time.perf_counter() - begun
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    lags.sort()
    firsts = sorted(timing.first_seconds for timing in timings)
    return {
        "first_seconds_p50": firsts[len(firsts) // 2],
        "first_seconds_p99": firsts[int(len(firsts) * 0.99)],
        "total_seconds": statistics.mean(timing.total_seconds for timing in timings),
        "events": sum(timing.events for timing in timings),
        "seconds": seconds,
        "busy": (_cpu_seconds() - used) / seconds,
        "lag_p99_seconds": lags[int(len(lags) * 0.99)] if lags else 0.0,
    }


async def _watch_lag(lags: list[float]) -> None:
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(_LAG_SECONDS)
        lags.append(time.perf_counter() - begun - _LAG_SECONDS)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Does the jobs that come in, until there are no more."""
    for line in sys.stdin:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(run_job(json.loads(line)))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
