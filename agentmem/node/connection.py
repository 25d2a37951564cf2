"""One connection to the node agent: frames in, replies out, and what ends with it."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from agentmem.errors import (
    AgentmemError,
    InvalidRequest,
    NotFound,
    ProtocolError,
    StoreRefused,
)
from agentmem.node import protocol as p
from agentmem.node.calls import Calls, Peer
from agentmem.node.shares import Owner
from agentmem.pages.slab import process_start_ticks

logger = logging.getLogger(__name__)

_FRAME_SECONDS_MAX = 30.0
_CALLS_PER_CONNECTION_MAX = 256
_REPLY_BYTES_MAX = 4 * p.FRAME_BYTES_MAX
_UCRED = struct.Struct("3i")


class Connection:
    """Serves one peer until it hangs up, errs, or is too slow to read its replies."""

    def __init__(
        self, calls: Calls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()
        self._peer: Peer | None = None

    async def serve(self) -> None:
        """Runs to the end of the connection; read holds and waiting calls end with it."""
        try:
            await self._serve()
        except ProtocolError as error:
            self._refuse(error)
        except (asyncio.IncompleteReadError, ConnectionError):
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

    async def refuse(self, message: str) -> None:
        """Answers with a failure and hangs up."""
        self._reply(0, p.Failure("refused", message, "connections"))
        await self._hang_up()

    async def _serve(self) -> None:
        call, hello = p.decode_request(await self._read_frame())
        if not isinstance(hello, p.Hello):
            raise ProtocolError("the first frame must be hello")
        if hello.version != p.PROTOCOL_VERSION:
            raise ProtocolError(
                f"protocol version {hello.version} is not spoken here, "
                f"only {p.PROTOCOL_VERSION}: upgrade the older side"
            )
        self._peer = Peer(hello.role, self._owner(hello.engine_id), hello.fingerprint)
        self._reply(call, p.Welcome(p.PROTOCOL_VERSION, self._calls.node_id))
        while True:
            call, request = p.decode_request(await self._read_frame())
            if self._calls.takes_time(request):
                self._begin(call, self._peer, request)
            else:
                try:
                    self._reply(call, self._calls.answer(self._peer, request))
                except AgentmemError as error:
                    self._reply(call, _failure(error))
            await self._writer.drain()

    def _begin(self, call: int, peer: Peer, request: p.Request) -> None:
        """Answers in a task of its own, so that what waits does not keep later calls waiting."""
        if len(self._tasks) >= _CALLS_PER_CONNECTION_MAX:
            self._reply(call, p.Failure("refused", "too many calls at once", "calls"))
            return
        task = asyncio.create_task(self._answer_later(call, peer, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            self._calls.counters["calls_failed"] += 1
            reply = p.Failure("failed", f"{type(request).__name__}: {error}")
        self._reply(call, reply)

    async def _read_frame(self) -> bytes:
        size = p.body_bytes(await self._reader.readexactly(p.LENGTH.size))
        try:
            async with asyncio.timeout(_FRAME_SECONDS_MAX):
                return await self._reader.readexactly(size)
        except TimeoutError as error:
            raise ProtocolError(f"no whole frame within {_FRAME_SECONDS_MAX:g} s") from error

    def _refuse(self, error: ProtocolError) -> None:
        self._calls.counters["protocol_errors"] += 1
        self._reply(0, p.Failure("protocol", error.message))

    def _reply(self, call: int, reply: p.Reply) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(p.encode_frame(call, reply))
        if self._writer.transport.get_write_buffer_size() > _REPLY_BYTES_MAX:
            logger.warning("a peer does not read its replies: hung up")
            self._writer.transport.abort()

    async def _hang_up(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            self._writer.transport.abort()

    def _owner(self, engine_id: str) -> Owner:
        """The peer as the kernel sees it: the pid that it says itself may be of a container."""
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
