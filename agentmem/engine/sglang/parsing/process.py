"""The parsing server as a child of the worker: started, watched, started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from agentmem.engine.sglang.launch import SHIMS, cuda_is_there
from agentmem.errors import AgentmemError, ConfigurationInvalid, EngineFailed
from agentmem.loopback import free_port

# Importing SGLang takes five seconds, and a minute where the disk is cold.
_START_SECONDS_MAX = 120.0
_WATCH_SECONDS = 0.2
_RETRY_SECONDS_MIN = 1.0
_RETRY_SECONDS_MAX = 30.0

logger = structlog.get_logger("agentmem.parsing")


@dataclass(frozen=True, slots=True)
class ParsingOptions:
    """Whose replies are parsed. Empty names are detected from `template`; `has_tools` says whether
    that template knows tools itself."""

    model_path: Path
    template: str
    has_tools: bool
    tool_parser: str = ""
    reasoning_parser: str = ""


class ParsingProcess:
    """One server at an address that stays the same when it is started again."""

    def __init__(self, options: ParsingOptions, log_path: Path) -> None:
        self._options = options
        self._log_path = log_path
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self.tool_parser = ""
        self.reasoning_parser = ""

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the server that was started last; None before the first one listened."""
        return self._pid

    def _lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Starts it and waits until it listens.

        Raises ConfigurationInvalid for a format that SGLang does not know, EngineFailed when the
        server ends or takes too long.
        """
        self.kill()
        self._process = self._spawn()
        try:
            async with asyncio.timeout(_START_SECONDS_MAX):
                line = await asyncio.to_thread(self._process.stdout.readline)  # type: ignore[union-attr]
        except TimeoutError as error:
            self.kill()
            raise EngineFailed("The parsing server did not start in time") from error
        if not line:
            self.kill()
            raise EngineFailed(f"The parsing server ended at its start: see {self._log_path}")
        found = json.loads(line)
        if "error" in found:
            self.kill()
            raise ConfigurationInvalid(found["error"], hint=found["hint"])
        self.tool_parser = found["tool_parser"]
        self.reasoning_parser = found["reasoning_parser"]
        self._pid = self._process.pid

    async def keep_alive(self) -> None:
        """Until cancelled: starts it again when it has died. Replies that it had then fail."""
        pause = _RETRY_SECONDS_MIN
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self.pid is None or self._lives():
                continue
            logger.error("the parsing server died: starting it again")
            try:
                await self.start()
                pause = _RETRY_SECONDS_MIN
            except AgentmemError as error:
                logger.error("the parsing server does not start", reason=error.message)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_SECONDS_MAX)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        options = self._options
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "agentmem.engine.sglang.parsing.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **parsing_environment()},
            )
        line = json.dumps(
            {
                "parent_pid": os.getpid(),
                "port": self._port,
                "model_path": str(options.model_path),
                "template": options.template,
                "has_tools": options.has_tools,
                "tool_parser": options.tool_parser,
                "reasoning_parser": options.reasoning_parser,
            }
        )
        assert process.stdin is not None, "opened as a pipe"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.close()
        return process

    def kill(self) -> None:
        """Ends it; replies that are being parsed fail."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def parsing_environment() -> Mapping[str, str]:
    """Additions to the worker's environment: no GPU for this process, one thread, our shims."""
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not cuda_is_there():
        before = os.environ.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(part for part in (str(SHIMS), before) if part)
    return environment
