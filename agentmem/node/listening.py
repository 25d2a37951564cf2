"""The sockets that the agent listens on, and the bounds on who is connected."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from agentmem.errors import ConfigurationInvalid
from agentmem.node.access import TcpListener
from agentmem.node.budget import FrameBudget
from agentmem.node.calls import Calls
from agentmem.node.connection import DENIED_SECONDS, Connection
from agentmem.node.wire import keep_alive

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
REMOTE_CONNECTIONS_MAX = 128
# Peers over TCP that have not shown yet that they may be here; of one address, and of all.
STRANGERS_PER_HOST_MAX = 8
STRANGERS_MAX = 64
UNREAD_BYTES_MAX = 256 << 20
_BACKLOG = 256
_HANDSHAKE_SECONDS_MAX = 10.0
_OUT_OF_DESCRIPTORS_SECONDS = 0.5


class Doors:
    """The Unix socket and the TCP address of an agent, with everybody who came through them."""

    def __init__(self, calls: Calls, socket_path: Path, listener: TcpListener | None) -> None:
        self._calls = calls
        self._socket_path = socket_path
        self._listener = listener
        self._budget = FrameBudget()
        # In the order in which they came.
        self._connections: dict[Connection, None] = {}
        self._strangers: Counter[str] = Counter()
        self._arriving: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._tcp: socket.socket | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens for TCP, None when it does not."""
        return None if self._tcp is None else self._tcp.getsockname()[:2]

    async def open(self) -> None:
        """Listens. Raises ConfigurationInvalid for a TCP address that cannot be listened on."""
        self._socket_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._listener is not None:
            self._tcp = await _bind(self._listener)
            self._accepting = asyncio.create_task(self._accept(self._tcp, self._listener))
        # We hold the node directory's lock: a socket that is there is a dead agent's.
        self._socket_path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._welcome, self._socket_path, backlog=_BACKLOG
            )
        finally:
            os.umask(previous)

    async def close(self) -> None:
        """Lets nobody in any more and hangs up on everybody."""
        self._server.close()
        for task in (*self._arriving, *([self._accepting] if self._accepting else [])):
            task.cancel()
        if self._accepting is not None:
            await asyncio.gather(self._accepting, *self._arriving, return_exceptions=True)
        if self._tcp is not None:
            self._tcp.close()
        for connection in list(self._connections):
            connection.close()
        self._socket_path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Hangs up on those who keep silent or do not read; called about once a second."""
        now = time.monotonic()
        for connection in list(self._connections):
            connection.end_if_overdue(now)
        unread = sum(connection.unread_bytes for connection in self._connections)
        if unread > UNREAD_BYTES_MAX:
            slowest = max(self._connections, key=lambda connection: connection.unread_bytes)
            self._calls.counters["connections_slow_closed"] += 1
            slowest.abort()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(Connection(self._calls, reader, writer, budget=self._budget))

    async def _serve(self, connection: Connection) -> None:
        limit = REMOTE_CONNECTIONS_MAX if connection.remote else CONNECTIONS_MAX
        if not self._make_room(connection.remote, limit):
            await connection.refuse(f"the agent has {limit} connections already")
            return
        self._connections[connection] = None
        try:
            await connection.serve()
        finally:
            self._connections.pop(connection, None)

    def _make_room(self, remote: bool, limit: int) -> bool:
        """Whether there is room for one more, if need be by hanging up on the oldest of those who
        have said nothing yet."""
        others = [other for other in self._connections if other.remote == remote]
        if len(others) < limit:
            return True
        self._calls.counters["connections_refused"] += 1
        silent = next((other for other in others if not other.introduced), None)
        if silent is None:
            return False
        del self._connections[silent]
        silent.abort()
        return True

    async def _accept(self, listening: socket.socket, listener: TcpListener) -> None:
        """Takes TCP connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                raw, peer = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("no connection can be taken: %s", error)
                await asyncio.sleep(_OUT_OF_DESCRIPTORS_SECONDS)
                continue
            host = str(peer[0])
            if (
                self._strangers[host] >= STRANGERS_PER_HOST_MAX
                or self._strangers.total() >= STRANGERS_MAX
            ):
                self._calls.counters["connections_refused"] += 1
                raw.close()
                continue
            self._strangers[host] += 1
            task = asyncio.create_task(self._arrive(raw, host, listener))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _arrive(self, raw: socket.socket, host: str, listener: TcpListener) -> None:
        with ExitStack() as stranger:
            stranger.callback(self._no_stranger, host)
            connection = await self._shake_hands(raw, listener, stranger.close)
            if connection is not None:
                await self._serve(connection)

    def _no_stranger(self, host: str) -> None:
        self._strangers[host] -= 1
        if not self._strangers[host]:
            del self._strangers[host]

    async def _shake_hands(
        self, raw: socket.socket, listener: TcpListener, admitted: Callable[[], None]
    ) -> Connection | None:
        """The connection, None when TLS failed; then the address waits before it may try again."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            keep_alive(raw)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                raw,
                ssl=listener.tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS_MAX if listener.tls else None,
            )
        except (OSError, ssl.SSLError) as error:
            raw.close()
            self._calls.counters["connections_denied"] += 1
            logger.warning("a peer over TCP is turned away: %s", error)
            await asyncio.sleep(DENIED_SECONDS)
            return None
        except BaseException:
            raw.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return Connection(
            self._calls,
            reader,
            writer,
            budget=self._budget,
            listener=listener,
            admitted=admitted,
        )


async def _bind(listener: TcpListener) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, number, _, address = found[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationInvalid(
            f"The node agent cannot listen on {listener.host}:{listener.port}: {error}."
        ) from error
    return bound
