"""Who may talk to the node agent, in which version, and what a peer over TCP may ask.

On the host's Unix socket the file's mode decides. Over TCP a peer shows a certificate of our
authority (mutual TLS), or a token, or both; and it is a gateway: page bytes and shared memory
never leave the host this way.
"""

from __future__ import annotations

import hmac
import ipaddress
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agentmem.errors import ConfigurationInvalid, ProtocolError
from agentmem.node import protocol as p
from agentmem.node.messages import Audit, Verify
from agentmem.node.object_messages import PackOwners, TakePacks
from agentmem.node.promise_messages import Losses, TenantUsage
from agentmem.node.tier_messages import Demote, EraseTenant, Prefetch

TOKEN_CHARACTERS_MIN = 32
TOKEN_CHARACTERS_MAX = 1024

# Nothing that hands out memory or files, takes pages in, or costs others their cache.
REMOTE_CALLS = (
    p.Claim,
    p.Unclaim,
    p.Missing,
    p.Find,
    p.Residency,
    p.WaitDurable,
    p.Loads,
    p.Movements,
    TenantUsage,
    Losses,
    p.CopyPage,
    Prefetch,
    Demote,
    EraseTenant,
    p.Stats,
    p.Ping,
)
# What only a process of this host may ask.
LOCAL_CALLS = (
    *(p.Grant, p.GiveBack, p.Wanted, p.Stored, p.Locate, p.Release, p.DropTier),
    *(Verify, Audit, PackOwners, TakePacks),
)


class TlsFiles(NamedTuple):
    """PEM files: our certificate and its key, and the authority of those whom we trust."""

    cert: str = ""
    key: str = ""
    ca: str = ""


@dataclass(frozen=True, slots=True)
class TcpListener:
    """An address to listen on, and what a peer has to show there."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    token: str = field(repr=False)

    def admits(self, hello: p.Hello) -> bool:
        """Whether the token is right; the time it takes does not tell how wrong it is."""
        return hmac.compare_digest(hello.token.encode(), self.token.encode())


def tcp_listener(
    listen: str, *, tls: TlsFiles, token_file: str, clear_allowed: bool
) -> TcpListener:
    """The listener for `listen` (host:port).

    Raises ConfigurationInvalid for an address that anybody could use, a token that travels in
    clear to other hosts unless `clear_allowed`, or a file that cannot be used.
    """
    host, port = split_address(listen, "node_listen")
    token = read_token(token_file) if token_file else ""
    context = _server_context(tls) if tls.cert else None
    mutual = context is not None and bool(tls.ca)
    if not token and not mutual:
        raise ConfigurationInvalid(
            f"Anybody could use the node agent at {listen}.",
            hint="Set node_token_file, or node_tls_cert, node_tls_key and node_tls_ca.",
        )
    if context is None and not clear_allowed and not is_loopback(host):
        raise ConfigurationInvalid(
            f"The token would travel in clear to {listen}.",
            hint="Set node_tls_cert and node_tls_key, or allow it: node_token_in_clear.",
        )
    return TcpListener(host, port, context, token)


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """What a caller trusts and shows. Raises ConfigurationInvalid for unusable files."""
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(tls, error) from error
    return context


def read_token(path: str) -> str:
    """The token in a file. Raises ConfigurationInvalid for a weak one or one open to others."""
    file = Path(path)
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"The token file {path} cannot be read: {error}.") from error
    if mode & 0o077:
        raise ConfigurationInvalid(
            f"The token file {path} is open to others (mode {mode:04o}).",
            hint=f"Run: chmod 600 {path}",
        )
    if not TOKEN_CHARACTERS_MIN <= len(token) <= TOKEN_CHARACTERS_MAX:
        raise ConfigurationInvalid(
            f"The token in {path} has {len(token)} characters: "
            f"{TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} are taken.",
            hint="Make one: openssl rand -hex 32",
        )
    return token


def split_address(address: str, setting: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ConfigurationInvalid."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ConfigurationInvalid(f"{setting}: {address!r} is no host:port.")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this host can reach the address. A name may mean anything, but for localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_version(newest: int, oldest: int) -> int:
    """The newest version that a caller of `oldest` to `newest` (0: only `newest`) and we speak.

    Raises ProtocolError, which says the side to upgrade.
    """
    oldest = oldest or newest
    chosen = min(newest, p.PROTOCOL_VERSION)
    if oldest <= chosen and chosen >= p.PROTOCOL_VERSION_MIN:
        return chosen
    side = "caller" if newest < p.PROTOCOL_VERSION_MIN else "node agent"
    raise ProtocolError(
        f"the caller speaks protocol versions {oldest} to {newest}, the node agent "
        f"{p.PROTOCOL_VERSION_MIN} to {p.PROTOCOL_VERSION}: upgrade the {side}"
    )


def _server_context(tls: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(tls.cert, tls.key or None)
        if tls.ca:
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise _unusable(tls, error) from error
    return context


def _unusable(tls: TlsFiles, error: OSError) -> ConfigurationInvalid:
    names = ", ".join(name for name in tls if name)
    return ConfigurationInvalid(f"TLS cannot be set up with {names}: {error}.")
