"""Turns: an immutable, persistent chain. A log is read by walking the parents of its head."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Row,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.blobs import pack_floats, pack_tokens, unpack_floats, unpack_tokens
from agentmem.catalog.locks import lock_name
from agentmem.catalog.records import Turn
from agentmem.core import SessionId, TenantId, TurnId
from agentmem.errors import NotFound

# SQLite takes 32,766 parameters per statement; smaller chunks keep statements cheap to parse.
_IDS_PER_STATEMENT = 500
# Equal conversations are told apart by their session; so many are looked at.
_MATCHES_MAX = 50
PREFIXES_PER_QUERY = 32

_WITHOUT_LOGPROBS = [
    column for column in tables.turns.columns if column.name not in {"logprobs", "top_logprobs"}
]

# Made once: building a statement takes longer than running it.
_INSERT = insert(tables.turns)
_KNOWN = select(
    *(
        select(tables.turns.c.id)
        .where(
            tables.turns.c.tenant_id == bindparam("tenant"),
            tables.turns.c.prefix_hash == bindparam(f"prefix_{index}"),
        )
        .exists()
        .label(f"known_{index}")
        for index in range(PREFIXES_PER_QUERY)
    )
)


class Turns:
    """Statements on `turns`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, turn: Turn) -> None:
        """Writes one turn; turns never change."""
        await self._connection.execute(
            _INSERT,
            {
                "id": turn.id,
                "tenant_id": turn.tenant_id,
                "session_id": turn.session_id,
                "parent_turn_id": turn.parent_turn_id,
                "number": turn.number,
                "keep": turn.keep,
                "tokens": pack_tokens(turn.tokens),
                "prompt_tokens": turn.prompt_tokens,
                "log_tokens": turn.log_tokens,
                "rebased": int(turn.rebased),
                "dropped": None if turn.dropped is None else list(turn.dropped),
                "framing": None if turn.framing is None else dict(turn.framing),
                "prefix_hash": turn.prefix_hash,
                "messages": turn.messages,
                "reply": turn.reply,
                "finish_reason": turn.finish_reason,
                "sampling": dict(turn.sampling),
                "usage": dict(turn.usage),
                "logprobs": None if turn.logprobs is None else pack_floats(turn.logprobs),
                "top_logprobs": turn.top_logprobs,
                "body_hash": turn.body_hash,
                "created_at": turn.created_at,
            },
        )

    async def chain(
        self, tenant_id: TenantId, head: TurnId, *, last: int | None = None
    ) -> list[Turn]:
        """All turns from the first one to `head`, or the `last` ones of them; empty when `head` is
        not the tenant's. Log-probabilities, which no log needs, are left out."""
        chain = _chain(tenant_id, head, last=last)
        table = tables.turns
        rows = await self._connection.execute(
            select(*_WITHOUT_LOGPROBS)
            .join(chain, chain.c.id == table.c.id)
            .order_by(table.c.number)
        )
        return [_turn(row) for row in rows]

    async def token_ids(self, tenant_id: TenantId, head: TurnId) -> array[int]:
        """The log up to `head`, as ids alone; empty when `head` is not the tenant's."""
        table, chain = tables.turns, _chain(tenant_id, head)
        rows = await self._connection.execute(
            select(table.c.id, table.c.keep, table.c.tokens, table.c.log_tokens)
            .join(chain, chain.c.id == table.c.id)
            .order_by(table.c.number)
        )
        ids = array("I")
        for row in rows:
            del ids[row.keep :]
            ids.extend(unpack_tokens(row.tokens))
            assert len(ids) == row.log_tokens, f"turn {row.id} does not fit the log before it"
        return ids

    async def get(self, tenant_id: TenantId, turn_id: str) -> Turn:
        """One turn. Raises NotFound."""
        table = tables.turns
        row = (
            await self._connection.execute(
                select(table).where(table.c.id == turn_id, table.c.tenant_id == tenant_id)
            )
        ).first()
        if row is None:
            raise NotFound("turn", turn_id)
        return _turn(row)

    async def note_pages(
        self, tenant_id: TenantId, turn_id: TurnId, *, expected: int, received: int
    ) -> None:
        """Adds to a turn's usage how many of its log's pages reached the node agent. A turn that
        is gone is let pass."""
        table = tables.turns
        found = (table.c.id == turn_id, table.c.tenant_id == tenant_id)
        query = select(table.c.usage).where(*found).with_for_update(key_share=True)
        row = (await self._connection.execute(query)).first()
        if row is not None:
            usage = {**row.usage, "pages": {"expected": expected, "received": received}}
            await self._connection.execute(update(table).where(*found).values(usage=usage))

    async def exists(self, tenant_id: TenantId, turn_id: TurnId) -> bool:
        """Whether a turn is there."""
        table = tables.turns
        query = select(table.c.id).where(table.c.id == turn_id, table.c.tenant_id == tenant_id)
        return (await self._connection.execute(query)).first() is not None

    async def pin(self, tenant_id: TenantId, turn_id: TurnId) -> bool:
        """Whether a turn is there; if so, nobody deletes it before the transaction ends."""
        table = tables.turns
        query = (
            select(table.c.id)
            .where(table.c.id == turn_id, table.c.tenant_id == tenant_id)
            .with_for_update(read=True, key_share=True)
        )
        return (await self._connection.execute(query)).first() is not None

    async def longest_known(self, tenant_id: TenantId, hashes: Sequence[bytes]) -> int | None:
        """The index of the first of these hashes that is some turn's conversation; None: none is.

        One look at the index per hash, however many turns share one.
        """
        assert len(hashes) <= PREFIXES_PER_QUERY, "more hashes than one statement takes"
        # Filled up, so that one statement serves any number.
        asked = [*hashes, *[hashes[-1]] * (PREFIXES_PER_QUERY - len(hashes))]
        parameters = {f"prefix_{index}": digest for index, digest in enumerate(asked)}
        row = (await self._connection.execute(_KNOWN, {"tenant": tenant_id, **parameters})).one()
        return next((index for index in range(len(hashes)) if row[index]), None)

    async def with_prefix(
        self, tenant_id: TenantId, digest: bytes
    ) -> list[tuple[TurnId, SessionId | None]]:
        """The newest turns whose whole conversation has this hash, and the session that each is
        the end of, if any."""
        table, session = tables.turns, tables.sessions
        newest = (
            select(table.c.id)
            .where(table.c.tenant_id == tenant_id, table.c.prefix_hash == digest)
            .order_by(table.c.id.desc())
            .limit(_MATCHES_MAX)
            .subquery()
        )
        rows = await self._connection.execute(
            select(newest.c.id, session.c.id.label("session_id"))
            .outerjoin(session, session.c.head_turn_id == newest.c.id)
            .order_by(newest.c.id.desc())
        )
        return [(TurnId(row.id), row.session_id and SessionId(row.session_id)) for row in rows]

    async def numbered(self, tenant_id: TenantId, head: TurnId, number: int) -> Turn | None:
        """The turn `number` (from 1) on the way to `head`."""
        chain = _chain(tenant_id, head)
        table = tables.turns
        row = (
            await self._connection.execute(
                select(table).join(chain, chain.c.id == table.c.id).where(table.c.number == number)
            )
        ).first()
        return None if row is None else _turn(row)

    async def number_of(self, tenant_id: TenantId, head: TurnId, turn_id: str) -> int | None:
        """The number of a turn on the way to `head`; None when it is not on it."""
        chain = _chain(tenant_id, head)
        row = (
            await self._connection.execute(select(chain.c.number).where(chain.c.id == turn_id))
        ).first()
        return None if row is None else int(row.number)

    async def page(
        self,
        tenant_id: TenantId,
        head: TurnId,
        *,
        after: int | None,
        limit: int,
        descending: bool = False,
    ) -> list[Turn]:
        """Up to `limit` turns of the chain, from after number `after` on."""
        chain = _chain(tenant_id, head)
        table = tables.turns
        query = select(table).join(chain, chain.c.id == table.c.id)
        if after is not None:
            query = query.where(table.c.number < after if descending else table.c.number > after)
        query = query.order_by(table.c.number.desc() if descending else table.c.number)
        return [_turn(row) for row in await self._connection.execute(query.limit(limit))]

    async def prune(self, tenant_id: TenantId, head: TurnId) -> int:
        """Deletes the turns from `head` back to where another session's chain goes through.

        Called after the row of the session that had this head is gone; returns how many.
        """
        await self._prune_alone(tenant_id)
        gone = await self._unreachable(tenant_id, head)
        if not self._one_writer:
            # Whoever builds on one of these has pinned it, or finds it gone.
            await self._lock(tenant_id, gone)
            locked = set(gone)
            gone = [one for one in await self._unreachable(tenant_id, head) if one in locked]
        # Children first, so that no statement leaves a turn without its parent.
        for ids in _batches(gone):
            await self._connection.execute(
                delete(tables.turns).where(
                    tables.turns.c.id.in_(ids), tables.turns.c.tenant_id == tenant_id
                )
            )
        return len(gone)

    @property
    def _one_writer(self) -> bool:
        return self._connection.dialect.name == "sqlite"

    async def _prune_alone(self, tenant_id: TenantId) -> None:
        """One deletion of a tenant's at a time: of two logs with a common beginning, each would
        leave it to the other."""
        await lock_name(self._connection, f"prune {tenant_id}")

    async def _lock(self, tenant_id: TenantId, turn_ids: Sequence[str]) -> None:
        table = tables.turns
        for ids in _batches(sorted(turn_ids)):  # in one order, so that two never wait crosswise
            await self._connection.execute(
                select(table.c.id)
                .where(table.c.id.in_(ids), table.c.tenant_id == tenant_id)
                .order_by(table.c.id)
                .with_for_update()
            )

    async def _unreachable(self, tenant_id: TenantId, head: TurnId) -> list[str]:
        """The turns from `head` back to where another session's chain goes through."""
        chain = _chain(tenant_id, head)
        child, session = tables.turns.alias("child"), tables.sessions
        children = (
            select(func.count())
            .select_from(child)
            .where(child.c.parent_turn_id == chain.c.id)
            .scalar_subquery()
        )
        heads = (
            select(func.count())
            .select_from(session)
            .where(session.c.head_turn_id == chain.c.id)
            .scalar_subquery()
        )
        rows = await self._connection.execute(
            select(chain.c.id, children.label("children"), heads.label("heads")).order_by(
                chain.c.number.desc()
            )
        )
        unreachable: list[str] = []
        for row in rows:
            # The child on this very chain, already listed, is the one that does not count.
            if row.heads or row.children > (1 if unreachable else 0):
                break
            unreachable.append(row.id)
        return unreachable

    async def prune_leaf(self, tenant_id: TenantId, turn_id: TurnId) -> None:
        """Deletes one turn unless another turn or a session builds on it."""
        table = tables.turns
        await self._prune_alone(tenant_id)
        await self._lock(tenant_id, [turn_id])
        await self._connection.execute(
            delete(table).where(
                table.c.id == turn_id, table.c.tenant_id == tenant_id, *_unreached()
            )
        )

    async def prune_abandoned(self, tenant_id: TenantId, session_id: SessionId) -> int:
        """Deletes what a session made and went back behind, where nothing else builds on it.

        Returns how many turns.
        """
        table, deleted = tables.turns, 0
        mine = (table.c.tenant_id == tenant_id, table.c.session_id == session_id)
        await self._prune_alone(tenant_id)
        while True:
            if not self._one_writer:
                query = select(table.c.id).where(*mine, *_unreached()).order_by(table.c.id)
                await self._connection.execute(query.with_for_update(of=table))
            result = await self._connection.execute(delete(table).where(*mine, *_unreached()))
            if result.rowcount == 0:
                return deleted
            deleted += result.rowcount

    async def count(self, tenant_id: TenantId) -> int:
        """How many turns a tenant has."""
        query = (
            select(func.count())
            .select_from(tables.turns)
            .where(tables.turns.c.tenant_id == tenant_id)
        )
        return int((await self._connection.execute(query)).scalar_one())


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _IDS_PER_STATEMENT):
        yield ids[start : start + _IDS_PER_STATEMENT]


def _unreached() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """No turn follows, and no session ends here."""
    turn, child, session = tables.turns, tables.turns.alias("child"), tables.sessions
    return (
        ~select(child.c.id).where(child.c.parent_turn_id == turn.c.id).exists(),
        ~select(session.c.id).where(session.c.head_turn_id == turn.c.id).exists(),
    )


def _chain(tenant_id: TenantId, head: TurnId, *, last: int | None = None) -> CTE:
    table = tables.turns
    columns = (table.c.id, table.c.parent_turn_id, table.c.number)
    chain = (
        select(*columns, literal(1).label("depth"))
        .where(table.c.id == head, table.c.tenant_id == tenant_id)
        .cte("chain", recursive=True)
    )
    before = select(*columns, chain.c.depth + 1).where(
        table.c.id == chain.c.parent_turn_id, table.c.tenant_id == tenant_id
    )
    return chain.union_all(before if last is None else before.where(chain.c.depth < last))


def _turn(row: Row[Any]) -> Turn:
    fields = dict(row._mapping)
    fields["tokens"] = unpack_tokens(fields["tokens"])
    fields.setdefault("logprobs", None)
    fields["rebased"] = bool(fields["rebased"])
    if fields["dropped"] is not None:
        fields["dropped"] = tuple(fields["dropped"])
    if fields["logprobs"] is not None:
        fields["logprobs"] = unpack_floats(fields["logprobs"])
    return Turn(**fields)
