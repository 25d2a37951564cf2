"""The audit log read back: pages of it, and whether its chain is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.catalog import Catalog
from agentmem.catalog.audit import FIRST_HASH, entry_hash
from agentmem.catalog.records import AuditEntry
from agentmem.core import TenantId

_FINDINGS_MAX = 100


@dataclass(frozen=True, slots=True)
class Verification:
    """`entries` read, what is wrong (sentences; a hundred at most), and the last entry's hash."""

    entries: int
    findings: Sequence[str]
    head: str

    @property
    def whole(self) -> bool:
        """Whether nothing was changed, removed or put in between."""
        return not self.findings


class AuditService:
    """Reads; entries are appended by those who act."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def list(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        tenant_id: TenantId | None = None,
        action: str | None = None,
        target: str | None = None,
    ) -> list[AuditEntry]:
        """Entries, newest first, from before a sequence on."""
        async with self._catalog.reading() as tx:
            return await tx.audit.list(
                before=before, limit=limit, tenant_id=tenant_id, action=action, target=target
            )

    async def verify(self, *, expected_head: str | None = None) -> Verification:
        """Walks the whole chain in one consistent view.

        Whoever can rewrite all of the table and its end can also make it whole again: give
        `expected_head`, a hash (hex) that an earlier verification printed, and it must still be
        among the entries.
        """
        findings: list[str] = []
        previous, expected, entries = FIRST_HASH, 1, 0
        seen = expected_head is None or expected_head == FIRST_HASH.hex()
        async with self._catalog.reading() as tx:
            async for entry in tx.audit.walk():
                entries += 1
                if len(findings) < _FINDINGS_MAX:
                    findings += _compare(entry, expected, previous)
                seen = seen or entry.hash.hex() == expected_head
                previous, expected = entry.hash, entry.sequence + 1
            sequence, head = await tx.audit.head()
        if (sequence, head) != (expected - 1, previous):
            findings.append(
                f"The chain should end with entry {sequence}; it ends with entry {expected - 1}."
            )
        if not seen:
            findings.append(f"No entry has the hash {expected_head} that was given.")
        return Verification(entries, tuple(findings[:_FINDINGS_MAX]), previous.hex())


def _compare(entry: AuditEntry, expected: int, previous: bytes) -> list[str]:
    findings = []
    if entry.sequence != expected:
        missing = (
            f"{expected}"
            if entry.sequence == expected + 1
            else (f"{expected} to {entry.sequence - 1}")
        )
        findings.append(f"Before entry {entry.sequence}, entry {missing} is missing.")
    elif entry.previous_hash != previous:
        findings.append(f"Entry {entry.sequence} does not follow the one before it.")
    if entry_hash(entry) != entry.hash:
        findings.append(f"Entry {entry.sequence} was changed.")
    return findings
