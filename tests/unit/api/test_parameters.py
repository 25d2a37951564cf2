"""The tables of parameters: the document is the code, and bodies obey them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentmem.api.chat.parameters import CHAT
from agentmem.api.chat.schemas import ChatBody
from agentmem.api.parameters import SURFACES, as_json, as_markdown

DOCUMENT = Path(__file__).parents[3] / "docs" / "parameters.md"
MESSAGES = [{"role": "user", "content": "hello"}]


def test_the_document_is_what_the_code_prints() -> None:
    assert DOCUMENT.read_text() == as_markdown()


def test_the_json_has_every_surface() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "agentmem.api.parameters"], capture_output=True, check=True
    ).stdout
    assert json.loads(printed) == json.loads(as_json())
    assert [one["operation"] for one in json.loads(printed)] == [s.operation for s in SURFACES]


def test_names_are_unique_and_refusals_say_why() -> None:
    assert len({surface.operation for surface in SURFACES}) == len(SURFACES)
    for surface in SURFACES:
        rows = (*surface.parameters, *surface.extensions)
        assert len({row.name for row in rows}) == len(rows)
        assert all(row.note.endswith(".") for row in rows if row.state == "refused")


def test_chat_takes_what_is_implemented_and_nothing_else() -> None:
    implemented = {row.name for row in CHAT.parameters if row.state == "implemented"}
    assert set(ChatBody.model_fields) == implemented | {row.name for row in CHAT.extensions}


@pytest.mark.parametrize("name", sorted(CHAT.refused()))
def test_chat_refuses_by_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"messages": MESSAGES, name: {"anything": 1}})
    error = caught.value.errors()[0]
    assert error["type"] == "unsupported_parameter"
    assert error["ctx"]["param"] == name
    assert error["msg"] == CHAT.refused()[name].note


@pytest.mark.parametrize("row", CHAT.refused().values(), ids=lambda row: row.name)
def test_what_asks_for_nothing_is_taken(row: Any) -> None:
    for value in (None, *row.harmless):
        body = ChatBody.model_validate({"messages": MESSAGES, row.name: value})
        assert body == ChatBody(messages=MESSAGES)  # type: ignore[arg-type]


def test_null_is_the_same_as_left_out() -> None:
    rows = (*CHAT.parameters, *CHAT.extensions)
    nothing = {row.name: None for row in rows if row.name != "messages"}
    assert ChatBody.model_validate({"messages": MESSAGES, **nothing}) == ChatBody.model_validate(
        {"messages": MESSAGES}
    )
