"""A small provider of identities over real HTTP, which can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agentmem.testing.gateway import _served

CLIENT_ID = "agentmem-gateway"
CLIENT_SECRET = "s" * 40


@dataclass
class Provider:
    """`user` is who signs in; `claims` replaces claims of the identity, None takes one out.

    `forge`: "none" (no signature), "hs256" (signed with the client's secret) or "stranger".
    """

    url: str = ""
    user: dict[str, Any] = field(
        default_factory=lambda: {"sub": "u1", "email": "ada@example.com", "email_verified": True}
    )
    claims: dict[str, Any] = field(default_factory=dict)
    forge: str = ""
    issuer: str = ""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1"}))
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    keep_codes: bool = False

    async def discovery(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer or self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            }
        )

    async def keys(self, _request: Request) -> Response:
        self.asked.append("keys")
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})

    async def authorize(self, request: Request) -> Response:
        given = dict(request.query_params)
        assert given["client_id"] == CLIENT_ID
        assert given["response_type"] == "code"
        assert given["code_challenge_method"] == "S256"
        assert "openid" in given["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = given
        back = urlencode({"code": code, "state": given["state"]})
        return RedirectResponse(f"{given['redirect_uri']}?{back}", 303)

    async def token(self, request: Request) -> Response:
        self.asked.append("token")
        form = await request.form()
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_client"}, 401)
        code = str(form["code"])
        begun = self.codes.get(code) if self.keep_codes else self.codes.pop(code, None)
        digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse(
            {
                "access_token": "a",
                "token_type": "Bearer",
                "expires_in": 60,
                "id_token": self.identity(begun["nonce"]),
            }
        )

    def identity(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 60,
            "nonce": nonce,
            **self.user,
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.forge == "none":
            parts = [
                base64.urlsafe_b64encode(part).rstrip(b"=").decode()
                for part in (b'{"alg":"none"}', JSONResponse(claims).body)
            ]
            return ".".join([*parts, ""])
        if self.forge == "hs256":
            key = OctKey.import_key(CLIENT_SECRET)
            return jwt.encode({"alg": "HS256", "kid": "k1"}, claims, key)
        key = RSAKey.generate_key(2048) if self.forge == "stranger" else self.key
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, key)


@asynccontextmanager
async def running_provider() -> AsyncIterator[Provider]:
    """Starts one on a free port."""
    provider = Provider()
    app = Starlette(
        routes=[
            Route("/.well-known/openid-configuration", provider.discovery),
            Route("/keys", provider.keys),
            Route("/authorize", provider.authorize),
            Route("/token", provider.token, methods=["POST"]),
        ]
    )
    async with _served(app) as url:
        provider.url = url
        yield provider
