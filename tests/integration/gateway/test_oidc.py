"""Sign-in by OpenID Connect, at a real provider that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from joserfc.jwk import RSAKey

from agentmem.administration.actors import Actor
from agentmem.administration.oidc import OidcSettings
from agentmem.administration.services import Administration
from agentmem.api.operators import OIDC_COOKIE
from agentmem.config import Settings
from agentmem.errors import ConfigurationInvalid
from agentmem.testing.gateway import RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error
from tests.integration.gateway.oidc_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    Provider,
    running_provider,
)

TEST = Actor("cli:test")
EMAIL = "ada@example.com"
START, CALLBACK = "/v1/admin/oidc/start", "/v1/admin/oidc/callback"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running_provider() as one:
        yield one


@pytest.fixture
async def gateway(
    settings: Settings, provider: Provider, tmp_path: Path
) -> AsyncIterator[RunningGateway]:
    secret = tmp_path / "client_secret"
    secret.write_text(CLIENT_SECRET)
    secret.chmod(0o600)
    given = settings.model_copy(
        update={
            "oidc_issuer": provider.url,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret_file": str(secret),
        }
    )
    async with running_gateway(given) as running:
        await running.gateway.administration.operators.create(TEST, EMAIL, "viewer")
        yield running


@pytest.fixture
def services(gateway: RunningGateway) -> Administration:
    return gateway.gateway.administration


@pytest.fixture
async def browser(gateway: RunningGateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as one:
        yield one


async def question(browser: httpx2.AsyncClient) -> dict[str, str]:
    """Begins a sign-in and lets the provider answer: what comes back with the browser."""
    begun = await browser.get(START)
    assert begun.status_code == 303, begun.text
    async with httpx2.AsyncClient(trust_env=False) as at_provider:
        back = await at_provider.get(begun.headers["location"])
    assert back.status_code == 303
    return dict(httpx2.URL(back.headers["location"]).params)


async def answered(browser: httpx2.AsyncClient, answer: dict[str, str]) -> httpx2.Response:
    return await browser.get(CALLBACK, params=answer)


async def sign_in(browser: httpx2.AsyncClient) -> httpx2.Response:
    return await answered(browser, await question(browser))


async def test_an_operator_is_signed_in_and_the_identity_is_tied(
    browser: httpx2.AsyncClient, provider: Provider, services: Administration
) -> None:
    done = await sign_in(browser)
    assert (done.status_code, done.headers["location"]) == (303, "/v1/admin/me")
    assert (await browser.get("/v1/admin/me")).json()["email"] == EMAIL
    assert OIDC_COOKIE not in browser.cookies
    # From now on the identity counts, whatever its address.
    provider.user = {"sub": "u1", "email": "other@example.com"}
    assert (await sign_in(browser)).status_code == 303
    # And nobody else's identity opens the account, though it has the address.
    provider.user = {"sub": "u2", "email": EMAIL, "email_verified": True}
    check_error(await sign_in(browser), 401)
    (entry,) = await services.audit.list(action="operator.identity")
    assert EMAIL not in str(entry)


@pytest.mark.parametrize(
    "user",
    [
        {"sub": "u1", "email": EMAIL},
        {"sub": "u1", "email": EMAIL, "email_verified": "true"},
        {"sub": "u1", "email": "stranger@example.com", "email_verified": True},
        {"sub": "u1"},
    ],
)
async def test_who_is_no_operator_is_refused(
    browser: httpx2.AsyncClient, provider: Provider, user: dict[str, Any]
) -> None:
    provider.user = user
    check_error(await sign_in(browser), 401)
    check_error(await browser.get("/v1/admin/me"), 401)


@pytest.mark.parametrize("forge", ["none", "hs256", "stranger"])
async def test_signatures_that_are_none_are_refused(
    browser: httpx2.AsyncClient, provider: Provider, forge: str
) -> None:
    provider.forge = forge
    check_error(await sign_in(browser), 401)
    provider.forge = ""
    assert (await sign_in(browser)).status_code == 303


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another-client"},
        {"aud": [CLIENT_ID, "another-client"]},
        {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"},
        {"azp": "another-client"},
        {"iss": "https://evil.example"},
        {"nonce": "n" * 43},
        {"nonce": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"iat": 4_000_000_000},
        {"sub": None},
        {"sub": ""},
    ],
)
async def test_identities_for_others_are_refused(
    browser: httpx2.AsyncClient, provider: Provider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    check_error(await sign_in(browser), 401)


async def test_an_answer_is_good_once(
    browser: httpx2.AsyncClient, provider: Provider, gateway: RunningGateway
) -> None:
    provider.keep_codes = True  # a provider that is careless about it
    begun = await question(browser)
    cookies = dict(browser.cookies)
    assert (await answered(browser, begun)).status_code == 303
    browser.cookies.update(cookies)
    check_error(await answered(browser, begun), 401)
    # The code in another sign-in of the same browser.
    again = await question(browser)
    check_error(await answered(browser, again | {"code": begun["code"]}), 401)
    assert provider.asked.count("token") == 1


async def test_an_answer_is_for_the_browser_that_asked(
    browser: httpx2.AsyncClient, gateway: RunningGateway
) -> None:
    begun = await question(browser)
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as victim:
        check_error(await answered(victim, begun), 401)
        await question(victim)
        check_error(await answered(victim, begun), 401)
    for given in ({}, {"code": "c"}, {"state": begun["state"]}, {"error": "access_denied"}):
        check_error(await answered(browser, given), 401)
    check_error(await answered(browser, begun | {"state": "s" * 43}), 401)
    assert (await answered(browser, begun)).status_code == 303


async def test_a_provider_with_a_new_key_is_asked_again(
    browser: httpx2.AsyncClient, provider: Provider, services: Administration
) -> None:
    assert (await sign_in(browser)).status_code == 303
    provider.key = RSAKey.generate_key(2048, {"kid": "k2"})
    check_error(await sign_in(browser), 401)  # asked a moment ago
    assert services.oidc is not None
    assert services.oidc._keys is not None
    services.oidc._keys = (services.oidc._keys[0], services.oidc._keys[1] - 11)
    assert (await sign_in(browser)).status_code == 303
    assert provider.asked.count("keys") == 2


async def test_a_provider_that_is_not_the_issuer_or_not_there(
    browser: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.issuer = "https://evil.example"
    error = check_error(await browser.get(START), 503)
    assert error["code"] == "provider_unavailable"


async def test_a_flow_that_takes_too_long(
    browser: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.administration.oidc.FLOW_SECONDS", 0.05)
    begun = await question(browser)
    await asyncio.sleep(0.1)
    check_error(await answered(browser, begun), 401)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigurationInvalid, match="no https URL"):
        OidcSettings("http://idp.example", "c", "http://x")
    with pytest.raises(ConfigurationInvalid, match="without a client id"):
        OidcSettings("https://idp.example", "", "http://x")
