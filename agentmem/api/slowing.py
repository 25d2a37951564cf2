"""Addresses that send bad API keys are slowed down, in this gateway's memory.

A key has 256 random bits, so nobody guesses one: this keeps guesses from costing the catalog a
query each. Keys that were good a while ago are still looked up from such an address, so that one
bad program does not shut out others behind the same address.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

_FREE_ATTEMPTS = 20
_SECONDS_FIRST = 1.0
_SECONDS_MAX = 60.0
_FORGET_SECONDS = 600.0
_ADDRESSES_MAX = 10_000


class Slowing:
    """Counts bad attempts by address (IPv6: by /64). After 20, each one more doubles the wait, from
    a second to a minute; ten quiet minutes forget them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By address: bad attempts, when the last one was, until when no other is looked at.
        self._bad: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """How long until an attempt from there is looked at; 0: now."""
        _, _, until = self._bad.get(network_of(address), (0, 0.0, 0.0))
        return max(0.0, until - self._clock())

    def note_bad(self, address: str) -> None:
        """One more bad attempt from there."""
        key, now = network_of(address), self._clock()
        count, last, _ = self._bad.pop(key, (0, now, 0.0))
        count = 1 if now - last > _FORGET_SECONDS else count + 1
        over = count - _FREE_ATTEMPTS
        # The exponent is bounded: a float has no room for 2 to the many.
        delay = 0.0 if over < 0 else min(_SECONDS_FIRST * 2.0 ** min(over, 10), _SECONDS_MAX)
        self._bad[key] = (count, now, now + delay)
        if len(self._bad) > _ADDRESSES_MAX:
            self._bad.popitem(last=False)


def network_of(address: str) -> str:
    """What one party can be taken to have: an IPv4 address, an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
