"""Responses that are answered whole: chains, resent histories, reading back, deleting."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from agentmem.catalog import tables
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import PAGE_TOKENS, check_error
from tests.integration.gateway.responding import (
    RESPONSES,
    WEATHER,
    cached,
    get,
    post,
    reply,
    respond,
    text_of,
    user,
)

LONG = " ".join(f"word{number}" for number in range(40))


async def rows(gateway: RunningGateway, table: Any) -> list[Any]:
    async with gateway.catalog.reading() as tx:
        return list(await tx.turns._connection.execute(select(table)))


async def test_a_response_is_read_back_as_it_was_answered(client: Client) -> None:
    made = await respond(
        client, reply("Grüße, 世界!"), metadata={"topic": "greeting"}, instructions="Be brief."
    )
    assert text_of(made) == "Grüße, 世界!"
    assert made["status"] == "completed"
    assert made["metadata"] == {"topic": "greeting"}
    assert made["expires_at"] > made["completed_at"] >= made["created_at"]
    assert await get(client, f"responses/{made['id']}") == made


async def test_a_chain_computes_nothing_twice(client: Client) -> None:
    previous, before = None, 0
    for turn in range(5):
        extra = {} if previous is None else {"previous_response_id": previous["id"]}
        made = await respond(client, f"{turn}: {LONG if turn == 0 else 'And?'}", **extra)
        usage = made["usage"]
        assert cached(made) >= before - PAGE_TOKENS
        assert usage["agentmem"]["turn"] == turn + 1
        if previous is not None:
            assert made["previous_response_id"] == previous["id"]
            assert made["prompt_cache_diagnostics"] == {"type": "cache_hit"}
            session_id = previous["usage"]["agentmem"]["session_id"]
            assert usage["agentmem"]["session_id"] == session_id
        previous, before = made, usage["total_tokens"] - 1


async def test_two_go_on_after_one(client: Client) -> None:
    first = await respond(client, LONG)
    one = await respond(client, reply("One."), previous_response_id=first["id"])
    two = await respond(client, reply("Two."), previous_response_id=first["id"])
    assert (text_of(one), text_of(two)) == ("One.", "Two.")
    sessions = {made["usage"]["agentmem"]["session_id"] for made in (one, two)}
    assert len(sessions) == 2
    after = await respond(client, reply("Three."), previous_response_id=one["id"])
    assert after["usage"]["agentmem"]["turn"] == 3


async def test_a_resent_history_goes_on_with_the_same_log(client: Client) -> None:
    items: list[Any] = [user(f"{LONG} [[think: hm]]{reply(' Said. ')}")]
    first = await respond(client, items)
    items += first["output"]
    second = await respond(client, [*items, user(reply("On."))])
    sessions = [made["usage"]["agentmem"]["session_id"] for made in (first, second)]
    assert sessions[0] == sessions[1]
    assert second["usage"]["agentmem"]["turn"] == 2
    assert cached(second) >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    # As text, without thinking and ids.
    plain = [items[0], {"role": "assistant", "content": "Said."}, user("Otherwise?")]
    third = await respond(client, plain)
    assert cached(third) >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS


async def test_tools_are_called_and_answered(client: Client) -> None:
    calls = '[[call: get_weather {"city": "Rome"}]][[call: get_weather {"city": "Oslo"}]]'
    items: list[Any] = [user(f"{LONG} {calls}")]
    asked = await respond(client, items, tools=[WEATHER])
    assert [item["type"] for item in asked["output"]] == ["function_call", "function_call"]
    assert json.loads(asked["output"][0]["arguments"]) == {"city": "Rome"}
    assert asked["tools"] == [WEATHER]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": f"{number} °C"}
        for number, item in enumerate(asked["output"])
    ]
    results[-1]["output"] = reply("Warm.")
    answered = await respond(client, results, previous_response_id=asked["id"], tools=[WEATHER])
    resent = await respond(client, [*items, *asked["output"], *results], tools=[WEATHER])
    for made in (answered, resent):
        assert text_of(made) == "Warm."
        assert cached(made) >= asked["usage"]["total_tokens"] - 1 - PAGE_TOKENS


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
async def test_a_tool_must_be_called(client: Client, choice: Any) -> None:
    other = {**WEATHER, "name": "other"}
    tools = [WEATHER] if choice == "required" else [other, WEATHER]
    made = await respond(client, "Hello.", tools=tools, tool_choice=choice)
    assert [item["name"] for item in made["output"]] == ["get_weather"]
    assert made["tool_choice"] == choice


async def test_json_of_a_schema(client: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    made = await respond(
        client, "A number.", text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
    )
    assert isinstance(json.loads(text_of(made))["n"], int)
    assert made["text"]["format"]["schema"] == schema


async def test_what_is_cut_is_incomplete_and_goes_on(client: Client) -> None:
    made = await respond(client, LONG, max_output_tokens=16, ignore_eos=True)
    assert made["status"] == "incomplete"
    assert made["incomplete_details"] == {"reason": "max_output_tokens"}
    assert made["usage"]["output_tokens"] == 16
    assert await get(client, f"responses/{made['id']}") == made
    after = await respond(client, reply("On."), previous_response_id=made["id"])
    assert text_of(after) == "On."


async def test_thinking_sealed_and_sent_back(client: Client, gateway: RunningGateway) -> None:
    made = await respond(
        client,
        f"[[think: Let me see.]]{reply('Seen.')}",
        store=False,
        include=["reasoning.encrypted_content"],
    )
    thought, said = made["output"]
    sealed = {"type": "reasoning", "id": thought["id"], "summary": []}
    sealed["encrypted_content"] = thought["encrypted_content"]
    items = [sealed, said, user(reply("On."))]
    assert text_of(await respond(client, items)) == "On."
    async with await gateway.client("other") as other:
        error = check_error(await post(other, items), 400)
    assert error["code"] == "invalid_encrypted_content"
    assert error["param"] == "input[0].encrypted_content"


async def test_log_probabilities(client: Client) -> None:
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    made = await respond(client, reply("Sure."), **include)
    entries = made["output"][0]["content"][0]["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"Sure."
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert await get(client, f"responses/{made['id']}") == made
    error = check_error(await post(client, "x", top_logprobs=2), 400)
    assert error["param"] == "top_logprobs"


async def test_input_items_are_all_that_the_model_was_given(client: Client) -> None:
    first = await respond(client, [user("One."), user(reply("First."))])
    second = await respond(client, reply("Second."), previous_response_id=first["id"])
    listed = await get(client, f"responses/{second['id']}/input_items", order="asc")
    assert [item["role"] for item in listed["data"]] == ["user", "user", "assistant", "user"]
    assert not listed["has_more"]
    newest = await get(client, f"responses/{second['id']}/input_items", limit=3)
    assert newest["data"] == listed["data"][:0:-1]
    assert newest["has_more"]
    rest = await get(
        client, f"responses/{second['id']}/input_items", after=newest["last_id"], limit=3
    )
    assert rest["data"] == listed["data"][:1]
    path = f"{RESPONSES}/{second['id']}/input_items"
    error = check_error(await client.http.get(path, params={"after": "msg_none"}), 400)
    assert error["param"] == "after"


async def test_an_item_is_referred_to_by_its_id(client: Client, gateway: RunningGateway) -> None:
    first = await respond(client, f"{LONG} {reply('First.')}")
    listed = await get(client, f"responses/{first['id']}/input_items")
    items = [
        {"type": "item_reference", "id": listed["data"][0]["id"]},
        {"id": first["output"][0]["id"]},
        user(reply("Second.")),
    ]
    second = await respond(client, items)
    assert second["usage"]["agentmem"]["turn"] == 2
    async with await gateway.client("other") as other:
        error = check_error(await post(other, items), 400)
    assert (error["code"], error["param"]) == ("item_not_found", "input[0].id")


async def test_tokens_are_counted_as_a_response_would(client: Client) -> None:
    async def count(**body: Any) -> int:
        response = await client.http.post(f"{RESPONSES}/input_tokens", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["object"] == "response.input_tokens"
        return int(response.json()["input_tokens"])

    frame: Any = {"instructions": "Be brief.", "tools": [WEATHER]}
    counted = await count(input=LONG, **frame)
    made = await respond(client, LONG, **frame)
    assert counted == made["usage"]["input_tokens"]
    after: Any = {"previous_response_id": made["id"]}
    counted = await count(input="More.", **after)
    assert counted == (await respond(client, "More.", **after))["usage"]["input_tokens"]


async def test_what_is_deleted_is_gone(client: Client, gateway: RunningGateway) -> None:
    first = await respond(client, "xyzzyone?")
    second = await respond(client, "xyzzytwo?", previous_response_id=first["id"])
    for made in (first, second):
        response = await client.http.delete(f"{RESPONSES}/{made['id']}")
        assert response.json() == {"id": made["id"], "object": "response", "deleted": True}
        check_error(await client.http.get(f"{RESPONSES}/{made['id']}"), 404)
        check_error(await client.http.delete(f"{RESPONSES}/{made['id']}"), 404)
        check_error(await post(client, "On.", previous_response_id=made["id"]), 400)
    for table in (tables.responses, tables.items, tables.turns, tables.sessions):
        assert "xyzzy" not in str(await rows(gateway, table))
    assert await rows(gateway, tables.turns) == []


async def test_what_others_build_on_stays_in_their_log(client: Client) -> None:
    first = await respond(client, LONG)
    second = await respond(client, reply("Second."), previous_response_id=first["id"])
    assert (await client.http.delete(f"{RESPONSES}/{first['id']}")).status_code == 200
    third = await respond(client, reply("Third."), previous_response_id=second["id"])
    assert cached(third) >= second["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    listed = await get(client, f"responses/{third['id']}/input_items")
    assert len(listed["data"]) == 3


async def test_without_store_nothing_is_kept(client: Client, gateway: RunningGateway) -> None:
    made = await respond(client, "xyzzy", store=False)
    assert made["store"] is False
    assert made["expires_at"] is None
    check_error(await client.http.get(f"{RESPONSES}/{made['id']}"), 404)
    error = check_error(await post(client, "On.", previous_response_id=made["id"]), 400)
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    for table in (tables.responses, tables.items, tables.turns, tables.sessions):
        assert await rows(gateway, table) == []
    assert len(await rows(gateway, tables.usage_events)) == 1


async def test_ids_of_another_tenant_do_not_exist(client: Client, gateway: RunningGateway) -> None:
    made = await respond(client, "Hello.")
    async with await gateway.client("other") as other:
        path = f"{RESPONSES}/{made['id']}"
        for response in (
            await other.http.get(path),
            await other.http.get(f"{path}/input_items"),
            await other.http.delete(path),
            await other.http.post(f"{path}/cancel"),
        ):
            assert check_error(response, 404)["code"] == "response_not_found"
        error = check_error(await post(other, "x", previous_response_id=made["id"]), 400)
        assert error["code"] == "previous_response_not_found"


async def test_a_key_is_answered_once(client: Client, gateway: RunningGateway) -> None:
    headers = {"idempotency-key": "k1"}
    first = (await post(client, LONG, headers=headers)).json()
    again = (await post(client, LONG, headers=headers)).json()
    assert again == first
    assert len(await rows(gateway, tables.turns)) == 1
    check_error(await post(client, "Else.", headers=headers), 409)
    counted = {"x-stainless-retry-count": "0"}
    one = (await post(client, "Counted.", headers=counted)).json()
    repeated = await post(client, "Counted.", headers={"x-stainless-retry-count": "1"})
    assert repeated.json() == one
    assert len(await rows(gateway, tables.usage_events)) == 2


async def test_diagnostics_say_why_a_prefix_was_missed(client: Client) -> None:
    first = await respond(client, LONG, instructions="Be brief. " + LONG)

    async def diagnose(other: str, given: Any = LONG, **body: Any) -> dict[str, Any]:
        options = {"comparison_response_id": other}
        made = await respond(client, given, prompt_cache_options=options, **body)
        found: dict[str, Any] = made["prompt_cache_diagnostics"]
        return found

    missed = await diagnose(first["id"], instructions="Be verbose.")
    assert (missed["type"], missed["reason"]) == ("cache_miss", "input_changed")
    assert missed["cache_missed_tokens"] > 0
    tools = await diagnose(first["id"], instructions="Be brief. " + LONG, tools=[WEATHER])
    assert tools["reason"] == "tools_changed"
    assert await diagnose("resp_none") == {"type": "comparison_response_not_found"}
    chained = await respond(client, "On.", previous_response_id=first["id"])
    assert chained["prompt_cache_diagnostics"]["reason"] == "input_changed"


async def test_what_is_too_long_is_refused_or_cut(client: Client) -> None:
    first = await respond(client, "word " * 800)
    error = check_error(await post(client, "word " * 800, previous_response_id=first["id"]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    cut = await respond(
        client,
        f"{'word ' * 800} {reply('Cut.')}",
        previous_response_id=first["id"],
        truncation="auto",
    )
    assert text_of(cut) == "Cut."
    assert cut["truncation"] == "auto"


async def test_a_context_begins_it(client: Client) -> None:
    context = {"messages": [{"role": "system", "content": LONG}], "name": "words"}
    response = await client.http.post("/v1/contexts", json=context)
    assert response.status_code in (200, 201), response.text
    made = response.json()
    first = await respond(client, reply("First."), context=made["id"])
    assert cached(first) >= made["tokens"] - PAGE_TOKENS
    second = await respond(client, reply("Second."), previous_response_id=first["id"])
    assert cached(second) >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    check_error(await post(client, "x", context="ctx_none"), 404)
    error = check_error(await post(client, "x", context=made["id"], model="none"), 404)
    assert error["code"] == "model_not_found"
