"""Deletion: a session with all it holds, or the end of a log that nothing else builds on."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.catalog import Transaction
from agentmem.catalog.records import Lease, Session, Turn
from agentmem.core import PageKey, SessionId, TenantId, TurnId
from agentmem.errors import NotFound
from agentmem.sessions.bases import checked_id
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.durability import DurabilityTracker
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.ports import Freed
from agentmem.sessions.unclaiming import Unclaimer
from agentmem.sessions.views import conversation_of


class Deletion:
    """Deletes rows in one transaction, and has the node agent let go of the pages."""

    def __init__(
        self,
        context: Context,
        leases: LeaseKeeper,
        tracker: DurabilityTracker,
        unclaimer: Unclaimer,
    ) -> None:
        self._context = context
        self._leases = leases
        self._tracker = tracker
        self._unclaimer = unclaimer

    async def delete(self, tenant_id: TenantId, session_id: str) -> Freed:
        """Deletes the session, the turns that no other session reaches, and its claims.

        Raises NotFound or SessionBusy. An agent that does not answer is told later; the numbers
        are then 0.
        """
        async with self._leases.holding(tenant_id, checked_id(session_id)) as (session, lease):
            unclaim_id, keys = await self._delete_held(session, lease)
        return await self._let_go(session, unclaim_id, keys)

    async def expire(self, tenant_id: TenantId, session_id: SessionId, *, now_us: int) -> bool:
        """Deletes a session if its term was over by then; False: it was prolonged meanwhile.

        Raises NotFound or SessionBusy.
        """
        async with self._leases.holding(tenant_id, session_id) as (session, lease):
            if session.expires_at > now_us:
                return False
            unclaim_id, keys = await self._delete_held(session, lease)
        await self._let_go(session, unclaim_id, keys)
        return True

    async def _delete_held(
        self, session: Session, lease: Lease
    ) -> tuple[str | None, list[PageKey]]:
        keys = await self.page_keys(session)
        await self._tracker.forget(session.id)
        unclaim_id = await self._context.catalog.attempt(
            lambda tx: self._delete_rows(tx, session, keys)
        )
        self._leases.released(lease)
        return unclaim_id, keys

    async def retract(self, tenant_id: TenantId, turn_id: str) -> Freed:
        """A turn's response was deleted: takes the turn out of the log, if it is its end.

        A turn that others build on stays part of their log until they are gone, and so does one
        in a session that somebody named. With the turn go those before it that no id leads to any
        more; a session of which nothing is left goes, too.
        """
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.with_head(tenant_id, turn_id)
        if session is None or session.origin != "request":
            await self._context.catalog.attempt(
                lambda tx: tx.turns.prune_leaf(tenant_id, TurnId(turn_id))
            )
            return Freed(0, 0)
        async with self._leases.holding(tenant_id, session.id) as (session, _lease):
            if session.head_turn_id != turn_id:
                return Freed(0, 0)
            keys = await self.page_keys(session)
            await self._tracker.forget(session.id)

            async def shorten(tx: Transaction) -> tuple[str | None, list[PageKey]]:
                end = await _readable_end(tx, session)
                if end is None:
                    return await self._delete_rows(tx, session, keys), keys
                gone = keys[end.log_tokens // (session.page_tokens or 1) :]
                await tx.sessions.retract(session, end)
                await tx.turns.prune(tenant_id, TurnId(turn_id))
                return await _unclaim(tx, session, gone), gone

            unclaim_id, gone = await self._context.catalog.attempt(shorten)
            # Where nothing was left of the session, the lease went with it: that is let pass.
        return await self._let_go(session, unclaim_id, gone)

    async def page_keys(self, session: Session) -> list[PageKey]:
        """Keys of all full pages of a log, those that may have no KV included."""
        fingerprint = session_fingerprint(session)
        if fingerprint is None or session.page_tokens is None:
            return []
        ids = await self._context.log_ids(session)
        return self._context.keys(session.tenant_id, fingerprint, ids, session.page_tokens)

    async def _delete_rows(
        self, tx: Transaction, session: Session, keys: Sequence[PageKey]
    ) -> str | None:
        if session.origin == "conversation":
            # Before the turns go: not every item and response has one.
            conversation_id = conversation_of(session.id)
            await tx.items.delete_conversation(session.tenant_id, conversation_id)
            await tx.responses.delete_in_conversation(session.tenant_id, conversation_id)
        await tx.sessions.delete(session.tenant_id, session.id)
        if session.head_turn_id is not None:
            await tx.turns.prune(session.tenant_id, session.head_turn_id)
        await tx.turns.prune_abandoned(session.tenant_id, session.id)
        return await _unclaim(tx, session, keys)

    async def _let_go(self, session: Session, unclaim_id: str | None, keys: list[PageKey]) -> Freed:
        if session.head_turn_id is not None:
            self._context.logs.drop(session.head_turn_id)
        if unclaim_id is None:
            return Freed(0, 0)
        return await self._unclaimer.try_now(unclaim_id, session.id, keys) or Freed(0, 0)


async def _unclaim(tx: Transaction, session: Session, keys: Sequence[PageKey]) -> str | None:
    if not keys:
        return None
    return await tx.unclaims.add(session.tenant_id, session.id, keys)


async def _readable_end(tx: Transaction, session: Session) -> Turn | None:
    """The last turn before the head that an id still leads to, within the session itself."""
    assert session.head_turn_id is not None, "a session without turns has no end"
    try:
        turn = await tx.turns.get(session.tenant_id, session.head_turn_id)
        while turn.parent_turn_id is not None:
            turn = await tx.turns.get(session.tenant_id, turn.parent_turn_id)
            if turn.session_id != session.id:
                return None
            response = await tx.responses.of_turn(session.tenant_id, turn.id)
            if response is not None:
                return turn
    except NotFound:
        return None
    return None
