"""Sign-in by OpenID Connect: the code flow with PKCE, state and nonce, each good for one answer.

What is refused: an issuer or audience that is not ours, an algorithm that needs no key or the
client's secret, a code or state that came before, an answer in another browser than the question.
"""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from agentmem.administration.signin import SignedIn, SignInService
from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.catalog.operators import OidcFlow, Operator
from agentmem.errors import AuthenticationFailed, ConfigurationInvalid, ProviderUnavailable
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.administration.oidc")

# Signed with a key of the provider's own. Never "none"; never HS256, whose key we hold, too.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
FLOW_SECONDS = 600.0
_CODE_KEPT_US = 3_600_000_000
_KNOWN_SECONDS = 600.0
_KEYS_ASKED_EVERY_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
_LEEWAY_SECONDS = 30
_CHARACTERS_MAX = 4_096
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Who we are to the provider. `redirect_url` is where it sends browsers back to."""

    issuer: str
    client_id: str
    redirect_url: str
    client_secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ConfigurationInvalid(f"The OIDC issuer {self.issuer!r} is no https URL.")
        if not self.client_id:
            raise ConfigurationInvalid("An OIDC issuer is set without a client id.")


@dataclass(frozen=True, slots=True)
class BegunFlow:
    """Where to send the browser, and what its cookie must have when it comes back."""

    url: str
    state: str = field(repr=False)


class OidcService:
    """One provider of identities. Operators exist before: a sign-in makes none."""

    def __init__(self, catalog: Catalog, sign_ins: SignInService, settings: OidcSettings) -> None:
        self._catalog = catalog
        self._sign_ins = sign_ins
        self._settings = settings
        self._metadata: tuple[Mapping[str, Any], float] | None = None
        self._keys: tuple[KeySet, float] | None = None

    async def begin(self) -> BegunFlow:
        """Begins a sign-in. Raises ProviderUnavailable."""
        metadata = await self._discovered()
        state, nonce = random.token_urlsafe(32), random.token_urlsafe(32)
        verifier = random.token_urlsafe(48)
        expires_at = now_us() + round(FLOW_SECONDS * 1e6)
        flow = OidcFlow(self._sign_ins.digest("state", state), nonce, verifier, expires_at)
        async with self._catalog.transaction() as tx:
            await tx.operators.begin_oidc(flow)
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=state,
                nonce=nonce,
                code_verifier=verifier,
            )
        return BegunFlow(url, state)

    async def finish(self, *, state: str, code: str, browser_state: str) -> SignedIn:
        """Ends it with what came back. `browser_state` is what the browser's cookie has.

        Raises AuthenticationFailed, or ProviderUnavailable.
        """
        if max(len(state), len(code), len(browser_state)) > _CHARACTERS_MAX or not code:
            raise _refused("the answer is no answer")
        state_hash = self._sign_ins.digest("state", state)
        if self._sign_ins.digest("state", browser_state) != state_hash:
            raise _refused("it was begun in another browser")
        code_hash = self._sign_ins.digest("code", code)
        async with self._catalog.transaction() as tx:
            flow = await tx.operators.take_oidc(state_hash)
            fresh = await tx.operators.use_code(code_hash, expires_at=now_us() + _CODE_KEPT_US)
        if flow is None or flow.expires_at <= now_us():
            raise _refused("it took too long, or came before")
        if not fresh:
            raise _refused("the code came before")
        claims = await self._claims(code, flow)
        operator = await self._operator(claims)
        return await self._sign_ins.sign_in(operator, "oidc")

    async def _claims(self, code: str, flow: OidcFlow) -> Mapping[str, Any]:
        metadata = await self._discovered()
        try:
            async with self._client() as client:
                answer = await client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=flow.code_verifier,
                )
        except (OAuthError, ValueError) as error:
            raise _refused("the provider does not take the code") from error
        except httpx2.HTTPError as error:
            raise ProviderUnavailable(type(error).__name__) from error
        token = answer.get("id_token") if isinstance(answer, Mapping) else None
        if not isinstance(token, str):
            raise _refused("the provider sent no identity")
        return await self._verified(token, flow.nonce)

    async def _verified(self, token: str, nonce: str) -> Mapping[str, Any]:
        try:
            decoded = await self._decoded(token)
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self._settings.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": self._settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(decoded.claims)
        except (JoseError, ValueError, TypeError) as error:
            # Its class only: the message may have parts of the token.
            raise _refused(f"the identity is not valid ({type(error).__name__})") from error
        claims = decoded.claims
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", "" if several else self._settings.client_id) != (
            self._settings.client_id
        ):
            raise _refused("the identity is for somebody else")
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 400:
            raise _refused("the identity names nobody")
        return claims

    async def _decoded(self, token: str) -> jwt.Token:
        keys = await self._provider_keys()
        try:
            return jwt.decode(token, keys, algorithms=list(ALGORITHMS))
        except JoseError:
            # The provider may have a new key: ask again, not more often than now and then.
            again = await self._provider_keys(older_than=_KEYS_ASKED_EVERY_SECONDS)
            if again is keys:
                raise
            return jwt.decode(token, again, algorithms=list(ALGORITHMS))

    async def _operator(self, claims: Mapping[str, Any]) -> Operator:
        issuer, subject = self._settings.issuer, claims["sub"]
        email = claims.get("email")
        async with self._catalog.transaction() as tx:
            operator = await tx.operators.find_identity(issuer, subject)
            # The first time it is the address that tells, if the provider has verified it.
            if operator is None and isinstance(email, str) and claims.get("email_verified") is True:
                found = await tx.operators.find(email.strip().lower())
                if found is not None and await tx.operators.set_identity(found.id, issuer, subject):
                    await tx.audit.append(
                        actor=f"operator:{found.id}", action="operator.identity", target=found.id
                    )
                    operator = found
        if operator is None or operator.disabled_at is not None:
            raise _refused("there is no operator of this identity")
        return operator

    async def _discovered(self) -> Mapping[str, Any]:
        if self._metadata is not None and time.monotonic() - self._metadata[1] < _KNOWN_SECONDS:
            return self._metadata[0]
        issuer = self._settings.issuer
        found = await self._fetched(get_well_known_url(issuer, external=True))
        wanted = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        if found.get("issuer") != issuer or not all(isinstance(found.get(n), str) for n in wanted):
            raise ProviderUnavailable("its discovery document is not that of the issuer")
        secure = urlsplit(issuer).scheme == "https"
        if secure and not all(urlsplit(found[name]).scheme == "https" for name in wanted):
            raise ProviderUnavailable("its discovery document names addresses without TLS")
        self._metadata = (found, time.monotonic())
        return found

    async def _provider_keys(self, *, older_than: float = _KNOWN_SECONDS) -> KeySet:
        now = time.monotonic()
        if self._keys is not None and now - self._keys[1] < older_than:
            return self._keys[0]
        metadata = await self._discovered()
        try:
            found = await self._fetched(metadata["jwks_uri"])
            keys = KeySet.import_key_set(found)  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise ProviderUnavailable("its keys cannot be read") from error
        self._keys = (keys, now)
        return keys

    async def _fetched(self, url: str) -> Mapping[str, Any]:
        try:
            async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS) as client:
                answer = await client.get(url)
                answer.raise_for_status()
                found = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            _log.warning("provider of identities does not answer", error=type(error).__name__)
            raise ProviderUnavailable(type(error).__name__) from error
        if not isinstance(found, dict):
            raise ProviderUnavailable("it does not answer with an object")
        return found

    def _client(self) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            self._settings.client_id,
            self._settings.client_secret or None,
            token_endpoint_auth_method=(
                "client_secret_basic" if self._settings.client_secret else "none"
            ),
            scope="openid email",
            redirect_uri=self._settings.redirect_url,
            code_challenge_method="S256",
            timeout=_ANSWER_SECONDS,
        )


def _refused(why: str) -> AuthenticationFailed:
    """One sentence to whoever signs in; the log says why."""
    _log.warning("sign-in by OIDC refused", why=why)
    return AuthenticationFailed("This sign-in was refused.", hint="Begin it anew.")
