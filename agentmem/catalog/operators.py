"""Operators (people of the provider), their sign-ins and tokens. Each is an operators' function."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import admin_tables as tables
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.upserts import upsert
from agentmem.errors import InvalidRequest, NotFound, TooManyAttempts

# How far behind the time of last use may be.
_USE_WRITTEN_EVERY_US = 60_000_000
# Anybody can begin one.
_FLOWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Operator:
    """A person of the provider. `password_hash` None: signs in by OIDC only; `issuer` and
    `subject` are the identity that the first sign-in by OIDC tied to it."""

    id: str
    email: str
    role: str
    created_at: int
    password_hash: str | None = field(default=None, repr=False)
    issuer: str | None = None
    subject: str | None = None
    disabled_at: int | None = None


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A bearer token for an operator's scripts: never the token, only an HMAC of it."""

    id: str
    operator_id: str
    name: str
    prefix: str
    hash: bytes = field(repr=False)
    created_at: int
    expires_at: int
    revoked_at: int | None = None
    last_used_at: int | None = None


@dataclass(frozen=True, slots=True)
class SignIn:
    """A browser that is signed in: an HMAC of its token, since when, last used, and its end."""

    hash: bytes = field(repr=False)
    operator_id: str
    created_at: int
    used_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class OidcFlow:
    """A sign-in at the provider of identities that was begun; good for one answer."""

    state_hash: bytes = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)
    expires_at: int


class Operators:
    """Statements on the operators' tables; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, email: str, role: str, password_hash: str | None) -> Operator:
        """Raises InvalidRequest when there is an operator with this address."""
        if await self.find(email) is not None:
            raise InvalidRequest(f"An operator {email!r} exists.", param="email")
        made = Operator(new_id("opr"), email, role, now_us(), password_hash)
        await self._connection.execute(insert(tables.operators).values(asdict(made)))
        return made

    async def find(self, email_or_id: str) -> Operator | None:
        """An operator by address or id."""
        table = tables.operators
        return await self._one(or_(table.c.email == email_or_id, table.c.id == email_or_id))

    async def get(self, email_or_id: str) -> Operator:
        """As `find`, but raises NotFound."""
        found = await self.find(email_or_id)
        if found is None:
            raise NotFound("operator", email_or_id)
        return found

    async def find_identity(self, issuer: str, subject: str) -> Operator | None:
        """Whom an identity of a provider was tied to."""
        table = tables.operators
        return await self._one((table.c.issuer == issuer) & (table.c.subject == subject))

    async def count_owners(self) -> int:
        """How many owners can sign in; on PostgreSQL their rows stay as they are until the
        transaction ends, so that two cannot demote each other."""
        table = tables.operators
        rows = await self._connection.execute(
            select(table.c.id)
            .where(table.c.role == "owner", table.c.disabled_at.is_(None))
            .with_for_update()
        )
        return len(rows.all())

    async def set_role(self, operator_id: str, role: str) -> None:
        """Changes what an operator may do."""
        await self._update(operator_id, role=role)

    async def set_password(self, operator_id: str, password_hash: str | None) -> None:
        """Changes how an operator signs in; None: by OIDC only. Ends all sign-ins."""
        await self._update(operator_id, password_hash=password_hash)
        await self.end_sign_ins(operator_id)

    async def set_identity(self, operator_id: str, issuer: str, subject: str) -> bool:
        """Ties an identity to an operator who has none yet; whether that was so."""
        table = tables.operators
        result = await self._connection.execute(
            update(table)
            .where(table.c.id == operator_id, table.c.subject.is_(None))
            .values(issuer=issuer, subject=subject)
        )
        return result.rowcount == 1

    async def set_disabled(self, operator_id: str, *, disabled: bool) -> None:
        """Lets an operator in no more, or again. Ends all sign-ins; tokens rest meanwhile."""
        await self._update(operator_id, disabled_at=now_us() if disabled else None)
        await self.end_sign_ins(operator_id)

    async def add_sign_in(self, sign_in: SignIn) -> None:
        """Notes a browser that is signed in, and forgets those whose time is over."""
        table = tables.operator_sign_ins
        await self._connection.execute(delete(table).where(table.c.expires_at < now_us()))
        await self._connection.execute(insert(table).values(asdict(sign_in)))

    async def find_sign_in(self, token_hash: bytes) -> tuple[SignIn, Operator] | None:
        """A sign-in, over or not, with its operator, disabled or not."""
        table, operators = tables.operator_sign_ins, tables.operators
        row = (
            await self._connection.execute(select(table).where(table.c.hash == token_hash))
        ).first()
        if row is None:
            return None
        operator = await self._one(operators.c.id == row.operator_id)
        return None if operator is None else (SignIn(**row._mapping), operator)

    async def use_sign_in(self, token_hash: bytes) -> None:
        """Its idle time begins anew."""
        table = tables.operator_sign_ins
        await self._connection.execute(
            update(table).where(table.c.hash == token_hash).values(used_at=now_us())
        )

    async def end_sign_in(self, token_hash: bytes) -> None:
        """Signs one browser out."""
        table = tables.operator_sign_ins
        await self._connection.execute(delete(table).where(table.c.hash == token_hash))

    async def end_sign_ins(self, operator_id: str) -> None:
        """Signs all of an operator's browsers out."""
        table = tables.operator_sign_ins
        await self._connection.execute(delete(table).where(table.c.operator_id == operator_id))

    async def add_token(self, token: OperatorToken) -> None:
        """Stores a token's HMAC (32 bytes) under its prefix."""
        await self._connection.execute(insert(tables.operator_tokens).values(asdict(token)))

    async def find_token(self, prefix: str) -> tuple[OperatorToken, Operator] | None:
        """The token that shows this prefix, whatever became of it, and its operator."""
        table, operators = tables.operator_tokens, tables.operators
        row = (
            await self._connection.execute(select(table).where(table.c.prefix == prefix))
        ).first()
        if row is None:
            return None
        operator = await self._one(operators.c.id == row.operator_id)
        return None if operator is None else (OperatorToken(**row._mapping), operator)

    async def tokens(self, operator_id: str) -> list[OperatorToken]:
        """An operator's tokens, oldest first, ended ones too."""
        table = tables.operator_tokens
        rows = await self._connection.execute(
            select(table)
            .where(table.c.operator_id == operator_id)
            .order_by(table.c.created_at, table.c.id)
        )
        return [OperatorToken(**row._mapping) for row in rows]

    async def count_live_tokens(self, operator_id: str) -> int:
        """How many of an operator's tokens work now."""
        table = tables.operator_tokens
        query = (
            select(func.count())
            .select_from(table)
            .where(
                table.c.operator_id == operator_id,
                table.c.revoked_at.is_(None),
                table.c.expires_at > now_us(),
            )
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def use_token(self, token_id: str) -> None:
        """Notes that it was used, at most once a minute."""
        table, now = tables.operator_tokens, now_us()
        await self._connection.execute(
            update(table)
            .where(
                table.c.id == token_id,
                or_(
                    table.c.last_used_at.is_(None),
                    table.c.last_used_at <= now - _USE_WRITTEN_EVERY_US,
                ),
            )
            .values(last_used_at=now)
        )

    async def revoke_token(self, operator_id: str, token_id: str) -> bool:
        """Whether the operator had such a token that was not revoked yet."""
        table = tables.operator_tokens
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == token_id,
                table.c.operator_id == operator_id,
                table.c.revoked_at.is_(None),
            )
            .values(revoked_at=now_us())
        )
        return result.rowcount == 1

    async def begin_oidc(self, flow: OidcFlow) -> None:
        """Notes a sign-in that was begun, and forgets those that took too long.

        Raises TooManyAttempts when thousands are under way.
        """
        table = tables.oidc_flows
        await self._connection.execute(delete(table).where(table.c.expires_at < now_us()))
        count = select(func.count()).select_from(table)
        if (await self._connection.execute(count)).scalar_one() >= _FLOWS_MAX:
            raise TooManyAttempts(retry_after_seconds=60.0)
        await self._connection.execute(insert(table).values(asdict(flow)))

    async def take_oidc(self, state_hash: bytes) -> OidcFlow | None:
        """A sign-in that was begun, which nobody can take again."""
        table = tables.oidc_flows
        row = (
            await self._connection.execute(
                delete(table).where(table.c.state_hash == state_hash).returning(*table.c)
            )
        ).first()
        return None if row is None else OidcFlow(**row._mapping)

    async def use_code(self, code_hash: bytes, *, expires_at: int) -> bool:
        """Whether this code of a provider comes for the first time."""
        table = tables.oidc_codes
        await self._connection.execute(delete(table).where(table.c.expires_at < now_us()))
        statement = upsert(self._connection, table).values(
            code_hash=code_hash, expires_at=expires_at
        )
        result = await self._connection.execute(
            statement.on_conflict_do_nothing(index_elements=["code_hash"])
        )
        return result.rowcount == 1

    async def list(self) -> list[Operator]:
        """All operators, oldest first, disabled ones too."""
        table = tables.operators
        rows = await self._connection.execute(
            select(table).order_by(table.c.created_at, table.c.id)
        )
        return [Operator(**row._mapping) for row in rows]

    async def _one(self, condition: ColumnElement[bool]) -> Operator | None:
        row = (await self._connection.execute(select(tables.operators).where(condition))).first()
        return None if row is None else Operator(**row._mapping)

    async def _update(self, operator_id: str, **values: object) -> None:
        table = tables.operators
        await self._connection.execute(
            update(table).where(table.c.id == operator_id).values(**values)
        )
