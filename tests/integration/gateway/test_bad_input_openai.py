"""Whatever the OpenAI-compatible routes get: a clear 4xx in one shape, and nothing changes."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from agentmem.api.sse import EventStream
from agentmem.config import Settings
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, RESPONSES, CONVERSATIONS = "/v1/chat/completions", "/v1/responses", "/v1/conversations"
INPUT_TOKENS, COMPACT, CONTEXTS = (
    "/v1/responses/input_tokens",
    "/v1/responses/compact",
    "/v1/contexts",
)
ROUTES = (CHAT, RESPONSES, INPUT_TOKENS, COMPACT, CONVERSATIONS, CONTEXTS)
BYTES_MAX = 10 << 20
USER = {"role": "user", "content": "hello"}
UNKNOWN_ID = "0" * 26
TABLES = ("sessions", "turns", "responses", "items", "usage_events", "retries", "contexts")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("gateway") / "data",
        engine="fake",
        page_tokens=16,
        request_bytes_max=BYTES_MAX,
        request_seconds_max=1.0,
        turn_seconds_max=20.0,
    )
    async with running_gateway(settings) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("acme") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("other") as made:
        yield made


def rows(gateway: RunningGateway) -> dict[str, int]:
    """How many rows each table has, read past all of our own code."""
    with sqlite3.connect(gateway.gateway.settings.data_dir / "catalog.db") as database:
        return {
            table: database.execute(f"select count(*) from {table}").fetchone()[0]
            for table in TABLES
        }


def body_of(route: str, **change: Any) -> dict[str, Any]:
    """A body that the route takes, changed."""
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"model": "fake", "messages": [USER], "max_tokens": 4},
        RESPONSES: {"model": "fake", "input": "hello", "max_output_tokens": 16},
        INPUT_TOKENS: {"model": "fake", "input": "hello"},
        COMPACT: {"model": "fake", "input": "hello"},
        CONVERSATIONS: {"items": [{"type": "message", **USER}]},
        CONTEXTS: {"messages": [USER]},
    }
    return {**bodies[route], **change}


def text_of(route: str, text: str) -> dict[str, Any]:
    """A body of the route with this text where its own text was."""
    return json.loads(json.dumps(body_of(route)).replace('"hello"', json.dumps(text)))


async def post_bytes(
    client: Client, route: str, content: bytes, timeout: float = 30.0
) -> httpx2.Response:
    headers = {"content-type": "application/json"}
    return await client.http.post(route, content=content, headers=headers, timeout=timeout)


class TestBytes:
    @pytest.mark.parametrize("route", ROUTES)
    async def test_what_the_tests_start_from_is_taken(self, client: Client, route: str) -> None:
        response = await client.http.post(route, json=body_of(route))
        assert response.status_code in (200, 201), response.text

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe",
            b'{"a": 1' + b"0" * 5_000 + b"}",
            b'{"temperature": NaN}',
            b'{"top_p": 1e999}',
            b"[" * 100_000,
            b'{"metadata": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            b'{"input": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
        ],
        ids=lambda content: ascii(content[:30]),
    )
    async def test_bytes_that_are_no_request(
        self, gateway: RunningGateway, client: Client, route: str, content: bytes
    ) -> None:
        if route == CONVERSATIONS and content in (b"", b"null"):
            return  # it takes no body at all
        before = rows(gateway)
        check_error(await post_bytes(client, route, content), 400)
        assert rows(gateway) == before

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize(
        "bad",
        [b"\\ud800", b"\\udfff\\ud800", b"a\\u0000b", b"\xff", b"\xed\xa0\x80", b"\xc0\x80"],
        ids=ascii,
    )
    async def test_text_that_is_no_text(
        self, gateway: RunningGateway, client: Client, route: str, bad: bytes
    ) -> None:
        before = rows(gateway)
        content = json.dumps(body_of(route)).encode().replace(b"hello", bad)
        check_error(await post_bytes(client, route, content), 400)
        assert rows(gateway) == before

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "nonsense"])
    async def test_other_content_types(self, client: Client, route: str, kind: str) -> None:
        content = json.dumps(body_of(route)).encode()
        response = await client.http.post(route, content=content, headers={"content-type": kind})
        assert "application/json" in check_error(response, 400)["message"]

    @pytest.mark.parametrize("route", ROUTES)
    async def test_nested_values_where_any_are_taken(self, client: Client, route: str) -> None:
        deep: Any = "x"
        for _ in range(200):
            deep = {"properties": {"a": deep}}
        function = {"name": "f", "parameters": deep}
        tools = {
            CHAT: [{"type": "function", "function": function}],
            CONTEXTS: [{"type": "function", "function": function}],
        }.get(route, [{"type": "function", **function}])
        response = await client.http.post(route, json=body_of(route, tools=tools))
        check_error(response, 400)


class TestMethods:
    @pytest.mark.parametrize(
        ("path", "allowed"),
        [
            ("/v1/models/fake", "DELETE, GET"),
            (f"{RESPONSES}/resp_1", "DELETE, GET"),
            (COMPACT, "POST"),
            (CONVERSATIONS, "GET, POST"),
        ],
    )
    async def test_a_wrong_one_is_told_the_right_ones(
        self, client: Client, path: str, allowed: str
    ) -> None:
        response = await client.http.put(path)
        check_error(response, 405)
        assert response.headers["allow"] == allowed

    async def test_websocket_mode_is_refused_by_name(self, client: Client) -> None:
        upgrade = {"connection": "Upgrade", "upgrade": "websocket"}
        response = await client.http.get(RESPONSES, headers=upgrade)
        error = check_error(response, 405)
        assert error["code"] == "unsupported_parameter"
        assert "WebSocket" in error["message"]


class TestSizes:
    @pytest.mark.parametrize("route", ROUTES)
    async def test_ten_megabytes_of_text(self, client: Client, route: str) -> None:
        """Within the limit of bytes, and more tokens than any window has. Others do not wait."""
        content = json.dumps(text_of(route, "word " * (2 * (1 << 20) - 100))).encode()
        assert BYTES_MAX - 1_000 < len(content) <= BYTES_MAX
        sending = asyncio.create_task(post_bytes(client, route, content, timeout=60))
        slowest = 0.0
        while not sending.done():
            begun = asyncio.get_running_loop().time()
            assert (await client.http.get("/v1/models")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - begun)
            await asyncio.sleep(0.02)
        print(f"{route}: others waited for {slowest:.2f} s")
        assert slowest < 1.5
        response = await sending
        if route in (INPUT_TOKENS, COMPACT, CONVERSATIONS):
            # Text that no model has to read: counted, shortened, kept.
            assert response.status_code == 200
        else:
            assert check_error(response, 400)["code"] == "context_length_exceeded"

    @pytest.mark.parametrize("route", ROUTES)
    async def test_more_than_the_limit(self, client: Client, route: str) -> None:
        content = b'{"x": "' + b"y" * BYTES_MAX + b'"}'
        response = await post_bytes(client, route, content)
        assert check_error(response, 413)["code"] == "request_too_large"

    async def test_many_small_things(self, client: Client) -> None:
        many = [USER] * 10_001
        error = check_error(await client.http.post(CHAT, json=body_of(CHAT, messages=many)), 400)
        assert error["param"] == "messages"
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        response = await client.http.post(CHAT, json=body_of(CHAT, tools=[tool] * 129))
        assert check_error(response, 400)["param"] == "tools"
        metadata = {str(number): "x" for number in range(17)}
        for route in (CHAT, RESPONSES, CONVERSATIONS):
            response = await client.http.post(route, json=body_of(route, metadata=metadata))
            assert check_error(response, 400)["param"].startswith("metadata")

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_body_that_takes_too_long(
        self, gateway: RunningGateway, client: Client, route: str
    ) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.split(":")[2]))
        writer.write(
            f"POST {route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        async with asyncio.timeout(10):
            answer = (await reader.read()).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 408 ")
        assert json.loads(answer.split("\r\n\r\n")[1])["error"]["code"] == "request_timeout"


class TestOwners:
    """What is another tenant's does not exist, nor does what was deleted."""

    async def test_responses(self, client: Client, stranger: Client) -> None:
        made = (await client.http.post(RESPONSES, json=body_of(RESPONSES))).json()["id"]
        for path in (f"{RESPONSES}/{made}", f"{RESPONSES}/{made}/input_items"):
            check_error(await stranger.http.get(path), 404)
        check_error(await stranger.http.post(f"{RESPONSES}/{made}/cancel"), 404)
        check_error(await stranger.http.delete(f"{RESPONSES}/{made}"), 404)
        await self.refuses_to_go_on(stranger, made)
        assert (await client.http.delete(f"{RESPONSES}/{made}")).status_code == 200
        for path in (f"{RESPONSES}/{made}", f"{RESPONSES}/{made}/input_items"):
            check_error(await client.http.get(path), 404)
        check_error(await client.http.delete(f"{RESPONSES}/{made}"), 404)
        await self.refuses_to_go_on(client, made)

    async def refuses_to_go_on(self, client: Client, response_id: str) -> None:
        for route in (RESPONSES, INPUT_TOKENS):
            body = body_of(route, previous_response_id=response_id)
            error = check_error(await client.http.post(route, json=body), 400)
            assert error["code"] == "previous_response_not_found"

    async def test_conversations(self, client: Client, stranger: Client) -> None:
        made = (await client.http.post(CONVERSATIONS, json=body_of(CONVERSATIONS))).json()["id"]
        path = f"{CONVERSATIONS}/{made}"
        item = (await client.http.get(f"{path}/items")).json()["data"][0]["id"]
        for who in (stranger, client):
            if who is client:
                assert (await client.http.delete(path)).status_code == 200
            for gone in (path, f"{path}/items", f"{path}/items/{item}"):
                check_error(await who.http.get(gone), 404)
            check_error(await who.http.post(path, json={"metadata": {}}), 404)
            items = {"items": [{"type": "message", **USER}]}
            check_error(await who.http.post(f"{path}/items", json=items), 404)
            check_error(await who.http.delete(f"{path}/items/{item}"), 404)
            check_error(await who.http.delete(path), 404)
            body = body_of(RESPONSES, conversation=made)
            check_error(await who.http.post(RESPONSES, json=body), 404)

    async def test_an_item_of_another_conversation(self, client: Client) -> None:
        one, other = [
            (await client.http.post(CONVERSATIONS, json=body_of(CONVERSATIONS))).json()["id"]
            for _ in range(2)
        ]
        item = (await client.http.get(f"{CONVERSATIONS}/{one}/items")).json()["data"][0]["id"]
        check_error(await client.http.get(f"{CONVERSATIONS}/{other}/items/{item}"), 404)
        check_error(await client.http.delete(f"{CONVERSATIONS}/{other}/items/{item}"), 404)
        assert len((await client.http.get(f"{CONVERSATIONS}/{one}/items")).json()["data"]) == 1

    async def test_item_references(self, client: Client, stranger: Client) -> None:
        made = (await client.http.post(RESPONSES, json=body_of(RESPONSES))).json()
        item = made["output"][0]["id"]
        body = body_of(RESPONSES, input=[{"type": "item_reference", "id": item}, USER])
        assert (await client.http.post(RESPONSES, json=body)).status_code == 200
        check_error(await stranger.http.post(RESPONSES, json=body), 400)

    async def test_chat_completions(self, client: Client, stranger: Client) -> None:
        made = (await client.http.post(CHAT, json=body_of(CHAT, store=True))).json()["id"]
        path = f"{CHAT}/{made}"
        assert (await client.http.get(path)).status_code == 200
        for gone in (path, f"{path}/messages"):
            check_error(await stranger.http.get(gone), 404)
        check_error(await stranger.http.delete(path), 404)
        assert (await client.http.delete(path)).status_code == 200
        check_error(await client.http.get(path), 404)

    async def test_contexts(self, client: Client, stranger: Client) -> None:
        made = (await client.http.post(CONTEXTS, json=body_of(CONTEXTS))).json()["id"]
        check_error(await stranger.http.get(f"{CONTEXTS}/{made}"), 404)
        check_error(await stranger.http.delete(f"{CONTEXTS}/{made}"), 404)
        for route in (CHAT, RESPONSES):
            body = body_of(route, context=made)
            assert (await client.http.post(route, json=body)).status_code == 200
            check_error(await stranger.http.post(route, json=body), 404)
        assert (await client.http.delete(f"{CONTEXTS}/{made}")).status_code == 200
        for route in (CHAT, RESPONSES):
            check_error(await client.http.post(route, json=body_of(route, context=made)), 404)

    @pytest.mark.parametrize(
        "path",
        [
            f"{RESPONSES}/{{}}",
            f"{RESPONSES}/{{}}/input_items",
            f"{CONVERSATIONS}/{{}}",
            f"{CONVERSATIONS}/{{}}/items",
            f"{CHAT}/{{}}",
            f"{CONTEXTS}/{{}}",
        ],
    )
    async def test_ids_that_are_none(self, client: Client, path: str) -> None:
        kinds = {RESPONSES: "resp_", CONVERSATIONS: "conv_", CHAT: "chatcmpl-", CONTEXTS: "ctx_"}
        prefix = next(kind for route, kind in kinds.items() if path.startswith(route))
        for made_up in (
            "x",
            "%00",
            "%F0%9F%98%80",
            "%ED%A0%80",
            prefix,
            prefix + UNKNOWN_ID,
            prefix + "x" * 500,
            "ses_" + UNKNOWN_ID,
        ):
            check_error(await client.http.get(path.format(made_up)), 404)


class TestStreams:
    @pytest.mark.parametrize("route", [CHAT, RESPONSES])
    async def test_a_client_that_never_reads(
        self,
        gateway: RunningGateway,
        client: Client,
        route: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is let go of in bounded time, and nobody else notices."""
        monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "send_seconds_max", 1.0)
        limit = {CHAT: "max_tokens", RESPONSES: "max_output_tokens"}[route]
        given: dict[str, Any] = {limit: 8_000, "stream": True, "ignore_eos": True}
        if route == CHAT:
            given |= {"logprobs": True, "top_logprobs": 20}
        else:
            given |= {"include": ["message.output_text.logprobs"], "top_logprobs": 20}
        body = json.dumps(body_of(route, **given)).encode()
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reader.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(reader, ("127.0.0.1", int(gateway.url.split(":")[2])))
        head = (
            f"POST {route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await loop.sock_sendall(reader, head.encode() + body)
        try:
            await asyncio.sleep(4.0)
            response = await client.http.post(CHAT, json=body_of(CHAT))
            assert response.status_code == 200
            received = await self.all_that_was_sent(loop, reader)
        finally:
            reader.close()
        assert b"HTTP/1.1 200" in received
        assert b"[DONE]" not in received, "the stream was given up"
        states = await self.states(client)
        assert "running" not in states

    async def all_that_was_sent(
        self, loop: asyncio.AbstractEventLoop, reader: socket.socket
    ) -> bytes:
        received = b""
        async with asyncio.timeout(20):
            while True:
                try:
                    part = await loop.sock_recv(reader, 1 << 20)
                except ConnectionError:
                    return received
                if not part:
                    return received
                received += part

    async def states(self, client: Client) -> set[str]:
        listed = (await client.http.get("/v1/sessions")).json()["data"]
        return {session["state"] for session in listed}

    @pytest.mark.parametrize("query", ["starting_after=x", "starting_after=-2", "stream=perhaps"])
    async def test_a_stream_taken_up_wrongly(self, client: Client, query: str) -> None:
        made = (await client.http.post(RESPONSES, json=body_of(RESPONSES))).json()["id"]
        path = f"{RESPONSES}/{made}?stream=true&{query}"
        if query.startswith("stream"):
            path = f"{RESPONSES}/{made}?{query}"
        check_error(await client.http.get(path), 400)
