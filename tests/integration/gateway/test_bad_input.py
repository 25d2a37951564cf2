"""Whatever is sent, the answer is a clear 4xx in one shape, and nothing changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error, gateway_settings, settled

SESSIONS = "/v1/sessions"
RANDOM_ID = "ses_01m87y8r24vqk6tcrffb0r88gw"
MESSAGE = {"role": "user", "content": "hello"}


# One gateway for all: nothing here may change anything.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(gateway_settings(tmp_path_factory.mktemp("gateway"))) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("acme") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def session(client: Client) -> str:
    session_id = await client.create()
    await client.turn(session_id, "hello")
    await settled(client, session_id)
    return session_id


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Basic YTpi",
            "Bearer nonsense",
            "Bearer am_" + "0" * 24 + "_" + "0" * 64,
            "Bearer am_" + "0" * 24,
        ],
    )
    async def test_401(self, gateway: RunningGateway, header: str | None) -> None:
        headers = {} if header is None else {"authorization": header}
        async with httpx2.AsyncClient(base_url=gateway.url, headers=headers) as http:
            for method, path in (("GET", SESSIONS), ("POST", SESSIONS), ("GET", "/v1/nothing")):
                response = await http.request(method, path, content=b"not json")
                error = check_error(response, 401)
                assert error["type"] == "authentication_error"
                assert response.headers["www-authenticate"] == "Bearer"

    async def test_a_wrong_secret_is_refused_like_an_unknown_key(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        last = "1" if client.key[-1] == "0" else "0"
        unknown = "am_" + "0" * 24 + client.key[27:]
        answers = []
        for key in (client.key[:-1] + last, unknown):
            headers = {"authorization": f"Bearer {key}"}
            async with httpx2.AsyncClient(base_url=gateway.url, headers=headers) as http:
                answers.append(check_error(await http.get(SESSIONS), 401))
        assert answers[0] == answers[1]

    async def test_a_revoked_key_stops_working(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        assert (await client.http.get(SESSIONS)).status_code == 200
        async with gateway.catalog.transaction() as tx:
            newest = (await tx.keys.list(client.tenant_id))[-1]
            assert await tx.keys.revoke(client.tenant_id, newest.id)
        await asyncio.sleep(1.0)
        check_error(await client.http.get(SESSIONS), 401)


class TestBodies:
    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"messages": None}, "messages"),
            ({"messages": "hello"}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": [MESSAGE, {"role": "user"}]}, "messages[1].content"),
            ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
            ({"messages": [{"role": "user", "content": "x", "nme": "y"}]}, "messages[0].nme"),
            ({"messages": ["hello"]}, "messages[0]"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": "8"}, "max_tokens"),
            ({"max_tokens": 8.5}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"max_tokens": 10**30}, "max_tokens"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_p": 1.5}, "top_p"),
            ({"top_k": 0}, "top_k"),
            ({"seed": 2**63}, "seed"),
            ({"seed": 1.5}, "seed"),
            ({"stop": [""]}, "stop[0]"),
            ({"stop": 7}, "stop"),
            ({"stop": ["x"] * 17}, "stop"),
            ({"logprobs": 1}, "logprobs"),
            ({"stream": "yes"}, "stream"),
            ({"expected_turn": 0}, "expected_turn"),
            ({"expected_turn": "1"}, "expected_turn"),
            ({"tools": {}}, "tools"),
            ({"tools": [{}]}, "tools[0].type"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"logit_bias": {"x": 1}}, "logit_bias.x"),
            ({"logit_bias": {"999999": 1}}, "logit_bias"),
            ({"mesages": []}, "mesages"),
        ],
    )
    async def test_a_turn_names_the_field(
        self, client: Client, session: str, change: dict[str, Any], param: str
    ) -> None:
        before = await client.get(session)
        body = {"messages": [MESSAGE], **change}
        response = await client.http.post(f"{SESSIONS}/{session}/turns", json=body)
        error = check_error(response, 400)
        assert error["param"] == param
        assert param in error["message"]
        assert error["type"] == "invalid_request_error"
        assert await client.get(session) == before

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"model": 5}, "model"),
            ({"model": ""}, "model"),
            ({"retention": "forever"}, "retention"),
            ({"retention": "standard", "kv_retention_seconds": 1}, "retention"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {"a": "\x00"}}, "metadata.a"),
            ({"metadata": {"a": "x" * 513}}, "metadata.a"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"metadata": []}, "metadata"),
            ({"kv_retention_seconds": -1}, "kv_retention_seconds"),
            ({"log_retention_seconds": 10**12}, "log_retention_seconds"),
            ({"id": "ses_mine"}, "id"),
        ],
    )
    async def test_a_session_names_the_field(
        self, client: Client, body: dict[str, Any], param: str
    ) -> None:
        before = (await client.http.get(SESSIONS)).json()
        error = check_error(await client.http.post(SESSIONS, json=body), 400)
        assert error["param"] == param
        assert (await client.http.get(SESSIONS)).json() == before

    async def test_a_model_that_is_not_served(self, client: Client) -> None:
        response = await client.http.post(SESSIONS, json={"model": "robot-1"})
        error = check_error(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert response.headers["x-should-retry"] == "false"

    @pytest.mark.parametrize(
        ("body", "param"), [({"turn": -1}, "turn"), ({"turn": 2}, "turn"), ({"at": 1}, "at")]
    )
    async def test_a_fork_names_the_field(
        self, client: Client, session: str, body: dict[str, Any], param: str
    ) -> None:
        response = await client.http.post(f"{SESSIONS}/{session}/fork", json=body)
        assert check_error(response, 400)["param"] == param

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe",
            b'{"messages": [{"role": "user", "content": "\xff"}]}',
            b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
            b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
            b'{"messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
            b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5_000 + b"}",
            b'{"messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        ],
        ids=lambda content: ascii(content[:60]),
    )
    async def test_bytes_that_are_no_request(
        self, client: Client, session: str, content: bytes
    ) -> None:
        before = await client.get(session)
        response = await client.http.post(
            f"{SESSIONS}/{session}/turns",
            content=content,
            headers={"content-type": "application/json"},
        )
        check_error(response, 400)
        assert await client.get(session) == before

    async def test_another_content_type(self, client: Client, session: str) -> None:
        body = json.dumps({"messages": [MESSAGE]})
        response = await client.http.post(
            f"{SESSIONS}/{session}/turns", content=body, headers={"content-type": "text/plain"}
        )
        assert "application/json" in check_error(response, 400)["message"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up"])
    async def test_bad_queries(self, client: Client, query: str) -> None:
        error = check_error(await client.http.get(f"{SESSIONS}?{query}"), 400)
        assert error["param"] == query.split("=", maxsplit=1)[0]

    @pytest.mark.parametrize("after", ["", "nonsense", "ses_%00", RANDOM_ID])
    async def test_bad_cursors(self, client: Client, session: str, after: str) -> None:
        error = check_error(await client.http.get(f"{SESSIONS}?after={after}"), 400)
        assert error["param"] == "after"
        path = f"{SESSIONS}/{session}/turns?after={after}"
        assert check_error(await client.http.get(path), 400)["param"] == "after"

    async def test_overflow_says_limit_and_count(self, client: Client, session: str) -> None:
        before = await client.get(session)
        response = await client.post_turn(session, "x y" * 2_000)
        error = check_error(response, 400)
        assert error["code"] == "context_length_exceeded"
        assert "2048" in error["message"]
        response = await client.post_turn(session, "short", max_tokens=2_048)
        error = check_error(response, 400)
        assert "2048" in error["message"]
        prompt = (await client.turn(session, "short"))["usage"]["prompt_tokens"]
        assert str(prompt + 2_048) in error["message"]
        assert before["turns"] == 1


class TestSizes:
    async def test_declared_length(self, client: Client, session: str) -> None:
        response = await client.post_turn(session, "x" * 60_000)
        error = check_error(response, 413)
        assert error["code"] == "request_too_large"
        assert "50000" in error["message"]
        assert (await client.get(session))["turns"] == 1

    async def test_chunked_without_length(self, client: Client, session: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b'{"messages": [{"role": "user", "content": "'
            for _ in range(100):
                yield b"x" * 1_000
            yield b'"}]}'

        response = await client.http.post(f"{SESSIONS}/{session}/turns", content=chunks())
        check_error(response, 413)

    async def test_just_within(self, client: Client, session: str) -> None:
        padding = " " * 40_000
        body = (
            '{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1' + padding + "}"
        )
        response = await client.http.post(
            f"{SESSIONS}/{session}/turns",
            content=body,
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 201

    async def test_a_body_that_takes_too_long(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        # A client that waits for the answer before it goes on sending: it gets to read it.
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.split(":")[2]))
        writer.write(
            f"POST {SESSIONS}/{session}/turns HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {client.key}\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        answer = (await reader.read()).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "x-request-id: req_" in answer
        assert json.loads(answer.split("\r\n\r\n")[1])["error"]["code"] == "request_timeout"


class TestRoutes:
    @pytest.mark.parametrize("path", ["/", "/v2", "/v1", "/v1/", "/v1/sessions/", "/v1/nothing"])
    async def test_unknown_routes(self, client: Client, path: str) -> None:
        assert check_error(await client.http.get(path), 404)["code"] == "unknown_route"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", SESSIONS),
            ("PATCH", f"{SESSIONS}/{RANDOM_ID}"),
            ("GET", f"{SESSIONS}/{RANDOM_ID}/hibernate"),
            ("DELETE", "/healthz"),
        ],
    )
    async def test_wrong_methods(self, client: Client, method: str, path: str) -> None:
        response = await client.http.request(method, path)
        assert check_error(response, 405)["code"] == "method_not_allowed"

    async def test_a_wrong_method_is_told_all_right_ones(self, client: Client) -> None:
        response = await client.http.put(f"{SESSIONS}/{RANDOM_ID}")
        assert response.headers["allow"] == "DELETE, GET"

    @pytest.mark.parametrize(
        "session_id",
        ["x", "ses_", "ses_%00", RANDOM_ID.upper(), "ses_" + "0" * 25, "%F0%9F%98%80", RANDOM_ID],
    )
    async def test_ids_that_are_none(self, client: Client, session_id: str) -> None:
        response = await client.http.get(f"{SESSIONS}/{session_id}")
        assert check_error(response, 404)["code"] == "session_not_found"


async def test_metrics_and_health(client: Client, session: str) -> None:
    assert (await client.http.get("/healthz")).json() == {"status": "ok"}
    assert (await client.http.get("/readyz")).status_code == 200
    text = (await client.http.get("/metrics")).text
    assert 'agentmem_turns_total{model="fake",outcome="completed"}' in text
    assert client.key not in text
    assert client.tenant_id not in text
    assert session not in text


async def test_openapi_describes_what_is_answered(client: Client) -> None:
    document = (await client.http.get("/openapi.json")).json()
    turns = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]
    assert {"201", "400", "401", "404", "409", "413", "503"} <= set(turns["responses"])
    assert document["components"]["schemas"]["TurnCreateBody"]["examples"]
    assert document["components"]["securitySchemes"]
