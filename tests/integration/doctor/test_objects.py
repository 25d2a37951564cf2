"""`agentmem doctor` and `agentmem objects` on a node with an object store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem.core import Tier
from agentmem.pages.record import record_bytes
from tests.integration.doctor.test_doctor import check, examine, flip, stop
from tests.integration.node.conftest import PAGE_BYTES, Agent, eventually, keys_of, loads_right
from tests.integration.object.conftest import Place
from tests.integration.object.test_agent import TEN, agent_at, demoted, keep, store

RECORD = record_bytes(PAGE_BYTES)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Ten pages, claimed, in the object tier only."""
    agent = agent_at(tmp_path / "host", Place(f"file://{tmp_path}/store", {}))
    try:
        demoted(agent)
        yield agent
    finally:
        agent.end()


def packs(agent: Agent) -> list[Path]:
    return sorted((agent.data_dir.parent / "store" / "packs").rglob("*.agm"))


def run(agent: Agent, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentmem", *arguments],
        env={**os.environ, "AGENTMEM_DATA_DIR": str(agent.data_dir), **agent.env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("running", [True, False])
def test_a_flipped_byte_in_an_object_is_that_page_and_only_once(
    agent: Agent, running: bool
) -> None:
    if not running:
        stop(agent)
    code, report = examine(agent, "--verify")
    assert code == 0, report
    assert check(report, "checksums_object")["values"]["pages"] == len(TEN)
    (pack,) = packs(agent)
    flip(pack, 4096 + 5 * RECORD + 9_000)
    code, report = examine(agent, "--verify")
    (bad,) = report["bad_pages"]
    assert (code, bad["tier"], bad["repaired"]) == (1, "object", True)
    assert (bad["offset"], bad["key"]) == (4096 + 5 * RECORD, keys_of(TEN)[5].hex())
    assert pack.name in bad["path"]
    code, report = examine(agent, "--verify")
    assert (code, report["bad_pages"]) == (0, [])
    if not running:
        agent.start()
    (breach,) = agent.client().breaches()
    assert (breach.key, breach.why) == (keys_of(TEN)[5], "quarantined")
    engine = agent.engine()
    assert store(engine, [5]) == [True]
    assert agent.client().wait_durable(keys_of(TEN), 10) == []
    assert loads_right(engine, TEN)
    eventually(lambda: agent.client().stats()["losses_back"] == 1)


@pytest.mark.parametrize("running", [True, False])
def test_an_object_that_is_gone_is_a_breach(agent: Agent, running: bool) -> None:
    if not running:
        stop(agent)
    (pack,) = packs(agent)
    pack.unlink()
    code, report = examine(agent)
    assert (code, check(report, "object_store")["status"]) == (1, "found")
    assert "10 pages dropped" in check(report, "object_store")["repairs"][0]
    assert examine(agent, "--verify")[0] == 0
    if not running:
        agent.start()
    eventually(lambda: len(agent.client().breaches()) == len(TEN))
    assert {loss.why for loss in agent.client().breaches()} == {"lost"}


def test_a_lost_index_is_made_anew(agent: Agent) -> None:
    stop(agent)
    shutil.rmtree(agent.data_dir / "node" / "objects")
    code, report = examine(agent)
    assert (code, check(report, "object_store")["status"]) == (1, "found")
    assert examine(agent, "--verify")[0] == 0
    agent.start()
    assert loads_right(agent.engine(), TEN)


def test_a_store_that_does_not_answer_is_not_checked(agent: Agent) -> None:
    stop(agent)
    (agent.data_dir.parent / "store").rename(agent.data_dir.parent / "away")
    (agent.data_dir.parent / "store").write_text("in the way")
    code, report = examine(agent)
    assert code != 0
    names = [each["name"] for each in report["checks"] if each["status"] == "failed"]
    assert names in (["object_store"], ["node"])


@pytest.mark.parametrize("running", [True, False])
def test_a_lost_nodes_objects_are_listed_adopted_and_deleted(
    agent: Agent, tmp_path: Path, running: bool
) -> None:
    lost = (agent.data_dir / "node" / "id").read_text()
    agent.kill()
    (tmp_path / "heir").mkdir()
    shutil.copytree(agent.data_dir / "secrets", tmp_path / "heir" / "secrets")
    heir = agent_at(tmp_path / "heir", Place(f"file://{tmp_path}/store", {}))
    try:
        own = (heir.data_dir / "node" / "id").read_text()
        engine = heir.engine()
        assert store(engine, range(20, 23)) == [True] * 3
        keep(heir.client(), range(20, 23))
        heir.client().demote(keys_of(range(20, 23)), release=True, timeout_seconds=30)
        if not running:
            stop(heir)
        listed = run(heir, "objects", "list").stdout
        assert [line for line in listed.splitlines() if lost in line and " 1 " in line]
        assert [line for line in listed.splitlines() if own in line and "(this node)" in line]
        refused = run(heir, "objects", "adopt", lost)
        assert (refused.returncode, "--force" in refused.stderr) == (1, True)
        assert run(heir, "objects", "adopt", own, "--force").returncode == 1
        assert run(heir, "objects", "adopt", "f" * 16, "--force").returncode == 1
        adopted = run(heir, "objects", "adopt", lost, "--force")
        assert (adopted.returncode, adopted.stdout) == (
            0,
            "10 pages of 1 objects are this node's\n",
        )
        assert lost not in run(heir, "objects", "list").stdout
        assert examine(heir, "--verify")[0] == 0
        if not running:
            heir.start()
        assert heir.client().prefetch(keys_of(TEN), Tier.DRAM, 20) == 10
        assert loads_right(heir.engine(), TEN)
        assert {path.parent.name for path in packs(heir)} == {own}
        heir.kill()
        deleted = run(agent, "objects", "delete", own, "--force")
        assert deleted.returncode == 0, deleted.stderr
        assert packs(heir) == []
    finally:
        heir.end()


def test_without_an_object_store_it_says_so(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    done = run(agent, "objects", "list")
    assert (done.returncode, "AGENTMEM_OBJECT_URL" in done.stderr) == (1, True)
