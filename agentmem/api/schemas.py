"""Bodies of requests, as strict as the OpenAPI document says: unknown fields are refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from agentmem.sessions.requests import TurnRequest

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_RETENTION_SECONDS_MAX = 10 * 365 * 86_400
_METADATA_ENTRIES_MAX = 16
_JSON_DEPTH_MAX = 64


def _storable(text: str) -> str:
    # PostgreSQL's text cannot hold NUL; half a character is in no encoding at all.
    if "\x00" in text:
        raise ValueError("the character NUL (U+0000) is not allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from error
    return text


def _storable_json(value: dict[str, Any]) -> dict[str, Any]:
    """Every text in it storable, every number finite, and no deeper than templates can follow."""
    level: list[Any] = [value]
    for _ in range(_JSON_DEPTH_MAX):
        if not level:
            return value
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one)
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif isinstance(one, str):
                _storable(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a number in it is not finite")
            elif isinstance(one, int) and not -_INT64_MAX - 1 <= one <= _INT64_MAX:
                raise ValueError("a number in it does not fit in 64 bits")
        level = below
    raise ValueError(f"it is nested deeper than {_JSON_DEPTH_MAX} levels")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_json)]
MetadataKey = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, AfterValidator(_storable), Field(max_length=512)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(max_length=_METADATA_ENTRIES_MAX, description="Up to 16 pairs of your own."),
]
StopString = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=256)]
Retention = Annotated[int, Field(ge=0, le=_RETENTION_SECONDS_MAX)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class MessageBody(_Body):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class SessionCreateBody(_Body):
    """A new session."""

    model: Annotated[Text, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Name of a served model; may be left out where there is only one."
    )
    metadata: Metadata = Field(default_factory=dict)
    kv_retention_seconds: Retention | None = Field(
        None, description="How long its pages are promised to come back without recomputing."
    )
    log_retention_seconds: Retention | None = Field(
        None, description="How long its id, text and token log are valid."
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"agent": "scout"}}]})


class SessionForkBody(_Body):
    """A fork of a session."""

    turn: Annotated[int, Field(ge=0, le=_INT32_MAX)] | None = Field(
        None, description="Number of the last turn that both share; the newest one by default."
    )
    metadata: Metadata | None = Field(None, description="The parent's when left out.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"turn": 2}]})


class TurnCreateBody(_Body):
    """New messages, and how to sample the reply."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=10_000)]
    stream: bool = Field(False, description="Answer with server-sent events.")
    max_tokens: Annotated[int, Field(ge=1, le=_INT32_MAX)] | None = Field(
        None, description="Longest reply; by default what is set here, cut to the window."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0, description="0 is greedy. 1 by default, as in OpenAI's API."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1, le=_INT32_MAX)] | None = None
    seed: Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)] | None = None
    stop: Annotated[
        list[StopString],
        BeforeValidator(_as_list, json_schema_input_type=str | list[StopString]),
        Field(max_length=16, description="The reply ends before the first of these."),
    ] = Field(default_factory=list)
    logprobs: bool = Field(False, description="Return the log-probability of each sampled token.")
    ignore_eos: bool = Field(False, description="Go on to max_tokens whatever is sampled.")
    expected_turn: Annotated[int, Field(ge=1, le=_INT32_MAX)] | None = Field(
        None,
        description="The number that this turn should get. Makes repeating safe: a turn that is "
        "in the log already is returned, not run again.",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Where were we?"}],
                    "max_tokens": 64,
                    "temperature": 0,
                    "expected_turn": 1,
                }
            ]
        }
    )

    def request(self) -> TurnRequest:
        """For the sessions service."""
        return TurnRequest(
            messages=tuple({"role": m.role, "content": m.content} for m in self.messages),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=-1 if self.top_k is None else self.top_k,
            seed=self.seed,
            stop=tuple(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            expected_turn=self.expected_turn,
        )
