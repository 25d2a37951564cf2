"""What each call of the protocol does: from checked message to the node's parts and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from agentmem.core import ClaimTerms, PageKey, Tier
from agentmem.errors import InvalidRequest, NotFound, ProtocolError
from agentmem.node import protocol as p
from agentmem.node.counters import COUNTERS
from agentmem.node.demotion import Demotion
from agentmem.node.messages import Audit, Verify
from agentmem.node.object_messages import PackOwners, TakePacks
from agentmem.node.objectowners import ObjectOwners
from agentmem.node.ownership import Ownership
from agentmem.node.promise_messages import (
    ClaimReply,
    Loss,
    Losses,
    LossesReply,
    TenantUsage,
    TenantUsageReply,
)
from agentmem.node.promises import Promises
from agentmem.node.retention import Retention
from agentmem.node.sealing import Sealer
from agentmem.node.shares import Owner
from agentmem.node.slabs import Slabs
from agentmem.node.tier_messages import Demote, EraseTenant, Prefetch
from agentmem.node.tiering import Tiering
from agentmem.node.verifying import Verification
from agentmem.node.writebehind import WriteBehind
from agentmem.store.base import TierUsage
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.medium import REASONS
from agentmem.store.object import ObjectTier

_LATER = (
    p.Grant,
    p.Claim,
    p.Unclaim,
    p.WaitDurable,
    p.CopyPage,
    p.DropTier,
    Prefetch,
    Demote,
    EraseTenant,
    p.Release,
    Verify,
    Audit,
    TenantUsage,
    Losses,
    PackOwners,
    TakePacks,
)


@dataclass(slots=True, eq=False)
class Peer:
    """Who is at the other end of a connection, and the read holds that end with it.

    `remote` came over TCP: what it may ask is `access.REMOTE_CALLS`.
    """

    role: Literal["engine", "gateway", "worker"]
    owner: Owner
    fingerprint: bytes
    remote: bool = False
    hold_ids: set[int] = field(default_factory=set)


class Calls:
    """Answers requests. Raises the errors of the parts that it calls."""

    def __init__(
        self,
        *,
        node_id: str,
        dram: DramTier,
        disk: DiskTier,
        ownership: Ownership,
        write_behind: WriteBehind,
        retention: Retention,
        slabs: Slabs,
        verification: Verification,
        promises: Promises,
        tiering: Tiering,
        sealer: Sealer,
        objects: ObjectTier | None,
        demotion: Demotion,
    ) -> None:
        self.node_id = node_id
        self.counters: Counter[str] = Counter()
        self._dram = dram
        self._disk = disk
        self._ownership = ownership
        self._write_behind = write_behind
        self._retention = retention
        self._slabs = slabs
        self._verification = verification
        self._promises = promises
        self._tiering = tiering
        self._sealer = sealer
        self._objects = objects
        self._demotion = demotion
        self._owners = ObjectOwners(objects, node_id)

    def takes_time(self, request: p.Request) -> bool:
        """Whether `answer_later` answers this one, `answer` otherwise."""
        waits = isinstance(request, p.Locate) and request.wait_seconds > 0
        return waits or isinstance(request, _LATER)

    def end(self, peer: Peer) -> None:
        """The connection is gone: so are its read holds."""
        for hold_id in peer.hold_ids:
            self._ownership.holds.end(hold_id)
        peer.hold_ids.clear()

    def answer(self, peer: Peer, request: p.Request) -> p.Reply:
        """Answers what needs no waiting."""
        ownership = self._ownership
        reply: p.Reply
        match request:
            case p.Ping():
                reply = p.Done()
            case p.Missing(keys=keys):
                reply = p.MissingReply(ownership.missing(p.split_keys(keys)))
            case p.Find(keys=keys):
                reply = p.CountReply(self._find(peer, p.split_keys(keys)))
            case p.Residency(keys=keys):
                reply = p.ResidencyReply(ownership.residency(p.split_keys(keys)))
            case p.Locate(keys=keys):
                reply = self._locate(peer, p.split_keys(keys))
            case p.Stored():
                reply = self._stored(peer, request)
            case p.GiveBack(slabs=names):
                self._slabs.take_back([self._slabs.slab_of(peer.owner, name) for name in names])
                reply = p.Done()
            case p.Wanted():
                reply = p.NamesReply(self._slabs.wanted_from(peer.owner))
            case p.Loads(keys=keys, since_seq=since_seq):
                found = ownership.movements.loaded_since(p.split_keys(keys), since_seq)
                tiers = bytes(0 if tier is None else p.TIERS.index(tier) + 1 for tier in found)
                reply = p.LoadsReply(ownership.movements.seq, tiers)
            case p.Movements(since_seq=since_seq, limit=limit):
                reply = self._movements(since_seq, limit)
            case p.Stats():
                values = self.stats()
                gauges = [name for name in values if name not in COUNTERS]
                reply = p.StatsReply(values, gauges, self.degraded())
            case _:
                raise ProtocolError(f"{type(request).__name__} is not expected here")
        return reply

    async def answer_later(self, peer: Peer, request: p.Request) -> p.Reply:
        """Answers what waits for a medium or for other pages."""
        reply: p.Reply
        match request:
            case p.Grant():
                _require_engine(peer)
                shape = request.slot_bytes, request.slots, request.evict_slots
                reply = p.GrantReply(*await self._slabs.grant(peer.owner, *shape))
            case p.Release():
                await self._release(peer, request)
                reply = p.Done()
            case p.Locate(keys=keys, wait_seconds=wait_seconds):
                names = p.split_keys(keys)
                await self._tiering.make_readable(names, wait_seconds)
                reply = self._locate(peer, names)
            case p.Claim():
                reply = await self._claim(request)
            case p.Unclaim(claim_id=claim_id, keys=keys):
                reply = p.DeletedReply(*await self._retention.unclaim(claim_id, p.split_keys(keys)))
            case p.WaitDurable(keys=keys, timeout_seconds=timeout_seconds):
                waited = self._ownership.wait_durable(p.split_keys(keys), timeout_seconds)
                reply = p.IndexesReply(await waited)
            case Verify(tier=tier, after=after):
                reply = await self._verification.verify(Tier(tier), after)
            case Audit(tier=tier):
                reply = await self._verification.audit(Tier(tier))
            case _:
                reply = await self._move(request)
        return reply

    async def _move(self, request: p.Request) -> p.Reply:
        """Answers what brings pages from one place to another, or destroys them."""
        reply: p.Reply
        match request:
            case Prefetch(keys=keys, tier=tier, timeout_seconds=timeout_seconds):
                brought = self._tiering.prefetch(p.split_keys(keys), Tier(tier), timeout_seconds)
                reply = p.CountReply(await brought)
            case Demote(keys=keys, release=release):
                left = await self._tiering.demote(p.split_keys(keys), release=release)
                reply = p.IndexesReply(left)
            case EraseTenant(tenant=tenant):
                await self._sealer.erase(tenant)
                reply = p.Done()
            case p.CopyPage(source=source, target=target):
                await self._slabs.copy_page(*p.split_keys(source + target))
                reply = p.Done()
            case p.DropTier(keys=keys):
                names = None if keys is None else p.split_keys(keys)
                reply = p.DeletedReply(*await self._ownership.drop_dram(names))
            case PackOwners():
                reply = await self._owners.owners()
            case TakePacks():
                reply = await self._owners.take(request)
            case TenantUsage(limit=limit):
                uses = await self._promises.tenants(limit)
                reply = TenantUsageReply(uses)
            case Losses():
                reply = await self._losses(request)
            case _:
                raise ProtocolError(f"{type(request).__name__} is not expected here")
        return reply

    def stats(self) -> dict[str, int]:
        """Everything that operators watch; counters begin with the agent's start."""
        behind, objects = self._write_behind, self._objects
        values = {
            **dict.fromkeys(COUNTERS, 0),
            **_usage("dram", self._dram.usage()),
            **_usage("disk", self._disk.usage()),
            **self._promises.stats(),
            **_usage("object", TierUsage(0, 0, 0, 0) if objects is None else objects.usage()),
            "object_own_bytes": 0 if objects is None else objects.own_bytes,
            "object_leftover_pages": 0 if objects is None else objects.leftover_pages,
            "object_failing": int(objects is not None and objects.failing is not None),
            "slabs": len(self._dram.slabs),
            "read_holds": len(self._ownership.holds),
            "write_behind_pages": behind.queued_pages,
            "disk_degraded": REASONS.index(self._disk.degraded) + 1 if self._disk.degraded else 0,
            "disk_index_bytes": self._disk.index_bytes,
            "write_behind_failing": int(behind.failing is not None),
            "write_behind_oldest_ms": behind.oldest_age_ms(),
            "write_behind_lag_ms": behind.last_lag_ms,
            "movement_seq": self._ownership.movements.seq,
            "corrupt_slot_headers": self._dram.corrupt_headers,
        }
        for counters in (
            self.counters,
            self._ownership.counters,
            self._promises.counters,
            behind.counters,
            self._disk.counters,
            self._tiering.counters,
            self._demotion.counters,
            *(() if objects is None else (objects.counters,)),
        ):
            for name, count in counters.items():
                values[name] = values.get(name, 0) + count
        return values

    async def _claim(self, request: p.Claim) -> ClaimReply:
        terms = ClaimTerms(
            request.tenant,
            request.retention,
            request.encrypted,
            request.start,
            request.quota_bytes,
        )
        keys = p.split_keys(request.keys)
        return ClaimReply(
            *await self._retention.claim(request.claim_id, keys, request.expires_at, terms)
        )

    async def _losses(self, request: Losses) -> LossesReply:
        losses = await self._promises.losses(request.after_seq, request.limit, gone=request.gone)
        return LossesReply(
            [Loss(loss.number, loss.key, loss.claim_id.decode(), *loss[3:]) for loss in losses]
        )

    def degraded(self) -> dict[str, str]:
        """What does not work as it should, by part; what turns survive all the same."""
        found = {}
        reason = self._write_behind.failing or self._disk.degraded
        if reason:
            found["disk"] = f"takes no pages: {reason.replace('_', ' ')}"
        if self._objects is not None and self._objects.failing is not None:
            found["object"] = self._objects.failing
        return found

    def _find(self, peer: Peer, keys: Sequence[PageKey]) -> int:
        found = self._ownership.find(keys)
        if peer.role == "engine":
            self._tiering.begin(keys[:found])  # it loads them next: fetch what is far away
        return found

    def _locate(self, peer: Peer, keys: Sequence[PageKey]) -> p.LocateReply:
        hold = self._ownership.hold_prefix(keys)
        peer.hold_ids.add(hold.hold_id)
        paths: dict[str, int] = {}
        secrets: dict[bytes, int] = {}
        pages = []
        for location in self._ownership.locations(hold):
            path = paths.setdefault(location.path, len(paths))
            tier = p.TIERS.index(location.tier)
            secret = self._sealer.cached_secret(location.key_id)
            number = -1 if secret is None else secrets.setdefault(secret, len(secrets))
            pages.append((tier, path, location.offset, location.payload_bytes, number))
        more = self._tiering.takes_time(keys)
        return p.LocateReply(hold.hold_id, list(paths), pages, list(secrets), more)

    def _movements(self, since_seq: int, limit: int) -> p.MovementsReply:
        log = self._ownership.movements
        moves, missed = log.since(since_seq, limit)
        rows = [
            (
                move.seq,
                bytes(move.key),
                p.PLACES.index(move.source),
                p.PLACES.index(move.target),
                move.payload_bytes,
                move.at_us,
            )
            for move in moves
        ]
        return p.MovementsReply(log.seq, missed, rows)

    def _stored(self, peer: Peer, request: p.Stored) -> p.StoredReply:
        _require_engine(peer)
        slab = self._slabs.slab_of(peer.owner, request.slab)
        keys = p.split_keys(request.keys)
        outcomes = self._ownership.stored(slab, request.slots, keys, peer.fingerprint)
        return p.StoredReply(bytes(p.ACCEPTANCES.index(outcome) for outcome in outcomes))

    async def _release(self, peer: Peer, request: p.Release) -> None:
        hold = self._ownership.holds.get(request.hold_id)
        if hold is None or request.hold_id not in peer.hold_ids:
            raise NotFound("hold", str(request.hold_id))
        # From here on this call ends the hold, not the connection.
        peer.hold_ids.discard(request.hold_id)
        try:
            self._ownership.note_loaded(hold, request.loaded)
            suspects = self._ownership.suspects(hold, request.corrupt)
            if suspects:
                await self._retention.judge(suspects)
        finally:
            self._ownership.holds.end(request.hold_id)


def _require_engine(peer: Peer) -> None:
    if peer.role != "engine" or not peer.owner.engine_id:
        raise InvalidRequest("only an engine that says its engine id is granted slabs")


def _usage(tier: str, usage: TierUsage) -> dict[str, int]:
    return {
        f"{tier}_pages": usage.pages,
        f"{tier}_page_bytes": usage.page_bytes,
        f"{tier}_reserved_bytes": usage.reserved_bytes,
        f"{tier}_budget_bytes": usage.budget_bytes,
    }
