"""Bodies of the Responses API, and the turns that they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from agentmem.api.caching import LegacyRetention, Ttl, retention_name
from agentmem.api.errors import UNSUPPORTED
from agentmem.api.fields import (
    Body,
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
)
from agentmem.api.responses.items import InputItems, breakpoints
from agentmem.api.responses.parameters import (
    RESPONSES_COMPACT,
    RESPONSES_CREATE,
    RESPONSES_INPUT_TOKENS,
)
from agentmem.api.responses.tools import (
    Choice,
    TextConfig,
    Tools,
    responses_toolbox,
    shown_text,
    shown_tools,
    text_schema,
)
from agentmem.api.surfaces import without_refused
from agentmem.errors import InvalidRequest
from agentmem.plans.classes import RetentionName
from agentmem.sessions.messages import Framing, Message
from agentmem.sessions.requests import TurnRequest

ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
_INCLUDABLE = (ENCRYPTED, LOGPROBS)
_STRICT = ConfigDict(extra="forbid", strict=True)


def _includable(name: Any) -> Any:
    if isinstance(name, str) and name not in _INCLUDABLE:
        raise PydanticCustomError(
            UNSUPPORTED, "Including '{name}' is not supported, only {known}.",
            {"name": name[:64], "known": " and ".join(_INCLUDABLE), "param": "include"},
        )  # fmt: skip
    return name


def _refuse(*harmless: Any, note: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise PydanticCustomError(UNSUPPORTED, "{note}", {"note": note})
        return value

    return BeforeValidator(check)


Identifier = Annotated[Text, Field(max_length=512)]
ObjectId = Annotated[Text, Field(min_length=1, max_length=80)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Include = Annotated[
    list[Annotated[Literal["reasoning.encrypted_content", "message.output_text.logprobs"],
                   BeforeValidator(_includable)]],
    Field(max_length=20),
]  # fmt: skip
_NO_SUMMARY = _refuse(note="Summaries of thinking are not supported: it is shown as it is.")


class Reasoning(TypedDict):
    """How long the model may think, if it can."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    effort: NotRequired[Effort | None]
    summary: NotRequired[Annotated[None, _NO_SUMMARY]]
    generate_summary: NotRequired[Annotated[None, _NO_SUMMARY]]
    context: NotRequired[
        Annotated[
            Literal["auto"] | None,
            _refuse("auto", note="What is thought stays as the template has it: send 'auto'."),
        ]
    ]
    mode: NotRequired[
        Annotated[
            Literal["standard"] | None,
            _refuse("standard", note="There is one mode of reasoning: send 'standard'."),
        ]
    ]


class StreamOptions(TypedDict):
    """What a stream has besides."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    include_obfuscation: NotRequired[bool | None]


class CacheOptions(TypedDict):
    """How long what the request computes is kept, and what it is compared with."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    mode: NotRequired[Literal["implicit", "explicit"] | None]
    ttl: NotRequired[Ttl | None]
    comparison_response_id: NotRequired[ObjectId | None]
    prewarm: NotRequired[
        Annotated[
            Literal[False] | None,
            _refuse(False, note="Prewarming is not supported: make a context instead."),
        ]
    ]


class ConversationReference(TypedDict):
    """A conversation by its id."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    id: ObjectId


def _conversation_id(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


Conversation = Annotated[
    ConversationReference,
    BeforeValidator(_conversation_id, json_schema_input_type=str | ConversationReference),
]


class PromptBody(Body):
    """What makes a prompt: everything but how the reply is sampled and kept."""

    input: InputItems | None = None
    model: ModelName | None = None
    conversation: Conversation | None = None
    previous_response_id: ObjectId | None = None
    instructions: Text | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tool_choice: Choice | None = None
    tools: Tools | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id."""
        return None if self.conversation is None else self.conversation["id"]

    @property
    def given(self) -> Sequence[Mapping[str, Any]]:
        """The input's items as they were sent."""
        return self.input or ()

    def check(self) -> None:
        """Raises InvalidRequest where fields contradict each other."""
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidRequest(
                "Send conversation or previous_response_id, not both.",
                param="previous_response_id",
            )

    def turn_request(self, messages: Sequence[Message]) -> TurnRequest:
        """The turn, with the messages that the input makes. Raises InvalidRequest."""
        box = responses_toolbox(self.tools, self.tool_choice)
        reasoning: Mapping[str, Any] = self.reasoning or {}
        return TurnRequest(
            messages=tuple(messages),
            framing=Framing(self.instructions, box.tools, reasoning.get("effort")),
            tool_choice=box.choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_schema=text_schema(self.text),
            truncation=self.truncation or "disabled",
        )


class InputTokensBody(PromptBody):
    """A prompt whose tokens are to be counted."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        return without_refused(RESPONSES_INPUT_TOKENS, body)


class ResponseBody(PromptBody):
    """Input for the model, and how to sample its reply. Null is the same as left out."""

    include: Include | None = None
    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: LegacyRetention | None = None
    safety_identifier: Identifier | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    top_p: TopP | None = None
    user: Identifier | None = None
    context: ObjectId | None = Field(
        None, description="agentmem's own: id of a context to begin with."
    )
    retention: RetentionName | None = Field(None, description="agentmem's own.")
    top_k: TopK | None = Field(None, description="agentmem's own.")
    seed: Seed | None = Field(None, description="agentmem's own.")
    stop: (
        Annotated[
            list[StopString],
            BeforeValidator(as_list, json_schema_input_type=str | list[StopString]),
            Field(max_length=16, description="agentmem's own."),
        ]
        | None
    ) = None
    ignore_eos: bool | None = Field(None, description="agentmem's own.")
    presence_penalty: Penalty | None = Field(None, description="agentmem's own.")
    frequency_penalty: Penalty | None = Field(None, description="agentmem's own.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m",
                    "input": "Where were we?",
                    "max_output_tokens": 64,
                    "temperature": 0,
                }
            ]
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        return without_refused(RESPONSES_CREATE, body)

    @property
    def stored(self) -> bool:
        """Whether the response can be read later."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with log-probabilities."""
        return LOGPROBS in (self.include or ())

    @property
    def obfuscated(self) -> bool:
        """Whether events of a stream are padded."""
        options: Mapping[str, Any] = self.stream_options or {}
        return bool(options.get("include_obfuscation"))

    def check(self) -> None:
        """Raises InvalidRequest where fields contradict each other."""
        super().check()
        if self.context is not None:
            for name in ("conversation", "previous_response_id"):
                if getattr(self, name) is not None:
                    raise InvalidRequest(f"Send context or {name}, not both.", param="context")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequest(
                f"top_logprobs needs {LOGPROBS!r} in include.", param="top_logprobs"
            )

    def turn_request(self, messages: Sequence[Message]) -> TurnRequest:
        """The turn, with the messages that the input makes. Raises InvalidRequest."""
        plain = super().turn_request(messages)
        return TurnRequest(
            messages=plain.messages,
            framing=plain.framing,
            tool_choice=plain.tool_choice,
            parallel_tool_calls=plain.parallel_tool_calls,
            response_schema=plain.response_schema,
            truncation=plain.truncation,
            max_tokens=self.max_output_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=-1 if self.top_k is None else self.top_k,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs or 0,
            store=self.stored,
            retention=self._retention(),
        )

    def echo(self, model: str) -> dict[str, Any]:
        """What the response object says of its request, with the name of the served model."""
        reasoning: Mapping[str, Any] = self.reasoning or {}
        return {
            "model": model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "prompt_cache_options": self._shown_options(),
            "prompt_cache_retention": self._shown_retention(),
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "safety_identifier": self.safety_identifier,
            "store": self.stored,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": shown_text(self.text),
            "tool_choice": self.tool_choice or "auto",
            "tools": shown_tools(self.tools),
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "include": list(self.include or ()),
            "retention": self._retention(),
        }

    def _retention(self) -> RetentionName | None:
        options: Mapping[str, Any] = self.prompt_cache_options or {}
        return retention_name(
            self.retention,
            options.get("ttl"),
            breakpoints(self.given),
            self.prompt_cache_retention,
        )

    def _shown_options(self) -> dict[str, Any] | None:
        if self.prompt_cache_options is None:
            return None
        shown = {"mode": "implicit", "ttl": "12h"}
        given: Mapping[str, Any] = self.prompt_cache_options
        kept = ("mode", "ttl", "comparison_response_id")
        return shown | {name: given[name] for name in kept if given.get(name) is not None}

    def _shown_retention(self) -> str | None:
        given = self.prompt_cache_retention
        return None if given is None else given.replace("-", "_")


class CompactBody(Body):
    """A conversation to be made short."""

    model: ModelName | None = None
    input: InputItems | None = None
    instructions: Text | None = None
    previous_response_id: ObjectId | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: LegacyRetention | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        return without_refused(RESPONSES_COMPACT, body)
