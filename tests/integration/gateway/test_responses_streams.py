"""Streams of responses: followed, taken up again, cancelled, failing, left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentmem.errors import NotFound
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import check_error, until, until_async
from tests.integration.gateway.responding import (
    RESPONSES,
    get,
    parse,
    post,
    reply,
    respond,
    stream,
    streaming,
    text_of,
)

ALL_KINDS = f"[[think: Hm.]]{reply('Said.')}" + '[[call: f {"a": 1}]]'
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
SLOW = "[[pace: 0.02]][[reply: A text that is long enough to be taken up again.]]"


async def resume(client: Client, response_id: str, **query: Any) -> str:
    response = await client.http.get(
        f"{RESPONSES}/{response_id}", params={"stream": "true", **query}
    )
    assert response.status_code == 200, response.text
    return response.text


async def test_a_stream_ends_with_the_object(client: Client) -> None:
    events = await stream(client, ALL_KINDS, tools=TOOLS)
    kind, last = events[-1]
    assert kind == "response.completed"
    assert [item["type"] for item in last["response"]["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert last["response"] == await get(client, f"responses/{last['response']['id']}")


async def test_what_was_completed_can_be_read_and_built_on_at_once(client: Client) -> None:
    previous: dict[str, Any] = {}
    for turn in range(5):
        async with streaming(client, reply(f"Turn {turn}."), **previous) as events:
            async for event in events:
                if event["type"] == "response.completed":
                    made = event["response"]
                    assert await get(client, f"responses/{made['id']}") == made
                    previous = {"previous_response_id": made["id"]}
                    break
    assert made["usage"]["agentmem"]["turn"] == 5


async def test_a_finished_stream_is_told_again_to_the_byte(client: Client) -> None:
    asked: dict[str, Any] = {
        "tools": TOOLS,
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "top_logprobs": 1,
    }
    whole = (await post(client, ALL_KINDS, stream=True, **asked)).text
    events = parse(whole)
    response_id = events[0][1]["response"]["id"]
    assert await resume(client, response_id) == whole
    blocks = whole.split("\n\n")
    for after in range(len(events)):
        told = await resume(client, response_id, starting_after=after)
        assert told.split("\n\n") == blocks[after + 1 :]


async def test_a_running_stream_is_taken_up_where_it_broke_off(client: Client) -> None:
    seen = []
    async with streaming(client, SLOW) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == 8:
                break
    response_id = seen[0]["response"]["id"]
    running = await get(client, f"responses/{response_id}")
    assert (running["status"], running["output"]) == ("in_progress", [])
    assert running["created_at"] == seen[0]["response"]["created_at"]
    rest = parse(await resume(client, response_id, starting_after=7))
    numbers = [data["sequence_number"] for _, data in rest]
    assert numbers == list(range(8, 8 + len(rest)))
    done = rest[-1][1]["response"]
    deltas = [one["delta"] for one in [*seen, *(data for _, data in rest)] if "delta" in one]
    assert "".join(deltas) == text_of(done) == "A text that is long enough to be taken up again."
    whole = parse(await resume(client, response_id))
    assert [data for _, data in whole] == [*seen, *(data for _, data in rest)]


async def test_a_stored_response_runs_on_when_nobody_listens(client: Client) -> None:
    async with streaming(client, SLOW) as events:
        response_id = (await anext(events))["response"]["id"]

    async def done() -> bool:
        return bool((await get(client, f"responses/{response_id}"))["status"] == "completed")

    await until_async(done)


async def test_without_store_it_ends_with_the_connection(
    client: Client, gateway: RunningGateway
) -> None:
    async with streaming(client, SLOW, store=False) as events:
        response_id = (await anext(events))["response"]["id"]
    await until(lambda: len(gateway.engine.aborted) == 1)
    check_error(await client.http.get(f"{RESPONSES}/{response_id}"), 404)


async def test_a_running_response_is_cancelled(client: Client, gateway: RunningGateway) -> None:
    seen = []
    async with streaming(client, SLOW) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == 6:
                response_id = seen[0]["response"]["id"]
                cancelled = await client.http.post(f"{RESPONSES}/{response_id}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    shown = cancelled.json()
    assert (shown["status"], shown["output"], shown["error"]) == ("cancelled", [], None)
    assert shown["created_at"] == seen[0]["response"]["created_at"]
    assert seen[-1]["type"] == "response.failed"
    assert seen[-1]["response"]["status"] == "cancelled"
    assert seen[-1]["response"]["output"][0]["status"] == "incomplete"
    assert await get(client, f"responses/{response_id}") == shown
    assert len(gateway.engine.aborted) == 1
    error = check_error(await post(client, "On.", previous_response_id=response_id), 400)
    assert error["param"] == "previous_response_id"
    assert (await client.http.delete(f"{RESPONSES}/{response_id}")).status_code == 200
    check_error(await client.http.get(f"{RESPONSES}/{response_id}"), 404)


async def test_whoever_goes_on_too_early_is_told_to_try_again(client: Client) -> None:
    async with streaming(client, SLOW) as events:
        response_id = (await anext(events))["response"]["id"]
        response = await post(client, "On.", previous_response_id=response_id)
        error = check_error(response, 409)
        assert response.headers["x-should-retry"] == "true"
        assert response_id in error["message"]
        await client.http.post(f"{RESPONSES}/{response_id}/cancel")


async def test_what_is_over_cannot_be_cancelled(client: Client) -> None:
    made = await respond(client, reply("Done."))
    response = await client.http.post(f"{RESPONSES}/{made['id']}/cancel")
    assert check_error(response, 400)["code"] == "response_not_running"
    assert await get(client, f"responses/{made['id']}") == made


async def test_a_running_response_is_deleted(client: Client, gateway: RunningGateway) -> None:
    async with streaming(client, SLOW) as events:
        response_id = (await anext(events))["response"]["id"]
        deleted = await client.http.delete(f"{RESPONSES}/{response_id}")
        assert deleted.status_code == 200
        last = [event async for event in events][-1]
    assert last["type"] == "response.failed"
    check_error(await client.http.get(f"{RESPONSES}/{response_id}"), 404)
    async with gateway.catalog.reading() as tx:
        with pytest.raises(NotFound):
            await tx.responses.get(client.tenant_id, response_id)


async def test_a_failure_mid_stream_is_an_event_and_stays(
    client: Client, gateway: RunningGateway
) -> None:
    gateway.engine.script.fail_after_tokens = 3
    events = await stream(client, "Hello.", ignore_eos=True)
    kind, last = events[-1]
    assert kind == "response.failed"
    made = last["response"]
    assert made["error"]["code"] == "server_error"
    assert made["error"]["message"]
    found = await get(client, f"responses/{made['id']}")
    assert (found["status"], found["error"]) == ("failed", made["error"])
    listed = await get(client, f"responses/{made['id']}/input_items")
    assert listed["data"][0]["content"][0]["text"] == "Hello."
    ((kind, told),) = parse(await resume(client, made["id"], starting_after=len(events)))
    assert kind == "response.failed"
    assert told["sequence_number"] == len(events) + 1


async def test_a_failure_before_the_answer_is_an_http_error(
    client: Client, gateway: RunningGateway
) -> None:
    gateway.engine.script.fail_after_tokens = 2
    error = check_error(await post(client, "Hello.", ignore_eos=True), 503)
    assert error["code"] == "engine_failed"
    gateway.engine.script.fail_after_tokens = 0
    response = await post(client, "Hello.", stream=True)
    assert check_error(response, 503)["code"] == "engine_failed"
    assert response.headers["x-should-retry"] == "true"


async def test_one_that_failed_when_nobody_listened_says_so(
    client: Client, gateway: RunningGateway
) -> None:
    gateway.engine.script.fail_after_tokens = 12
    async with streaming(client, SLOW) as events:
        response_id = (await anext(events))["response"]["id"]

    async def failed() -> bool:
        return bool((await get(client, f"responses/{response_id}"))["status"] == "failed")

    await until_async(failed)


async def test_a_repeated_stream_is_the_same_stream(client: Client) -> None:
    headers = {"idempotency-key": "k1"}
    running = asyncio.create_task(post(client, SLOW, stream=True, headers=headers))
    await asyncio.sleep(0.1)
    joined = await post(client, SLOW, stream=True, headers=headers)
    first = await running
    later = await post(client, SLOW, stream=True, headers=headers)
    assert joined.text == first.text == later.text


async def test_padding_only_where_it_is_asked_for(client: Client) -> None:
    plain = await stream(client, reply("A text."))
    assert not any("obfuscation" in data for _, data in plain)
    padded = await stream(client, reply("A text."), stream_options={"include_obfuscation": True})
    lengths = {len(d["delta"] + d["obfuscation"]) for _, d in padded if "delta" in d}
    assert len(lengths) == 1
    error = check_error(await post(client, "x", stream_options={}), 400)
    assert error["param"] == "stream_options"


async def test_what_a_resumed_stream_takes(client: Client) -> None:
    made = await respond(client, "Hello.")
    path = f"{RESPONSES}/{made['id']}"
    for query, param in (
        ({"starting_after": 1}, "starting_after"),
        ({"stream": "true", "starting_after": -1}, "starting_after"),
        ({"include[]": "file_search_call.results"}, "include"),
    ):
        assert check_error(await client.http.get(path, params=query), 400)["param"] == param
    assert parse(await resume(client, made["id"], starting_after=10_000)) == []
