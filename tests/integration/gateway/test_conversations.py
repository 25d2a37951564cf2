"""Conversations: their items, the responses in them, and what deleting one leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from agentmem.api.responses.items import stored_items
from agentmem.api.responses.schemas import ResponseBody
from agentmem.catalog import tables
from agentmem.errors import SessionBusy
from agentmem.sessions.openings import Asked
from agentmem.sessions.requests import Caller
from agentmem.sessions.responses import ResponsesService
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import PAGE_TOKENS, check_error, until, until_async
from tests.integration.gateway.responding import (
    CONVERSATIONS,
    RESPONSES,
    cached,
    get,
    post,
    reply,
    respond,
    streaming,
    text_of,
    user,
)

LONG = " ".join(f"word{number}" for number in range(40))


async def create(client: Client, **body: Any) -> str:
    response = await client.http.post(CONVERSATIONS, json=body)
    assert response.status_code == 200, response.text
    conversation_id: str = response.json()["id"]
    return conversation_id


async def add(client: Client, conversation_id: str, *items: dict[str, Any]) -> list[Any]:
    response = await client.http.post(
        f"{CONVERSATIONS}/{conversation_id}/items", json={"items": list(items)}
    )
    assert response.status_code == 200, response.text
    added: list[Any] = response.json()["data"]
    return added


async def items_of(client: Client, conversation_id: str) -> list[Any]:
    listed = await get(client, f"conversations/{conversation_id}/items", order="asc", limit=100)
    items: list[Any] = listed["data"]
    return items


async def test_a_conversation_is_made_read_changed_and_listed(client: Client) -> None:
    made = (await client.http.post(CONVERSATIONS, json={"metadata": {"a": "b"}})).json()
    assert made["object"] == "conversation"
    assert made["metadata"] == {"a": "b"}
    assert made["expires_at"] > made["created_at"]
    assert await get(client, f"conversations/{made['id']}") == made
    path = f"{CONVERSATIONS}/{made['id']}"
    changed = (await client.http.post(path, json={"metadata": {"c": "d"}})).json()
    assert changed["metadata"] == {"c": "d"}
    other = await create(client)
    empty = (await client.http.post(CONVERSATIONS)).json()["id"]
    listed = await get(client, "conversations", limit=2)
    assert [one["id"] for one in listed["data"]] == [empty, other]
    assert listed["has_more"]
    rest = await get(client, "conversations", after=listed["last_id"])
    assert [one["id"] for one in rest["data"]] == [made["id"]]


async def test_items_arrive_without_id_and_type(client: Client) -> None:
    conversation_id = await create(client, items=[user("One.")])
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    added = await add(
        client,
        conversation_id,
        {"role": "assistant", "content": "Two."},
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": "Three."},
    )
    items = await items_of(client, conversation_id)
    assert items[1:] == added
    assert [item["id"].partition("_")[0] for item in items] == ["msg", "msg", "fc", "fco"]
    assert all(item["status"] == "completed" for item in items)
    assert items[1]["content"][0]["type"] == "output_text"
    one = await get(client, f"conversations/{conversation_id}/items/{items[2]['id']}")
    assert one == items[2]


async def test_ids_are_new_where_they_are_taken(client: Client) -> None:
    conversation_id = await create(client, items=[{**user("One."), "id": "msg_mine"}])
    (again,) = await add(client, conversation_id, {**user("Two."), "id": "msg_mine"})
    assert again["id"] != "msg_mine"
    assert [item["id"] for item in await items_of(client, conversation_id)] == [
        "msg_mine",
        again["id"],
    ]


async def test_items_are_listed_page_by_page(client: Client) -> None:
    conversation_id = await create(client, items=[user(f"{n}") for n in range(7)])
    path = f"conversations/{conversation_id}/items"
    seen: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = await get(client, path, limit=3, **after)
        seen += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == [f"{n}" for n in reversed(range(7))]
    nothing = await get(client, f"conversations/{await create(client)}/items")
    assert (nothing["data"], nothing["first_id"], nothing["last_id"]) == ([], "", "")


async def test_responses_go_on_in_a_conversation(client: Client) -> None:
    conversation_id = await create(client, items=[user(LONG)])
    before = 0
    for turn in range(4):
        made = await respond(client, reply(f"Said {turn}."), conversation={"id": conversation_id})
        assert made["conversation"] == {"id": conversation_id}
        assert made["usage"]["agentmem"]["turn"] == turn + 1
        assert cached(made) >= before - PAGE_TOKENS
        before = made["usage"]["total_tokens"] - 1
    items = await items_of(client, conversation_id)
    assert [item["role"] for item in items] == ["user", *["user", "assistant"] * 4]
    assert items[-1] == made["output"][0]
    listed = await get(client, f"responses/{made['id']}/input_items", order="asc")
    assert listed["data"] == items[:-1]
    view = await get(client, f"conversations/{conversation_id}")
    assert made["usage"]["agentmem"]["session_id"] == view["session_id"]


async def test_items_that_are_added_or_taken_away_count(client: Client) -> None:
    conversation_id = await create(client)
    first = await respond(client, f"{LONG} {reply('First.')}", conversation=conversation_id)
    await add(client, conversation_id, user("Between."), {"role": "assistant", "content": "Yes."})
    second = await respond(client, reply("Second."), conversation=conversation_id)
    assert cached(second) >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    count = {"input": "x", "conversation": conversation_id}
    path = f"{RESPONSES}/input_tokens"
    tokens = (await client.http.post(path, json=count)).json()["input_tokens"]
    # As openai-agents' pop_item does it.
    (newest,) = (await get(client, f"conversations/{conversation_id}/items", limit=1))["data"]
    assert newest == second["output"][0]
    response = await client.http.delete(f"{CONVERSATIONS}/{conversation_id}/items/{newest['id']}")
    assert response.json()["id"] == conversation_id
    fewer = (await client.http.post(path, json=count)).json()["input_tokens"]
    assert fewer < tokens
    third = await respond(client, reply("Third."), conversation=conversation_id)
    assert text_of(third) == "Third."
    assert cached(third) >= first["usage"]["total_tokens"] - 1 - PAGE_TOKENS
    # The response itself still has what it said.
    assert await get(client, f"responses/{second['id']}") == second


async def test_a_conversation_that_runs_is_busy(client: Client) -> None:
    conversation_id = await create(client)
    slow = "[[pace: 0.02]][[reply: A text that takes its time.]]"
    async with streaming(client, slow, conversation=conversation_id) as events:
        made = (await anext(events))["response"]
        path = f"{CONVERSATIONS}/{conversation_id}"
        for response in (
            await post(client, "Meanwhile.", conversation=conversation_id),
            await client.http.post(f"{path}/items", json={"items": [user("Meanwhile.")]}),
            await client.http.delete(path),
        ):
            check_error(response, 409)
            assert response.headers["retry-after"]
            assert response.headers["x-should-retry"] == "true"
        async for _ in events:
            pass
    assert len(await items_of(client, conversation_id)) == 2
    after = await respond(client, reply("After."), conversation=conversation_id)
    assert after["usage"]["agentmem"]["turn"] == 2
    assert (await get(client, f"responses/{made['id']}"))["status"] == "completed"


async def test_at_once_one_answers_and_the_others_are_told_to_wait(client: Client) -> None:
    conversation_id = await create(client)
    answers = await asyncio.gather(
        *(
            post(client, f"{number} [[pace: 0.01]]{reply('Said.')}", conversation=conversation_id)
            for number in range(6)
        )
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 200
    assert set(statuses) == {200, 409}
    said = 2 * statuses.count(200)
    assert len(await items_of(client, conversation_id)) == said


async def test_without_store_nothing_is_left_in_the_conversation(client: Client) -> None:
    conversation_id = await create(client)
    made = await respond(client, reply("Said."), conversation=conversation_id, store=False)
    assert made["expires_at"] is None
    check_error(await client.http.get(f"{RESPONSES}/{made['id']}"), 404)
    check_error(await post(client, "x", previous_response_id=made["id"]), 400)
    assert await items_of(client, conversation_id) == []
    kept = await respond(client, reply("Kept."), conversation=conversation_id)
    headers = {"idempotency-key": "k1"}
    asked: Any = {"conversation": conversation_id, "store": False, "headers": headers}
    slow = "[[pace: 0.02]][[reply: A text that takes its time.]]"
    running = asyncio.create_task(post(client, slow, **asked))
    await asyncio.sleep(0.1)
    joined, first = await post(client, slow, **asked), await running
    later = await post(client, slow, **asked)
    assert joined.json() == first.json() == later.json()
    assert first.json()["usage"]["agentmem"]["turn"] is None
    assert cached(first.json()) > 0, "it knew the conversation"
    items = await items_of(client, conversation_id)
    assert [item["id"] for item in items[1:]] == [kept["output"][0]["id"]]


async def test_a_failed_response_leaves_no_items(client: Client, gateway: RunningGateway) -> None:
    conversation_id = await create(client, items=[user("One.")])
    gateway.engine.script.fail_after_tokens = 2
    check_error(await post(client, "Two.", conversation=conversation_id, ignore_eos=True), 503)
    gateway.engine.script.fail_after_tokens = 2
    streamed = await post(
        client, "Three.", conversation=conversation_id, ignore_eos=True, stream=True
    )
    assert "response.failed" in streamed.text
    assert len(await items_of(client, conversation_id)) == 1
    made = await respond(client, reply("Well."), conversation=conversation_id)
    assert made["usage"]["agentmem"]["turn"] == 1


async def test_what_is_deleted_is_gone(client: Client, gateway: RunningGateway) -> None:
    conversation_id = await create(client, items=[user("xyzzy added")])
    made = await respond(client, reply("xyzzy said"), conversation=conversation_id)
    path = f"{CONVERSATIONS}/{conversation_id}"
    response = await client.http.delete(path)
    assert response.json() == {
        "id": conversation_id,
        "object": "conversation.deleted",
        "deleted": True,
    }
    for gone in (path, f"{path}/items", f"{RESPONSES}/{made['id']}"):
        check_error(await client.http.get(gone), 404)
    check_error(await post(client, "x", conversation=conversation_id), 404)
    async with gateway.catalog.reading() as tx:
        for table in (tables.items, tables.responses, tables.turns, tables.sessions):
            rows = await tx.turns._connection.execute(select(table))
            assert list(rows) == []

    await until(lambda: not any(gateway.pages.claims.values()))


async def test_a_deleted_response_leaves_its_items_in_the_conversation(client: Client) -> None:
    conversation_id = await create(client)
    made = await respond(client, reply("Said."), conversation=conversation_id)
    assert (await client.http.delete(f"{RESPONSES}/{made['id']}")).status_code == 200
    assert len(await items_of(client, conversation_id)) == 2
    after = await respond(client, reply("After."), conversation=conversation_id)
    assert text_of(after) == "After."


async def test_ids_of_another_tenant_do_not_exist(client: Client, gateway: RunningGateway) -> None:
    conversation_id = await create(client, items=[{**user("One."), "id": "msg_one"}])
    path = f"{CONVERSATIONS}/{conversation_id}"
    async with await gateway.client("other") as other:
        http = other.http
        for response in (
            await http.get(path),
            await http.post(path, json={"metadata": {}}),
            await http.delete(path),
            await http.get(f"{path}/items"),
            await http.post(f"{path}/items", json={"items": [user("Two.")]}),
            await http.get(f"{path}/items/msg_one"),
            await http.delete(f"{path}/items/msg_one"),
            await post(other, "x", conversation=conversation_id),
        ):
            assert check_error(response, 404)["code"] == "conversation_not_found"
        assert (await get(other, "conversations"))["data"] == []
    error = check_error(await client.http.get(f"{path}/items/msg_none"), 404)
    assert error["code"] == "item_not_found"


@pytest.mark.parametrize("given", [[user("x")] * 21, [{"type": "web_search_call"}], [3], "text"])
async def test_what_items_take(client: Client, given: Any) -> None:
    conversation_id = await create(client)
    path = f"{CONVERSATIONS}/{conversation_id}/items"
    error = check_error(await client.http.post(path, json={"items": given}), 400)
    assert (error["param"] or "").startswith("items")
    error = check_error(await client.http.post(CONVERSATIONS, json={"items": given}), 400)
    assert (error["param"] or "").startswith("items")


async def test_one_place_to_go_on_from(client: Client) -> None:
    conversation_id = await create(client)
    made = await respond(client, "Hello.")
    error = check_error(
        await post(client, "x", conversation=conversation_id, previous_response_id=made["id"]), 400
    )
    assert error["param"] == "previous_response_id"
    check_error(await post(client, "x", conversation="conv_none"), 404)
    session_id = await client.create()
    as_conversation = f"conv_{session_id.partition('_')[2]}"
    check_error(await post(client, "x", conversation=as_conversation), 404)


async def test_whoever_begins_knows_what_was_said_before(
    client: Client, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items are read before the lease is taken: nobody may come in between."""
    conversation_id = await create(client)
    responses = ResponsesService(gateway.gateway.service)
    caller = Caller(client.tenant_id, "key_x")
    opened, delays = responses.openings.open, [0.0, 0.3]

    async def open_slowly(*args: Any, **kwargs: Any) -> Any:
        opening = await opened(*args, **kwargs)
        await asyncio.sleep(delays.pop(0))
        return opening

    monkeypatch.setattr(responses.openings, "open", open_slowly)

    async def begin(text: str) -> int:
        body = ResponseBody(input=text)
        asked = Asked(stored_items(body.given), conversation_id=conversation_id)
        begun = await responses.begin(caller, asked, body.turn_request, body.echo, retry=None)
        turn = await begun.listener.result()
        begun.listener.close()
        return turn.number

    numbers = await asyncio.gather(
        begin(reply("First.")), begin(reply("Second.")), return_exceptions=True
    )
    assert numbers[0] == 1
    assert numbers[1] == 2 or isinstance(numbers[1], SessionBusy)


async def test_nobody_reads_items_while_more_are_being_made(
    client: Client, gateway: RunningGateway
) -> None:
    conversation_id = await create(client)
    openings = ResponsesService(gateway.gateway.service).openings
    given = ResponseBody(input="x").given
    asked = Asked(stored_items(given), conversation_id=conversation_id)
    slow = "[[pace: 0.02]][[reply: A text that takes its time.]]"
    async with streaming(client, slow, conversation=conversation_id) as events:
        await anext(events)
        with pytest.raises(SessionBusy):
            await openings.open(client.tenant_id, asked)
        await openings.open(client.tenant_id, asked, wait=True)
    await until_free(client, conversation_id)


async def until_free(client: Client, conversation_id: str) -> None:
    """Returns when nothing runs in the conversation."""

    async def free() -> bool:
        path = f"{CONVERSATIONS}/{conversation_id}/items"
        response = await client.http.post(path, json={"items": [user("x")]})
        return response.status_code == 200

    await until_async(free)
