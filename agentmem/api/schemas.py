"""Bodies of the sessions and contexts API: unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from agentmem.api.chat.messages import ChatMessages, conversation
from agentmem.api.chat.tools import Choice, ResponseFormat, Tools, response_schema, toolbox
from agentmem.api.fields import (
    INT32_MAX,
    Body,
    LogitBias,
    Metadata,
    ModelName,
    Penalty,
    Retention,
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
from agentmem.errors import InvalidRequest
from agentmem.plans.classes import RetentionName
from agentmem.sessions.messages import Framing
from agentmem.sessions.requests import TurnRequest

Instructions = Annotated[Text, Field(min_length=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SessionCreateBody(Body):
    """A new session."""

    model: ModelName | None = Field(
        None, description="Name of a served model; may be left out where there is only one."
    )
    metadata: Metadata = Field(default_factory=dict)
    retention: RetentionName | None = Field(
        None, description="Sets both terms; not together with one of them."
    )
    context: Annotated[Text, Field(max_length=80)] | None = Field(
        None, description="Id of a context to begin with; its model is the session's."
    )
    kv_retention_seconds: Retention | None = Field(
        None, description="How long its pages are promised to come back without recomputing."
    )
    log_retention_seconds: Retention | None = Field(
        None, description="How long its id, text and token log are valid."
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"agent": "scout"}}]})

    def check(self) -> None:
        """Raises InvalidRequest where fields contradict each other."""
        terms = (self.kv_retention_seconds, self.log_retention_seconds)
        if self.retention is not None and terms != (None, None):
            raise InvalidRequest(
                "retention stands for both terms; send it alone, or the terms.", param="retention"
            )


class HibernateBody(Body):
    """Body of POST /v1/sessions/{id}/hibernate. `object`: to the object tier, off the host."""

    tier: Literal["disk", "object"] = "disk"


class SessionForkBody(Body):
    """A fork of a session."""

    turn: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = Field(
        None, description="Number of the last turn that both share; the newest one by default."
    )
    metadata: Metadata | None = Field(None, description="The parent's when left out.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"turn": 2}]})


class TurnCreateBody(Body):
    """New messages, and how to sample the reply."""

    messages: ChatMessages
    instructions: Instructions | None = Field(
        None, description="A system message before all others, for this turn only."
    )
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    stream: bool = Field(False, description="Answer with server-sent events.")
    max_tokens: TokenCount | None = Field(
        None, description="Longest reply; by default what is set here, cut to the window."
    )
    temperature: Temperature = Field(
        1.0, description="0 is greedy. 1 by default, as in OpenAI's API."
    )
    top_p: TopP = 1.0
    top_k: TopK | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Annotated[
        list[StopString],
        BeforeValidator(as_list, json_schema_input_type=str | list[StopString]),
        Field(max_length=16, description="The reply ends before the first of these."),
    ] = Field(default_factory=list)
    logprobs: bool = Field(False, description="Return the log-probability of each sampled token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = Field(
        0, description="So many alternatives of each sampled token, too; with logprobs."
    )
    ignore_eos: bool = Field(False, description="Go on to max_tokens whatever is sampled.")
    expected_turn: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = Field(
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
        """For the sessions service. Raises InvalidRequest where fields contradict each other."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        tools = toolbox(self.tools, self.tool_choice)
        return TurnRequest(
            messages=conversation(self.messages),
            framing=Framing(self.instructions, tools.tools, self.reasoning_effort),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=-1 if self.top_k is None else self.top_k,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=bias_by_token(self.logit_bias),
            seed=self.seed,
            stop=tuple(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            tool_choice=tools.choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_schema=response_schema(self.response_format),
            expected_turn=self.expected_turn,
        )


class DocumentBody(Body):
    """A text to read."""

    title: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    text: Annotated[Text, Field(min_length=1)]


class ContextCreateBody(Body):
    """A beginning that many sessions share."""

    model: ModelName | None = Field(
        None, description="Name of a served model; may be left out where there is only one."
    )
    name: Annotated[Text, Field(max_length=200)] = ""
    messages: Annotated[ChatMessages, Field(max_length=10_000)] | None = None
    instructions: Instructions | None = Field(
        None, description="A system message before all others."
    )
    tools: Tools | None = None
    documents: Annotated[list[DocumentBody], Field(max_length=1_000)] = Field(
        default_factory=list, description="Texts, each rendered with its title."
    )
    retention: RetentionName | None = Field(
        None, description="How long it is kept; the gateway's terms when left out."
    )
    metadata: Metadata = Field(default_factory=dict)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "manual",
                    "documents": [{"title": "Manual", "text": "Press the button."}],
                    "retention": "persistent",
                }
            ]
        }
    )

    def check(self) -> None:
        """Raises InvalidRequest for a context of nothing."""
        if not self.messages and not self.documents and self.instructions is None:
            raise InvalidRequest(
                "A context needs messages, documents or instructions.", param="messages"
            )
