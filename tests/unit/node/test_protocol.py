"""Frames: what is sent arrives, what is wrong is refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.core import PageKey, Tier
from agentmem.errors import ProtocolError
from agentmem.node import frames
from agentmem.node import protocol as p
from agentmem.node.messages import Audit, Verify
from agentmem.node.object_messages import PackOwners, TakePacks
from agentmem.node.promise_messages import Losses, TenantUsage
from agentmem.node.tier_messages import Demote, EraseTenant, Prefetch

KEYS = [PageKey(bytes([n]) * 48) for n in range(3)]
BLOB = p.join_keys(KEYS)

REQUESTS: list[p.Request] = [
    p.Hello(1, "engine", "e", 5, b"f" * 16),
    p.Grant(8192, 3),
    p.GiveBack(["slab-000000"]),
    p.Wanted(),
    p.Stored("slab-000000", [0, 1, 2], BLOB),
    p.Missing(BLOB),
    p.Find(BLOB),
    p.Locate(BLOB),
    p.Release(4, {Tier.DRAM: [0], Tier.DISK: [1]}, [2]),
    p.Claim("claim", BLOB, 12.5, b"t" * 16, "persistent", True, 7),
    TenantUsage(5),
    Losses(7, 8, gone=True),
    p.Unclaim("claim", BLOB),
    p.Residency(BLOB),
    p.WaitDurable(BLOB, 1.5),
    p.Loads(BLOB, 9),
    p.Movements(9, 5),
    p.CopyPage(KEYS[0], KEYS[1]),
    p.DropTier("dram", None),
    Prefetch(BLOB, "dram", 1.5),
    Demote(BLOB, True),
    EraseTenant(b"t" * 16),
    p.Stats(),
    p.Ping(),
    Verify("disk", KEYS[0]),
    Audit(),
    Audit("object"),
    PackOwners(),
    TakePacks("0" * 16, delete=False, force=True),
]


def body_of(frame: bytes) -> bytes:
    assert frames.body_bytes(frame[: frames.LENGTH.size]) == len(frame) - frames.LENGTH.size
    return frame[frames.LENGTH.size :]


def test_every_request_arrives_as_it_was_sent() -> None:
    assert {type(request) for request in REQUESTS} == set(p.Request.__args__)
    for request in REQUESTS:
        assert frames.decode_request(body_of(frames.encode_frame(7, request))) == (7, request)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        frames.decode_request(body)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "find"},  # without keys
        {"type": "find", "keys": "text"},
        {"type": "find", "keys": b"", "more": 1},
        {"type": "find", "keys": bytes(48 * (p.KEYS_MAX + 1))},
        {"type": "nonsense"},
        {"type": "copy_page", "source": bytes(47), "target": bytes(48)},
        {"type": "stored", "slab": "s", "slots": [-1], "keys": bytes(48)},
        {"type": "claim", "claim_id": "x" * 65, "keys": b"", "expires_at": 1.0},
        {"type": "claim", "claim_id": "x", "keys": b"", "expires_at": float("nan")},
        {"type": "wait_durable", "keys": b"", "timeout_seconds": float("inf")},
        {"type": "drop_tier", "tier": "disk", "keys": None},
        {"type": "release", "hold_id": 1, "loaded": {"tape": [1]}, "corrupt": []},
    ],
)
def test_a_message_of_the_wrong_shape_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="not a request"):
        frames.decode_request(msgspec.msgpack.encode((1, message)))


@pytest.mark.parametrize("size", [0, frames.FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="frame of"):
        frames.body_bytes(frames.LENGTH.pack(size))


def test_keys_are_whole() -> None:
    assert p.split_keys(BLOB) == KEYS
    assert p.split_keys(b"") == []
    with pytest.raises(ProtocolError, match="no whole number"):
        p.split_keys(BLOB[:-1])
    with pytest.raises(ProtocolError, match="has 48 bytes"):
        p.join_keys([b"short"])
    with pytest.raises(ProtocolError, match="at most"):
        p.join_keys([KEYS[0]] * (p.KEYS_MAX + 1))


def test_an_index_must_name_a_key() -> None:
    p.check_indexes([0, 2], 3)
    with pytest.raises(ProtocolError, match="index 3"):
        p.check_indexes([3], 3)
