"""Where a node agent is: a Unix socket of this host, or another host over TCP."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agentmem.errors import ConfigurationInvalid
from agentmem.node.access import TlsFiles, client_context, read_token, split_address

UNIX, TCP, TLS = "unix:", "tcp://", "tls://"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An agent on another host: what we show it, and with `tls` whom we trust."""

    host: str
    port: int
    tls: TlsFiles | None = None
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TCP if self.tls is None else TLS}{host}:{self.port}"


# A path is that of the agent's Unix socket.
Address = Path | TcpAddress


def parse_address(url: str, *, default: Path, tls: TlsFiles, token_file: str) -> Address:
    """The address that `url` names: `unix:/path`, `tcp://host:port` or `tls://host:port`; empty
    means `default`. Raises ConfigurationInvalid for any other, or files that cannot be used."""
    if not url:
        return default
    if url.startswith(UNIX):
        return Path(url.removeprefix(UNIX))
    token = read_token(token_file) if token_file else ""
    for scheme, files in ((TCP, None), (TLS, tls)):
        if url.startswith(scheme):
            if files is not None:
                client_context(files)  # read again at each connection; wrong ones are told now
            return TcpAddress(*split_address(url.removeprefix(scheme), "node_url"), files, token)
    raise ConfigurationInvalid(
        f"node_url: {url!r} is no address.",
        hint="Write unix:/path, tcp://host:port or tls://host:port.",
    )
