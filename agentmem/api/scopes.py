"""Which scope of an API key each route needs (docs/administration.md has the same table)."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request

from agentmem.administration.scopes import ADMIN, INFERENCE, SESSIONS_READ
from agentmem.api.auth import current_caller
from agentmem.errors import ScopeMissing

# Any key that works: what is served is no secret of anybody's.
ANY = "any"

ROUTE_SCOPES: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/chat/completions"): INFERENCE,
    ("GET", "/v1/chat/completions"): SESSIONS_READ,
    ("GET", "/v1/chat/completions/{completion_id}"): SESSIONS_READ,
    ("POST", "/v1/chat/completions/{completion_id}"): INFERENCE,
    ("DELETE", "/v1/chat/completions/{completion_id}"): INFERENCE,
    ("GET", "/v1/chat/completions/{completion_id}/messages"): SESSIONS_READ,
    ("GET", "/v1/models"): ANY,
    ("GET", "/v1/models/{model}"): ANY,
    ("DELETE", "/v1/models/{model}"): ANY,
    ("GET", "/v1/sessions"): SESSIONS_READ,
    ("POST", "/v1/sessions"): INFERENCE,
    ("GET", "/v1/sessions/{session_id}"): SESSIONS_READ,
    ("DELETE", "/v1/sessions/{session_id}"): INFERENCE,
    ("POST", "/v1/sessions/{session_id}/fork"): INFERENCE,
    ("GET", "/v1/sessions/{session_id}/turns"): SESSIONS_READ,
    ("POST", "/v1/sessions/{session_id}/turns"): INFERENCE,
    ("POST", "/v1/sessions/{session_id}/hibernate"): INFERENCE,
    ("POST", "/v1/sessions/{session_id}/resume"): INFERENCE,
    ("GET", "/v1/sessions/{session_id}/residency"): SESSIONS_READ,
    ("GET", "/v1/contexts"): SESSIONS_READ,
    ("POST", "/v1/contexts"): INFERENCE,
    ("GET", "/v1/contexts/{context_id}"): SESSIONS_READ,
    ("DELETE", "/v1/contexts/{context_id}"): INFERENCE,
    ("POST", "/v1/responses"): INFERENCE,
    ("POST", "/v1/responses/compact"): INFERENCE,
    ("POST", "/v1/responses/input_tokens"): INFERENCE,
    ("GET", "/v1/responses/{response_id}"): SESSIONS_READ,
    ("DELETE", "/v1/responses/{response_id}"): INFERENCE,
    ("POST", "/v1/responses/{response_id}/cancel"): INFERENCE,
    ("GET", "/v1/responses/{response_id}/input_items"): SESSIONS_READ,
    ("GET", "/v1/conversations"): SESSIONS_READ,
    ("POST", "/v1/conversations"): INFERENCE,
    ("GET", "/v1/conversations/{conversation_id}"): SESSIONS_READ,
    ("POST", "/v1/conversations/{conversation_id}"): INFERENCE,
    ("DELETE", "/v1/conversations/{conversation_id}"): INFERENCE,
    ("GET", "/v1/conversations/{conversation_id}/items"): SESSIONS_READ,
    ("POST", "/v1/conversations/{conversation_id}/items"): INFERENCE,
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): SESSIONS_READ,
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): INFERENCE,
    ("GET", "/v1/keys"): ADMIN,
    ("POST", "/v1/keys"): ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): ADMIN,
    ("GET", "/v1/projects"): ADMIN,
    ("POST", "/v1/projects"): ADMIN,
}


async def check_scope(request: Request) -> None:
    """Dependency of every route below /v1 that takes an API key. A route that is not in the table
    is nobody's. Raises ScopeMissing."""
    caller = await current_caller(request)
    path = request.scope["route"].path_format
    needed = ROUTE_SCOPES.get((request.method, path))
    if needed is None:
        raise ScopeMissing("none that there is")
    if needed != ANY and needed not in caller.scopes:
        raise ScopeMissing(needed)
