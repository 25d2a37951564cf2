"""The parsing server as a process: what it refuses, how it dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agentmem.engine.output import OutputSpec, TextPiece, ToolChoice
from agentmem.engine.sglang.parsing import wire
from agentmem.engine.sglang.parsing.client import ParsingClient
from agentmem.engine.sglang.parsing.process import ParsingOptions, ParsingProcess
from agentmem.errors import ConfigurationInvalid, EngineFailed, InvalidRequest

from .conftest import Open
from .formats import TOOLS

pytestmark = pytest.mark.sglang

SPEC = OutputSpec(tools=TOOLS)


async def talk(address: str, *lines: bytes) -> list[dict[str, object]]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers = []
    try:
        for line in lines:
            writer.write(line + b"\n")
            answer = await reader.readline()
            if not answer:
                break
            answers.append(json.loads(answer))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answers


async def test_what_it_cannot_read_harms_nobody(parsing: Open) -> None:
    client = await parsing("hermes", "none")
    address = client._address
    opened = await client.open(SPEC)
    assert "failed" in (await talk(address, b"not json"))[0]
    assert "failed" in (await talk(address, b'{"push": "text"}'))[0]
    assert await talk(address, b'{"push": "' + b"x" * wire.LINE_BYTES_MAX + b'"}') == []
    tool = {"type": "function", "function": {"name": 3}}
    refused = await talk(address, json.dumps({"open": {"tools": [tool]}}).encode())
    assert "no tool" in str(refused[0]["refused"])
    with pytest.raises(InvalidRequest, match="no tool") as caught:
        await client.open(OutputSpec(tools=[tool]))
    assert caught.value.param == "tools"
    assert await opened.push("still here") == [TextPiece("still here")]
    await opened.aclose()


async def test_tools_that_do_not_go_together_are_refused(parsing: Open) -> None:
    client = await parsing("hermes", "none")
    tools = [
        {
            "type": "function",
            "function": {"name": name, "parameters": {"type": "object", "$defs": {"x": {"a": 1}}}},
        }
        for name in ("one", "other")
    ]
    tools[1]["function"]["parameters"]["$defs"]["x"] = {"a": 2}  # type: ignore[index]
    spec = OutputSpec(tools=tools, tool_choice=ToolChoice("required"))
    with pytest.raises(InvalidRequest, match="do not go together"):
        await client.constraint(spec)


async def test_many_replies_at_a_time(parsing: Open) -> None:
    client = await parsing("hermes", "none")

    async def reply(number: int) -> str:
        parser = await client.open(SPEC)
        pieces = []
        for word in ("a ", f"{number} ", "<b>"):
            pieces += await parser.push(word)
        pieces += await parser.finish()
        await parser.aclose()
        return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))

    said = await asyncio.gather(*(reply(number) for number in range(200)))
    assert said == [f"a {number} <b>" for number in range(200)]


async def test_a_long_call_takes_time_in_proportion_to_its_length(parsing: Open) -> None:
    client = await parsing("hermes", "none")
    value = "word " * 20_000
    call = f'<tool_call>{{"name": "get_time", "arguments": {{"city": "{value}"}}}}</tool_call>'
    parser = await client.open(SPEC)
    async with asyncio.timeout(20):
        pieces = [
            piece
            for at in range(0, len(call), 500)
            for piece in await parser.push(call[at : at + 500])
        ]
        pieces += await parser.finish()
    await parser.aclose()
    arguments = "".join(piece.arguments for piece in pieces)  # type: ignore[union-attr]
    assert json.loads(arguments) == {"city": value}


async def test_it_is_started_again_at_the_same_address(process: ParsingProcess) -> None:
    await process.start()
    client = ParsingClient(process.address, tool_parser="hermes")
    keeping = asyncio.create_task(process.keep_alive())
    try:
        running = await client.open(SPEC)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="went away"):
            await running.push("text")
        await running.aclose()
        again = await client.open(SPEC)
        assert await again.push("text") == [TextPiece("text")]
        await again.aclose()
        assert process.pid != first
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        process.kill()


async def test_without_a_server_the_client_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmem.engine.sglang.parsing.client._CONNECT_SECONDS", 0.1)
    client = ParsingClient("127.0.0.1:1", tool_parser="hermes")
    with pytest.raises(EngineFailed, match="cannot be reached"):
        await client.open(SPEC)


async def test_unknown_formats_are_named_with_those_there_are(
    model_path: Path, tmp_path: Path
) -> None:
    options = ParsingOptions(model_path, "", True, tool_parser="klingon")
    process = ParsingProcess(options, tmp_path / "log")
    with pytest.raises(ConfigurationInvalid, match="AGENTMEM_TOOL_PARSER is 'klingon'") as caught:
        await process.start()
    assert "hermes" in (caught.value.hint or "")
    process.kill()


async def test_it_dies_with_the_worker(model_path: Path, tmp_path: Path) -> None:
    program = """
import asyncio, sys, time
from pathlib import Path
from agentmem.engine.sglang.parsing.process import ParsingOptions, ParsingProcess
process = ParsingProcess(ParsingOptions(Path(sys.argv[1]), "", False), Path(sys.argv[2]))
asyncio.run(process.start())
print(process.pid, flush=True)
time.sleep(60)
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(model_path), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    pid = int(await asyncio.to_thread(worker.stdout.readline))
    server = psutil.Process(pid)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    async with asyncio.timeout(10):
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)
