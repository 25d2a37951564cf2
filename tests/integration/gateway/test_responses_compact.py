"""Compaction: short, opaque, bound to the tenant; what was compacted stays."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from agentmem.catalog import tables
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import PAGE_TOKENS, check_error
from tests.integration.gateway.responding import (
    RESPONSES,
    WEATHER,
    post,
    reply,
    respond,
    text_of,
    user,
)

LONG = " ".join(f"word{number}" for number in range(40))
SUMMARY = "They greeted each other in words."


async def compact(client: Client, **body: Any) -> dict[str, Any]:
    response = await client.http.post(f"{RESPONSES}/compact", json=body)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def script(gateway: RunningGateway, text: str) -> None:
    """Makes the fake engine's next reply this one, whatever the prompt says."""
    chat = next(iter(gateway.gateway.service._context._chats.values()))
    ids = chat._tokenizer.encode(text, add_special_tokens=False).ids
    gateway.engine.script.replies.append(tuple(ids))


async def test_a_chain_is_made_short(client: Client, gateway: RunningGateway) -> None:
    first = await respond(
        client,
        f"{LONG} {reply('First.')}",
        tools=[WEATHER],
        instructions="Be brief.",
    )
    script(gateway, SUMMARY)
    made = await compact(client, previous_response_id=first["id"], input=[user("Also.")])
    assert made["object"] == "response.compaction"
    said, also, compaction = made["output"]
    assert [item["role"] for item in (said, also)] == ["user", "user"]
    assert said["content"][0]["text"].startswith("word0")
    assert set(compaction) == {"id", "type", "encrypted_content"}
    assert compaction["id"].startswith("cmp_")
    assert SUMMARY not in compaction["encrypted_content"]
    # The prompt is the chain's own: it was not computed again.
    details = made["usage"]["input_tokens_details"]
    assert details["cached_tokens"] >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    after = await respond(client, [*made["output"], user(reply("On."))])
    assert text_of(after) == "On."
    async with gateway.catalog.reading() as tx:
        turns = list(await tx.turns._connection.execute(select(tables.turns)))
    told = [message["content"] for turn in turns for message in turn.messages]
    assert f"Summary of the conversation so far:\n{SUMMARY}" in told
    assert not any("Summarise" in text for text in told)
    # The old one still goes on.
    restored = await respond(client, reply("Restored."), previous_response_id=first["id"])
    assert text_of(restored) == "Restored."


async def test_its_turn_is_counted_and_not_kept(client: Client, gateway: RunningGateway) -> None:
    await compact(client, model="fake", input=f"xyzzy {LONG}")
    async with gateway.catalog.reading() as tx:
        for table, count in (
            (tables.usage_events, 1),
            (tables.turns, 0),
            (tables.sessions, 0),
            (tables.responses, 0),
        ):
            rows = list(await tx.turns._connection.execute(select(table)))
            assert len(rows) == count


async def test_a_repeat_is_not_counted_twice(client: Client, gateway: RunningGateway) -> None:
    for attempt in ("0", "1"):
        headers = {"x-stainless-retry-count": attempt}
        path = f"{RESPONSES}/compact"
        response = await client.http.post(path, json={"input": LONG}, headers=headers)
        assert response.status_code == 200
    async with gateway.catalog.reading() as tx:
        rows = list(await tx.turns._connection.execute(select(tables.usage_events)))
    assert len(rows) == 1


async def test_it_is_bound_to_its_tenant(client: Client, gateway: RunningGateway) -> None:
    *_, item = (await compact(client, input=LONG))["output"]
    async with await gateway.client("other") as other:
        error = check_error(await post(other, [user("x"), item]), 400)
    assert error["code"] == "invalid_encrypted_content"
    assert error["param"] == "input[1].encrypted_content"
    sealed = item["encrypted_content"]
    changed = {**item, "encrypted_content": sealed[:-5] + "A" + sealed[-4:]}
    check_error(await post(client, [changed, user("x")]), 400)
    check_error(await client.http.post("/v1/conversations", json={"items": [changed]}), 400)
    thought = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    check_error(await post(client, [thought, user("x")]), 400)


async def test_diagnostics_know_of_it(client: Client) -> None:
    first = await respond(client, LONG)
    compacted = await compact(client, previous_response_id=first["id"])
    options = {"comparison_response_id": first["id"]}
    items = [compacted["output"][-1], user("On.")]
    made = await respond(client, items, prompt_cache_options=options)
    diagnostics = made["prompt_cache_diagnostics"]
    assert (diagnostics["type"], diagnostics["reason"]) == ("cache_miss", "context_compacted")


async def test_what_it_takes(client: Client) -> None:
    path = f"{RESPONSES}/compact"
    error = check_error(await client.http.post(path, json={"model": "fake"}), 400)
    assert error["param"] == "input"
    body = {"previous_response_id": "resp_none"}
    error = check_error(await client.http.post(path, json=body), 400)
    assert error["code"] == "previous_response_not_found"
    check_error(await client.http.post(path, json={"model": "none", "input": "x"}), 404)
