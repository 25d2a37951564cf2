"""A real system: `agentmem serve` with SGLang and a tiny random model on this machine's CPU."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agentmem.demo.system import Client, System
from agentmem.engine.sglang.model.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def is_running(pid: int) -> bool:
    """Not gone, and not a zombie that nobody reaps here."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[System]:
    system = System.below(tmp_path_factory.mktemp("system"), tiny_model, print)
    try:
        system.start()
        yield system
        parts = [pid for pids in system.pids().values() for pid in pids]
    finally:
        system.stop()
    left = [pid for pid in parts if is_running(pid)]
    assert not left, f"processes {left} outlived a clean stop\n{system.log()}"


@pytest.fixture
def client(system: System) -> Client:
    """A tenant of its own for each test: no page of another test can help it."""
    return system.tenant(f"tenant-{secrets.token_hex(4)}")


@pytest.fixture
def new_tenant(system: System) -> Callable[[], Client]:
    return lambda: system.tenant(f"tenant-{secrets.token_hex(4)}")
