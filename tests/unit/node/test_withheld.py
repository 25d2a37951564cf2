"""Pages whose tenant's data key cannot be had wait, hold up no others, and end no loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmem.core import ClaimTerms
from agentmem.errors import StoreRefused
from agentmem.node import writebehind
from agentmem.node.sealing import Sealer
from agentmem.store.keyring import Keyring
from agentmem.store.objectstore import ObjectStore
from tests.unit.node.nodes import Node, keys_of

BAD, GOOD = b"tenant tag of 16", b"another tenant's"


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """Of whose two tenants one has a data key that another root key wrapped."""
    monkeypatch.setattr(writebehind, "_WITHHELD_SECONDS", 0.05)
    store = ObjectStore(f"file://{tmp_path}/store")
    root, other = os.urandom(32), os.urandom(32)
    foreign = Keyring(other, tmp_path / "foreign", None)
    await foreign.open()
    wrapped = foreign._wrap(await foreign.data_key(BAD))
    await foreign.close()
    await store.put(f"keys/{BAD.hex()}", wrapped)
    keyring = Keyring(root, tmp_path / "keys", store)
    await keyring.open()
    node = Node(tmp_path / "node")
    await node.open()
    node.write_behind._sealer = Sealer(keyring, node.disk, node._executor)
    yield node
    await node.close()
    await keyring.close()


async def claim(node: Node, name: str, tenant: bytes, *numbers: int) -> None:
    terms = ClaimTerms(tenant, encrypted=True)
    await node.retention.claim(name, keys_of(numbers), time.time() + 1000, terms)


async def test_a_key_that_does_not_open_holds_up_its_own_pages_only(
    node: Node, tmp_path: Path
) -> None:
    await claim(node, "bad", BAD, 0, 1)
    await claim(node, "good", GOOD, 2, 3)
    node.store(0, 1, 2, 3)
    assert await node.ownership.wait_durable(keys_of([2, 3]), 5) == []
    assert await node.ownership.wait_durable(keys_of([0, 1]), 0.3) == [0, 1]
    assert node.write_behind.failing is None
    async with asyncio.timeout(10):
        while node.write_behind.counters["stalled_key_unavailable"] < 2:
            await asyncio.sleep(0.01)
        while not all(node.write_behind.pending(key) for key in keys_of([0, 1])):
            await asyncio.sleep(0.001)  # they are being tried
    assert not await node.write_behind.drain(0.2)
    await node.retention.unclaim("bad", keys_of([0, 1]))
    await asyncio.sleep(0.1)
    assert await node.write_behind.drain(5)


async def test_a_secret_that_cannot_be_had_is_a_refusal(node: Node) -> None:
    sealer = node.write_behind._sealer
    assert sealer is not None
    with pytest.raises(StoreRefused, match="no data key"):
        await sealer.secret(BAD)
    with pytest.raises(StoreRefused, match="no data key"):
        await sealer.data_key(BAD)
