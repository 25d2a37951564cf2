"""The node agent's client: blocking, thread-safe, one connection.

Calls of several threads share the socket: each frame has a number, and of the threads that wait
for replies one reads for all, so there is no thread of the client's own. Every call has a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from agentmem.core import ClaimTerms, PageKey, Tier
from agentmem.errors import (
    NodeUnavailable,
)
from agentmem.node import protocol as p
from agentmem.node.answers import (
    Deleted,
    Granted,
    LoadedFrom,
    Located,
    Moved,
    NodeStats,
    PageLocation,
    Promised,
    Residency,
    check_length,
    picked,
)
from agentmem.node.calling import Caller
from agentmem.node.messages import Audit, AuditReply, Verify, VerifyReply
from agentmem.node.movements import Movement
from agentmem.node.object_messages import (
    Owner,
    PackOwners,
    PackOwnersReply,
    TakenReply,
    TakePacks,
)
from agentmem.node.promise_messages import (
    ClaimReply,
    Loss,
    Losses,
    LossesReply,
    TenantUsage,
    TenantUsageReply,
    TenantUse,
)
from agentmem.node.tier_messages import Demote, EraseTenant, Prefetch


class NodeClient(Caller):
    """The agent's operations, one method each; see `Caller` for what all of them raise."""

    def ping(self, *, timeout_seconds: float | None = None) -> None:
        """Returns when the agent answers."""
        self._call(p.Ping(), p.Done, timeout_seconds)

    def grant(
        self,
        slot_bytes: int,
        slots: int,
        *,
        evict_slots: int = 0,
        timeout_seconds: float | None = None,
    ) -> Granted:
        """A slab of `slots` slots of `slot_bytes` bytes, for an engine to write pages to.

        Without room for one, `evict_slots` (or `slots`, if more) are emptied where that is right.
        """
        request = p.Grant(slot_bytes, slots, evict_slots)
        reply = self._call(request, p.GrantReply, timeout_seconds)
        return Granted(Path(reply.path) if reply.path else None, reply.freed_slots)

    def give_back(self, slabs: Sequence[str], *, timeout_seconds: float | None = None) -> None:
        """Hands slabs (file names) over to the agent; nothing may be written to them any more."""
        self._call(p.GiveBack(list(slabs)), p.Done, timeout_seconds)

    def wanted(self, *, timeout_seconds: float | None = None) -> list[str]:
        """Slabs (file names) that the agent asks this engine to give back."""
        return self._call(p.Wanted(), p.NamesReply, timeout_seconds).names

    def stored(
        self,
        slab: str,
        slots: Sequence[int],
        keys: Sequence[PageKey],
        *,
        timeout_seconds: float | None = None,
    ) -> list[str]:
        """Announces committed slots. Per slot one of `protocol.ACCEPTANCES`."""
        request = p.Stored(slab, list(slots), p.join_keys(keys))
        reply = self._call(request, p.StoredReply, timeout_seconds)
        check_length(reply.outcomes, len(slots))
        return [picked(p.ACCEPTANCES, code) for code in reply.outcomes]

    def missing(
        self, keys: Sequence[PageKey], *, timeout_seconds: float | None = None
    ) -> list[bool]:
        """Per key whether no tier has it."""
        reply = self._call(p.Missing(p.join_keys(keys)), p.MissingReply, timeout_seconds)
        check_length(reply.missing, len(keys))
        return [bool(flag) for flag in reply.missing]

    def find(self, keys: Sequence[PageKey], *, timeout_seconds: float | None = None) -> int:
        """How many keys, counted from the first, are held without a gap in any tier."""
        return self._call(p.Find(p.join_keys(keys)), p.CountReply, timeout_seconds).count

    def locate(
        self,
        keys: Sequence[PageKey],
        *,
        wait_seconds: float = 0.0,
        timeout_seconds: float | None = None,
    ) -> Located:
        """Takes a read hold on the longest prefix that is held. Always `release` it.

        Pages that only the object tier has are fetched first, for at most `wait_seconds`.
        """
        try:
            request = p.Locate(p.join_keys(keys), wait_seconds)
            reply = self._call(request, p.LocateReply, timeout_seconds)
        except NodeUnavailable:
            # The reply may still come, with a hold that nobody would release: the hold ends with
            # the connection.
            self.close()
            raise
        return Located(
            reply.hold_id,
            [
                PageLocation(
                    picked(p.TIERS, tier),
                    picked(reply.paths, path),
                    offset,
                    payload_bytes,
                    None if secret < 0 else picked(reply.secrets, secret),
                )
                for tier, path, offset, payload_bytes, secret in reply.pages
            ],
            reply.more,
        )

    def release(
        self,
        hold_id: int,
        *,
        loaded: Mapping[Tier, Sequence[int]],
        corrupt: Sequence[int] = (),
        timeout_seconds: float | None = None,
    ) -> None:
        """Ends a read hold; says which pages (indexes into it) were read, which were bad."""
        request = p.Release(hold_id, {t: list(i) for t, i in loaded.items()}, list(corrupt))
        self._call(request, p.Done, timeout_seconds)

    def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
        timeout_seconds: float | None = None,
    ) -> Promised:
        """Registers or renews interest in pages until `expires_at` (seconds since the epoch).

        What is not promised for want of room is kept as cache.
        """
        request = p.Claim(claim_id, p.join_keys(keys), expires_at, *(terms or ClaimTerms()))
        reply = self._call(request, ClaimReply, timeout_seconds)
        return Promised(reply.promised, reply.reason)

    def unclaim(
        self, claim_id: str, keys: Sequence[PageKey], *, timeout_seconds: float | None = None
    ) -> Deleted:
        """Ends a claim; pages that no other unexpired claim holds are deleted from every tier."""
        request = p.Unclaim(claim_id, p.join_keys(keys))
        reply = self._call(request, p.DeletedReply, timeout_seconds)
        return Deleted(reply.pages, reply.page_bytes)

    def residency(
        self, keys: Sequence[PageKey], *, timeout_seconds: float | None = None
    ) -> list[Residency]:
        """Per key the tiers that hold it and whether it is durable."""
        reply = self._call(p.Residency(p.join_keys(keys)), p.ResidencyReply, timeout_seconds)
        check_length(reply.tiers, len(keys))
        return [
            Residency(
                frozenset(tier for bit, tier in enumerate(p.TIERS) if flags & (1 << bit)),
                bool(flags & p.DURABLE_BIT),
            )
            for flags in reply.tiers
        ]

    def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """Waits up to `timeout_seconds` for pages to be durable, written before all others.

        Returns the indexes of those that are not; an empty list comes as soon as all are.
        """
        request = p.WaitDurable(p.join_keys(keys), timeout_seconds)
        deadline_seconds = timeout_seconds + self._timeout_seconds
        return self._call(request, p.IndexesReply, deadline_seconds).indexes

    def loads(
        self,
        keys: Sequence[PageKey] = (),
        since_seq: int = 0,
        *,
        timeout_seconds: float | None = None,
    ) -> LoadedFrom:
        """From which tier pages were loaded after movement `since_seq`. Without keys: the number
        to begin from."""
        request = p.Loads(p.join_keys(keys), since_seq)
        reply = self._call(request, p.LoadsReply, timeout_seconds)
        check_length(reply.tiers, len(keys))
        tiers = [picked(p.TIERS, code - 1) if code else None for code in reply.tiers]
        return LoadedFrom(reply.seq, tiers)

    def movements(
        self, since_seq: int, limit: int = 1000, *, timeout_seconds: float | None = None
    ) -> Moved:
        """What moved after movement `since_seq`, oldest first, at most `limit` of it. Go on with
        the last one's number; nothing new is an empty list."""
        request = p.Movements(since_seq, limit)
        reply = self._call(request, p.MovementsReply, timeout_seconds)
        return Moved(
            reply.seq,
            reply.missed,
            [
                Movement(
                    seq,
                    PageKey(key),
                    picked(p.PLACES, source),
                    picked(p.PLACES, target),
                    payload_bytes,
                    at_us,
                )
                for seq, key, source, target, payload_bytes, at_us in reply.moves
            ],
        )

    def copy_page(
        self, source: PageKey, target: PageKey, *, timeout_seconds: float | None = None
    ) -> None:
        """Stores the page `source` under the key `target`, too."""
        self._call(p.CopyPage(source, target), p.Done, timeout_seconds)

    def drop_dram(
        self, keys: Sequence[PageKey] | None = None, *, timeout_seconds: float | None = None
    ) -> Deleted:
        """Drops dram copies of durable pages that nobody reads; None: of all pages."""
        request = p.DropTier("dram", None if keys is None else p.join_keys(keys))
        reply = self._call(request, p.DeletedReply, timeout_seconds)
        return Deleted(reply.pages, reply.page_bytes)

    def verify(
        self,
        tier: Literal["dram", "disk", "object"],
        after: bytes,
        *,
        timeout_seconds: float | None = None,
    ) -> VerifyReply:
        """Checks the records of the next pages of a tier; the agent quarantines bad ones."""
        return self._call(Verify(tier, after), VerifyReply, timeout_seconds)

    def audit(
        self, tier: Literal["disk", "object"] = "disk", *, timeout_seconds: float | None = None
    ) -> AuditReply:
        """Holds index, packs and accounting against each other; the agent mends what it can."""
        return self._call(Audit(tier), AuditReply, timeout_seconds)

    def pack_owners(self, *, timeout_seconds: float | None = None) -> list[Owner]:
        """Whose objects lie in the object store, most bytes first."""
        return self._call(PackOwners(), PackOwnersReply, timeout_seconds).owners

    def take_packs(
        self, node_id: str, *, delete: bool, force: bool, timeout_seconds: float | None = None
    ) -> TakenReply:
        """Takes over, or deletes, some objects of another node: ask on while any are left."""
        return self._call(TakePacks(node_id, delete, force), TakenReply, timeout_seconds)

    def tenant_usage(
        self, limit: int = 100, *, timeout_seconds: float | None = None
    ) -> list[TenantUse]:
        """The tenants with most bytes. The agent looks at every page."""
        return self._call(TenantUsage(limit), TenantUsageReply, timeout_seconds).tenants

    def dropped(
        self, after_seq: int = 0, limit: int = 1000, *, timeout_seconds: float | None = None
    ) -> list[Loss]:
        """Promised pages that are gone and are to be stored again, oldest first."""
        return self._losses(Losses(after_seq, limit, gone=True), timeout_seconds)

    def breaches(
        self, after_seq: int = 0, limit: int = 1000, *, timeout_seconds: float | None = None
    ) -> list[Loss]:
        """Promised pages that were ever gone, back or not, oldest first."""
        return self._losses(Losses(after_seq, limit), timeout_seconds)

    def _losses(self, request: Losses, timeout_seconds: float | None) -> list[Loss]:
        return self._call(request, LossesReply, timeout_seconds).losses

    def prefetch(self, keys: Sequence[PageKey], tier: Tier, timeout_seconds: float) -> int:
        """Brings pages up to `tier` (dram or disk), first ones first, in the time given.

        Returns how many, counted from the first, are there; what is under way goes on.
        """
        names: dict[Tier, Literal["dram", "disk"]] = {Tier.DRAM: "dram", Tier.DISK: "disk"}
        request = Prefetch(p.join_keys(keys), names[tier], timeout_seconds)
        return self._call(request, p.CountReply, timeout_seconds + self._timeout_seconds).count

    def demote(
        self, keys: Sequence[PageKey], *, release: bool, timeout_seconds: float
    ) -> list[int]:
        """Copies pages into the object tier; `release` lets their copies above it go.

        Returns the indexes of those that are not there. Raises StoreRefused when it takes nothing.
        """
        request = Demote(p.join_keys(keys), release)
        return self._call(request, p.IndexesReply, timeout_seconds).indexes

    def erase_tenant(self, tenant: bytes, *, timeout_seconds: float | None = None) -> None:
        """Destroys the data key of a tenant tag (16 bytes) everywhere."""
        self._call(EraseTenant(tenant), p.Done, timeout_seconds)

    def stats(self, *, timeout_seconds: float | None = None) -> dict[str, int]:
        """Gauges (bytes and pages per tier, queues) and counters since the agent's start."""
        return self._call(p.Stats(), p.StatsReply, timeout_seconds).values

    def state(self, *, timeout_seconds: float | None = None) -> NodeStats:
        """`stats`, gauges and counters apart, and what is degraded."""
        reply = self._call(p.Stats(), p.StatsReply, timeout_seconds)
        gauges = {name: reply.values[name] for name in reply.gauges if name in reply.values}
        counters = {name: n for name, n in reply.values.items() if name not in gauges}
        return NodeStats(gauges, counters, reply.degraded)
