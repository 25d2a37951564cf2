"""One connection to the node agent: frames in, replies out, and what ends with it."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable

from agentmem.errors import (
    AgentmemError,
    InvalidRequest,
    NotFound,
    ProtocolError,
    StoreRefused,
)
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.access import REMOTE_CALLS, TcpListener, choose_version
from agentmem.node.budget import FrameBudget
from agentmem.node.calls import Calls, Peer
from agentmem.node.shares import Owner
from agentmem.pages.slab import process_start_ticks

logger = logging.getLogger(__name__)

HELLO_SECONDS_MAX = 10.0
IDLE_SECONDS_MAX = 600.0
UNREAD_SECONDS_MAX = 30.0
DENIED_SECONDS = 1.0
_FRAME_SECONDS_MAX = 30.0
_CALLS_PER_CONNECTION_MAX = 256
_REPLY_BYTES_MAX = 4 * frames.FRAME_BYTES_MAX
_UCRED = struct.Struct("3i")


class Connection:
    """Serves one peer until it hangs up, errs, idles, or is too slow to read its replies.

    `listener` is None on the host's own socket. `budget` bounds what all connections together have
    received of frames that are not whole yet; `admitted` is called when the peer's hello is taken.
    """

    def __init__(
        self,
        calls: Calls,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        budget: FrameBudget,
        listener: TcpListener | None = None,
        admitted: Callable[[], None] | None = None,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._writer = writer
        self._budget = budget
        self._listener = listener
        self._admitted = admitted
        self._tasks: set[asyncio.Task[None]] = set()
        self._peer: Peer | None = None
        self._begun = self._last_call = time.monotonic()
        self._unread_since: float | None = None

    @property
    def remote(self) -> bool:
        """Whether the peer came over TCP."""
        return self._listener is not None

    @property
    def introduced(self) -> bool:
        """Whether the peer's hello was taken."""
        return self._peer is not None

    @property
    def unread_bytes(self) -> int:
        """Replies that the peer has yet to read."""
        return self._writer.transport.get_write_buffer_size()

    async def serve(self) -> None:
        """Runs to the end of the connection; read holds and waiting calls end with it."""
        try:
            await self._serve()
        except ProtocolError as error:
            self._refuse(error)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the peer hung up
        finally:
            for task in self._tasks:
                task.cancel()
            if self._peer is not None:
                self._calls.end(self._peer)
            await self._hang_up()

    def close(self) -> None:
        """Hangs up from this side."""
        self._writer.close()

    def abort(self) -> None:
        """Hangs up without sending what the peer has not read."""
        self._writer.transport.abort()

    async def refuse(self, message: str) -> None:
        """Answers with a failure and hangs up."""
        self._reply(0, p.Failure("refused", message, "connections"))
        await self._hang_up()

    def end_if_overdue(self, now: float) -> None:
        """Hangs up on a peer that says nothing, or that reads none of its replies; `now` is on the
        monotonic clock. A client connects again by itself."""
        if self.unread_bytes == 0:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > UNREAD_SECONDS_MAX:
            self._calls.counters["connections_slow_closed"] += 1
            self.abort()
            return
        if self._peer is None:
            overdue = now - self._begun > HELLO_SECONDS_MAX
        else:
            busy = self._tasks or self._peer.hold_ids
            overdue = not busy and now - self._last_call > IDLE_SECONDS_MAX
        if overdue and not self._writer.is_closing():
            self._calls.counters["connections_idle_closed"] += 1
            self.close()

    async def _serve(self) -> None:
        call, hello, version = await self._read_hello()
        if self._listener is not None and not self._listener.admits(hello):
            await self._deny(call, "the node agent does not know this token")
            return
        if self._listener is not None and hello.role != "gateway":
            await self._deny(call, "over TCP only gateways are served")
            return
        owner = self._owner(hello.engine_id)
        self._peer = Peer(hello.role, owner, hello.fingerprint, remote=self.remote)
        if self._admitted is not None:
            self._admitted()
        self._reply(call, p.Welcome(version, self._calls.node_id))
        while True:
            call, request = await self._read_request()
            self._last_call = time.monotonic()
            if self.remote and not isinstance(request, REMOTE_CALLS):
                name = type(request).__name__
                self._reply(call, p.Failure("invalid", f"{name} is not for peers over TCP"))
            elif self._calls.takes_time(request):
                self._begin(call, self._peer, request)
            else:
                self._reply(call, self._answer(self._peer, request))
            await self._writer.drain()

    async def _read_hello(self) -> tuple[int, p.Hello, int]:
        """Call number, hello and the version to speak. Raises ProtocolError."""
        prefix = await self._reader.readexactly(frames.LENGTH.size)
        size = frames.body_bytes(prefix, frames.HELLO_BYTES_MAX)
        body = await self._reader.readexactly(size)
        greeting = frames.decode_greeting(body)
        version = choose_version(greeting.version, greeting.version_min)
        return *frames.decode_hello(body), version

    async def _read_request(self) -> tuple[int, p.Request]:
        size = frames.body_bytes(await self._reader.readexactly(frames.LENGTH.size))
        try:
            async with asyncio.timeout(_FRAME_SECONDS_MAX), self._budget.room(size):
                return frames.decode_request(await self._reader.readexactly(size))
        except TimeoutError as error:
            raise ProtocolError(f"no whole frame within {_FRAME_SECONDS_MAX:g} s") from error

    async def _deny(self, call: int, message: str) -> None:
        """Says no, after a while: what guesses is not to guess fast."""
        self._calls.counters["connections_denied"] += 1
        logger.warning("a peer over TCP is turned away: %s", message)
        await asyncio.sleep(DENIED_SECONDS)
        self._reply(call, p.Failure("denied", message))

    def _begin(self, call: int, peer: Peer, request: p.Request) -> None:
        """Answers in a task of its own, so that what waits does not keep later calls waiting."""
        if len(self._tasks) >= _CALLS_PER_CONNECTION_MAX:
            self._reply(call, p.Failure("refused", "too many calls at once", "calls"))
            return
        task = asyncio.create_task(self._answer_later(call, peer, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, peer: Peer, request: p.Request) -> p.Reply:
        """Raises ProtocolError, which ends the connection."""
        try:
            return self._calls.answer(peer, request)
        except AgentmemError as error:
            return _failure(error)
        except Exception as error:  # loop edge: a fault of ours must not leave the caller waiting
            logger.exception("%s failed", type(request).__name__)
            return self._fault(error)

    async def _answer_later(self, call: int, peer: Peer, request: p.Request) -> None:
        try:
            reply: p.Reply = await self._calls.answer_later(peer, request)
        except ProtocolError as error:
            self._refuse(error)
            self.close()
            return
        except AgentmemError as error:
            reply = _failure(error)
        except Exception as error:  # loop edge: a fault of ours must not leave the caller waiting
            logger.exception("%s failed", type(request).__name__)
            reply = self._fault(error)
        self._last_call = time.monotonic()
        self._reply(call, reply)

    def _fault(self, error: Exception) -> p.Failure:
        self._calls.counters["calls_failed"] += 1
        return p.Failure("failed", f"{type(error).__name__}: {error}")

    def _refuse(self, error: ProtocolError) -> None:
        self._calls.counters["protocol_errors"] += 1
        self._reply(0, p.Failure("protocol", error.message))

    def _reply(self, call: int, reply: p.Reply) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(frames.encode_frame(call, reply))
        if self.unread_bytes > _REPLY_BYTES_MAX:
            logger.warning("a peer does not read its replies: hung up")
            self._calls.counters["connections_slow_closed"] += 1
            self.abort()

    async def _hang_up(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            self.abort()

    def _owner(self, engine_id: str) -> Owner:
        """The peer as the kernel sees it: the pid that it says itself may be of a container."""
        if self.remote:
            return Owner("", 0, 0)
        peer: socket.socket = self._writer.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, _uid, _gid = _UCRED.unpack(raw)
        return Owner(engine_id, pid, process_start_ticks(pid) or 0)


def _failure(error: AgentmemError) -> p.Failure:
    """How an error is told to the peer. Raises ProtocolError: that ends the connection."""
    match error:
        case ProtocolError():
            raise error
        case InvalidRequest():
            return p.Failure("invalid", error.message)
        case NotFound():
            return p.Failure("not_found", error.message, error.kind)
        case StoreRefused():
            return p.Failure("refused", error.message, error.reason)
        case _:
            return p.Failure("failed", error.message)
