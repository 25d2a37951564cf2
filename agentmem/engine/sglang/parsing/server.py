"""The parsing server: `python -m agentmem.engine.sglang.parsing.server` with its options on stdin.

Started and kept alive by the worker (`process`). Listens on 127.0.0.1; what it serves is in `wire`.
Its first line on stdout is JSON: {"tool_parser", "reasoning_parser"}, or {"error", "hint"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agentmem.engine.output import Piece
from agentmem.engine.sglang.parsing import wire
from agentmem.engine.sglang.parsing.formats import Formats, detect_formats
from agentmem.engine.sglang.parsing.reply import ReplyParser
from agentmem.errors import AgentmemError, InvalidRequest
from agentmem.lifeline import die_with_parent

# Replies at a time, and the longest one; a client beyond is told so.
_REPLIES_MAX = 4_096
_REPLY_CHARACTERS_MAX = 16 << 20
# Longer pushes are taken in parts, so that other replies go on meanwhile.
_PART_CHARACTERS = 2_048

_decoder = msgspec.json.Decoder(wire.Request)
_encoder = msgspec.json.Encoder()
_log = logging.getLogger("agentmem.parsing")


class ParsingServer:
    """Serves replies; one connection has one parser. No failure of one touches another."""

    def __init__(self, formats: Formats) -> None:
        self._formats = formats
        self._replies = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it is closed."""
        self._replies += 1
        reply = _Reply(self._formats)
        try:
            while line := await reader.readline():
                if self._replies > _REPLIES_MAX:
                    answer = wire.Answer(failed=f"more than {_REPLIES_MAX} replies at a time")
                else:
                    answer = await reply.answer(line)
                writer.write(_encoder.encode(answer) + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:
            # The client left, or sent a line beyond the limit.
            _log.info("a connection ended: %s", error)
        finally:
            self._replies -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Reply:
    """The parser of one connection."""

    def __init__(self, formats: Formats) -> None:
        self._formats = formats
        self._parser: ReplyParser | None = None
        self._characters = 0

    async def answer(self, line: bytes) -> wire.Answer:
        try:
            return await self._answer(_decoder.decode(line))
        except InvalidRequest as error:
            return wire.Answer(refused=error.message)
        except (msgspec.MsgspecError, AgentmemError) as error:
            return wire.Answer(failed=str(error))
        # plugin edge: SGLang's detectors; their reply fails, the server does not.
        except Exception as error:  # noqa: BLE001
            # Not its message: that may have what the model wrote.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s:%d", type(error).__name__, place.filename, place.lineno or 0)
            return wire.Answer(failed=f"{type(error).__name__} in SGLang's parser")

    async def _answer(self, request: wire.Request) -> wire.Answer:
        if request.constrain is not None:
            constraint = self._formats.constraint(wire.spec_from_wire(request.constrain))
            if constraint is None:
                return wire.Answer()
            return wire.Answer(
                constraint=[constraint.kind, constraint.value, constraint.after_thinking]
            )
        if request.thinks is not None:
            return wire.Answer(thinks=self._formats.thinks(wire.spec_from_wire(request.thinks)))
        if request.open is not None:
            self._parser = self._formats.parser(wire.spec_from_wire(request.open))
            return wire.Answer()
        if self._parser is None:
            return wire.Answer(failed="no parser was opened on this connection")
        pieces = self._parser.finish() if request.finish else await self._push(request.push or "")
        return wire.Answer(pieces=wire.pieces_to_wire(pieces))

    async def _push(self, text: str) -> Sequence[Piece]:
        assert self._parser is not None, "checked by the caller"
        self._characters += len(text)
        if self._characters > _REPLY_CHARACTERS_MAX:
            raise AgentmemError(f"A reply is longer than {_REPLY_CHARACTERS_MAX} characters.")
        if len(text) <= _PART_CHARACTERS:
            return self._parser.push(text)
        pieces: list[Piece] = []
        for at in range(0, len(text), _PART_CHARACTERS):
            pieces += self._parser.push(text[at : at + _PART_CHARACTERS])
            await asyncio.sleep(0)
        return pieces


async def _serve(formats: Formats, port: int) -> None:
    server = ParsingServer(formats)
    listening = await asyncio.start_server(
        server.handle, "127.0.0.1", port, limit=wire.LINE_BYTES_MAX
    )
    formats_found = {
        "tool_parser": formats.tool_parser,
        "reasoning_parser": formats.reasoning_parser,
    }
    print(json.dumps(formats_found), flush=True)
    async with listening:
        await listening.serve_forever()


def main() -> None:
    """Reads its options (one line of JSON), finds the model's formats, and serves."""
    options = json.loads(sys.stdin.readline())
    die_with_parent(options.pop("parent_pid"))
    port = options.pop("port")
    # SGLang's parsers log what models write when they cannot read it: that is the users' own.
    logging.getLogger("sglang").setLevel(logging.CRITICAL)
    try:
        formats = detect_formats(Path(options.pop("model_path")), **options)
    except AgentmemError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
        raise SystemExit(1) from error
    asyncio.run(_serve(formats, port))


if __name__ == "__main__":
    main()
