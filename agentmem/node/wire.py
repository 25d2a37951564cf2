"""A client's socket to the node agent, over any kind of address: never blocks, but in `ready`."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import threading
import time

from agentmem.errors import ConfigurationInvalid, NodeDenied, NodeUnavailable
from agentmem.node.access import client_context
from agentmem.node.address import Address, TcpAddress

_RECEIVE_BYTES = 1 << 20
# A host that went away without a word is noticed after about so long.
_SILENCE_SECONDS = 15
_FULL_SECONDS = 0.005


class Wire:
    """A connected socket. Threads may send and receive at once; OSError when it is broken.

    Raises NodeUnavailable where nobody listens or answers by `deadline` (monotonic clock),
    NodeDenied where the other side and we do not trust each other.
    """

    def __init__(self, address: Address, deadline: float) -> None:
        # OpenSSL wants one thread at a time in a connection; what is done there never waits.
        self._using = threading.Lock()
        try:
            self._socket = _connect(address, deadline)
        except TimeoutError as error:
            raise NodeUnavailable(f"no node agent at {address} in time") from error
        except ssl.SSLError as error:
            raise denied(error) from error
        except (OSError, UnicodeError) as error:
            raise NodeUnavailable(f"no node agent at {address}: {error}") from error
        except ConfigurationInvalid as error:
            raise NodeDenied(error.message, hint=error.hint) from error

    def try_send(self, view: memoryview) -> int:
        """Sends what the socket's buffer takes now, 0 when it is full."""
        with self._using:
            try:
                if isinstance(self._socket, ssl.SSLSocket):
                    return self._socket.send(view)
                return self._socket.send(view, socket.MSG_NOSIGNAL)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return 0

    def receive(self) -> bytes | None:
        """What has come, empty at the end, None when nothing has."""
        with self._using:
            try:
                return self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None

    def ready(self, event: int, deadline: float) -> bool:
        """Waits until `event` (of `select.poll`) or the deadline; False at the deadline."""
        if event == select.POLLIN and isinstance(self._socket, ssl.SSLSocket):
            with self._using:
                if self._socket.pending():
                    return True
        return _poll(self._socket, event, deadline)

    def shutdown(self) -> None:
        """Ends the connection and wakes whoever waits in `ready`; the descriptor stays."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's: that would forget the TLS state under another thread's hands.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the descriptor back: when no thread uses the wire any more."""
        self._socket.close()


def denied(error: ssl.SSLError) -> NodeDenied:
    """What a failed TLS handshake means for the caller."""
    return NodeDenied(
        f"TLS with the node agent failed: {error}",
        hint="Check node_tls_ca here, and that the agent's authority signed node_tls_cert.",
    )


def _connect(address: Address, deadline: float) -> socket.socket:
    if not isinstance(address, TcpAddress):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.setblocking(False)
            while True:
                try:
                    plain.connect(str(address))
                    break
                except BlockingIOError:
                    # The agent has many to take in (unix(7)): nothing says when there is room.
                    time.sleep(min(_FULL_SECONDS, _remaining(deadline)))
        except OSError:
            plain.close()
            raise
        return plain
    plain = socket.create_connection((address.host, address.port), _remaining(deadline))
    try:
        keep_alive(plain)
        plain.setblocking(False)
        if address.tls is None:
            return plain
        context = client_context(address.tls)
        wrapped = context.wrap_socket(
            plain, server_hostname=address.host, do_handshake_on_connect=False
        )
    except BaseException:
        plain.close()
        raise
    try:
        _shake_hands(wrapped, deadline)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def keep_alive(connection: socket.socket) -> None:
    """Small frames go out at once, and a dead host ends the connection soon."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_SECONDS // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENCE_SECONDS // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_SECONDS * 1000)


def _shake_hands(wrapped: ssl.SSLSocket, deadline: float) -> None:
    while True:
        try:
            return wrapped.do_handshake()
        except ssl.SSLWantReadError:
            event = select.POLLIN
        except ssl.SSLWantWriteError:
            event = select.POLLOUT
        if not _poll(wrapped, event, deadline):
            raise TimeoutError("no TLS handshake in time")


def _poll(connection: socket.socket, event: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(connection, event)
    remaining = max(0.0, deadline - time.monotonic())
    return bool(poll.poll(math.ceil(remaining * 1000)))


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no time left to connect")
    return remaining
