"""The plugin made to fail in each method: turns go on, the canary notices, storing works again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from agentmem.demo.log import the_worker
from agentmem.demo.system import Client, DemoFailed, System

from .texts import prompt, say

pytestmark = pytest.mark.sglang


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[System]:
    system = System.below(
        tmp_path_factory.mktemp("faulty"),
        tiny_model,
        print,
        plugin_module="tests.integration.sglang.faulty_plugin",
        plugin_class="FaultyStorage",
        canary_interval_seconds=3.0,
        hibernate_seconds_max=10.0,
    )
    try:
        system.start()
        yield system
    finally:
        system.stop()


@contextmanager
def fault(system: System, name: str) -> Iterator[None]:
    path = system.settings.run_dir / f"fault-{name}"
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def turn(client: Client, session: str, messages: list[dict[str, str]]) -> int:
    """The number of the turn. The canary may have the worker restarted in the middle of it: then it
    is sent again, as a client would."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return int(client.turn(session, messages, 4)["number"])
        except DemoFailed as error:
            if "answered 503" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def canary_failures(system: System) -> int:
    return (system.settings.data_dir / "logs" / "worker.log").read_text().count("canary failed")


def works(system: System, client: Client) -> None:
    """A turn's pages become durable: storing works."""
    session = client.create()
    client.turn(session, prompt(200), 4)
    answer = client.post(session, "hibernate")
    assert answer["pages"] > 3
    client.delete(session)


@pytest.fixture
def client(faulty: System) -> Client:
    return faulty.tenant(f"tenant-{secrets.token_hex(4)}")


@pytest.mark.parametrize("name", ["find", "store", "load"])
def test_failing_method_is_a_miss_and_is_noticed(faulty: System, client: Client, name: str) -> None:
    works(faulty, client)
    noticed = canary_failures(faulty)
    with fault(faulty, name):
        session = client.create()
        assert turn(client, session, prompt(300, start=900)) == 1
        assert turn(client, session, say("Go on.")) == 2
        wait_until(lambda: canary_failures(faulty) > noticed, 45, f"the canary notices {name}")
    wait_until(lambda: ready(faulty), 120, "the worker is ready")
    works(faulty, client)


def test_exception_that_escapes_ends_in_a_restart(faulty: System, client: Client) -> None:
    """It ends SGLang's storage thread for good, which SGLang does not notice."""
    generation = the_worker(faulty.settings)
    scheduler_url = generation.url
    with fault(faulty, "escape"):
        session = client.create()
        assert turn(client, session, prompt(200, start=300)) == 1
    assert turn(client, session, say("Go on.")) == 2, "turns go on without storage"
    wait_until(
        lambda: the_worker(faulty.settings).url != scheduler_url and ready(faulty),
        180,
        "the canary has the worker restarted",
    )
    works(faulty, client)


def ready(system: System) -> bool:
    return httpx2.get(f"{system.url}/readyz", trust_env=False).status_code == 200
