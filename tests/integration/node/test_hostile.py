"""Peers that mean harm or are broken: the agent answers clearly, stays up, serves the others."""

from __future__ import annotations

import contextlib
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem.errors import NodeUnavailable
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.client import NodeClient
from agentmem.node.listening import CONNECTIONS_MAX
from tests.integration.node.conftest import (
    FINGERPRINT,
    PAGE_BYTES,
    SLAB_BYTES,
    Agent,
    eventually,
    keys_of,
    load,
    loads_right,
    payload_of,
    store,
)

TEN = range(10)
HELLO = frames.encode_frame(1, p.Hello(p.PROTOCOL_VERSION, "gateway", "", 1, b""))


def resident_bytes(agent: Agent) -> int:
    assert agent.process is not None
    statm = Path(f"/proc/{agent.process.pid}/statm").read_text()
    return int(statm.split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def raw(agent: Agent, *sent: bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(agent.socket))
        for data in sent:
            peer.sendall(data)
        yield peer


def test_garbage_of_any_kind_costs_only_its_own_connection(agent: Agent) -> None:
    engine = agent.engine()
    store(engine, TEN)
    good = frames.encode_frame(2, p.Find(p.join_keys(keys_of(TEN))))
    for number in range(200):
        noise = secrets.token_bytes(1 + number % 60)
        beginnings = (noise, HELLO + noise, HELLO + good[: 1 + number % len(good)], HELLO + good)
        # A peer that the agent hung up on already cannot send more: that is the point.
        with contextlib.suppress(OSError), raw(agent, beginnings[number % 4]) as peer:
            peer.sendall(frames.LENGTH.pack(len(noise)) + noise)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
    assert loads_right(engine, TEN)
    assert agent.client().stats()["calls_failed"] == 0


def test_a_gigabyte_that_is_announced_is_not_waited_for(agent: Agent) -> None:
    before = resident_bytes(agent)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            peer = stack.enter_context(raw(agent, HELLO, struct.pack("<I", 1 << 30)))
            reply = b""
            while data := peer.recv(65536):
                reply += data
            assert b"a frame of 1073741824 bytes" in reply
    assert resident_bytes(agent) - before < 64 << 20


def send_slowly(peer: socket.socket, data: bytes) -> None:
    peer.settimeout(2)
    with contextlib.suppress(TimeoutError):
        peer.sendall(data)


def test_half_frames_of_many_peers_are_bounded_together(agent: Agent) -> None:
    engine = agent.engine()
    store(engine, TEN)
    before = resident_bytes(agent)
    half = frames.LENGTH.pack(frames.FRAME_BYTES_MAX) + bytes(frames.FRAME_BYTES_MAX // 2)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(raw(agent, HELLO)) for _ in range(60)]
        senders = [threading.Thread(target=send_slowly, args=(peer, half)) for peer in peers]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert loads_right(engine, TEN)
        assert agent.client().find(keys_of(TEN)) == 10
        assert resident_bytes(agent) - before < 160 << 20


def test_a_peer_that_reads_no_replies_is_hung_up_on(agent: Agent) -> None:
    store(agent.engine(), TEN)
    # 65,536 waits at once, each answered with the index of every key: more than is buffered.
    wait = p.WaitDurable(p.join_keys(keys_of(range(20_000))), 0.0)
    with raw(agent, HELLO) as peer:
        peer.settimeout(2)
        with contextlib.suppress(OSError):
            for call in range(2, 2000):
                peer.sendall(frames.encode_frame(call, wait))
    agent.client().ping()
    assert resident_bytes(agent) < 512 << 20


@contextlib.contextmanager
def crowd(agent: Agent) -> Iterator[list[socket.socket]]:
    """A list for connections; room for thousands of them."""
    peers: list[socket.socket] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_thousands_that_say_nothing_keep_nobody_out(agent: Agent) -> None:
    engine = agent.engine()
    with crowd(agent) as peers:
        for _ in range(3000):
            peer = socket.socket(socket.AF_UNIX)
            peers.append(peer)
            peer.connect(str(agent.socket))
        store(engine, TEN)
        assert loads_right(engine, TEN)
        stats = agent.client().stats()
        assert stats["connections_refused"] >= 3000 - CONNECTIONS_MAX


def test_connections_beyond_the_limit_are_refused_and_those_before_are_served(
    agent: Agent,
) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    assert loads_right(engine, TEN)
    client.ping()
    refused = 0
    with crowd(agent) as peers:
        for _ in range(CONNECTIONS_MAX + 200):
            peer = socket.socket(socket.AF_UNIX)
            peers.append(peer)
            peer.connect(str(agent.socket))
            peer.settimeout(10)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(HELLO)
            refused += b"connections already" in peer.recv(65536)
        assert refused >= 200
        assert client.stats()["connections_refused"] >= refused
        assert loads_right(engine, TEN)
        # The agent says why and hangs up, perhaps before our first frame is out.
        with pytest.raises(NodeUnavailable, match=r"connections already|hung up"):
            agent.client().ping()
    eventually(lambda: answers(agent))


def answers(agent: Agent) -> bool:
    try:
        agent.client().ping()
    except NodeUnavailable:
        return False
    return True


def test_an_engine_that_disconnects_amid_its_reservation_leaves_nothing_behind(
    agent: Agent,
) -> None:
    before = agent.client().stats()["dram_reserved_bytes"]
    script = f"""
import os, sys
from pathlib import Path
from agentmem.node.client import NodeClient
client = NodeClient(Path({str(agent.socket)!r}), role="engine", engine_id="gone",
                    fingerprint={FINGERPRINT.digest!r})
path = client.grant(65536, 15).path
with open(path, "r+b") as slab:  # half a page, never committed
    slab.seek(65536)
    slab.write(b"SECRET" * 1000)
print(path, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    eventually(lambda: agent.client().stats()["dram_reserved_bytes"] == before)
    assert b"SECRETSECRET" not in agent.bytes_below()
    assert agent.client().stats()["dram_pages"] == 0


def test_a_reader_that_dies_holding_pages_frees_them(agent: Agent) -> None:
    store(agent.engine(), TEN)
    with raw(agent, HELLO, frames.encode_frame(2, p.Locate(p.join_keys(keys_of(TEN))))) as peer:
        peer.recv(65536)
        eventually(lambda: agent.client().stats()["read_holds"] == 1)
    eventually(lambda: agent.client().stats()["read_holds"] == 0)


def test_many_engines_that_evict_each_others_pages_read_right_bytes_or_none(
    unstarted: Agent,
) -> None:
    """Slots are taken, evicted and taken again all the time; each read is checked by content."""
    unstarted.env["AGENTMEM_DRAM_BYTES"] = str(4 * SLAB_BYTES)
    unstarted.env["AGENTMEM_DISK_BYTES"] = str(8 * SLAB_BYTES)
    unstarted.start()
    wrong: list[object] = []
    right = [0] * 4
    engines = [
        unstarted.engine(f"engine-{n}", slots=0, store_deadline_seconds=0.5) for n in range(4)
    ]

    def work(me: int) -> None:
        engine = engines[me]
        client = NodeClient(unstarted.socket)
        for turn in range(60):
            # Ranges overlap, so that engines read what others stored and others' slots change.
            first = (me * 40 + turn * 7) % 160
            numbers = range(first, first + 8)
            if turn % 5 == 0:
                with contextlib.suppress(NodeUnavailable):
                    client.claim(f"claim-{me}", keys_of(numbers), 4e9)
                    client.unclaim(f"claim-{me}", keys_of(range(first - 40, first - 32)))
            store(engine, numbers)
            for ask in (numbers, range((first + 60) % 160, (first + 60) % 160 + 8)):
                for number, got in zip(ask, load(engine, ask), strict=True):
                    if got is not None:
                        right[me] += 1
                        if got != payload_of(number):
                            wrong.append((me, turn, number))
        client.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(right) > 50, right
    stats = unstarted.client().stats()
    assert stats["corrupt_dram_pages"] == stats["corrupt_disk_pages"] == 0
    evicted = stats["evicted_dram_pages"] + stats["evicted_unclaimed_pages"]
    assert evicted + stats["evicted_disk_pages"] > 0
    eventually(lambda: unstarted.client().stats()["read_holds"] == 0)
    assert len(payload_of(0)) == PAGE_BYTES
