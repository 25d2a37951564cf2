"""The base of all messages of the protocol, and those by which a node is checked."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

from agentmem.core import PAGE_KEY_BYTES

KEYS_MAX = 65_536

Keys = Annotated[bytes, msgspec.Meta(max_length=KEYS_MAX * PAGE_KEY_BYTES)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Struct(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all messages: unknown fields and wrong types are refused."""


class Verify(Struct, tag="verify"):
    """Check the next pages of a tier (`after`: as the last answer says; empty: the first). Answer:
    VerifyReply."""

    tier: Literal["dram", "disk", "object"]
    after: Annotated[bytes, msgspec.Meta(max_length=PAGE_KEY_BYTES)]


class Audit(Struct, tag="audit"):
    """Hold a tier's index, packs and accounting against each other, and mend. Answer:
    AuditReply."""

    tier: Literal["disk", "object"] = "disk"


class BadPage(NamedTuple):
    """A page whose record failed its checks, and whether it is quarantined now."""

    key: bytes
    path: str
    offset: int
    why: str
    repaired: bool


class Finding(NamedTuple):
    """What index, packs and accounting do not agree on (`store.audit.Difference.kind`), where, and
    what was done about it."""

    kind: str
    file: str
    offset: int
    size_bytes: int
    detail: str
    repair: str


class VerifyReply(Struct, tag="verify_reply"):
    """`after`: ask on from there; empty when these were the last. `findings`: what else was wrong
    with the objects that they lie in."""

    after: bytes
    pages: int
    record_bytes: int
    bad: list[BadPage]
    findings: list[Finding] = []


class AuditReply(Struct, tag="audit_reply"):
    """The sums that were compared, and what was found."""

    sums: dict[str, int]
    findings: list[Finding]
