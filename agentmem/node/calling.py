"""A connection to the node agent that is made when it is needed, and again after it was lost."""

from __future__ import annotations

import os
import threading
import time
from typing import Literal, TypeVar

from agentmem.errors import (
    InvalidRequest,
    NodeDenied,
    NodeUnavailable,
    NotFound,
    ProtocolError,
    StoreRefused,
)
from agentmem.node import protocol as p
from agentmem.node.address import Address, TcpAddress
from agentmem.node.link import Link
from agentmem.node.messages import Struct

CALL_SECONDS_DEFAULT = 5.0

ReplyT = TypeVar("ReplyT", bound=Struct)


class Caller:
    """Calls the node agent at `address`; a path is that of its Unix socket. Thread-safe.

    Connects at the first call, and again after the agent was gone. Every call raises
    NodeUnavailable when the agent does not answer within `timeout_seconds` (kinds of it:
    ProtocolError when it speaks otherwise, NodeDenied when it does not take this caller),
    InvalidRequest, NotFound or StoreRefused when it says no.
    """

    def __init__(
        self,
        address: Address,
        *,
        role: Literal["engine", "gateway", "worker"] = "gateway",
        engine_id: str = "",
        fingerprint: bytes = b"",
        timeout_seconds: float = CALL_SECONDS_DEFAULT,
    ) -> None:
        self._address = address
        self._hello = p.Hello(
            p.PROTOCOL_VERSION,
            role,
            engine_id,
            os.getpid(),
            fingerprint,
            version_min=p.PROTOCOL_VERSION_MIN,
            token=address.token if isinstance(address, TcpAddress) else "",
        )
        self._timeout_seconds = timeout_seconds
        self._connecting = threading.Lock()
        self._link: Link | None = None
        self.node_id = ""

    def close(self) -> None:
        """Hangs up. Read holds end; a later call connects again."""
        link, self._link = self._link, None
        if link is not None:
            link.fail("the client was closed")

    def _call(
        self, request: p.Request, reply_type: type[ReplyT], timeout_seconds: float | None
    ) -> ReplyT:
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + seconds
        link = self._connected(deadline)
        try:
            reply = link.call(request, deadline)
        except NodeUnavailable as error:
            # The agent hung up, perhaps long ago (a restart): all calls may be made twice, but
            # for the end of a hold, which ended with the connection.
            hung_up = not link.alive and not isinstance(error, ProtocolError)
            if not hung_up or isinstance(request, p.Release) or time.monotonic() >= deadline:
                raise
            reply = self._connected(deadline).call(request, deadline)
        if isinstance(reply, p.Failure):
            raise _error(reply)
        if not isinstance(reply, reply_type):
            raise ProtocolError(f"the agent answered with {type(reply).__name__}")
        return reply

    def _connected(self, deadline: float) -> Link:
        link = self._link
        if link is not None and link.alive:
            return link
        if not self._connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise NodeUnavailable("the node agent did not take the connection in time")
        try:
            link = self._link
            if link is not None and link.alive:
                return link
            link = Link(self._address, deadline)
            try:
                welcome = link.call(self._hello, deadline)
            except NodeUnavailable as error:
                hung_up = not link.alive and type(error) is NodeUnavailable
                link.fail("no welcome")
                if hung_up and isinstance(self._address, TcpAddress) and self._address.tls:
                    # asyncio's server closes without an alert that would say so.
                    raise NodeDenied(
                        "TLS with the node agent failed: it hung up after the handshake",
                        hint="Check that its node_tls_ca signed node_tls_cert here.",
                    ) from error
                raise
            if not isinstance(welcome, p.Welcome):
                link.fail("refused")
                if isinstance(welcome, p.Failure) and welcome.kind == "denied":
                    raise NodeDenied(welcome.message, hint="Check node_token_file on both sides.")
                raise ProtocolError(f"the node agent refused the connection: {welcome}")
            self.node_id = welcome.node_id
            self._link = link
            return link
        finally:
            self._connecting.release()


def _error(failure: p.Failure) -> Exception:
    match failure.kind:
        case "invalid":
            return InvalidRequest(failure.message)
        case "not_found":
            return NotFound(failure.reason, failure.message)
        case "refused":
            return StoreRefused(failure.message, reason=failure.reason)
        case "protocol":
            return ProtocolError(failure.message)
        case _:
            return NodeUnavailable(f"the node agent failed: {failure.message}")
