"""What is said to the node agent and what it answers; `frames` says how that travels.

A caller says `Hello` first. Each call gets one reply with its number: the op's reply struct or a
`Failure`. Whoever sends a frame that is too long, malformed or of the wrong type gets a `Failure`
with call number 0, and the connection is closed. Page keys travel as one blob, 48 bytes each.

**Versions.** A caller says from which to which version it speaks, the agent picks the newest that
both do. A new op, or a new field with a default at the end of a reply, needs a new version; a
version is dropped (`PROTOCOL_VERSION_MIN`) when no release that speaks nothing newer is in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, cast

import msgspec

from agentmem.core import FINGERPRINT_DIGEST_BYTES, PAGE_KEY_BYTES, PageKey, Retention, Tier
from agentmem.errors import ProtocolError
from agentmem.node.messages import (
    KEYS_MAX,
    Audit,
    AuditReply,
    Keys,
    Seconds,
    Struct,
    Verify,
    VerifyReply,
)
from agentmem.node.object_messages import PackOwners, PackOwnersReply, TakenReply, TakePacks
from agentmem.node.promise_messages import (
    ClaimReply,
    Losses,
    LossesReply,
    TenantUsage,
    TenantUsageReply,
)
from agentmem.node.tier_messages import Demote, EraseTenant, Prefetch

PROTOCOL_VERSION = 3
PROTOCOL_VERSION_MIN = 2
MOVEMENTS_PER_CALL_MAX = 8192

# Order of bits in `ResidencyReply.tiers`, and of numbers in `LoadsReply.tiers` (from 1, 0: none).
TIERS = (Tier.DRAM, Tier.DISK, Tier.OBJECT)
DURABLE_BIT = 0x80
# What numbers in `MovementsReply.moves` mean: None is outside of all tiers.
PLACES: tuple[Tier | None, ...] = (None, *Tier)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
EngineId = Annotated[str, msgspec.Meta(max_length=128, pattern="^[!-~]*$")]
ClaimId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Indexes = Annotated[list[Count], msgspec.Meta(max_length=KEYS_MAX)]
TenantTag = Annotated[bytes, msgspec.Meta(max_length=16)]
KeyBlob = Annotated[bytes, msgspec.Meta(min_length=PAGE_KEY_BYTES, max_length=PAGE_KEY_BYTES)]


class Greeting(msgspec.Struct, tag="hello", tag_field="type"):
    """The part of every version's `Hello` by which a peer of any version is understood.

    `version_min` 0: the caller speaks `version` only.
    """

    version: int
    version_min: int = 0


class Hello(Struct, tag="hello", forbid_unknown_fields=False):
    """First of a connection: speaks `version_min` (0: only `version`) to `version`.

    Over TCP `token` is the agent's, where it wants one. Unknown fields are let pass.
    """

    version: int
    role: Literal["engine", "gateway", "worker"]
    engine_id: EngineId
    pid: int
    fingerprint: Annotated[bytes, msgspec.Meta(max_length=FINGERPRINT_DIGEST_BYTES)]
    version_min: int = 0
    token: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Grant(Struct, tag="grant"):
    """A slab of `slots` slots of `slot_bytes` bytes is wanted, or, without room for one, as many
    emptied slots, `evict_slots` if that is more. Answer: GrantReply."""

    slot_bytes: Count
    slots: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    evict_slots: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0


class GiveBack(Struct, tag="give_back"):
    """The engine writes to these slabs no more. Answer: Done."""

    slabs: Annotated[list[Name], msgspec.Meta(max_length=4096)]


class Wanted(Struct, tag="wanted"):
    """Which of its slabs should the engine give back, for others' sake? Answer: NamesReply."""


class Stored(Struct, tag="stored"):
    """Slots of one slab that hold committed pages now. Answer: StoredReply."""

    slab: Name
    slots: Indexes
    keys: Keys


class Missing(Struct, tag="missing"):
    """Which of these does no tier have? Answer: MissingReply."""

    keys: Keys


class Find(Struct, tag="find"):
    """How many, from the first, are held without a gap? Answer: CountReply."""

    keys: Keys


class Locate(Struct, tag="locate"):
    """Take a read hold on the prefix that is held. Answer: LocateReply.

    Pages that only the object tier has are fetched first, for at most `wait_seconds`.
    """

    keys: Keys
    wait_seconds: Seconds = 0.0


class Release(Struct, tag="release"):
    """End a read hold; indexes of what was read from which tier, and of what was bad."""

    hold_id: Count
    loaded: dict[Tier, Indexes]
    corrupt: Indexes


class Claim(Struct, tag="claim"):
    """Register or renew interest in pages until `expires_at` (epoch), which is the whole claim's
    term. See `core.ClaimTerms` for the rest. Answer: ClaimReply."""

    claim_id: ClaimId
    keys: Keys
    expires_at: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    tenant: TenantTag = b""
    retention: Retention = "standard"
    encrypted: bool = False
    start: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] = 0
    quota_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] | None = None


class Unclaim(Struct, tag="unclaim"):
    """End a claim; what nothing else claims is deleted. Answer: DeletedReply."""

    claim_id: ClaimId
    keys: Keys


class Residency(Struct, tag="residency"):
    """Which tiers hold these? Answer: ResidencyReply."""

    keys: Keys


class WaitDurable(Struct, tag="wait_durable"):
    """Answer when all are durable, or after the timeout: IndexesReply of those missing."""

    keys: Keys
    timeout_seconds: Seconds


class Loads(Struct, tag="loads"):
    """From which tier were these loaded after that movement? Answer: LoadsReply."""

    keys: Keys
    since_seq: Count


class Movements(Struct, tag="movements"):
    """What moved from where to where after that movement, oldest first? Answer: MovementsReply."""

    since_seq: Count
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOVEMENTS_PER_CALL_MAX)]


class CopyPage(Struct, tag="copy_page"):
    """Store the page `source` under `target`, too. Answer: Done."""

    source: KeyBlob
    target: KeyBlob


class DropTier(Struct, tag="drop_tier"):
    """Drop copies of durable pages; None: of all pages. Answer: DeletedReply."""

    tier: Literal["dram"]
    keys: Keys | None


class Stats(Struct, tag="stats"):
    """Gauges and counters. Answer: StatsReply."""


class Ping(Struct, tag="ping"):
    """Answer: Done."""


class Failure(Struct, tag="failure"):
    """`kind` is protocol, denied, invalid, not_found, refused (`reason` says under which count)
    or failed."""

    kind: str
    message: str
    reason: str = ""


class Done(Struct, tag="done"):
    """It is done."""


class Welcome(Struct, tag="welcome"):
    """Answer to Hello: `version` is spoken from here on."""

    version: int
    node_id: str


class GrantReply(Struct, tag="grant_reply"):
    """`path` is empty when there was no room for another slab; `freed_slots` of the engine's own
    slots were then emptied instead."""

    path: str
    freed_slots: int


class StoredReply(Struct, tag="stored_reply"):
    """One byte per slot, in order: index into `ACCEPTANCES`."""

    outcomes: bytes


class NamesReply(Struct, tag="names_reply"):
    """Slab file names."""

    names: list[str]


class MissingReply(Struct, tag="missing_reply"):
    """One byte per key: 1 where no tier has it."""

    missing: bytes


class CountReply(Struct, tag="count_reply"):
    """A number of keys."""

    count: int


class LocateReply(Struct, tag="locate_reply"):
    """`pages`: (tier number from 0, index into `paths`, record offset, payload bytes, index into
    `secrets` or -1 for a plain record) each. `secrets` open sealed records; they go to engines of
    this host only. `more`: the next page can be had, for a wait."""

    hold_id: int
    paths: list[str]
    pages: list[tuple[int, int, int, int, int]]
    secrets: list[bytes]
    more: bool


class DeletedReply(Struct, tag="deleted_reply"):
    """How many pages are gone, and their payload bytes."""

    pages: int
    page_bytes: int


class ResidencyReply(Struct, tag="residency_reply"):
    """One byte per key: bit i for tier `TIERS[i]`, and `DURABLE_BIT`."""

    tiers: bytes


class IndexesReply(Struct, tag="indexes_reply"):
    """Indexes into the keys of the call."""

    indexes: list[int]


class LoadsReply(Struct, tag="loads_reply"):
    """`seq` is the newest movement; one byte per key: 0 not loaded since, i + 1 for `TIERS[i]`."""

    seq: int
    tiers: bytes


class MovementsReply(Struct, tag="movements_reply"):
    """`moves`: (seq, key, from, to, payload bytes, microseconds since the epoch) each, places as
    numbers into `PLACES`. `seq` is the newest movement that there is. `missed`: some after the
    number asked for are not kept any more."""

    seq: int
    missed: bool
    moves: list[tuple[int, bytes, int, int, int, int]]


class StatsReply(Struct, tag="stats_reply"):
    """Names are those of `Calls.stats`; `gauges` are those that are no counters. `degraded`: what
    does not work as it should, by part, in words."""

    values: dict[str, int]
    gauges: list[str]
    degraded: dict[str, str]


ACCEPTANCES = ("accepted", "duplicate", "stale", "corrupt")

Request = (
    Hello
    | Grant
    | GiveBack
    | Wanted
    | Stored
    | Missing
    | Find
    | Locate
    | Release
    | Claim
    | Unclaim
    | Residency
    | WaitDurable
    | Loads
    | Movements
    | CopyPage
    | DropTier
    | TenantUsage
    | Losses
    | Prefetch
    | Demote
    | EraseTenant
    | Stats
    | Ping
    | Verify
    | Audit
    | PackOwners
    | TakePacks
)
Reply = (
    Failure
    | Done
    | Welcome
    | GrantReply
    | StoredReply
    | NamesReply
    | MissingReply
    | CountReply
    | LocateReply
    | DeletedReply
    | ResidencyReply
    | IndexesReply
    | LoadsReply
    | MovementsReply
    | ClaimReply
    | TenantUsageReply
    | LossesReply
    | StatsReply
    | VerifyReply
    | AuditReply
    | PackOwnersReply
    | TakenReply
)


def join_keys(keys: Sequence[bytes]) -> bytes:
    """The keys as one blob. Raises ProtocolError for too many or a key of the wrong size."""
    if len(keys) > KEYS_MAX:
        raise ProtocolError(f"{len(keys)} keys in one call: at most {KEYS_MAX}")
    if not set(map(len, keys)) <= {PAGE_KEY_BYTES}:
        raise ProtocolError(f"a page key has {PAGE_KEY_BYTES} bytes")
    return b"".join(keys)


def split_keys(blob: bytes) -> list[PageKey]:
    """The keys of a blob. Raises ProtocolError when its length is no multiple of a key's."""
    if len(blob) % PAGE_KEY_BYTES:
        raise ProtocolError(f"{len(blob)} bytes are no whole number of {PAGE_KEY_BYTES}-byte keys")
    keys = [blob[at : at + PAGE_KEY_BYTES] for at in range(0, len(blob), PAGE_KEY_BYTES)]
    return cast("list[PageKey]", keys)  # without a call per key


def check_indexes(indexes: Iterable[int], count: int) -> None:
    """Raises ProtocolError when an index does not name one of `count` keys."""
    for index in indexes:
        if not 0 <= index < count:
            raise ProtocolError(f"index {index} is outside of the {count} keys of the hold")
