"""Checks what the node holds while it is in use: records in chunks, index against packs.

The caller asks for one chunk after another, and so sets the pace. Nothing is checked that is not
held: no page moves while its bytes are read.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import lmdb

from agentmem.core import PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.node.holds import Copy
from agentmem.node.messages import AuditReply, BadPage, Finding, VerifyReply
from agentmem.node.ownership import Ownership
from agentmem.node.retention import Retention, fault_of
from agentmem.pages.record import record_bytes
from agentmem.store.audit import Difference
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.medium import reason_of
from agentmem.store.object import ObjectTier
from agentmem.store.objectlisting import ObjectFinding
from agentmem.store.pack import pack_name

CHUNK_PAGES_MAX = 1024
CHUNK_BYTES_MAX = 64 << 20
_DIFFERENCES_MAX = 1000


class Verification:
    """Verifies and audits the tiers of one node."""

    def __init__(
        self,
        *,
        ownership: Ownership,
        dram: DramTier,
        disk: DiskTier,
        retention: Retention,
        executor: Executor,
        objects: ObjectTier | None = None,
    ) -> None:
        self._ownership = ownership
        self._dram = dram
        self._disk = disk
        self._retention = retention
        self._executor = executor
        self._objects = objects

    async def verify(self, tier: Tier, after: bytes) -> VerifyReply:
        """Checks the next pages of a tier, in the order of their keys, those of the object tier by
        object; bad ones are quarantined.

        Raises StoreRefused when the index cannot be read, or the object store does not answer.
        """
        if tier is Tier.OBJECT:
            return await self._verify_object(after)
        keys = await self._keys_after(tier, after)
        copies: list[Copy] = []
        size_bytes = 0
        for count, key in enumerate(keys):
            copy: Copy | None = self._dram.get(key) if tier is Tier.DRAM else self._disk.get(key)
            if copy is None:
                continue
            if copies and size_bytes + record_bytes(copy.payload_bytes) > CHUNK_BYTES_MAX:
                keys = keys[:count]
                break
            copies.append(copy)
            size_bytes += record_bytes(copy.payload_bytes)
        bad = await self._check(copies)
        return VerifyReply(keys[-1] if keys else b"", len(copies), size_bytes, bad)

    async def audit(self, tier: Tier = Tier.DISK) -> AuditReply:
        """Compares index, packs and accounting, and mends what can be mended.

        Raises StoreRefused when index or packs cannot be read.
        """
        if tier is Tier.OBJECT:
            return await self._audit_objects()
        try:
            audit, mended = await self._disk.mend()
        except (OSError, lmdb.Error) as error:
            raise StoreRefused(
                f"the packs cannot be read: {error}", reason=reason_of(error)
            ) from error
        repairs = {id(each.difference): each.detail for each in mended}
        findings = []
        for found in audit.differences[:_DIFFERENCES_MAX]:
            repair = repairs.get(id(found), "")
            if found.kind in ("no_bytes", "wrong_record", "missing_pack"):
                repair = "the checksums of its pages decide: verify"
            elif found.kind in ("table", "accounting"):
                repair = "a restart of the agent counts again"
            findings.append(_finding(found, repair))
        sums = {
            "pages": audit.pages,
            "record_bytes": audit.record_bytes,
            "medium_bytes": audit.medium_bytes,
            "index_bytes": audit.index_bytes,
            "differences": len(audit.differences),
        }
        return AuditReply(sums, findings)

    async def _verify_object(self, after: bytes) -> VerifyReply:
        found = await self._object_tier().verify(after)
        bad = [BadPage(*record, True) for record in found.bad]
        findings = [_finding_of(each) for each in found.findings]
        return VerifyReply(found.after, found.pages, found.record_bytes, bad, findings)

    async def _audit_objects(self) -> AuditReply:
        objects = self._object_tier()
        found = await objects.audit()
        usage = objects.usage()
        sums = {
            "pages": usage.pages,
            "record_bytes": usage.reserved_bytes,
            "own_record_bytes": objects.own_bytes,
            "differences": len(found),
        }
        return AuditReply(sums, [_finding_of(each) for each in found[:_DIFFERENCES_MAX]])

    def _object_tier(self) -> ObjectTier:
        if self._objects is None:
            raise StoreRefused("this node has no object tier (object_url)", reason="no_object_tier")
        return self._objects

    async def _keys_after(self, tier: Tier, after: bytes) -> Sequence[PageKey]:
        if tier is Tier.DRAM:
            keys = (copy.key for copy in self._dram.pages() if copy.key > after)
            return heapq.nsmallest(CHUNK_PAGES_MAX, keys)
        try:
            return await self._disk.keys_after(after, CHUNK_PAGES_MAX)
        except lmdb.Error as error:
            raise StoreRefused(
                f"the index cannot be read: {error}", reason=reason_of(error)
            ) from error

    async def _check(self, copies: list[Copy]) -> list[BadPage]:
        hold = self._ownership.holds.take(copies)
        try:
            reads = [(self._ownership.reader(copy), copy.key) for copy in copies]
            loop = asyncio.get_running_loop()
            faults = await loop.run_in_executor(self._executor, _faults, reads)
            bad = []
            for index, why in faults.items():
                copy = copies[index]
                place = self._ownership.location(copy)
                await self._retention.judge([copy])
                bad.append(BadPage(copy.key, place.path, place.offset, why, copy.gone))
            return bad
        finally:
            self._ownership.holds.end(hold.hold_id)


def _faults(reads: Sequence[tuple[Callable[[], memoryview], PageKey]]) -> dict[int, str]:
    """By index what is wrong with a record."""
    found = ((index, fault_of(read, key)) for index, (read, key) in enumerate(reads))
    return {index: why for index, why in found if why is not None}


def _finding_of(found: ObjectFinding) -> Finding:
    return Finding(found.kind, found.name, 0, found.size_bytes, found.detail, found.repair)


def _finding(found: Difference, repair: str) -> Finding:
    file = pack_name(found.pack) if found.pack >= 0 else ""
    return Finding(found.kind, file, found.offset, found.size_bytes, found.detail, repair)
