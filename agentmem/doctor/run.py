"""The doctor's round: the machine, then the node through its agent.

A node has one owner. Where its agent runs, that is asked; where none does, one is started here, on
a socket of its own, for as long as the checks take. So nothing is checked or repaired by anything
but the agent's own code, and no two processes ever own one index.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import lmdb

from agentmem.config import Settings
from agentmem.doctor.environment import check_environment
from agentmem.doctor.pages import Say, check_index, check_objects, check_pages, check_state
from agentmem.doctor.report import Check, Report, Status
from agentmem.doctor.speed import check_speed
from agentmem.errors import AgentmemError, ConfigurationInvalid, NodeUnavailable
from agentmem.node.client import NodeClient
from agentmem.node.server import NodeAgent
from agentmem.store.recovery import Recovery

_PING_SECONDS = 5.0
_START_SECONDS_MAX = 600.0


def run_doctor(settings: Settings, *, verify: bool, as_json: bool) -> int:
    """Checks everything, prints what was found, and returns the exit code (see `Report`).

    `verify`: every checksum as well. With `as_json` one JSON object goes to stdout, progress to
    stderr.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report = examine(settings, verify=verify, say=say)
    print(report.as_json() if as_json else report.as_text())
    return report.exit_code()


def examine(settings: Settings, *, verify: bool, say: Say) -> Report:
    """All checks of the node whose data directory the settings name."""
    report = Report(check_environment(settings))
    if not settings.node_dir.exists():
        detail = f"{settings.node_dir} does not exist: no agent has run here"
        report.checks.append(Check("node", Status.FAILED, detail))
        return report
    report.checks.append(check_speed(settings.node_dir))
    try:
        with node_agent(settings, report) as client:
            report.checks.append(check_state(client))
            report.checks.append(check_index(client))
            objects = bool(settings.object_url)
            if objects:
                report.checks.append(check_objects(client))
            if verify:
                checks, bad_pages = check_pages(client, say, objects=objects)
                report.checks += checks
                report.bad_pages += bad_pages
    except AgentmemError as error:
        report.checks.append(Check("node", Status.FAILED, error.message))
    return report


@contextmanager
def node_agent(settings: Settings, report: Report) -> Iterator[NodeClient]:
    """A client of the node's agent: of the one that runs, or of one started for this.

    Raises AgentmemError when the node has an owner that does not answer, or cannot be opened.
    """
    client = NodeClient(settings.node_socket)
    with contextlib.closing(client):
        try:
            client.ping(timeout_seconds=_PING_SECONDS)
        except NodeUnavailable:
            pass
        else:
            report.checks.append(Check("node", Status.OK, "the agent is running, and was asked"))
            yield client
            return
    with tempfile.TemporaryDirectory(prefix="agentmem-doctor-") as directory:
        own = _OwnAgent(settings, Path(directory) / "node.sock")
        recovery = own.start()
        try:
            report.checks.append(_recovered(recovery))
            with contextlib.closing(NodeClient(own.socket_path)) as client:
                yield client
        finally:
            own.stop()


def _recovered(recovery: Recovery) -> Check:
    values = recovery._asdict()
    if not any(recovery):
        return Check("node", Status.OK, "no agent was running; packs and index were whole", values)
    told = {
        "added_pages": "{} whole records that the index did not know were taken in",
        "lost_pages": "{} pages whose bytes are gone were dropped from the index",
        "cut_bytes": "{} bytes of torn records were cut off",
        "index_rebuilt": "the index was made anew from the packs",
    }
    repairs = [
        told.get(name, f"{name}: {{}}").format(value) for name, value in values.items() if value
    ]
    detail = "no agent was running; packs and index did not agree"
    return Check("node", Status.FOUND, detail, values, repairs)


class _OwnAgent:
    """A node agent in a thread of this process."""

    def __init__(self, settings: Settings, socket_path: Path) -> None:
        self.socket_path = socket_path
        self._settings = settings
        self._ready = Event()
        self._recovery: Recovery | None = None
        self._error: AgentmemError | None = None
        self._thread = Thread(target=self._run, name="doctor-agent")
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    def start(self) -> Recovery:
        """Returns what was recovered. Raises AgentmemError when the node cannot be opened."""
        self._thread.start()
        if not self._ready.wait(_START_SECONDS_MAX) or self._recovery is None:
            raise self._error or NodeUnavailable("the node could not be opened in time")
        return self._recovery

    def stop(self) -> None:
        """Ends the agent; what it holds stays for the next one."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except AgentmemError as error:
            self._error = error
        except (OSError, lmdb.Error) as error:
            self._error = ConfigurationInvalid(f"the node cannot be opened: {error}")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        agent = NodeAgent.of(self._settings, self.socket_path)
        await agent.start()
        try:
            self._recovery = agent.recovery
            self._ready.set()
            await agent.run_until(self._stopped)
        finally:
            await agent.stop()
