"""What a plan says of the terms of sessions: new ones, and those that are there already."""

from __future__ import annotations

from agentmem.testing.gateway import Client, RunningGateway

from .conftest import settled, until_async
from .planning import LONG, SHORT, give_plan


def terms_of(shown: dict[str, object]) -> tuple[object, ...]:
    names = ("retention", "asked_retention", "kv_retention_seconds", "log_retention_seconds")
    return tuple(shown[name] for name in names)


async def test_without_a_plan_all_is_as_the_gateway_is_set(client: Client) -> None:
    shown = await client.get(await client.create())
    assert terms_of(shown) == (None, None, 43_200, 2_592_000)
    shown = await client.get(await client.create(kv_retention_seconds=5, log_retention_seconds=9))
    assert terms_of(shown) == (None, None, 5, 9)


async def test_new_sessions_have_the_plans_terms(gateway: RunningGateway, client: Client) -> None:
    await give_plan(
        gateway,
        client.tenant_id,
        retention={"ephemeral": SHORT, "standard": LONG},
        kv_retention_seconds_max=700,
        tiers=["disk"],
    )
    shown = await client.get(await client.create(retention="standard"))
    assert terms_of(shown) == ("standard", None, 6_000, 12_000)
    shown = await client.get(await client.create(retention="archive"))
    assert terms_of(shown) == ("standard", "archive", 6_000, 12_000)
    assert shown["expires_at"] == shown["created_at"] + 12_000
    shown = await client.get(await client.create(kv_retention_seconds=10**6))
    assert terms_of(shown)[2] == 700
    assert terms_of(await client.get(await client.create()))[2] == 700, "the gateway's own, cut"


async def test_a_session_keeps_its_terms_until_its_next_turn(
    gateway: RunningGateway, client: Client
) -> None:
    session = await client.create(retention="persistent")
    await client.turn(session, "one")
    before = await settled(client, session)
    await give_plan(gateway, client.tenant_id, retention={"ephemeral": SHORT}, tiers=["disk"])
    assert await client.get(session) == before, "what was promised stays"
    turn = await client.turn(session, "two")
    shown = await client.get(session)
    assert terms_of(shown) == ("ephemeral", "persistent", 600, 1_200)
    assert turn["usage"]["retention"] == "ephemeral"
    assert turn["usage"]["asked_retention"] == "persistent"
    assert gateway.pages.terms[session].retention == "ephemeral"
    await give_plan(gateway, client.tenant_id)
    turn = await client.turn(session, "three")
    assert terms_of(await client.get(session))[:2] == ("persistent", None), "it is had again"
    assert "asked_retention" not in turn["usage"]


async def test_a_fork_is_under_the_plan_of_now(gateway: RunningGateway, client: Client) -> None:
    session = await client.create(retention="persistent")
    await client.turn(session, "one")
    await give_plan(gateway, client.tenant_id, retention={"ephemeral": SHORT}, tiers=["disk"])
    made = await client.http.post(f"/v1/sessions/{session}/fork")
    assert terms_of(made.json())[:2] == ("ephemeral", "persistent")


async def test_completions_fall_too(gateway: RunningGateway, client: Client) -> None:
    await give_plan(gateway, client.tenant_id, retention={"standard": LONG}, tiers=["disk"])
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "prompt_cache_retention": "24h",
    }
    made = (await client.http.post("/v1/chat/completions", json=body)).json()
    assert made["usage"]["agentmem"]["retention"] == "standard"
    assert made["usage"]["agentmem"]["asked_retention"] == "persistent"


async def test_the_session_says_what_of_it_is_promised(
    gateway: RunningGateway, client: Client
) -> None:
    await give_plan(gateway, client.tenant_id, promised_bytes=12_345)
    gateway.pages.promise_room = 1
    session = await client.create()
    await client.turn(session, "word " * 60)

    async def short() -> bool:
        return bool((await client.get(session))["promise"]["reason"] == "capacity")

    await until_async(short)
    shown = await settled(client, session)
    assert shown["promise"] == {"pages": 1, "reason": "capacity"}
    assert gateway.pages.terms[session].quota_bytes == 12_345
    gateway.pages.promise_room = None
    await client.turn(session, "more")
    shown = await settled(client, session)
    assert shown["promise"] == {"pages": shown["pages"], "reason": None}
