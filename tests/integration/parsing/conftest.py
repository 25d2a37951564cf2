"""One parsing server for each pair of formats, started once for all tests here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agentmem.engine.sglang.parsing.client import ParsingClient
from agentmem.engine.sglang.parsing.process import ParsingOptions, ParsingProcess
from agentmem.testing.models import DEFAULT_SYSTEM_TEMPLATE, write_tokenizer

Open = Callable[[str, str], Awaitable[ParsingClient]]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[tuple[str, str], ParsingProcess]]:
    started: dict[tuple[str, str], ParsingProcess] = {}
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture
def parsing(
    servers: dict[tuple[str, str], ParsingProcess],
    model_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Open:
    """`await parsing(tool_parser, reasoning_parser)`: a client of a server for these formats."""

    async def opened(tool_parser: str, reasoning_parser: str) -> ParsingClient:
        names = (tool_parser, reasoning_parser)
        if names not in servers:
            options = ParsingOptions(model_path, DEFAULT_SYSTEM_TEMPLATE, False, *names)
            servers[names] = ParsingProcess(options, tmp_path_factory.mktemp("log") / "parsing.log")
            await servers[names].start()
        process = servers[names]
        return ParsingClient(
            process.address,
            tool_parser=process.tool_parser,
            reasoning_parser=process.reasoning_parser,
        )

    return opened


@pytest.fixture
async def process(model_path: Path, tmp_path: Path) -> ParsingProcess:
    """A server of a test's own, not started yet."""
    options = ParsingOptions(model_path, DEFAULT_SYSTEM_TEMPLATE, False)
    made = ParsingProcess(options, tmp_path / "parsing.log")
    await asyncio.sleep(0)
    return made
