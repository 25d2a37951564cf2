"""Who may talk to the agent: versions, tokens, addresses that are refused at the start."""

from __future__ import annotations

import asyncio
import typing
from pathlib import Path

import pytest

from agentmem.errors import ConfigurationInvalid, ProtocolError
from agentmem.node import access
from agentmem.node import protocol as p
from agentmem.node.access import TlsFiles, choose_version, read_token, tcp_listener
from agentmem.node.address import TcpAddress, parse_address
from agentmem.node.budget import SMALL_BYTES, FrameBudget

TOKEN = "t" * 32
NO_TLS = TlsFiles()


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return str(path)


def test_every_call_is_either_for_peers_over_tcp_or_for_this_host() -> None:
    assert set(access.REMOTE_CALLS) & set(access.LOCAL_CALLS) == set()
    classified = {p.Hello, *access.REMOTE_CALLS, *access.LOCAL_CALLS}
    assert classified == set(typing.get_args(p.Request))


@pytest.mark.parametrize(
    ("newest", "oldest", "chosen"), [(4, 0, 4), (9, 4, 5), (4, 1, 4), (3, 3, 3), (5, 2, 5)]
)
def test_the_newest_common_version_is_spoken(
    newest: int, oldest: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "PROTOCOL_VERSION", 5)
    monkeypatch.setattr(p, "PROTOCOL_VERSION_MIN", 3)
    assert choose_version(newest, oldest) == chosen


@pytest.mark.parametrize(
    ("newest", "oldest", "side"), [(2, 0, "caller"), (2, 1, "caller"), (9, 6, "node agent")]
)
def test_the_side_to_upgrade_is_said(
    newest: int, oldest: int, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "PROTOCOL_VERSION", 5)
    monkeypatch.setattr(p, "PROTOCOL_VERSION_MIN", 3)
    with pytest.raises(ProtocolError, match=f"3 to 5: upgrade the {side}"):
        choose_version(newest, oldest)


def test_an_address_that_anybody_could_use_is_refused() -> None:
    with pytest.raises(ConfigurationInvalid, match="Anybody could use"):
        tcp_listener("127.0.0.1:0", tls=NO_TLS, token_file="", clear_allowed=True)


def test_a_token_goes_in_clear_to_loopback_only(token_file: str) -> None:
    for host in ("127.0.0.1", "[::1]", "localhost"):
        tcp_listener(f"{host}:7", tls=NO_TLS, token_file=token_file, clear_allowed=False)
    for host in ("0.0.0.0", "10.0.0.1", "[::]", "node.example"):
        with pytest.raises(ConfigurationInvalid, match="in clear"):
            tcp_listener(f"{host}:7", tls=NO_TLS, token_file=token_file, clear_allowed=False)
        listener = tcp_listener(f"{host}:7", tls=NO_TLS, token_file=token_file, clear_allowed=True)
        assert (listener.tls, listener.port) == (None, 7)
        assert TOKEN not in repr(listener)


def test_only_the_token_is_taken(token_file: str) -> None:
    listener = tcp_listener("127.0.0.1:7", tls=NO_TLS, token_file=token_file, clear_allowed=False)
    hello = p.Hello(2, "gateway", "", 1, b"")
    for token, right in ((TOKEN, True), ("", False), (TOKEN[:-1], False), ("ü" * 32, False)):
        hello.token = token
        assert listener.admits(hello) is right


def test_a_token_that_is_weak_or_open_to_others_is_refused(tmp_path: Path, token_file: str) -> None:
    assert read_token(token_file) == TOKEN
    weak = tmp_path / "weak"
    weak.write_text("x" * 31)
    weak.chmod(0o600)
    with pytest.raises(ConfigurationInvalid, match="31 characters"):
        read_token(str(weak))
    Path(token_file).chmod(0o640)
    with pytest.raises(ConfigurationInvalid, match="open to others"):
        read_token(token_file)
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        read_token(str(tmp_path / "none"))


@pytest.mark.parametrize("url", ["http://host:1", "host:1", "tcp://host", "tls://:1", "tcp://h:x"])
def test_a_url_that_is_no_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="node_url"):
        parse_address(url, default=tmp_path, tls=NO_TLS, token_file="")


def test_urls(tmp_path: Path, token_file: str) -> None:
    def parse(url: str) -> object:
        return parse_address(url, default=tmp_path, tls=NO_TLS, token_file=token_file)

    assert parse("") == tmp_path
    assert parse("unix:/run/node.sock") == Path("/run/node.sock")
    assert parse("tcp://host:9") == TcpAddress("host", 9, None, TOKEN)
    assert parse("tls://[::1]:9") == TcpAddress("::1", 9, NO_TLS, TOKEN)
    assert str(parse("tls://[::1]:9")) == "tls://[::1]:9"
    assert TOKEN not in repr(parse("tcp://host:9"))


def test_tls_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path) -> None:
    missing = TlsFiles(str(tmp_path / "cert"), str(tmp_path / "key"), str(tmp_path / "ca"))
    with pytest.raises(ConfigurationInvalid, match="TLS cannot be set up"):
        parse_address("tls://host:1", default=tmp_path, tls=missing, token_file="")
    with pytest.raises(ConfigurationInvalid, match="TLS cannot be set up"):
        tcp_listener("127.0.0.1:1", tls=missing, token_file="", clear_allowed=False)


async def test_large_frames_wait_for_room_and_small_ones_do_not() -> None:
    budget = FrameBudget(limit_bytes=2 * SMALL_BYTES + 2)
    entered = asyncio.Event()

    async def second() -> None:
        async with budget.room(SMALL_BYTES + 2):
            entered.set()

    async with budget.room(SMALL_BYTES + 1):
        waiting = asyncio.create_task(second())
        async with budget.room(SMALL_BYTES):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not entered.is_set()
    await waiting
    async with budget.room(2 * SMALL_BYTES + 2):
        pass
