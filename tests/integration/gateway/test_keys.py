"""API keys: scopes on every route, their end, rotation, last use; projects; suspension."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmem.administration.actors import Actor
from agentmem.administration.scopes import ADMIN, SCOPES
from agentmem.administration.services import Administration
from agentmem.api.scopes import ANY, ROUTE_SCOPES
from agentmem.catalog.ids import default_project, now_us
from agentmem.config import Settings
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error, until_async

TEST = Actor("cli:test")
ROUTES = sorted((*route, scope) for route, scope in ROUTE_SCOPES.items())


@pytest.fixture
def services(gateway: RunningGateway) -> Administration:
    return gateway.gateway.administration


@pytest.fixture
async def admin(
    gateway: RunningGateway, services: Administration, client: Client
) -> AsyncIterator[Client]:
    """A client of the same tenant whose key has the scope admin only."""
    made = await services.keys.create(TEST, client.tenant_id, scopes=[ADMIN])
    async with Client(gateway.url, made.secret, client.tenant_id) as one:
        yield one


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def status(client: Client, key: str) -> int:
    return (await client.http.get("/v1/sessions", headers=bearer(key))).status_code


async def test_every_route_needs_its_scope_and_no_other(
    gateway: RunningGateway, services: Administration, client: Client
) -> None:
    keys = {}
    for scope in SCOPES:
        made = await services.keys.create(TEST, client.tenant_id, scopes=[scope])
        keys[scope] = made.secret
        rest = [other for other in SCOPES if other != scope]
        made = await services.keys.create(TEST, client.tenant_id, scopes=rest)
        keys[f"not {scope}"] = made.secret
    for method, path, needed in ROUTES:
        url = path.replace("{", "").replace("}", "")
        for scope in SCOPES:
            # What is not a JSON object is refused before anything is done.
            answers = [
                await client.http.request(method, url, headers=bearer(keys[name]))
                for name in (scope, f"not {scope}")
            ]
            if needed == ANY:
                assert all(one.status_code != 403 for one in answers), (method, path)
            elif needed == scope:
                assert answers[0].status_code != 403, (method, path, scope)
                error = check_error(answers[1], 403)
                assert error["code"] == "scope_missing"
                assert repr(needed) in error["message"]
            else:
                check_error(answers[0], 403)


async def test_a_key_without_the_scope_does_nothing(client: Client, admin: Client) -> None:
    session = await client.create()
    check_error(await admin.http.delete(f"/v1/sessions/{session}"), 403)
    response = await admin.post_turn(session, "hello")
    assert check_error(response, 403)["type"] == "permission_error"
    assert (await client.get(session))["turns"] == 0


async def test_all_that_is_wrong_with_a_key_looks_the_same(
    services: Administration, client: Client
) -> None:
    revoked = await services.keys.create(TEST, client.tenant_id)
    await services.keys.revoke(TEST, client.tenant_id, revoked.key.id)
    expired = await services.keys.create(TEST, client.tenant_id, expires_seconds=1)
    assert await status(client, expired.secret) == 200
    await asyncio.sleep(1.1)
    unknown = f"am_{'0' * 24}_{'0' * 64}"
    wrong = client.key[:-4] + "0000"
    answers = []
    for key in (revoked.secret, expired.secret, unknown, wrong, "am_x"):
        response = await client.http.get("/v1/sessions", headers=bearer(key))
        check_error(response, 401)
        answers.append(response.text)
    assert len(set(answers)) == 1


async def test_a_revoked_key_ends_on_every_gateway_within_a_second(
    gateway: RunningGateway, services: Administration, client: Client, settings: Settings
) -> None:
    async with running_gateway(settings) as other:
        made = await services.keys.create(TEST, client.tenant_id)
        async with Client(other.url, made.secret, client.tenant_id) as elsewhere:
            for one in (client, elsewhere):
                assert await status(one, made.secret) == 200
            await services.keys.revoke(TEST, client.tenant_id, made.key.id)
            await asyncio.sleep(1.0)
            for one in (client, elsewhere):
                assert await status(one, made.secret) == 401


async def test_rotation_overlaps(services: Administration, client: Client) -> None:
    old = await services.keys.create(TEST, client.tenant_id, name="ci", scopes=["sessions:read"])
    new = await services.keys.rotate(TEST, client.tenant_id, old.key.prefix, overlap_seconds=1)
    assert (new.key.name, new.key.scopes, new.key.rotated_from) == (
        "ci",
        "sessions:read",
        old.key.id,
    )
    assert [await status(client, one.secret) for one in (old, new)] == [200, 200]
    await asyncio.sleep(1.1)
    assert [await status(client, one.secret) for one in (old, new)] == [401, 200]


async def test_last_use_is_written_beside_the_requests(
    services: Administration, client: Client
) -> None:
    begun = now_us()
    await client.http.get("/v1/sessions")
    (key,) = await services.keys.list(client.tenant_id)
    assert key.last_used_at is None
    await services.uses.write()
    (key,) = await services.keys.list(client.tenant_id)
    assert key.last_used_at is not None
    assert begun <= key.last_used_at <= now_us()


async def test_a_suspended_tenant_is_told_so_and_keeps_what_it_has(
    services: Administration, client: Client
) -> None:
    session = await client.create()
    await services.tenants.suspend(TEST, "acme")

    async def suspended() -> bool:
        return await status(client, client.key) == 403

    await until_async(suspended, 1.0)
    error = check_error(await client.http.get("/v1/sessions"), 403)
    assert error["code"] == "tenant_suspended"
    await services.tenants.suspend(TEST, "acme", suspended=False)
    assert (await client.get(session))["id"] == session


async def test_an_address_with_many_bad_keys_waits_and_good_keys_do_not(
    client: Client, services: Administration
) -> None:
    await client.http.get("/v1/sessions")
    statuses = [await status(client, f"am_{'0' * 24}_{number:064d}") for number in range(25)]
    assert statuses[:20] == [401] * 20
    assert 429 in statuses[20:]
    response = await client.http.get("/v1/sessions", headers=bearer("am_x"))
    error = check_error(response, 429)
    assert error["code"] == "too_many_attempts"
    assert int(response.headers["retry-after"]) >= 1
    # Known to be good, also after the moment for which that is not asked again.
    await asyncio.sleep(1.0)
    assert await status(client, client.key) == 200
    # From elsewhere nothing is slow.
    elsewhere = {**bearer("am_x"), "x-forwarded-for": "9.9.9.9"}
    check_error(await client.http.get("/v1/sessions", headers=elsewhere), 401)


class TestProjects:
    async def test_everything_carries_the_keys_project(
        self, gateway: RunningGateway, services: Administration, client: Client
    ) -> None:
        project = await services.tenants.create_project(TEST, "acme", "research")
        made = await services.keys.create(TEST, "acme", project="research")
        plain = await client.create()
        default = default_project(client.tenant_id)
        async with Client(gateway.url, made.secret, client.tenant_id) as research:
            named = await research.create()
            forked = (await research.http.post(f"/v1/sessions/{plain}/fork")).json()["id"]
            body: dict[str, Any] = {
                "model": "fake",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 4,
                "store": True,
            }
            answer = (await research.http.post("/v1/chat/completions", json=body)).json()
            unnamed = answer["usage"]["agentmem"]["session_id"]
            conversation = (await research.http.post("/v1/conversations", json={})).json()["id"]
            context = await research.http.post(
                "/v1/contexts", json={"instructions": "Be brief. " * 10}
            )
            assert context.status_code == 201, context.text
        mine = await client.http.get("/v1/sessions?project=research&limit=100")
        ids = {one["id"] for one in mine.json()["data"]}
        assert {named, forked, unnamed, f"ses_{conversation[5:]}"} <= ids
        assert {one["project"] for one in mine.json()["data"]} == {project.id}
        theirs = await client.http.get(f"/v1/sessions?project={default}")
        assert [one["id"] for one in theirs.json()["data"]] == [plain]
        async with gateway.catalog.reading() as tx:
            events = await tx.usage_events.list(client.tenant_id)
            assert {event.project_id for event in events} == {project.id}
            assert len(events) == 2
            row = await tx.responses.get(client.tenant_id, answer["id"])
            assert row.project_id == project.id

    async def test_others_projects_are_not_found(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        async with await gateway.client("other") as other:
            for project in (default_project(client.tenant_id), "prj_none", "none"):
                response = await other.http.get(f"/v1/sessions?project={project}")
                error = check_error(response, 404)
                assert error["code"] == "project_not_found"


class TestOwnAdministration:
    async def test_keys(self, client: Client, admin: Client) -> None:
        http = admin.http
        await http.post("/v1/projects", json={"name": "p"})
        body = {"name": "n", "project": "p", "scopes": ["inference"], "expires_seconds": 60}
        made = (await http.post("/v1/keys", json=body)).json()
        assert made["key"].startswith(made["prefix"])
        assert made["state"] == "active"
        assert 59 <= made["expires_at"] - made["created_at"] <= 60
        new = (await http.post(f"/v1/keys/{made['id']}/rotate", json={})).json()
        assert (new["rotated_from"], new["project"]) == (made["id"], made["project"])
        listed = (await http.get("/v1/keys?limit=100")).json()["data"]
        assert [one["id"] for one in listed][-2:] == [made["id"], new["id"]]
        assert "key" not in listed[0]
        page = (await http.get(f"/v1/keys?limit=1&after={listed[0]['id']}")).json()
        assert (page["first_id"], page["has_more"]) == (listed[1]["id"], True)
        ended = (await http.delete(f"/v1/keys/{made['id']}")).json()
        assert ended["state"] == "revoked"
        check_error(await http.post(f"/v1/keys/{made['id']}/rotate", json={}), 400)
        projects = (await http.get("/v1/projects")).json()["data"]
        assert [one["name"] for one in projects] == ["default", "p"]
        check_error(await http.post("/v1/projects", json={"name": "p"}), 400)
        check_error(await http.post("/v1/keys", json={"scopes": ["root"]}), 400)
        check_error(await http.post("/v1/keys", json={"project": "q"}), 404)

    async def test_another_tenants_keys_are_not_there(
        self, gateway: RunningGateway, services: Administration, admin: Client
    ) -> None:
        other = await services.tenants.create(TEST, "other")
        theirs = await services.keys.create(TEST, other.id)
        for key_id in (theirs.key.id, theirs.key.prefix, "key_01m87y8r24vqk6tcrffb0r88gw"):
            for method, path in (("DELETE", ""), ("POST", "/rotate")):
                response = await admin.http.request(method, f"/v1/keys/{key_id}{path}")
                assert check_error(response, 404)["code"] == "key_not_found"
        listed = await admin.http.get(f"/v1/keys?after={theirs.key.id}")
        check_error(listed, 404)
        assert theirs.key.id not in (await admin.http.get("/v1/keys")).text
        (key,) = await services.keys.list(other.id)
        assert (key.revoked_at, key.expires_at) == (None, None)

    async def test_each_act_is_in_the_audit_log_without_secrets(
        self, services: Administration, admin: Client
    ) -> None:
        made = (await admin.http.post("/v1/keys", json={"name": "secret name"})).json()
        await admin.http.delete(f"/v1/keys/{made['id']}")
        await admin.http.delete(f"/v1/keys/{made['id']}")
        entries = await services.audit.list(target=made["id"])
        assert [entry.action for entry in entries] == ["key.revoke", "key.create"]
        assert entries[0].actor.startswith("key:key_")
        everything = str(await services.audit.list())
        for secret in (made["key"], made["key"].rpartition("_")[2], "secret name"):
            assert secret not in everything
        assert (await services.audit.verify()).whole
