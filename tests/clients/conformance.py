"""Holds what a gateway answered against the types of the openai SDK and of Open Responses.

The SDK itself validates nothing of what it receives: a missing field is only noticed by the program
that reads it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import openai.types as sdk
import openai.types.chat as sdk_chat
import openai.types.responses as sdk_responses
import pydantic
from wire import Exchange

try:
    import openresponses_types.types as open_responses
except ImportError:  # not in .venv-openai1: its models say the same of every version's answers
    open_responses = None

_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
_ID = r"[^/]+"
_SDK_EVENT = pydantic.TypeAdapter(sdk_responses.ResponseStreamEvent)


def _open_events() -> dict[str, Any]:
    """Open Responses' model of each event, by `type`."""
    models = {}
    for name, model in vars(open_responses).items():
        if name.endswith("StreamingEvent"):
            kind = model.model_fields["type"].annotation
            models[next(iter(kind)).value] = model
    assert len(models) >= 20, "openresponses_types names its events otherwise than this expects"
    return models


def _answers() -> list[tuple[str, str, list[Any]]]:
    """(method, path, types) of the answers that have a type."""
    response = [sdk_responses.Response]
    # The SDK's own type has no place for what OpenAI's API puts there: the user's messages.
    compacted = []
    if open_responses is not None:
        response.append(open_responses.ResponseResource)
        compacted.append(open_responses.CompactResource)
    found = [
        ("POST", "/v1/chat/completions", [sdk_chat.ChatCompletion]),
        ("GET", f"/v1/chat/completions/{_ID}", [sdk_chat.ChatCompletion]),
        ("DELETE", f"/v1/chat/completions/{_ID}", [sdk_chat.ChatCompletionDeleted]),
        ("POST", "/v1/responses", response),
        ("GET", f"/v1/responses/{_ID}", response),
        ("POST", f"/v1/responses/{_ID}/cancel", response),
        ("POST", "/v1/responses/compact", compacted),
        ("GET", f"/v1/responses/{_ID}/input_items", [sdk_responses.ResponseItemList]),
        ("GET", f"/v1/models/{_ID}", [sdk.Model]),
    ]
    if hasattr(sdk, "conversations"):
        kinds = sdk.conversations
        found += [
            ("POST", "/v1/conversations", [kinds.Conversation]),
            ("GET", f"/v1/conversations/{_ID}", [kinds.Conversation]),
            ("POST", f"/v1/conversations/{_ID}", [kinds.Conversation]),
            ("DELETE", f"/v1/conversations/{_ID}", [kinds.ConversationDeletedResource]),
            ("POST", f"/v1/conversations/{_ID}/items", [kinds.ConversationItemList]),
            ("GET", f"/v1/conversations/{_ID}/items", [kinds.ConversationItemList]),
            ("DELETE", f"/v1/conversations/{_ID}/items/{_ID}", [kinds.Conversation]),
        ]
    return found


_ANSWERS = _answers()


def check(exchange: Exchange) -> None:
    """Raises AssertionError for an answer that is not what a client's types say."""
    where = f"{exchange.method} {exchange.path} -> {exchange.status}"
    assert exchange.headers.get("x-request-id", "").startswith("req_"), f"{where}: x-request-id"
    if exchange.status >= 400:
        if exchange.complete:
            _check_error(where, exchange.json())
    elif exchange.is_stream and "/chat/" in exchange.path:
        _check_chunks(where, exchange)
    elif exchange.is_stream:
        _check_events(where, exchange)
    elif exchange.complete:
        for method, path, types in _ANSWERS:
            if exchange.method == method and re.fullmatch(path, exchange.path):
                for kind in types:
                    _validate(where, kind, exchange.json())
                return


def _check_error(where: str, body: Any) -> None:
    assert set(body) == {"error"}, f"{where}: {body}"
    assert {"message", "type", "param", "code"} <= set(body["error"]), f"{where}: {body}"
    assert body["error"]["message"], f"{where}: an error without a message"


def _check_chunks(where: str, exchange: Exchange) -> None:
    """A stream of Chat Completions."""
    events = exchange.events()
    if exchange.complete:
        assert events[-1][1] == "[DONE]", f"{where}: the stream ends with {events[-1]}"
    ids = set()
    for name, data in events:
        assert name is None, f"{where}: chat events have no name, this one is {name}"
        if data != "[DONE]":
            chunk = json.loads(data)
            assert "error" not in chunk, f"{where}: {data}"
            _validate(where, sdk_chat.ChatCompletionChunk, chunk)
            ids.add(chunk["id"])
    assert len(ids) <= 1, f"{where}: chunks of several ids {ids}"


def _check_events(where: str, exchange: Exchange) -> None:
    """A stream of Responses."""
    events = exchange.events()
    models = _open_events() if open_responses is not None else {}
    first = int(exchange.query.get("starting_after", -1)) + 1
    expected, kinds = first, []
    for name, data in events:
        if data == "[DONE]":
            break
        event = json.loads(data)
        kind = event["type"]
        kinds.append(kind)
        assert name == kind, f"{where}: event: {name}, type {kind}"
        assert event["sequence_number"] == expected, (
            f"{where}: {kind} has sequence_number {event['sequence_number']}, not {expected}"
        )
        expected += 1
        _SDK_EVENT.validate_python(event)
        if kind in models:
            _validate(where, models[kind], event)
        elif open_responses is not None:
            raise AssertionError(f"{where}: Open Responses knows no event {kind}")
    if kinds and first == 0:
        assert kinds[0] == "response.created", f"{where}: starts with {kinds[0]}"
    if exchange.complete:
        assert events[-1][1] == "[DONE]", f"{where}: the stream ends with {events[-1]}"
        assert kinds[-1] in _TERMINAL, f"{where}: ends with {kinds[-1]}"
        assert not _TERMINAL & set(kinds[:-1]), f"{where}: {kinds}"


def _validate(where: str, kind: Any, value: Any) -> None:
    if open_responses is not None and kind.__module__ == open_responses.__name__:
        value = _without_schemas(value)
    try:
        kind.model_validate(value)
    except pydantic.ValidationError as error:
        found = "\n".join(
            f"    {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.80})"
            for e in error.errors()[:12]
        )
        raise AssertionError(f"{where} is no {kind.__module__}.{kind.__name__}:\n{found}") from None


def _without_schemas(value: Any) -> Any:
    """A response as Open Responses' types have it: they are generated so that the echoed schema of
    a `text.format` can only be null, where the SDK requires it to be there."""
    if isinstance(value, dict) and isinstance(value.get("response"), dict):
        return {**value, "response": _without_schemas(value["response"])}
    text = value.get("text") if isinstance(value, dict) else None
    if isinstance(text, dict) and text["format"]["type"] == "json_schema":
        return {**value, "text": {**text, "format": {**text["format"], "schema": None}}}
    return value
