"""`agentmem objects`: whose objects lie in the object store, and what becomes of a lost node's.

As the doctor does, it asks the node's agent, or one that is started for this where none runs.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import NamedTuple

from agentmem.config import Settings
from agentmem.doctor.report import Report
from agentmem.doctor.run import node_agent
from agentmem.errors import ConfigurationInvalid

_CALL_SECONDS = 600.0


class Moved(NamedTuple):
    """Objects of a node that are gone, their pages, and objects that could not be read."""

    packs: int
    pages: int
    unreadable: int


def list_objects(settings: Settings) -> str:
    """A line for each node: id, objects, bytes, when it wrote last. Raises AgentmemError."""
    _require_store(settings)
    with node_agent(settings, Report()) as client:
        owners = client.pack_owners(timeout_seconds=_CALL_SECONDS)
        own = client.node_id
    lines = [f"{'node':<16}  {'objects':>8}  {'bytes':>16}  wrote last"]
    for owner in owners:
        when = "unknown"
        if owner.newest_at:
            when = datetime.fromtimestamp(owner.newest_at, UTC).isoformat(" ", "seconds")
        mark = "  (this node)" if owner.node_id == own else ""
        sums = f"{owner.packs:>8,}  {owner.size_bytes:>16,}"
        lines.append(f"{owner.node_id:<16}  {sums}  {when}{mark}")
    return "\n".join(lines)


def take_objects(settings: Settings, node_id: str, *, delete: bool, force: bool) -> Moved:
    """Takes over, or deletes, all objects of a node that is lost; progress goes to stderr.

    Raises AgentmemError: for a node that may live, without `force`.
    """
    _require_store(settings)
    packs = pages = 0
    with node_agent(settings, Report()) as client:
        while True:
            taken = client.take_packs(
                node_id, delete=delete, force=force, timeout_seconds=_CALL_SECONDS
            )
            packs += taken.packs
            pages += taken.pages
            if not taken.left:
                break
            print(f"{packs} objects done, {taken.left} left", file=sys.stderr, flush=True)
        owners = client.pack_owners(timeout_seconds=_CALL_SECONDS)
    left = sum(owner.packs for owner in owners if owner.node_id == node_id)
    return Moved(packs, pages, left)


def _require_store(settings: Settings) -> None:
    if not settings.object_url:
        raise ConfigurationInvalid(
            "there is no object store", hint="AGENTMEM_OBJECT_URL names it, as for the node agent."
        )
