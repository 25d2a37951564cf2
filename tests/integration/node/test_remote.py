"""Gateways elsewhere: over TCP with mutual TLS or a token, from another network namespace."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmem.core import Tier
from agentmem.errors import InvalidRequest, NodeDenied, NodeUnavailable
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.access import TlsFiles
from agentmem.node.address import TcpAddress
from agentmem.node.client import NodeClient
from tests.integration.node.authority import Authority
from tests.integration.node.conftest import Agent, eventually, keys_of, store

TOKEN = "only-the-gateways-know-this-token-here"
TEN = range(10)
FAR = """
import json, sys, time
from agentmem.config import Settings
from agentmem.node.access import TlsFiles
from agentmem.node.address import parse_address
from agentmem.node.client import NodeClient
s = Settings()
tls = TlsFiles(s.node_tls_cert, s.node_tls_key, s.node_tls_ca)
address = parse_address(s.node_url, default=None, tls=tls, token_file=s.node_token_file)
client = NodeClient(address, role="gateway", timeout_seconds=10)
keys = [bytes.fromhex(key) for key in json.load(sys.stdin)]
client.claim("far", keys, time.time() + 1000)
late = client.wait_durable(keys, 10)
moves = [m for m in client.movements(0).moves if m.key in keys and m.target == "disk"]
print(json.dumps({"late": late, "find": client.find(keys), "durable": len(moves),
                  "stats": client.stats()["written_pages"]}))
client.close()
"""


def listening(agent: Agent, address: str) -> int:
    """Starts the agent on a free port of `address`, and returns the port."""
    agent.env["AGENTMEM_NODE_LISTEN"] = f"{address}:0"
    agent.start()
    found = re.search(rf"node\.sock and {re.escape(address)}:(\d+)", agent.log.read_text())
    assert found is not None
    return int(found[1])


def token_file(folder: Path, token: str = TOKEN) -> str:
    path = folder / "token"
    path.write_text(token)
    path.chmod(0o600)
    return str(path)


def use_tls(agent: Agent, files: TlsFiles) -> None:
    for name, path in zip(("CERT", "KEY", "CA"), files, strict=True):
        agent.env[f"AGENTMEM_NODE_TLS_{name}"] = path


@contextlib.contextmanager
def connected(port: int, **shown: Any) -> Iterator[NodeClient]:
    client = NodeClient(TcpAddress("127.0.0.1", port, **shown), timeout_seconds=10)
    try:
        yield client
    finally:
        client.close()


class TestToken:
    @pytest.fixture
    def port(self, unstarted: Agent) -> int:
        unstarted.env["AGENTMEM_NODE_TOKEN_FILE"] = token_file(unstarted.data_dir)
        return listening(unstarted, "127.0.0.1")

    def test_the_right_one_may_do_what_gateways_do(self, unstarted: Agent, port: int) -> None:
        engine = unstarted.engine()
        with connected(port, token=TOKEN) as client:
            start = client.loads().seq
            client.claim("far", keys_of(TEN), time.time() + 1000)
            store(engine, TEN)
            assert client.wait_durable(keys_of(TEN), 10) == []
            moved = client.movements(start)
            assert not moved.missed
            durable = [move.key for move in moved.moves if move.target is Tier.DISK]
            assert sorted(durable) == sorted(keys_of(TEN))
            assert {move.source for move in moved.moves} == {None, Tier.DRAM}
            assert client.unclaim("far", keys_of(TEN)).pages == 10

    @pytest.mark.parametrize("token", ["", TOKEN[:-1], TOKEN + "x"])
    def test_a_wrong_one_is_told_so_and_counted(
        self, unstarted: Agent, port: int, token: str
    ) -> None:
        with connected(port, token=token) as client:
            begin = time.monotonic()
            with pytest.raises(NodeDenied, match="does not know this token"):
                client.ping()
            assert time.monotonic() - begin > 0.9, "guessing is slow"
        assert unstarted.client().stats()["connections_denied"] == 1

    def test_guesses_from_one_address_do_not_come_in_crowds(
        self, unstarted: Agent, port: int
    ) -> None:
        refused = 0
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                raw.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    refused += raw.recv(1) == b""
            assert refused >= 30
        assert unstarted.client().stats()["connections_refused"] >= 30
        eventually(lambda: self._answers(port))

    def _answers(self, port: int) -> bool:
        with connected(port, token=TOKEN) as client:
            try:
                client.ping()
            except NodeUnavailable:
                return False
            return True

    def test_nobody_gets_memory_or_files_over_tcp(self, unstarted: Agent, port: int) -> None:
        store(unstarted.engine(), TEN)
        with connected(port, token=TOKEN) as client:
            for call in (
                lambda: client.grant(8192, 4),
                lambda: client.locate(keys_of(TEN)),
                lambda: client.stored("slab-000000", [0], keys_of([0])),
                lambda: client.give_back(["slab-000000"]),
                client.wanted,
                client.drop_dram,
                lambda: client.release(1, loaded={}),
            ):
                with pytest.raises(InvalidRequest, match="not for peers over TCP"):
                    call()
            assert client.find(keys_of(TEN)) == 10
        engine = NodeClient(TcpAddress("127.0.0.1", port, token=TOKEN), role="engine")
        with contextlib.closing(engine), pytest.raises(NodeDenied, match="only gateways"):
            engine.ping()

    def test_a_long_first_frame_of_a_stranger_is_refused(self, unstarted: Agent, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(frames.LENGTH.pack(frames.HELLO_BYTES_MAX + 1))
            reply = raw.recv(65536)
        failure = frames.decode_reply(reply[4:])[1]
        assert isinstance(failure, p.Failure)
        assert "1 to 4096 are allowed" in failure.message


class TestMutualTls:
    @pytest.fixture
    def authority(self, unstarted: Agent) -> Authority:
        return Authority(unstarted.data_dir, "ours")

    @pytest.fixture
    def port(self, unstarted: Agent, authority: Authority) -> int:
        use_tls(unstarted, authority.sign("agent", "127.0.0.1"))
        return listening(unstarted, "127.0.0.1")

    def test_who_shows_a_certificate_of_the_authority_is_served_by_many_threads(
        self, unstarted: Agent, authority: Authority, port: int
    ) -> None:
        store(unstarted.engine(), TEN)
        wrong: list[object] = []
        with connected(port, tls=authority.sign("gateway")) as client:

            def call(count: int) -> None:
                # Replies of many TLS records, and calls that wait beside calls that do not.
                many = keys_of(range(count, 2000))
                for _ in range(10):
                    found = (client.find(many), len(client.residency(many)))
                    if found != (10 - count, 2000 - count):
                        wrong.append(found)
                    if client.wait_durable(many, 0.01) == []:
                        wrong.append("durable")

            threads = [threading.Thread(target=call, args=(n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_who_shows_none_or_a_foreign_one_is_turned_away(
        self, unstarted: Agent, authority: Authority, port: int
    ) -> None:
        foreign = Authority(unstarted.data_dir, "foreign").sign("gateway")
        for files in (TlsFiles(ca=authority.ca), foreign._replace(ca=authority.ca)):
            with connected(port, tls=files) as client, pytest.raises(NodeDenied, match="TLS with"):
                client.ping()
        eventually(lambda: unstarted.client().stats()["connections_denied"] == 2)

    def test_an_agent_that_the_gateway_does_not_trust_gets_nothing(
        self, unstarted: Agent, authority: Authority, port: int
    ) -> None:
        own = authority.sign("gateway")
        other = Authority(unstarted.data_dir, "other")
        untrusted = connected(port, tls=own._replace(ca=other.ca), token=TOKEN)
        with untrusted as client, pytest.raises(NodeDenied, match="certificate verify failed"):
            client.ping()
        elsewhere = NodeClient(TcpAddress("localhost", port, own))
        with contextlib.closing(elsewhere), pytest.raises(NodeDenied, match="Hostname mismatch"):
            elsewhere.ping()

    def test_no_clear_text_is_served(self, unstarted: Agent, port: int) -> None:
        with connected(port) as client, pytest.raises(NodeUnavailable):
            client.ping()


def test_a_token_over_tls_needs_no_certificate_of_the_gateway(unstarted: Agent) -> None:
    authority = Authority(unstarted.data_dir, "ours")
    use_tls(unstarted, authority.sign("agent", "127.0.0.1")._replace(ca=""))
    unstarted.env["AGENTMEM_NODE_TOKEN_FILE"] = token_file(unstarted.data_dir)
    port = listening(unstarted, "127.0.0.1")
    files = TlsFiles(ca=authority.ca)
    with connected(port, tls=files, token=TOKEN) as client:
        client.ping()
    with connected(port, tls=files) as client, pytest.raises(NodeDenied, match="token"):
        client.ping()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:0"])
def test_an_agent_that_anybody_could_use_does_not_start(unstarted: Agent, address: str) -> None:
    unstarted.env["AGENTMEM_NODE_LISTEN"] = address
    with pytest.raises(AssertionError, match="Anybody could use"):
        unstarted.start()


class Elsewhere:
    """A network namespace with one link to ours."""

    HERE, THERE = "10.213.77.1", "10.213.77.2"

    def __init__(self) -> None:
        self.name = f"am{threading.get_native_id()}"
        self._link = f"{self.name}a"

    def open(self) -> None:
        """Raises CalledProcessError where that is not permitted."""
        name, near, far = self.name, self._link, f"{self.name}b"
        _ip("netns", "add", name)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _ip("addr", "add", f"{self.HERE}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", f"{self.THERE}/30", "dev", far)
        _ip("-n", name, "link", "set", far, "up")

    def close(self) -> None:
        for command in (("netns", "del", self.name), ("link", "del", self._link)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*command)

    def run(self, env: dict[str, str]) -> dict[str, Any]:
        """Runs FAR there: it has no other way to the agent than the link."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", FAR],
            input=json.dumps([key.hex() for key in keys_of(TEN)]),
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here to make a network namespace with")
    namespace = Elsewhere()
    try:
        try:
            namespace.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
        yield namespace
    finally:
        namespace.close()


@pytest.mark.parametrize("way", ["tls", "token"])
def test_a_gateway_in_another_network_namespace(
    unstarted: Agent, elsewhere: Elsewhere, tmp_path: Path, way: str
) -> None:
    here = Elsewhere.HERE
    far: dict[str, str] = {"AGENTMEM_DATA_DIR": str(tmp_path / "far")}
    if way == "tls":
        authority = Authority(tmp_path, "ours")
        use_tls(unstarted, authority.sign("agent", here))
        for name, path in zip(("CERT", "KEY", "CA"), authority.sign("gateway"), strict=True):
            far[f"AGENTMEM_NODE_TLS_{name}"] = path
    else:
        unstarted.env["AGENTMEM_NODE_TOKEN_FILE"] = token_file(tmp_path)
        unstarted.env["AGENTMEM_NODE_TOKEN_IN_CLEAR"] = "true"
        far["AGENTMEM_NODE_TOKEN_FILE"] = unstarted.env["AGENTMEM_NODE_TOKEN_FILE"]
    port = listening(unstarted, here)
    far["AGENTMEM_NODE_URL"] = f"{'tls' if way == 'tls' else 'tcp'}://{here}:{port}"
    store(unstarted.engine(), TEN)
    answer = elsewhere.run(far)
    assert answer == {"late": [], "find": 10, "durable": 10, "stats": 10}


def test_a_host_that_went_away_costs_a_deadline_each_and_comes_back(
    unstarted: Agent, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    unstarted.env["AGENTMEM_NODE_TOKEN_FILE"] = token_file(tmp_path)
    unstarted.env["AGENTMEM_NODE_TOKEN_IN_CLEAR"] = "true"
    port = listening(unstarted, Elsewhere.HERE)
    answers: list[object] = []
    link = f"{elsewhere.name}b"

    def talk() -> None:
        _enter_namespace(elsewhere.name)
        client = NodeClient(TcpAddress(Elsewhere.HERE, port, token=TOKEN), timeout_seconds=0.5)
        client.ping()
        _ip("link", "set", link, "down")
        for _ in range(2):
            try:
                client.ping()
            except NodeUnavailable as error:
                answers.append(error)
        _ip("link", "set", link, "up")
        eventually(lambda: _answers(client), 30)
        answers.append("back")
        client.close()

    thread = threading.Thread(target=talk)
    thread.start()
    thread.join()
    assert [type(answer) for answer in answers] == [NodeUnavailable, NodeUnavailable, str]


def _answers(client: NodeClient) -> bool:
    try:
        client.ping()
    except NodeUnavailable:
        return False
    return True


def _enter_namespace(name: str) -> None:
    """Moves the calling thread, alone, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{name}").open() as file:
        assert libc.setns(file.fileno(), 0x40000000) == 0
