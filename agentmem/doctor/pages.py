"""Checks of what the node holds, through its agent: the one process that owns it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from agentmem.doctor.report import BadPage, Check, Status
from agentmem.errors import AgentmemError
from agentmem.node.client import NodeClient
from agentmem.node.messages import Finding

_AUDIT_SECONDS = 600.0
_CHUNK_SECONDS = 120.0
# Between two chunks the agent does what else it has to do for as long as the chunk took.
_PAUSE_SHARE = 1.0
_TIERS: tuple[Literal["dram", "disk"], ...] = ("dram", "disk")

Verified = Literal["dram", "disk", "object"]

Say = Callable[[str], None]


def check_index(client: NodeClient) -> Check:
    """Index against packs and accounting; what can be mended is."""
    try:
        reply = client.audit(timeout_seconds=_AUDIT_SECONDS)
    except AgentmemError as error:
        return Check("index", Status.FAILED, error.message)
    if not reply.findings:
        detail = f"{reply.sums['pages']} pages, index, packs and accounting agree"
        return Check("index", Status.OK, detail, dict(reply.sums))
    detail = f"{reply.sums['differences']} differences"
    return Check("index", Status.FOUND, detail, dict(reply.sums), _told(reply.findings))


def check_objects(client: NodeClient) -> Check:
    """The object store itself, and its listing against the index; what can be mended is."""
    try:
        reply = client.audit("object", timeout_seconds=_AUDIT_SECONDS)
    except AgentmemError as error:
        return Check("object_store", Status.FAILED, error.message)
    if not reply.findings:
        detail = f"{reply.sums['pages']} pages; the store answers, index and listing agree"
        return Check("object_store", Status.OK, detail, dict(reply.sums))
    detail = f"{reply.sums['differences']} differences"
    return Check("object_store", Status.FOUND, detail, dict(reply.sums), _told(reply.findings))


def check_state(client: NodeClient) -> Check:
    """What the running agent itself says is failing."""
    try:
        stats = client.stats()
    except AgentmemError as error:
        return Check("agent", Status.FAILED, error.message)
    used = {tier: stats[f"{tier}_reserved_bytes"] for tier in _TIERS}
    over = [tier for tier in _TIERS if used[tier] > stats[f"{tier}_budget_bytes"]]
    detail = f"{stats['dram_pages']} pages in dram, {stats['disk_pages']} on disk"
    values = {name: stats[name] for name in ("dram_pages", "disk_pages", "write_behind_pages")}
    if stats["write_behind_failing"]:
        return Check("agent", Status.FOUND, f"{detail}; the disk tier takes nothing", values)
    if over:
        return Check("agent", Status.FOUND, f"{detail}; over budget: {', '.join(over)}", values)
    return Check("agent", Status.OK, detail, values)


def check_pages(
    client: NodeClient, say: Say, *, objects: bool
) -> tuple[list[Check], list[BadPage]]:
    """Every checksum of every tier, chunk by chunk; bad pages are quarantined by the agent.

    `objects`: of the object tier, too.
    """
    checks, bad_pages = [], []
    tiers: tuple[Verified, ...] = (*_TIERS, "object") if objects else _TIERS
    for tier in tiers:
        try:
            check, bad = _check_tier(client, tier, say)
        except AgentmemError as error:
            checks.append(Check(f"checksums_{tier}", Status.FAILED, error.message))
            continue
        checks.append(check)
        bad_pages += bad
    return checks, bad_pages


def _check_tier(client: NodeClient, tier: Verified, say: Say) -> tuple[Check, list[BadPage]]:
    pages = record_bytes = 0
    bad: list[BadPage] = []
    findings: list[Finding] = []
    after = b""
    while True:
        begun = time.monotonic()
        reply = client.verify(tier, after, timeout_seconds=_CHUNK_SECONDS)
        pages += reply.pages
        record_bytes += reply.record_bytes
        findings += reply.findings
        bad += [
            BadPage(page.key.hex(), tier, page.path, page.offset, page.why, page.repaired)
            for page in reply.bad
        ]
        if not reply.after:
            break
        after = reply.after
        say(f"{pages} pages in {tier} checked")
        time.sleep(_PAUSE_SHARE * (time.monotonic() - begun))
    values = {"pages": pages, "record_bytes": record_bytes, "bad": len(bad)}
    status = Status.FOUND if bad or findings else Status.OK
    detail = f"{pages} pages, {record_bytes} bytes, {len(bad)} bad"
    return Check(f"checksums_{tier}", status, detail, values, _told(findings)), bad


def _told(findings: Sequence[Finding]) -> list[str]:
    return [
        f"{each.kind} in {each.file or 'the sums'} at {each.offset}, {each.size_bytes} bytes: "
        f"{each.detail}: {each.repair or 'left as it is'}"
        for each in findings
    ]
