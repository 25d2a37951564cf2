"""Whose objects lie in the object store, and what becomes of those of a node that is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentmem.errors import InvalidRequest, NotFound, StoreRefused
from agentmem.node.object_messages import Owner, PackOwnersReply, TakenReply, TakePacks
from agentmem.store.object import ObjectTier

# A node that wrote something so lately is taken to live.
ALIVE_SECONDS = 86_400.0
_TAKEN_AT_ONCE = 4
_DELETED_AT_ONCE = 64


class ObjectOwners:
    """Raises StoreRefused where there is no object tier, or the store does not answer."""

    def __init__(
        self, objects: ObjectTier | None, node_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects = objects
        self._node_id = node_id
        self._clock = clock

    async def owners(self) -> PackOwnersReply:
        """Every node that objects are from."""
        return PackOwnersReply([Owner(*owner) for owner in await self._tier().listing.owners()])

    async def take(self, request: TakePacks) -> TakenReply:
        """Takes over, or deletes, some of a lost node's objects.

        Raises NotFound for a node that has none, InvalidRequest for this one, or one that lives.
        """
        objects = self._tier()
        if request.node_id == self._node_id:
            raise InvalidRequest("these objects are this node's own")
        owners = {owner.node_id: owner for owner in await objects.listing.owners()}
        if request.node_id not in owners:
            raise NotFound("node", request.node_id)
        hours = (self._clock() - owners[request.node_id].newest_at) / 3600
        if hours * 3600 < ALIVE_SECONDS and not request.force:
            raise InvalidRequest(
                f"node {request.node_id} wrote an object {hours:.1f} hours ago: it may still live. "
                "Objects of a node that lives are its own. With --force it is done all the same."
            )
        if request.delete:
            return TakenReply(*await objects.discard(request.node_id, _DELETED_AT_ONCE))
        return TakenReply(*await objects.take_over(request.node_id, _TAKEN_AT_ONCE))

    def _tier(self) -> ObjectTier:
        if self._objects is None:
            raise StoreRefused("this node has no object tier (object_url)", reason="no_object_tier")
        return self._objects
