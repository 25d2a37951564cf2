"""The gateway's side: parsers of replies, behind the worker's parsing server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec

from agentmem.catalog.records import Worker
from agentmem.engine.base import Constraint
from agentmem.engine.output import OutputParser, OutputSpec, Piece, PlainText
from agentmem.engine.sglang.parsing import wire
from agentmem.errors import EngineFailed, InvalidRequest

# A server that died is started again within this time.
_CONNECT_SECONDS = 15.0
_RETRY_SECONDS = 0.25
_ANSWER_SECONDS = 30.0

_decoder = msgspec.json.Decoder(wire.Answer)
_encoder = msgspec.json.Encoder()


class ParsingClient:
    """`address` is HOST:PORT; the formats' names say what need not be asked."""

    def __init__(self, address: str, *, tool_parser: str = "", reasoning_parser: str = "") -> None:
        self._address = address
        self._tools = bool(tool_parser)
        self._reasoning = bool(reasoning_parser)

    @classmethod
    def of(cls, worker: Worker) -> ParsingClient:
        """For the replies of this worker."""
        return cls(
            worker.parser_address,
            tool_parser=worker.tool_parser,
            reasoning_parser=worker.reasoning_parser,
        )

    async def open(self, spec: OutputSpec) -> OutputParser:
        """A parser for one reply; `PlainText` where there can be nothing but text.

        Raises EngineFailed when the server is gone, InvalidRequest for tools that are none.
        """
        mode = spec.tool_choice.mode
        calls = bool(spec.tools) and (
            mode in ("required", "named") or (mode == "auto" and self._tools)
        )
        if not calls and not self._reasoning:
            return PlainText()
        connection, _ = await self._ask_first(wire.Request(open=wire.spec_to_wire(spec)))
        return _RemoteParser(connection)

    async def constraint(self, spec: OutputSpec) -> Constraint | None:
        """See `Engine.tool_constraint`."""
        if not spec.tools or spec.tool_choice.mode == "none":
            return None
        request = wire.Request(constrain=wire.spec_to_wire(spec))
        connection, answer = await self._ask_first(request)
        await connection.close()
        if answer.constraint is None:
            return None
        kind, value, after_thinking = answer.constraint
        return Constraint(kind, value, after_thinking)

    async def thinks(self, spec: OutputSpec) -> bool:
        """Whether such a reply may begin with thoughts; no round trip where no model does."""
        if not self._reasoning:
            return False
        connection, answer = await self._ask_first(wire.Request(thinks=wire.spec_to_wire(spec)))
        await connection.close()
        return answer.thinks

    async def _ask_first(self, request: wire.Request) -> tuple[_Connection, wire.Answer]:
        """The first question of a reply: asked again while the server is being started again."""
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        while True:
            connection = None
            try:
                connection = await self._connect()
                return connection, await connection.ask(request)
            except _Gone:
                if asyncio.get_running_loop().time() > deadline or not self._address:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            except BaseException:
                if connection is not None:
                    await connection.close()
                raise

    async def _connect(self) -> _Connection:
        host, _, port = self._address.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(
                host, int(port or 0), limit=wire.LINE_BYTES_MAX
            )
        except OSError as error:
            raise _Gone(
                f"The worker's parsing server ({self._address}) cannot be reached: {error}"
            ) from error
        return _Connection(reader, writer)


class _Gone(EngineFailed):
    """The server cannot be reached, or went away."""


class _Connection:
    """One reply's connection: a question at a time, a line each way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: wire.Request) -> wire.Answer:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._writer.write(_encoder.encode(request) + b"\n")
                await self._writer.drain()
                line = await self._reader.readline()
            answer = _decoder.decode(line)
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            await self.close()
            raise _Gone(f"The worker's parsing server went away: {error!r}") from error
        if answer.refused is not None:
            raise InvalidRequest(answer.refused, param="tools")
        if answer.failed is not None:
            raise EngineFailed(f"The worker's parsing server failed: {answer.failed}")
        return answer

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


class _RemoteParser:
    """`OutputParser` over a connection of its own."""

    special_tokens = True

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def push(self, text: str) -> Sequence[Piece]:
        """See `OutputParser.push`."""
        answer = await self._connection.ask(wire.Request(push=text))
        return wire.pieces_from_wire(answer.pieces)

    async def finish(self) -> Sequence[Piece]:
        """See `OutputParser.finish`."""
        answer = await self._connection.ask(wire.Request(finish=True))
        return wire.pieces_from_wire(answer.pieces)

    async def aclose(self) -> None:
        """See `OutputParser.aclose`."""
        await self._connection.close()
