"""Sealing records under tenants' data keys, a batch at a time, and the secrets to open them."""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.errors import KeyUnreadable, PageCorrupt, StoreRefused
from agentmem.native.datapath import seal_batch
from agentmem.native.jobs import Outcome, SealJob, address_of
from agentmem.node.holds import Copy
from agentmem.pages.crypt import DataKey, fresh_nonce
from agentmem.pages.record import RecordHeader, decode_header, record_bytes, verify_record
from agentmem.store.claims import Claim
from agentmem.store.copies import DiskCopy
from agentmem.store.disk import DiskTier
from agentmem.store.keyring import Keyring
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)


class Plain(NamedTuple):
    """A plain record to be sealed; `view` stays as it is meanwhile."""

    record: Record
    data_key: DataKey


class ForDisk(NamedTuple):
    """Records as they go to disk, and what refused to seal others, by key."""

    records: list[Record]
    refused: dict[PageKey, StoreRefused]


class Sealer:
    """Seals pages for the tenants that their claims name."""

    def __init__(self, keyring: Keyring, disk: DiskTier, executor: Executor) -> None:
        self._keyring = keyring
        self._disk = disk
        self._executor = executor

    async def secret(self, key_id: bytes) -> bytes | None:
        """What opens records sealed under this key id; None for a plain record or an erased key.

        Raises StoreRefused (reason `key_unavailable`) for a key that the root key does not open.
        """
        if not key_id:
            return None
        try:
            data_key = self._keyring.cached(key_id) or await self._keyring.known_key(key_id)
        except KeyUnreadable as error:
            raise _unavailable(error) from error
        return None if data_key is None else data_key.secret

    def cached_secret(self, key_id: bytes) -> bytes | None:
        """As `secret`, where that takes no waiting; None where it would."""
        data_key = self._keyring.cached(key_id) if key_id else None
        return None if data_key is None else data_key.secret

    def opens(self, copy: DiskCopy | None) -> bool:
        """Whether a disk copy is plain, or its secret is at hand."""
        return copy is None or not copy.key_id or self._keyring.cached(copy.key_id) is not None

    async def erase(self, tenant: bytes) -> None:
        """Destroys a tenant's data key everywhere. Raises StoreRefused; it is then still there."""
        await self._keyring.erase(tenant)

    async def data_key(self, tenant: bytes) -> DataKey:
        """The tenant's data key, made where there is none yet. Raises StoreRefused."""
        try:
            return self._keyring.cached(tenant) or await self._keyring.data_key(tenant)
        except KeyUnreadable as error:
            raise _unavailable(error) from error

    async def sealed(
        self, copies: Sequence[Copy], reader: Callable[[Copy], Callable[[], memoryview]]
    ) -> list[Record]:
        """Sealed records of these pages, which the caller holds, in their order.

        What lies sealed on disk is taken as it is. A page is left out that no claim names a tenant
        for, whose bytes do not check, or whose tenant's data key cannot be had. Raises StoreRefused
        when that leaves none.
        """
        refused: StoreRefused | None = None
        claims = await self._disk.claims([copy.key for copy in copies])
        loop = asyncio.get_running_loop()
        found: list[Record | Plain] = []
        for copy in copies:
            tenant = next((claim.tenant for claim in claims[copy.key] if claim.tenant), b"")
            if not tenant:
                continue
            try:
                view = await loop.run_in_executor(self._executor, reader(copy))
                header = decode_header(view)
                record = _record_of(header, view, claims[copy.key])
                if header.seal is None:
                    found.append(Plain(record, await self.data_key(tenant)))
                else:
                    await loop.run_in_executor(self._executor, verify_record, view, copy.key)
                    found.append(record)
            except StoreRefused as error:
                logger.warning("page %s is not sealed: %s", copy.key.hex(), error)
                refused = error
            except (OSError, PageCorrupt) as error:
                logger.error("page %s is not sealed: %s", copy.key.hex(), error)
        if refused is not None and not found:
            raise refused
        sealed = {r.key: r for r in await self.seal([p for p in found if isinstance(p, Plain)])}
        records = [sealed.get(x.record.key) if isinstance(x, Plain) else x for x in found]
        return [record for record in records if record is not None]

    async def for_disk(
        self, records: Sequence[Record], claims: Mapping[PageKey, Sequence[Claim]]
    ) -> ForDisk:
        """These plain records as they go to disk: sealed where a claim wants it.

        Those whose tenant's data key cannot be had are refused; those whose bytes do not check are
        left out.
        """
        plain, refused = [], {}
        for record in records:
            wanting = [c.tenant for c in claims[record.key] if c.encrypted and c.tenant]
            try:
                if wanting:
                    plain.append(Plain(record, await self.data_key(wanting[0])))
            except StoreRefused as error:
                refused[record.key] = error
        sealed = {record.key: record for record in await self.seal(plain)}
        left_out = {page.record.key for page in plain} - sealed.keys() | refused.keys()
        return ForDisk([sealed.get(r.key, r) for r in records if r.key not in left_out], refused)

    async def seal(self, pages: Sequence[Plain]) -> list[Record]:
        """Seals plain records; those whose bytes do not check are left out."""
        if not pages:
            return []
        memory = memoryview(mmap.mmap(-1, sum(page.record.view.nbytes for page in pages)))
        jobs, targets, at = [], [], 0
        for record, data_key in pages:
            target = memory[at : at + record.view.nbytes]
            at += record.view.nbytes
            targets.append(target)
            places = address_of(record.view), address_of(target), record.view.nbytes
            jobs.append(SealJob(*places, data_key.key_id, fresh_nonce(), data_key.secret))
        loop = asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._executor, seal_batch, jobs)
        records = []
        for page, target, outcome in zip(pages, targets, outcomes, strict=True):
            if outcome is Outcome.MOVED:
                records.append(page.record._replace(view=target, key_id=page.data_key.key_id))
            else:
                logger.error("page %s is not sealed: %s", page.record.key.hex(), outcome)
        return records


def _unavailable(error: KeyUnreadable) -> StoreRefused:
    return StoreRefused(f"no data key: {error.message}", reason="key_unavailable")


def _record_of(header: RecordHeader, view: memoryview, claims: Sequence[Claim]) -> Record:
    key_id = header.seal.key_id if header.seal is not None else b""
    position = min((claim.position for claim in claims), default=0)
    whole = view[: record_bytes(header.payload_bytes)]
    return Record(header.key, whole, header.payload_bytes, header.sequence, position, key_id)
