"""Operators: people of the provider, their roles and their tokens; each act in the audit log."""

from __future__ import annotations

import re
import secrets as random
from dataclasses import dataclass, field

from agentmem.administration.actors import Actor
from agentmem.administration.passwords import hash_password
from agentmem.administration.roles import checked_role
from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.operators import Operator, OperatorToken
from agentmem.errors import InvalidRequest, NotFound
from agentmem.sessions.secrets import Secrets

TOKENS_MAX = 20
TOKEN_SECONDS_DEFAULT = 90 * 86_400
TOKEN_SECONDS_MAX = 366 * 86_400
_EMAIL = re.compile(r"[^\s@\x00-\x1f]{1,100}@[^\s@\x00-\x1f]{1,99}\Z")
_TOKEN = re.compile(r"(amo_[0-9a-z]{24})_[0-9a-f]{64}\Z")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token's row with the token itself, which nobody can show again."""

    token: OperatorToken
    secret: str = field(repr=False)


def token_prefix(token: str) -> str | None:
    """The prefix of a well-formed operator's token, else None."""
    match = _TOKEN.match(token)
    return match.group(1) if match else None


def normal_email(email: str) -> str:
    """An address as it is stored: operators are the same whatever the case. Raises
    InvalidRequest."""
    lowered = email.strip().lower()
    if not _EMAIL.match(lowered):
        raise InvalidRequest("An operator is named by an address like a@example.com.",
                             param="email")  # fmt: skip
    return lowered


class OperatorsService:
    """Operators are named by address or id; NotFound is raised where there is none."""

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self._catalog = catalog
        self._secrets = secrets

    async def create(
        self, actor: Actor, email: str, role: str, *, password: str | None = None
    ) -> Operator:
        """An operator; without a password one who signs in by OIDC. Raises InvalidRequest."""
        address, checked = normal_email(email), checked_role(role)
        hashed = None if password is None else await hash_password(password)
        async with self._catalog.transaction() as tx:
            made = await tx.operators.create(address, checked, hashed)
            await tx.audit.append(
                actor=actor.id,
                action="operator.create",
                target=made.id,
                details={"role": checked, "password": hashed is not None},
            )
        return made

    async def set_role(self, actor: Actor, operator: str, role: str) -> Operator:
        """Changes what an operator may do. Raises InvalidRequest for the last owner."""
        checked = checked_role(role)
        async with self._catalog.transaction() as tx:
            found = await tx.operators.get(_name(operator))
            if found.role == checked:
                return found
            await _check_owner_left(tx, found)
            await tx.operators.set_role(found.id, checked)
            await tx.audit.append(
                actor=actor.id,
                action="operator.role",
                target=found.id,
                details={"before": found.role, "after": checked},
            )
            return await tx.operators.get(found.id)

    async def set_password(self, actor: Actor, operator: str, password: str | None) -> None:
        """Changes the password; None: there is none any more. Signs all browsers out."""
        hashed = None if password is None else await hash_password(password)
        async with self._catalog.transaction() as tx:
            found = await tx.operators.get(_name(operator))
            await tx.operators.set_password(found.id, hashed)
            await tx.audit.append(
                actor=actor.id,
                action="operator.password",
                target=found.id,
                details={"password": hashed is not None},
            )

    async def disable(self, actor: Actor, operator: str, *, disabled: bool = True) -> Operator:
        """Lets an operator in no more, within a second, or again. Raises InvalidRequest for the
        last owner."""
        async with self._catalog.transaction() as tx:
            found = await tx.operators.get(_name(operator))
            if (found.disabled_at is not None) == disabled:
                return found
            if disabled:
                await _check_owner_left(tx, found)
            await tx.operators.set_disabled(found.id, disabled=disabled)
            await tx.audit.append(
                actor=actor.id,
                action="operator.disable" if disabled else "operator.enable",
                target=found.id,
            )
            return await tx.operators.get(found.id)

    async def create_token(
        self,
        actor: Actor,
        operator: str,
        *,
        name: str = "",
        expires_seconds: int = TOKEN_SECONDS_DEFAULT,
    ) -> NewToken:
        """A token that may do what the operator may. Raises InvalidRequest over 20 that work."""
        if not 1 <= expires_seconds <= TOKEN_SECONDS_MAX:
            raise InvalidRequest(
                f"A token lives 1 to {TOKEN_SECONDS_MAX} seconds.", param="expires_seconds"
            )
        if len(name) > 200 or "\x00" in name:
            raise InvalidRequest("A token's name has at most 200 characters.", param="name")
        prefix = "amo_" + "".join(random.choice(_ALPHABET) for _ in range(24))
        secret = f"{prefix}_{random.token_hex(32)}"
        now = now_us()
        async with self._catalog.transaction() as tx:
            found = await tx.operators.get(_name(operator))
            if await tx.operators.count_live_tokens(found.id) >= TOKENS_MAX:
                raise InvalidRequest(f"An operator has {TOKENS_MAX} tokens at most; revoke one.")
            token = OperatorToken(
                new_id("otk"),
                found.id,
                name,
                prefix,
                self._secrets.key_hash(secret),
                now,
                now + expires_seconds * 1_000_000,
            )
            await tx.operators.add_token(token)
            await tx.audit.append(
                actor=actor.id,
                action="operator.token",
                target=token.id,
                details={"operator": found.id, "expires_at": token.expires_at},
            )
        return NewToken(token, secret)

    async def tokens(self, operator: str) -> list[OperatorToken]:
        """An operator's tokens, oldest first."""
        async with self._catalog.reading() as tx:
            return await tx.operators.tokens((await tx.operators.get(_name(operator))).id)

    async def revoke_token(self, actor: Actor, operator: str, token_id: str) -> None:
        """Ends a token now. Raises NotFound when the operator has none such that works."""
        async with self._catalog.transaction() as tx:
            found = await tx.operators.get(_name(operator))
            if not await tx.operators.revoke_token(found.id, token_id):
                raise NotFound("token", token_id)
            await tx.audit.append(
                actor=actor.id,
                action="operator.token_revoke",
                target=token_id,
                details={"operator": found.id},
            )

    async def get(self, operator: str) -> Operator:
        """One operator."""
        async with self._catalog.reading() as tx:
            return await tx.operators.get(_name(operator))

    async def list(self) -> list[Operator]:
        """All operators, oldest first."""
        async with self._catalog.reading() as tx:
            return await tx.operators.list()


def _name(operator: str) -> str:
    return operator.strip().lower()


async def _check_owner_left(tx: Transaction, operator: Operator) -> None:
    is_owner = operator.role == "owner" and operator.disabled_at is None
    if is_owner and await tx.operators.count_owners() <= 1:
        raise InvalidRequest("This is the last owner; make another one first.", param="operator")
