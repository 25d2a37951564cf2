"""Where a turn goes on from: a named session, a turn, or the longest known beginning.

    InSession       the session's end; its lease is taken (SessionBusy while another turn runs)
    AfterTurn       that turn; its session is extended if it ends there, else a new one branches off
    LongestPrefix   the newest turn whose whole conversation begins the one that was sent
    FromContext     the context's messages

Only a named session is leased. Everything else never waits: who commits first extends the session,
whoever comes second branches off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agentmem.catalog.ids import is_id, new_id, now_us
from agentmem.catalog.records import Lease, Session, Turn
from agentmem.catalog.turns import PREFIXES_PER_QUERY
from agentmem.core import SessionId, TenantId, TurnId
from agentmem.errors import NotFound
from agentmem.sessions.context import Context
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.log import Log
from agentmem.sessions.messages import (
    NO_FRAMING,
    Framing,
    Message,
    chain_hashes,
    extend_hash,
)
from agentmem.sessions.requests import (
    AfterTurn,
    FromContext,
    InSession,
    LongestPrefix,
    Target,
    TurnRequest,
)

# Ends of conversations that are remembered here, about 200 bytes each.
_ENDS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Base:
    """What a turn builds on.

    `session` is the one to extend; `made` is False where it has yet to be made (the turn's commit
    does it). `lease` is there for a named session only. `turn_id` is the end of the log to go on
    from, None for a new one. `messages` are those that come after it. `known_hash` is the hash of
    the whole conversation up to the reply where the caller sent the whole. `inherits` says that
    the log's instructions and tools stay in force where the turn brings none.
    """

    session: Session
    made: bool
    lease: Lease | None
    turn_id: TurnId | None
    messages: tuple[Message, ...]
    known_hash: bytes | None = None
    inherits: bool = False


class Bases:
    """Finds bases. `busy` says whether this gateway is extending a session just now."""

    def __init__(
        self, context: Context, leases: LeaseKeeper, busy: Callable[[SessionId], bool]
    ) -> None:
        self._context = context
        self._leases = leases
        self._busy = busy
        self._ends: dict[tuple[TenantId, bytes], tuple[TurnId, SessionId]] = {}

    async def find(self, tenant_id: TenantId, target: Target, request: TurnRequest) -> Base:
        """The base of a turn. Raises NotFound, SessionBusy; a lease that was taken is held."""
        if isinstance(target, AfterTurn):
            return await self._after_turn(tenant_id, target, request)
        if isinstance(target, LongestPrefix):
            return await self._longest_prefix(tenant_id, target, request)
        if isinstance(target, FromContext):
            return await self._from_context(tenant_id, target, request)
        async with self._context.catalog.transaction(durable=False) as tx:
            session, lease = await self._leases.take(tx, tenant_id, checked_id(target.session_id))
        self._leases.hold(lease)
        try:
            return await self.in_session(session, lease, target, request)
        except BaseException:
            await self._leases.release(lease)
            raise

    async def look(self, tenant_id: TenantId, target: Target, request: TurnRequest) -> Base:
        """As `find`, for those who only look: takes no lease, so nothing is busy."""
        if not isinstance(target, InSession):
            return await self.find(tenant_id, target, request)
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, checked_id(target.session_id))
        return await self.in_session(session, None, target, request)

    async def in_session(
        self, session: Session, lease: Lease | None, target: InSession, request: TurnRequest
    ) -> Base:
        """The base within a session that was read already."""
        named = Base(session, True, lease, session.head_turn_id, request.messages)
        if session.head_turn_id is None:
            return replace(named, session=_with_model(session, target.model))
        if target.model not in (None, session.model):
            return await self._other_model(named, target, request)
        if not target.whole:
            return replace(named, inherits=True)
        log = self._context.logs.get(session.head_turn_id)
        if log is not None and log.prefix_hash is not None:
            hashes = chain_hashes(session.model, log.framing, request.messages)
            if log.prefix_hash in hashes:
                count = hashes.index(log.prefix_hash) + 1
                return replace(named, messages=request.messages[count:])
        async with self._context.catalog.reading() as tx:
            chain = await tx.turns.chain(session.tenant_id, session.head_turn_id)
        found = _last_within(session.model, chain, request.messages)
        if found is None:
            return replace(named, turn_id=None)
        turn, count = found
        return replace(named, turn_id=turn.id, messages=request.messages[count:])

    async def _other_model(self, named: Base, target: InSession, request: TurnRequest) -> Base:
        """The session goes on with another model: its log begins anew."""
        session, told = named.session, request.messages
        if not target.whole and session.head_turn_id is not None:
            async with self._context.catalog.reading() as tx:
                chain = await tx.turns.chain(session.tenant_id, session.head_turn_id)
            told = (*whole_conversation(chain), *request.messages)
        changed = _with_model(session, target.model)
        return replace(named, session=changed, turn_id=None, messages=told)

    def note(self, tenant_id: TenantId, turn: Turn, session: Session) -> None:
        """A turn was committed: whoever resends its conversation is found without a query."""
        if turn.prefix_hash is None:
            return
        if len(self._ends) >= _ENDS_MAX:
            del self._ends[next(iter(self._ends))]
        self._ends[tenant_id, turn.prefix_hash] = (turn.id, session.id)

    async def _after_turn(
        self, tenant_id: TenantId, target: AfterTurn, request: TurnRequest
    ) -> Base:
        async with self._context.catalog.reading() as tx:
            turn = await tx.turns.get(tenant_id, target.turn_id)
            session = await tx.sessions.with_head(tenant_id, turn.id)
            origin = session or await tx.sessions.of_turn(tenant_id, turn.id)
            model = target.model or (origin.model if origin else None)
            if model is None:
                raise NotFound("turn", target.turn_id)
            if origin is not None and origin.model == model:
                if session is None:
                    return Base(branched(origin, turn.id), False, None, turn.id, request.messages)
                return self._free(session, turn.id, request.messages)
            chain = await tx.turns.chain(tenant_id, turn.id)
        # Another model: its ids and pages are others, so the conversation begins anew.
        told = (*whole_conversation(chain), *request.messages)
        return Base(await self.new_session(tenant_id, model, request), False, None, None, told)

    async def _longest_prefix(
        self, tenant_id: TenantId, target: LongestPrefix, request: TurnRequest
    ) -> Base:
        messages = request.messages
        hashes = chain_hashes(target.model, request.framing, messages)
        found = await self._match(tenant_id, messages, hashes)
        if found is None:
            session = await self.new_session(tenant_id, target.model, request)
            return Base(session, False, None, None, messages, hashes[-1])
        count, turn_id, session = found
        base = self._free(session, turn_id, messages[count:])
        return replace(base, known_hash=hashes[-1])

    async def _match(
        self, tenant_id: TenantId, messages: Sequence[Message], hashes: Sequence[bytes]
    ) -> tuple[int, TurnId, Session] | None:
        """How many messages are known, the turn that ends there, and its session."""
        counts = [
            index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"
        ]
        while counts:
            asked = counts[-PREFIXES_PER_QUERY:][::-1]  # the longest first
            del counts[-PREFIXES_PER_QUERY:]
            quick = self._ends.get((tenant_id, hashes[asked[0] - 1]))
            async with self._context.catalog.reading() as tx:
                if quick is not None:
                    session = await tx.sessions.with_head(tenant_id, quick[0])
                    if session is not None and not self._busy(session.id):
                        return asked[0], quick[0], session
                place = await tx.turns.longest_known(
                    tenant_id, [hashes[count - 1] for count in asked]
                )
                if place is None:
                    continue
                count = asked[place]
                ends = await tx.turns.with_prefix(tenant_id, hashes[count - 1])
                # One that ends a session which nobody extends just now, else the newest.
                free = [end for end in ends if end[1] is not None and not self._busy(end[1])]
                turn_id, session_id = (free or ends)[0]
                if session_id is not None:
                    return count, turn_id, await tx.sessions.get(tenant_id, session_id)
                origin = await tx.sessions.of_turn(tenant_id, turn_id)
                if origin is not None:
                    return count, turn_id, origin
        return None

    async def _from_context(
        self, tenant_id: TenantId, target: FromContext, request: TurnRequest
    ) -> Base:
        async with self._context.catalog.reading() as tx:
            context = await tx.contexts.get(tenant_id, target.context_id)
            origin = await tx.sessions.get(tenant_id, context.session_id)
            assert origin.head_turn_id is not None, "a context's session has its messages"
            turn = await tx.turns.get(tenant_id, origin.head_turn_id)
        framing = request.framing
        if framing == NO_FRAMING and turn.framing is not None:
            framing = Framing.from_dict(turn.framing)
        told = (*turn.messages, *request.messages)
        hashes = chain_hashes(origin.model, framing, told)
        # Whoever resends a history that began with the context goes on with its session.
        found = await self._match(tenant_id, told, hashes)
        if found is not None and found[0] > len(turn.messages):
            count, turn_id, session = found
            base = self._free(session, turn_id, told[count:])
        else:
            made = await self.new_session(tenant_id, origin.model, request)
            made = replace(made, context_id=context.id)
            base = Base(made, False, None, turn.id, request.messages)
        return replace(base, known_hash=hashes[-1], inherits=True)

    def _free(self, session: Session, turn_id: TurnId, messages: tuple[Message, ...]) -> Base:
        """The session itself, where nobody named it and nobody extends it now; else a branch."""
        mine = session.origin == "request" and session.head_turn_id == turn_id
        if mine and not self._busy(session.id):
            return Base(session, True, None, turn_id, messages)
        return Base(branched(session, turn_id), False, None, turn_id, messages)

    async def new_session(self, tenant_id: TenantId, model: str, request: TurnRequest) -> Session:
        """A session that nobody named, to be made by its first turn."""
        limits, plan = self._context.limits, await self._context.plans.of(tenant_id)
        terms = plan.definition.terms(
            request.retention,
            kv_retention_seconds=limits.kv_retention_seconds,
            log_retention_seconds=limits.log_retention_seconds,
        )
        now = now_us()
        return Session(
            id=SessionId(new_id("ses")),
            tenant_id=tenant_id,
            model=model,
            metadata={},
            state="active",
            head_turn_id=None,
            turns=0,
            tokens=0,
            durable_position=0,
            rebases=0,
            parent_session_id=None,
            fork_turn=None,
            kv_retention_seconds=terms.kv_retention_seconds,
            log_retention_seconds=terms.log_retention_seconds,
            worker_id=None,
            worker_generation=None,
            fingerprint=None,
            page_tokens=None,
            created_at=now,
            updated_at=now,
            origin="request",
            retention=terms.retention,
            expires_at=now + terms.log_retention_seconds * 1_000_000,
            asked_retention=terms.asked,
        )


def branched(session: Session, turn_id: TurnId | None) -> Session:
    """A session of its own that shares the log up to a turn; nobody named it."""
    now = now_us()
    return replace(
        session,
        id=SessionId(new_id("ses")),
        metadata={},
        head_turn_id=turn_id,
        origin="request",
        parent_session_id=session.id,
        fork_turn=None,
        created_at=now,
        updated_at=now,
    )


def checked_id(session_id: str) -> str:
    """Ids that cannot be ours never reach the database."""
    if not is_id(session_id, "ses"):
        raise NotFound("session", session_id)
    return session_id


def conversation_hash(
    log: Log, framing: Framing, messages: Sequence[Message], *, model: str
) -> bytes:
    """The hash of a log's conversation with `messages` at its end."""
    if log.prefix_hash is None or not framing.same_prompt(log.framing):
        return chain_hashes(model, framing, (*log.messages, *messages))[-1]
    state = log.prefix_hash
    for message in messages:
        state = extend_hash(state, message)
    return state


def whole_conversation(chain: Sequence[Turn]) -> list[Message]:
    """All messages of a chain of turns, also those that truncation left out of the log."""
    told: list[Message] = []
    for turn in chain:
        told.extend(turn.messages)
        if turn.reply is not None:
            told.append(turn.reply)
    return told


def _with_model(session: Session, model: str | None) -> Session:
    return session if model is None else replace(session, model=model)


def _last_within(
    model: str, chain: Sequence[Turn], messages: Sequence[Message]
) -> tuple[Turn, int] | None:
    """The last turn whose whole conversation begins `messages`, and how many of them it is."""
    framings, framing = [], Framing()
    for turn in chain:
        if turn.framing is not None:
            framing = Framing.from_dict(turn.framing)
        framings.append(framing)
    counts: dict[bytes, int] = {}
    hashed: list[Framing] = []
    for turn, framing in zip(reversed(chain), reversed(framings), strict=True):
        if framing not in hashed:
            hashed.append(framing)
            for index, digest in enumerate(chain_hashes(model, framing, messages)):
                counts[digest] = index + 1
        count = counts.get(turn.prefix_hash or b"")
        if count is not None:
            return turn, count
    return None


__all__ = ["Base", "Bases", "branched", "checked_id", "conversation_hash"]
