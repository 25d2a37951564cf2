from __future__ import annotations

import pytest

from agentmem.api.slowing import Slowing, network_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_grows_and_is_forgotten() -> None:
    clock = Clock()
    slowing = Slowing(clock)
    for _ in range(19):
        slowing.note_bad("1.2.3.4")
    assert slowing.wait_seconds("1.2.3.4") == 0
    waits = []
    for _ in range(9):
        slowing.note_bad("1.2.3.4")
        waits.append(slowing.wait_seconds("1.2.3.4"))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert slowing.wait_seconds("1.2.3.5") == 0
    clock.now += 60
    assert slowing.wait_seconds("1.2.3.4") == 0
    clock.now += 601
    slowing.note_bad("1.2.3.4")
    assert slowing.wait_seconds("1.2.3.4") == 0


def test_many_attempts_are_no_overflow_and_many_addresses_no_leak() -> None:
    slowing = Slowing(Clock())
    for _ in range(3_000):
        slowing.note_bad("::1")
    assert slowing.wait_seconds("::1") == 60
    for number in range(10_001):
        slowing.note_bad(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(slowing._bad) == 10_000


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert network_of(address) == network
