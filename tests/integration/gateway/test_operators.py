"""Operators: passwords, cookies, CSRF, tokens, roles, and what slows guesses down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from agentmem.administration.actors import Actor
from agentmem.administration.roles import ROLES
from agentmem.administration.services import Administration
from agentmem.api.operators import Cookies
from agentmem.api.roles import ROUTE_ROLES
from agentmem.catalog.ids import now_us
from agentmem.config import Settings
from agentmem.errors import InvalidRequest
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error

TEST = Actor("cli:test")
EMAIL, PASSWORD = "ada@example.com", "correct horse battery"


@pytest.fixture
def services(gateway: RunningGateway) -> Administration:
    return gateway.gateway.administration


@pytest.fixture
async def browser(
    gateway: RunningGateway, services: Administration
) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser, with an operator that it is not signed in as yet."""
    await services.operators.create(TEST, EMAIL, "owner", password=PASSWORD)
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as one:
        yield one


async def execute(gateway: RunningGateway, statement: str) -> None:
    async with gateway.catalog._engine.begin() as connection:
        await connection.execute(text(statement))


async def sign_in(browser: httpx2.AsyncClient, password: str = PASSWORD) -> httpx2.Response:
    body = {"email": EMAIL, "password": password}
    return await browser.post("/v1/admin/sign-in", json=body)


class TestBrowser:
    async def test_the_cookie_and_what_it_opens(self, browser: httpx2.AsyncClient) -> None:
        check_error(await browser.get("/v1/admin/me"), 401)
        answer = await sign_in(browser)
        assert answer.status_code == 200, answer.text
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "path=/" in cookie
        me = (await browser.get("/v1/admin/me")).json()
        assert (me["email"], me["role"]) == (EMAIL, "owner")
        assert me["csrf_token"] == answer.json()["csrf_token"]

    async def test_what_changes_something_needs_the_csrf_token(
        self, browser: httpx2.AsyncClient
    ) -> None:
        csrf = (await sign_in(browser)).json()["csrf_token"]
        for headers in ({}, {"x-csrf-token": "0" * 64}, {"x-csrf-token": csrf[:-1]}):
            check_error(await browser.post("/v1/admin/tokens", json={}, headers=headers), 403)
        good = {"x-csrf-token": csrf}
        for foreign in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            response = await browser.post("/v1/admin/tokens", json={}, headers=good | foreign)
            check_error(response, 403)
        own = good | {"origin": str(browser.base_url).rstrip("/")}
        assert (await browser.post("/v1/admin/tokens", json={}, headers=own)).status_code == 201
        assert len((await browser.get("/v1/admin/tokens")).json()["data"]) == 1

    async def test_signing_out_ends_it_on_the_server(self, browser: httpx2.AsyncClient) -> None:
        csrf = (await sign_in(browser)).json()["csrf_token"]
        kept = dict(browser.cookies)
        done = await browser.post("/v1/admin/sign-out", headers={"x-csrf-token": csrf})
        assert done.status_code == 204
        assert not dict(browser.cookies)
        browser.cookies.update(kept)
        check_error(await browser.get("/v1/admin/me"), 401)

    async def test_it_ends_by_itself(
        self, browser: httpx2.AsyncClient, gateway: RunningGateway
    ) -> None:
        async def status() -> int:
            return (await browser.get("/v1/admin/me")).status_code

        hour = 3_600_000_000
        used = "UPDATE operator_sign_ins SET used_at = used_at"
        await sign_in(browser)
        # Used 59 minutes ago: used again, so that it may rest for another hour.
        await execute(
            gateway, f"UPDATE operator_sign_ins SET used_at = used_at - {hour * 59 // 60}"
        )
        assert await status() == 200
        await execute(
            gateway, f"UPDATE operator_sign_ins SET used_at = used_at - {hour * 59 // 60}"
        )
        assert await status() == 200
        await execute(gateway, f"{used} - {hour}")
        assert await status() == 401
        await sign_in(browser)
        assert await status() == 200
        await execute(
            gateway, f"UPDATE operator_sign_ins SET expires_at = expires_at - {12 * hour}"
        )
        assert await status() == 401

    async def test_disabled_and_another_password_end_all_sign_ins(
        self, browser: httpx2.AsyncClient, services: Administration
    ) -> None:
        await sign_in(browser)
        await services.operators.set_password(TEST, EMAIL, PASSWORD + "!")
        check_error(await browser.get("/v1/admin/me"), 401)
        await sign_in(browser, PASSWORD + "!")
        with pytest.raises(InvalidRequest, match="last owner"):
            await services.operators.disable(TEST, EMAIL)
        await services.operators.create(TEST, "bob@example.com", "owner")
        await services.operators.disable(TEST, EMAIL)
        check_error(await browser.get("/v1/admin/me"), 401)
        check_error(await sign_in(browser, PASSWORD + "!"), 401)

    def test_over_https_cookies_are_for_this_host_and_tls_only(self) -> None:
        cookies = Cookies("https://console.example")
        assert (cookies.name, cookies.secure) == ("__Host-agentmem_operator", True)
        assert Cookies("http://127.0.0.1:8700").name == "agentmem_operator"


class TestGuessing:
    async def test_all_that_is_wrong_looks_the_same(
        self, browser: httpx2.AsyncClient, services: Administration
    ) -> None:
        await services.operators.create(TEST, "oidc@example.com", "viewer")
        answers = set()
        for email, password in (
            (EMAIL, "wrong password"),
            ("nobody@example.com", PASSWORD),
            ("oidc@example.com", PASSWORD),
            (EMAIL, "x" * 200),
        ):
            body = {"email": email, "password": password}
            response = await browser.post("/v1/admin/sign-in", json=body)
            check_error(response, 401)
            answers.add(response.text)
        assert len(answers) == 1

    async def test_an_account_is_slowed_over_all_gateways_and_addresses(
        self, browser: httpx2.AsyncClient, gateway: RunningGateway, settings: Settings
    ) -> None:
        async with running_gateway(settings) as other:
            body = {"email": EMAIL, "password": "wrong password"}
            statuses = []
            for number, url in enumerate((str(browser.base_url), other.url) * 4):
                response = await browser.post(
                    f"{url.rstrip('/')}/v1/admin/sign-in",
                    json=body,
                    headers={"x-forwarded-for": f"9.9.9.{number}"},
                )
                statuses.append(response.status_code)
            # The fifth had an answer, and from then on there is a wait.
            assert statuses[:5] == [401] * 5
            assert 429 in statuses[5:]
            until = now_us() + 60_000_000
            await execute(gateway, f"UPDATE sign_in_attempts SET blocked_until = {until}")
            # Not even the right password is looked at.
            response = await sign_in(browser)
            check_error(response, 429)
            assert 50 <= int(response.headers["retry-after"]) <= 60
            await execute(gateway, "UPDATE sign_in_attempts SET blocked_until = 0")
            assert (await sign_in(browser)).status_code == 200
            assert (await sign_in(browser, "wrong password")).status_code == 401
            assert (await sign_in(browser, "wrong password")).status_code == 401

    async def test_many_at_once_are_counted_each(self, browser: httpx2.AsyncClient) -> None:
        answers = await asyncio.gather(*(sign_in(browser, f"guess {i}") for i in range(12)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(401) <= 5
        assert statuses.count(429) >= 7

    async def test_bad_tokens_of_an_address_are_slowed(self, browser: httpx2.AsyncClient) -> None:
        headers = {"authorization": f"Bearer amo_{'0' * 24}_{'0' * 64}"}
        statuses = [
            (await browser.get("/v1/admin/me", headers=headers)).status_code for _ in range(22)
        ]
        assert statuses[:20] == [401] * 20
        assert statuses[-1] == 429


class TestTokens:
    async def test_a_token_does_what_its_operator_may(
        self, gateway: RunningGateway, services: Administration, browser: httpx2.AsyncClient
    ) -> None:
        made = await services.operators.create_token(TEST, EMAIL, name="ci")
        bearer = {"authorization": f"Bearer {made.secret}"}
        me = (await browser.get("/v1/admin/me", headers=bearer)).json()
        assert (me["email"], me["csrf_token"]) == (EMAIL, None)
        body = {"email": "bob@example.com", "role": "viewer"}
        created = await browser.post("/v1/admin/operators", json=body, headers=bearer)
        assert created.status_code == 201, created.text
        (entry,) = await services.audit.list(target=created.json()["id"])
        assert entry.actor == f"operator:{me['id']}"
        (token,) = await services.operators.tokens(EMAIL)
        assert token.last_used_at is not None
        await services.operators.revoke_token(TEST, EMAIL, token.id)
        check_error(await browser.get("/v1/admin/me", headers=bearer), 401)

    async def test_it_ends(self, services: Administration, browser: httpx2.AsyncClient) -> None:
        made = await services.operators.create_token(TEST, EMAIL, expires_seconds=1)
        await asyncio.sleep(1.1)
        bearer = {"authorization": f"Bearer {made.secret}"}
        check_error(await browser.get("/v1/admin/me", headers=bearer), 401)

    async def test_neither_kind_of_credential_opens_the_others_routes(
        self, client: Client, services: Administration, browser: httpx2.AsyncClient
    ) -> None:
        made = await services.operators.create_token(TEST, EMAIL)
        bearer = {"authorization": f"Bearer {made.secret}"}
        check_error(await browser.get("/v1/sessions", headers=bearer), 401)
        check_error(await client.http.get("/v1/admin/me"), 401)
        await sign_in(browser)
        check_error(await browser.get("/v1/sessions"), 401)


async def test_every_route_takes_its_roles_and_no_other(
    gateway: RunningGateway, services: Administration
) -> None:
    bearers: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        await services.operators.create(TEST, f"{role}@example.com", role)
        made = await services.operators.create_token(TEST, f"{role}@example.com")
        bearers[role] = {"authorization": f"Bearer {made.secret}"}
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        for (method, path), roles in ROUTE_ROLES.items():
            url = path.replace("{", "").replace("}", "")
            check_error(await http.request(method, url), 401)
            for role, bearer in bearers.items():
                response = await http.request(method, url, headers=bearer)
                if role in roles:
                    assert response.status_code not in (401, 403), (method, path, role)
                else:
                    assert check_error(response, 403)["code"] == "role_missing"


async def test_owners_change_roles_but_for_the_last_one(
    browser: httpx2.AsyncClient, services: Administration
) -> None:
    headers = {"x-csrf-token": (await sign_in(browser)).json()["csrf_token"]}
    me = (await browser.get("/v1/admin/me")).json()["id"]
    path = f"/v1/admin/operators/{me}"
    for body in ({"role": "viewer"}, {"disabled": True}):
        error = check_error(await browser.patch(path, json=body, headers=headers), 400)
        assert "last owner" in error["message"]
    check_error(
        await browser.patch("/v1/admin/operators/opr_x", json={"role": "owner"}, headers=headers),
        404,
    )
    body = {"email": "Bob@Example.com", "role": "owner", "password": "another password"}
    made = (await browser.post("/v1/admin/operators", json=body, headers=headers)).json()
    assert made["email"] == "bob@example.com"
    assert (await browser.patch(path, json={"role": "viewer"}, headers=headers)).status_code == 200
    check_error(await browser.post("/v1/admin/operators", json=body, headers=headers), 403)
    short = {**body, "email": "eve@example.com", "password": "short"}
    with pytest.raises(InvalidRequest, match="12 to 200"):
        await services.operators.create(TEST, short["email"], "viewer", password="short")
    everything = str(await services.audit.list())
    for secret in (PASSWORD, "another password", "example.com", "argon2"):
        assert secret not in everything
