"""Signing in as an operator: by password or OIDC into a browser, by bearer token from a script."""

from __future__ import annotations

import hmac
import secrets as random
from dataclasses import dataclass, field

from agentmem.administration.actors import Actor
from agentmem.administration.operators import token_prefix
from agentmem.administration.passwords import verify_password
from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.catalog.operators import Operator, SignIn
from agentmem.errors import AuthenticationFailed, TooManyAttempts
from agentmem.sessions.secrets import Secrets
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.administration.signin")

# Attempts before there is a wait: of one account, and from one address.
ACCOUNT_FREE = 5
ADDRESS_FREE = 20
_USE_WRITTEN_EVERY_US = 30_000_000
_TOKEN_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class OperatorCaller:
    """Who is asking. `csrf_token`: what unsafe requests of a browser must show; None: no browser,
    hence nobody who could be made to send what they did not mean to."""

    id: str
    email: str
    role: str
    csrf_token: str | None = field(default=None, repr=False)

    @property
    def actor(self) -> Actor:
        """As the audit log names it."""
        return Actor(f"operator:{self.id}")


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A browser that was signed in; `token` is for its cookie, until `expires_at`."""

    operator: OperatorCaller
    token: str = field(repr=False)
    expires_at: int = 0


class SignInService:
    """Whatever is wrong with a name, password, cookie or token is one AuthenticationFailed."""

    def __init__(
        self,
        catalog: Catalog,
        secrets: Secrets,
        *,
        idle_seconds: float = 3_600.0,
        seconds_max: float = 43_200.0,
    ) -> None:
        self._catalog = catalog
        self._secrets = secrets
        self._idle_us = round(idle_seconds * 1e6)
        self._max_us = round(seconds_max * 1e6)

    async def by_password(self, email: str, password: str, *, network: str) -> SignedIn:
        """Signs a browser in. `network` is where it comes from.

        Raises AuthenticationFailed, or TooManyAttempts with how long to wait: attempts are
        counted by account and by network over all gateways, and each one too many doubles it.
        """
        address = email.strip().lower()[:200]
        account_key = self.digest("account", address).hex()
        network_key = self.digest("network", network).hex()
        async with self._catalog.transaction() as tx:
            # In one order, so that two attempts do not wait for each other in a circle.
            waits = [
                await tx.attempts.begin(subject, free=free)
                for subject, free in sorted(
                    ((account_key, ACCOUNT_FREE), (network_key, ADDRESS_FREE))
                )
            ]
            found = await tx.operators.find(address)
        if max(waits) > 0:
            raise TooManyAttempts(retry_after_seconds=max(waits) / 1e6)
        stored = None if found is None else found.password_hash
        good = await verify_password(stored, password)
        if found is None or stored is None or not good or found.disabled_at is not None:
            # Not in the audit log: strangers would fill it, and an entry for accounts that there
            # are would tell by its time which those are.
            _log.warning("operator not signed in", known=found is not None)
            raise AuthenticationFailed("The address or the password is wrong.")
        async with self._catalog.transaction() as tx:
            await tx.attempts.succeeded(account_key, network_key)
        return await self.sign_in(found, "password")

    async def sign_in(self, operator: Operator, way: str) -> SignedIn:
        """A browser for an operator who has proved to be it."""
        token, now = random.token_urlsafe(32), now_us()
        sign_in = SignIn(self.digest("sign-in", token), operator.id, now, now, now + self._max_us)
        async with self._catalog.transaction() as tx:
            await tx.operators.add_sign_in(sign_in)
            await tx.audit.append(
                actor=f"operator:{operator.id}",
                action="operator.sign_in",
                target=operator.id,
                details={"by": way},
            )
        return SignedIn(self._caller(operator, token), token, sign_in.expires_at)

    async def by_cookie(self, token: str) -> OperatorCaller:
        """The operator whose browser this is, unless it was idle for too long."""
        if not token or len(token) > _TOKEN_CHARACTERS_MAX:
            raise _not_signed_in()
        digest, now = self.digest("sign-in", token), now_us()
        async with self._catalog.reading() as tx:
            found = await tx.operators.find_sign_in(digest)
        if found is None:
            raise _not_signed_in()
        sign_in, operator = found
        over = sign_in.expires_at <= now or sign_in.used_at + self._idle_us <= now
        if over or operator.disabled_at is not None:
            raise _not_signed_in()
        if sign_in.used_at < now - min(_USE_WRITTEN_EVERY_US, self._idle_us // 4):
            async with self._catalog.transaction(durable=False) as tx:
                await tx.operators.use_sign_in(digest)
        return self._caller(operator, token)

    async def by_bearer(self, token: str) -> OperatorCaller:
        """The operator whose token this is."""
        prefix = token_prefix(token)
        if prefix is None:
            raise _not_signed_in()
        now, digest = now_us(), self._secrets.key_hash(token)
        async with self._catalog.reading() as tx:
            found = await tx.operators.find_token(prefix)
        expected = bytes(len(digest)) if found is None else found[0].hash
        good = hmac.compare_digest(expected, digest)
        if found is None or not good:
            raise _not_signed_in()
        known, operator = found
        ended = known.revoked_at is not None or known.expires_at <= now
        if ended or operator.disabled_at is not None:
            raise _not_signed_in()
        if known.last_used_at is None or known.last_used_at < now - 60_000_000:
            async with self._catalog.transaction(durable=False) as tx:
                await tx.operators.use_token(known.id)
        return OperatorCaller(operator.id, operator.email, operator.role)

    async def sign_out(self, token: str) -> None:
        """Ends a browser's sign-in; its cookie is worth nothing any more."""
        async with self._catalog.transaction() as tx:
            await tx.operators.end_sign_in(self.digest("sign-in", token))

    def shows_csrf(self, caller: OperatorCaller, shown: str | None) -> bool:
        """Whether a request shows the token that only the console's own pages can read."""
        if caller.csrf_token is None:
            return True
        return hmac.compare_digest(caller.csrf_token.encode(), (shown or "").encode())

    def digest(self, purpose: str, text: str) -> bytes:
        """32 bytes to store instead of a secret, of no use for another purpose."""
        message = f"agentmem {purpose}\x00{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._secrets.pepper, message, "sha256")

    def _caller(self, operator: Operator, token: str) -> OperatorCaller:
        csrf = self.digest("csrf", token).hex()
        return OperatorCaller(operator.id, operator.email, operator.role, csrf)


def _not_signed_in() -> AuthenticationFailed:
    return AuthenticationFailed(
        "You are not signed in as an operator.",
        hint="Sign in, or send the header: Authorization: Bearer amo_...",
    )
