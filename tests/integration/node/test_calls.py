"""Calls of the protocol against a whole agent, the wrong ones included."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time

import pytest

from agentmem.core import PageKey, Tier
from agentmem.errors import InvalidRequest, NodeUnavailable, NotFound, ProtocolError
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.answers import Residency
from tests.integration.node.conftest import (
    FINGERPRINT,
    PAGE_BYTES,
    Agent,
    eventually,
    hashes_of,
    keys_of,
    loads_right,
    store,
)

TEN = range(10)


def test_loads_are_attributed_to_the_tier_they_came_from(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    client.drop_dram(keys_of(range(4)))
    before = client.loads().seq
    assert loads_right(engine, range(6))
    loads = client.loads(keys_of(TEN), before)
    assert loads.tiers == [Tier.DISK] * 4 + [Tier.DRAM] * 2 + [None] * 4
    assert loads.seq > before
    assert client.loads(keys_of(TEN), loads.seq).tiers == [None] * 10


def test_a_copied_page_is_a_page_of_its_own(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep([0, 1])
    store(engine, [0])
    source, target = keys_of([0, 1])
    client.copy_page(source, target)
    client.copy_page(source, target)
    assert client.wait_durable([source, target], 5) == []
    assert engine.find(hashes_of([1])) == 1
    client.unclaim("session", [source])
    target_only = [bytearray(PAGE_BYTES)]
    assert engine.load(hashes_of([1]), [[memoryview(target_only[0])]]) == [True]
    client.drop_dram()
    client.copy_page(target, source)  # from disk
    assert loads_right(engine, [0])
    with pytest.raises(NotFound):
        client.copy_page(keys_of([77])[0], keys_of([78])[0])


def test_missing_and_residency(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep([0, 2])
    store(engine, [0, 2])
    assert client.missing(keys_of(range(3))) == [False, True, False]
    assert client.wait_durable(keys_of([0, 2]), 5) == []
    client.drop_dram(keys_of([2]))
    assert client.residency(keys_of(range(3))) == [
        Residency(frozenset({Tier.DRAM, Tier.DISK}), True),
        Residency(frozenset(), False),
        Residency(frozenset({Tier.DISK}), True),
    ]


def test_waiting_for_pages_ends_with_the_last_of_them_and_blocks_no_other_call(
    agent: Agent,
) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    answers: list[list[int]] = []

    def wait() -> None:
        answers.append(client.wait_durable(keys_of(TEN), 20))

    waiting = threading.Thread(target=wait)
    waiting.start()
    store(engine, range(9))
    begin = time.monotonic()
    assert client.wait_durable(keys_of(range(9)), 10) == []
    client.ping()
    assert time.monotonic() - begin < 2
    assert answers == []
    store(engine, [9])
    waiting.join(5)
    assert answers == [[]]
    assert client.wait_durable(keys_of(range(8, 13)), 0.05) == [2, 3, 4]


def test_many_threads_share_one_client(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    wrong: list[object] = []

    def call(count: int) -> None:
        for _ in range(50):
            found = client.find(keys_of(range(count, 12)))
            if found != 10 - count:
                wrong.append((count, found))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_to_a_stopped_agent_ends_with_its_deadline_and_the_next_works(agent: Agent) -> None:
    client = agent.client()
    client.ping()
    agent.signal(signal.SIGSTOP)
    for call in (client.ping, lambda **t: client.locate(keys_of(TEN), **t)):
        begin = time.monotonic()
        with pytest.raises(NodeUnavailable, match="in time"):
            call(timeout_seconds=0.2)
        assert 0.15 < time.monotonic() - begin < 0.5
    agent.signal(signal.SIGCONT)
    client.ping()
    eventually(lambda: client.stats()["read_holds"] == 0)


class TestWrongCalls:
    def test_a_gateway_gets_no_slab(self, agent: Agent) -> None:
        client = agent.client()
        with pytest.raises(InvalidRequest, match="only an engine"):
            client.grant(8192, 4)
        with pytest.raises(InvalidRequest, match="only an engine"):
            client.stored("slab-000000", [0], keys_of([0]))
        client.ping()

    def test_an_engine_announces_only_its_own_slots_and_keys(self, agent: Agent) -> None:
        agent.engine("other")
        client = agent.client(role="engine", engine_id="mine", fingerprint=FINGERPRINT.digest)
        path = client.grant(8192, 4).path
        assert path is not None
        with pytest.raises(NotFound):
            client.stored("slab-000000", [0], keys_of([0]))
        with pytest.raises(InvalidRequest, match="only 4 slots"):
            client.stored(path.name, [4], keys_of([0]))
        with pytest.raises(InvalidRequest, match="fingerprint"):
            client.stored(path.name, [0], [PageKey(bytes(48))])
        with pytest.raises(InvalidRequest, match="2 slots announced with 1"):
            client.stored(path.name, [0, 1], keys_of([0]))
        assert client.stored(path.name, [0], keys_of([0])) == ["stale"]

    @pytest.mark.parametrize(("slot_bytes", "slots"), [(4096, 1), (8193, 1), (1 << 40, 1)])
    def test_an_impossible_slab_is_refused(self, agent: Agent, slot_bytes: int, slots: int) -> None:
        client = agent.client(role="engine", engine_id="mine")
        with pytest.raises(InvalidRequest, match="slot"):
            client.grant(slot_bytes, slots)

    def test_a_hold_is_released_only_once_and_only_by_its_connection(self, agent: Agent) -> None:
        engine, one, two = agent.engine(), agent.client(), agent.client()
        store(engine, TEN)
        hold_id = one.locate(keys_of(TEN)).hold_id
        with pytest.raises(NotFound):
            two.release(hold_id, loaded={})
        one.release(hold_id, loaded={})
        with pytest.raises(NotFound):
            one.release(hold_id, loaded={})

    def test_a_reader_that_cries_corrupt_does_not_cost_a_good_page(self, agent: Agent) -> None:
        engine, client = agent.engine(), agent.client()
        store(engine, TEN)
        hold_id = client.locate(keys_of(TEN)).hold_id
        client.release(hold_id, loaded={}, corrupt=list(TEN))
        stats = client.stats()
        assert (stats["corrupt_dram_pages"], stats["quarantined_dram_pages"]) == (10, 0)
        assert loads_right(engine, TEN)

    def test_an_index_outside_of_the_hold_ends_the_connection_and_the_hold(
        self, agent: Agent
    ) -> None:
        engine, client = agent.engine(), agent.client()
        store(engine, TEN)
        hold_id = client.locate(keys_of(TEN)).hold_id
        with pytest.raises(ProtocolError, match="index 10 is outside"):
            client.release(hold_id, loaded={Tier.DRAM: [10]})
        assert client.stats()["read_holds"] == 0


class TestHostileFrames:
    """Each gets a reply that says what is wrong, and the connection closed; nothing else."""

    HELLO = frames.encode_frame(1, p.Hello(p.PROTOCOL_VERSION, "gateway", "", 1, b""))
    NEWER = frames.encode_frame(1, p.Hello(99, "gateway", "", 1, b"", 98))
    OLDER = frames.encode_frame(1, p.Hello(1, "gateway", "", 1, b""))

    def talk(self, agent: Agent, *sent: bytes) -> list[p.Reply]:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            raw.connect(str(agent.socket))
            for frame in sent:
                raw.sendall(frame)
            received = b""
            while data := raw.recv(65536):
                received += data
        replies = []
        while received:
            end = 4 + frames.body_bytes(received[:4])
            replies.append(frames.decode_reply(received[4:end])[1])
            received = received[end:]
        return replies

    @pytest.mark.parametrize(
        ("sent", "says"),
        [
            ([b"\xff\xff\xff\xff"], "frame of 4294967295 bytes"),
            ([b"\x00\x00\x00\x00"], "frame of 0 bytes"),
            ([b"GET / HTTP/1.1\r\n\r\n"], "frame of"),
            ([b"\x03\x00\x00\x00\xc1\xc1\xc1"], "first frame must be hello"),
            ([HELLO, b"\x03\x00\x00\x00\xc1\xc1\xc1"], "not a request"),
            ([frames.encode_frame(1, p.Ping())], "first frame must be hello"),
            (
                [frames.encode_frame(1, p.Hello(99, "gateway", "", 1, b""))],
                "upgrade the node agent",
            ),
            ([HELLO, frames.encode_frame(2, p.Find(bytes(47)))], "no whole number"),
            ([HELLO, frames.encode_frame(2, p.Unclaim("x", bytes(47)))], "no whole number"),
            ([HELLO, frames.encode_frame(2, p.Done())], "not a request"),  # type: ignore[arg-type]
            ([HELLO, HELLO], "not expected here"),
        ],
    )
    def test_is_answered_and_hung_up_on(self, agent: Agent, sent: list[bytes], says: str) -> None:
        engine = agent.engine()
        store(engine, TEN)
        *_, last = self.talk(agent, *sent)
        assert isinstance(last, p.Failure)
        assert last.kind == "protocol"
        assert says in last.message
        assert loads_right(engine, TEN)
        assert agent.client().stats()["protocol_errors"] >= 1

    def test_half_a_frame_and_a_hang_up_is_let_pass(self, agent: Agent) -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(agent.socket))
            raw.sendall(struct.pack("<I", 1000) + b"x")
        agent.client().ping()

    def test_a_peer_of_another_version_is_told_so(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(p, "PROTOCOL_VERSION", 99)
        monkeypatch.setattr(p, "PROTOCOL_VERSION_MIN", 98)
        with pytest.raises(ProtocolError, match="upgrade the node agent"):
            agent.client().ping()
