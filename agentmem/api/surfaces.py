"""What an operation of openai's SDKs takes: each parameter is implemented or refused by name.

A surface's table is its documentation (docs/parameters.md) and what its bodies are refused by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from agentmem.api.errors import UNSUPPORTED

State = Literal["implemented", "refused"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. A refused one may be sent with null or one of `harmless`, which ask for
    nothing; anything else is a 400 that names it."""

    name: str
    state: State
    note: str
    harmless: tuple[Any, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Surface:
    """One operation of the SDK. `extensions` are agentmem's own, sent through `extra_body`."""

    operation: str
    route: str
    parameters: tuple[Parameter, ...]
    extensions: tuple[Parameter, ...] = ()

    def refused(self) -> Mapping[str, Parameter]:
        """Refused parameters by name."""
        return {p.name: p for p in self.parameters if p.state == "refused"}


def implemented(name: str, note: str = "") -> Parameter:
    """Does what the SDK's documentation says, but for what `note` adds."""
    return Parameter(name, "implemented", note)


def refused(name: str, note: str, *harmless: Any) -> Parameter:
    """Answered with `note`, unless it is null or one of `harmless`."""
    return Parameter(name, "refused", note, harmless)


def without_refused(surface: Surface, body: Any) -> Any:
    """The body without what asks for nothing; a validator that runs before all others.

    Raises a validation error that names a refused parameter.
    """
    if not isinstance(body, dict):
        return body
    refused = surface.refused()
    asked = [name for name in body if name in refused]
    if not asked:
        return body
    for name in asked:
        if body[name] is not None and body[name] not in refused[name].harmless:
            raise PydanticCustomError(UNSUPPORTED, "{note}", {"note": refused[name].note,
                                                              "param": name})  # fmt: skip
    return {name: value for name, value in body.items() if name not in refused}
