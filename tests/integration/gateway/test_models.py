"""Models over HTTP, and names that mean a tenant's default one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmem.administer import set_tenant_models
from agentmem.config import Settings
from agentmem.errors import InvalidRequest, NotFound
from agentmem.testing.fake_worker import FakeWorker
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.chatting import complete, post, user
from tests.integration.gateway.conftest import check_error, until_async

MODELS = "/v1/models"


@pytest.fixture
async def second_model(gateway: RunningGateway, settings: Settings) -> AsyncIterator[str]:
    """A second worker with a model of its own; its name has a slash, as many have."""
    worker = FakeWorker(settings.models_dir / "fake", model="acme/larger", page_tokens=16)
    async with worker.running(gateway.catalog):
        await gateway.gateway.router.models()
        yield "acme/larger"


async def prefer(
    gateway: RunningGateway, client: Client, default: str | None, aliases: list[str] | None
) -> None:
    async with gateway.catalog.transaction() as tx:
        await tx.tenants.set_models(client.tenant_id, default_model=default, model_aliases=aliases)


async def test_listed(client: Client) -> None:
    listed = (await client.http.get(MODELS)).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert set(model) == {"id", "object", "created", "owned_by", "aliases"}
    assert (model["id"], model["object"], model["owned_by"]) == ("fake", "model", "agentmem")
    assert "gpt-*" in model["aliases"]
    assert (await client.http.get(f"{MODELS}/fake")).json() == model
    assert (await client.http.get(f"{MODELS}/gpt-4o")).json() == model


async def test_unknown_is_404_everywhere(client: Client) -> None:
    responses = [
        await client.http.get(f"{MODELS}/robot/1"),
        await post(client, user("x"), model="robot/1"),
        await client.http.post("/v1/sessions", json={"model": "robot/1"}),
        await client.http.post(
            "/v1/contexts", json={"model": "robot/1", "documents": [{"text": "x"}]}
        ),
    ]
    for response in responses:
        error = check_error(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "fake" in error["message"]


async def test_names_that_are_none(client: Client) -> None:
    for name in ("%00", "x" * 201):
        assert check_error(await client.http.get(f"{MODELS}/{name}"), 400)["param"] == "model"


async def test_deleting_is_refused(client: Client) -> None:
    error = check_error(await client.http.delete(f"{MODELS}/fake"), 400)
    assert "operator" in error["message"]


async def test_aliases_of_a_tenant(
    client: Client, gateway: RunningGateway, second_model: str
) -> None:
    async def both() -> bool:
        return len((await client.http.get(MODELS)).json()["data"]) == 2

    await until_async(both)
    # With two models there is a default only where the operator or the tenant says so.
    check_error(await post(client, user("x")), 404)
    await prefer(gateway, client, second_model, ["my-*", "house"])

    async def means(name: str | None) -> str | None:
        response = await post(client, user("x"), model=name, max_tokens=2)
        return response.json().get("model") if response.status_code == 200 else None

    async def known() -> bool:
        return await means("my-favourite") == second_model

    await until_async(known)
    assert await means("house") == second_model
    assert await means(None) == second_model
    assert await means("fake") == "fake"
    assert await means("gpt-4o") is None
    shown = (await client.http.get(f"{MODELS}/house")).json()
    assert (shown["id"], shown["aliases"]) == (second_model, ["my-*", "house"])
    async with await gateway.client("rival") as rival:
        check_error(await rival.http.get(f"{MODELS}/house"), 404)


async def test_a_model_changes_within_a_conversation(
    client: Client, second_model: str, gateway: RunningGateway
) -> None:
    async def both() -> bool:
        return len((await client.http.get(MODELS)).json()["data"]) == 2

    await until_async(both)
    told = [user("one")]
    first = await complete(client, *told, model="fake")
    told += [first["choices"][0]["message"], user("two")]
    second = await complete(client, *told, model=second_model)
    assert second["model"] == second_model
    assert second["usage"]["agentmem"]["turn"] == 1


async def test_the_command_behind_agentmem_tenant_set(
    client: Client, gateway: RunningGateway, settings: Settings
) -> None:
    def change(**models: Any) -> tuple[str | None, list[str] | None]:
        tenant = set_tenant_models(settings, "acme", **models)
        assert tenant.id == client.tenant_id
        return tenant.default_model, tenant.model_aliases

    def all_changes() -> None:
        assert change(default_model="fake", model_aliases=["a*", "b"]) == ("fake", ["a*", "b"])
        assert change(model_aliases=["c"]) == ("fake", ["c"])
        assert change(default_model="") == (None, ["c"])
        assert change(model_aliases=[]) == (None, None)
        with pytest.raises(InvalidRequest):
            change(model_aliases=[" "])
        with pytest.raises(NotFound):
            set_tenant_models(settings, "nobody")

    await asyncio.to_thread(all_changes)
