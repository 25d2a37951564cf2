"""The body of `POST /v1/chat/completions`, and the turn that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from agentmem.api.caching import LegacyRetention, Ttl, retention_name
from agentmem.api.chat.messages import ChatMessages, breakpoints, conversation
from agentmem.api.chat.parameters import CHAT
from agentmem.api.chat.tools import (
    Choice,
    LegacyChoice,
    LegacyFunctions,
    ResponseFormat,
    Toolbox,
    Tools,
    legacy_toolbox,
    response_schema,
    toolbox,
)
from agentmem.api.fields import (
    Body,
    LogitBias,
    Metadata,
    ModelName,
    Penalty,
    Seed,
    StopString,
    Temperature,
    Text,
    TokenCount,
    TopK,
    TopP,
    as_list,
    bias_by_token,
)
from agentmem.api.surfaces import without_refused
from agentmem.errors import InvalidRequest
from agentmem.plans.classes import RetentionName
from agentmem.sessions.messages import Framing
from agentmem.sessions.requests import FromContext, LongestPrefix, Target, TurnRequest

CHOICES_MAX = 8
_STRICT = ConfigDict(extra="forbid", strict=True)
_SEED_SPAN = 2**64
_SEED_MAX = 2**63


class StreamOptions(TypedDict):
    """What a stream has besides."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    include_usage: NotRequired[bool | None]
    include_obfuscation: NotRequired[bool | None]


class CacheOptions(TypedDict):
    """How long what the request computes is kept."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    mode: NotRequired[Literal["implicit", "explicit"] | None]
    ttl: NotRequired[Ttl | None]


Identifier = Annotated[Text, Field(max_length=512)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(Body):
    """A whole conversation, and how to sample its continuation. Null is the same as left out."""

    messages: ChatMessages
    model: ModelName | None = None
    frequency_penalty: Penalty | None = None
    function_call: LegacyChoice | None = None
    functions: LegacyFunctions | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    max_completion_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
    metadata: Metadata | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    parallel_tool_calls: bool | None = None
    presence_penalty: Penalty | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: LegacyRetention | None = None
    reasoning_effort: Effort | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: Identifier | None = None
    seed: Seed | None = None
    stop: (
        Annotated[
            list[StopString],
            BeforeValidator(as_list, json_schema_input_type=str | list[StopString]),
            Field(max_length=16),
        ]
        | None
    ) = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    tool_choice: Choice | None = None
    tools: Tools | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    top_p: TopP | None = None
    user: Identifier | None = None
    top_k: TopK | None = Field(None, description="agentmem's own.")
    ignore_eos: bool | None = Field(None, description="agentmem's own.")
    context: Annotated[Text, Field(max_length=80)] | None = Field(
        None, description="agentmem's own: id of a context to begin with."
    )
    retention: RetentionName | None = Field(None, description="agentmem's own.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m",
                    "messages": [{"role": "user", "content": "Where were we?"}],
                    "max_completion_tokens": 64,
                    "temperature": 0,
                }
            ]
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        return without_refused(CHAT, body)

    @property
    def choices(self) -> int:
        """How many replies are asked for."""
        return self.n or 1

    @property
    def stored(self) -> bool:
        """Whether the completion can be read later."""
        return self.store is True

    def wants(self, option: Literal["include_usage", "include_obfuscation"]) -> bool:
        """Whether a stream has this, too."""
        options: Mapping[str, Any] = self.stream_options or {}
        return bool(options.get(option))

    def target(self, model: str) -> Target:
        """Where the turn goes on from, with the name of a served model."""
        return LongestPrefix(model) if self.context is None else FromContext(self.context)

    def toolbox(self) -> Toolbox:
        """Tools and the choice among them. Raises InvalidRequest where they do not fit."""
        if self.functions is None and self.function_call is None:
            return toolbox(self.tools, self.tool_choice)
        if self.tools is not None or self.tool_choice is not None:
            raise InvalidRequest("Send tools or functions, not both.", param="functions")
        return legacy_toolbox(self.functions, self.function_call)

    def requests(self, tools: Toolbox) -> list[TurnRequest]:
        """One turn per choice. Raises InvalidRequest where fields contradict each other."""
        first = self._request(tools)
        return [_with_seed(first, choice) for choice in range(self.choices)]

    def echo(self, tools: Toolbox) -> dict[str, Any]:
        """What is kept with a stored completion, besides its turn."""
        return {
            "metadata": self.metadata,
            "choices": self.choices,
            "legacy": tools.legacy,
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
            "user": self.user,
        }

    def _request(self, tools: Toolbox) -> TurnRequest:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
        options: Mapping[str, Any] = self.prompt_cache_options or {}
        return TurnRequest(
            messages=conversation(self.messages),
            framing=Framing(tools=tools.tools, reasoning_effort=self.reasoning_effort),
            max_tokens=self._max_tokens(),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=-1 if self.top_k is None else self.top_k,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=bias_by_token(self.logit_bias),
            seed=self.seed,
            stop=tuple(self.stop or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            tool_choice=tools.choice,
            parallel_tool_calls=not tools.legacy and self.parallel_tool_calls is not False,
            response_schema=response_schema(self.response_format),
            store=self.store is not False,
            retention=retention_name(
                self.retention,
                options.get("ttl"),
                breakpoints(self.messages),
                self.prompt_cache_retention,
            ),
        )

    def _max_tokens(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens say the same; send one of them.",
                param="max_tokens",
            )
        return old if new is None else new


def _with_seed(request: TurnRequest, choice: int) -> TurnRequest:
    """The same turn for another choice: with one seed, all choices would be the same reply."""
    if request.seed is None or choice == 0:
        return request
    seed = (request.seed + choice + _SEED_MAX) % _SEED_SPAN - _SEED_MAX
    return replace(request, seed=seed)
