"""One connection of a client: numbered calls of several threads over one socket.

Of the threads that wait for replies one reads for all, so there is no thread of its own. A caller
that gave up leaves the connection usable: its late reply is dropped.
"""

from __future__ import annotations

import select
import ssl
import threading
import time

from agentmem.errors import NodeUnavailable, ProtocolError
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.address import Address
from agentmem.node.wire import Wire, denied


class Link:
    """One connection; when it fails, every call waiting on it fails."""

    def __init__(self, address: Address, deadline: float) -> None:
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._reading = False
        self._fault: NodeUnavailable | None = None
        self._waiting: set[int] = set()
        self._replies: dict[int, p.Reply] = {}
        self._last_call = 0
        self._received = bytearray()
        self._wire = Wire(address, deadline)

    @property
    def alive(self) -> bool:
        """Whether calls may still be made on it."""
        return self._fault is None

    def call(self, request: p.Request, deadline: float) -> p.Reply:
        """Sends a request and waits for its reply. Raises NodeUnavailable."""
        with self._changed:
            if self._fault is not None:
                raise type(self._fault)(self._fault.message)
            self._last_call += 1
            number = self._last_call
            self._waiting.add(number)
        try:
            self._send(frames.encode_frame(number, request), deadline)
            return self._wait(number, deadline)
        finally:
            with self._changed:
                self._waiting.discard(number)
                self._replies.pop(number, None)
                self._close_unused()

    def fail(self, why: str) -> None:
        """Hangs up; all waiting calls raise."""
        self._set_fault(NodeUnavailable(f"the connection to the node agent ended: {why}"))

    def _send(self, frame: bytes, deadline: float) -> None:
        if not self._sending.acquire(timeout=_remaining(deadline)):
            raise NodeUnavailable("the node agent takes no requests in time")
        try:
            view = memoryview(frame)
            while view:
                sent = self._try_send(view)
                view = view[sent:]
                if not sent and not self._wire.ready(select.POLLOUT, deadline):
                    # Half a frame may be out: nothing sensible can follow on this connection.
                    self.fail("it took no request in time")
                    raise NodeUnavailable("the node agent takes no requests in time")
        finally:
            self._sending.release()

    def _try_send(self, view: memoryview) -> int:
        """Sends what the socket's buffer takes now, 0 when it is full. Raises NodeUnavailable."""
        try:
            return self._wire.try_send(view)
        except OSError as error:
            self._broke(error)
            raise NodeUnavailable(f"the node agent hung up: {error}") from error

    def _wait(self, number: int, deadline: float) -> p.Reply:
        while True:
            with self._changed:
                # Whoever waits reads for all, one thread at a time.
                while number not in self._replies and self._fault is None and self._reading:
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        raise NodeUnavailable("the node agent did not answer in time")
                if number in self._replies:
                    return self._replies.pop(number)
                if self._fault is not None:
                    raise type(self._fault)(self._fault.message)
                self._reading = True
            try:
                self._receive(deadline)
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()

    def _receive(self, deadline: float) -> None:
        """Receives once and hands out whole frames; a part is kept for the next reader."""
        if not self._wire.ready(select.POLLIN, deadline):
            raise NodeUnavailable("the node agent did not answer in time")
        try:
            data = self._wire.receive()
        except OSError as error:
            self._broke(error)
            return
        if data is None:
            return
        if not data:
            self.fail("the agent hung up")
            return
        self._received += data
        try:
            self._hand_out()
        except ProtocolError as error:
            self._set_fault(error)

    def _hand_out(self) -> None:
        prefix = frames.LENGTH.size
        while len(self._received) >= prefix:
            end = prefix + frames.body_bytes(bytes(self._received[:prefix]))
            if len(self._received) < end:
                return
            number, reply = frames.decode_reply(bytes(self._received[prefix:end]))
            del self._received[:end]
            if number == 0:
                raise ProtocolError(f"the node agent refused a frame: {reply}")
            with self._changed:
                if number in self._waiting:  # others were given up by their caller
                    self._replies[number] = reply
                    self._changed.notify_all()

    def _broke(self, error: OSError) -> None:
        if not isinstance(error, ssl.SSLError):
            # With TLS 1.3 the agent's verdict on our certificate comes after the handshake: it
            # may wait to be read while a send failed already.
            try:
                self._wire.receive()
            except OSError as verdict:
                error = verdict
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            self._set_fault(denied(error))
        else:
            self.fail(str(error))

    def _set_fault(self, fault: NodeUnavailable) -> None:
        with self._changed:
            if self._fault is None:
                self._fault = fault
                self._wire.shutdown()  # wakes the thread that reads
            self._close_unused()
            self._changed.notify_all()

    def _close_unused(self) -> None:
        """Closes a failed connection once no thread is in a call that may still poll it."""
        if self._fault is not None and not self._waiting:
            self._wire.close()


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise NodeUnavailable("the node agent did not answer in time")
    return remaining
