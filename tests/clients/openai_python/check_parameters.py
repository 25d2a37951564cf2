"""Every parameter in the client's types is in the gateway's tables, as implemented or refused.

AGENTMEM_PARAMETERS names a file with what `python -m agentmem.api.parameters` prints.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

# Of the client, not of the request.
_CLIENTS_OWN = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
# Helpers on top of `create`, and views on the same methods; `connect` is the WebSocket mode.
_HELPERS = {"parse", "stream", "connect", "with_raw_response", "with_streaming_response"}
_RESOURCES = (
    "chat.completions",
    "chat.completions.messages",
    "responses",
    "responses.input_items",
    "responses.input_tokens",
    "conversations",
    "conversations.items",
    "models",
)
# The bodies as TypedDicts: `create` is overloaded, and a signature might leave out what they have.
_BODIES: dict[str, tuple[Any, ...]] = {
    "chat.completions.create": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "responses.create": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
}


def operations() -> dict[str, set[str]]:
    """Parameters by operation, of every method that sends a request."""
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    found = {}
    for path in _RESOURCES:
        resource: Any = client
        for name in path.split("."):
            resource = getattr(resource, name, None)
        if resource is None:
            continue
        for name, method in inspect.getmembers(type(resource), inspect.isfunction):
            if not name.startswith("_") and name not in _HELPERS:
                found[f"{path}.{name}"] = set(inspect.signature(method).parameters) - _CLIENTS_OWN
    for operation, bodies in _BODIES.items():
        for body in bodies:
            found[operation] |= set(body.__annotations__)
    return found


OPERATIONS = operations()


@pytest.fixture(scope="module")
def tables() -> dict[str, dict[str, str]]:
    """Operation -> parameter -> "implemented" or "refused"."""
    surfaces = json.loads(Path(os.environ["AGENTMEM_PARAMETERS"]).read_text())
    return {
        surface["operation"]: {p["name"]: p["state"] for p in surface["parameters"]}
        for surface in surfaces
    }


def check_this_finds_what_there_is() -> None:
    newer = not openai.__version__.startswith("1.")
    assert len(OPERATIONS) >= (24 if newer else 20), sorted(OPERATIONS)
    assert len(OPERATIONS["responses.create"]) >= 25
    assert "prompt_cache_options" in OPERATIONS["responses.create"] or not newer
    assert len(OPERATIONS["chat.completions.create"]) >= 30


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def check_every_parameter_is_in_the_table(
    tables: dict[str, dict[str, str]], operation: str
) -> None:
    assert operation in tables, f"openai {openai.__version__} has {operation}"
    missing = OPERATIONS[operation] - tables[operation].keys()
    assert not missing, f"{operation}: openai {openai.__version__} takes {sorted(missing)}"
    for name in OPERATIONS[operation]:
        assert tables[operation][name] in {"implemented", "refused"}, name
