"""What a caller asks of a turn, checked for shape by the API already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agentmem.catalog.records import Turn
from agentmem.core import ProjectId, TenantId, TurnId
from agentmem.engine.base import Constraint, Sampling
from agentmem.engine.output import AUTO, ToolChoice
from agentmem.plans.classes import RetentionName
from agentmem.sessions.messages import NO_FRAMING, Framing, Message
from agentmem.sessions.runs import TurnDelta


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, and with which key. `project_id` None: the tenant's default project;
    `scopes`: what the key may do."""

    tenant_id: TenantId
    api_key_id: str
    project_id: ProjectId | None = None
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class InSession:
    """A named session. `whole`: the request's messages are the whole conversation (what the log
    has already is found in them), else only the new ones. Busy: SessionBusy. `model` changes the
    session's model; None leaves it."""

    session_id: str
    whole: bool = False
    model: str | None = None


@dataclass(frozen=True, slots=True)
class AfterTurn:
    """Goes on after a turn; the messages are the new ones. Forks where that turn is not the end
    of its session, or somebody else is going on from there: it never waits. `model` may be
    another one than the turn's; None: the same."""

    turn_id: TurnId
    model: str | None = None


@dataclass(frozen=True, slots=True)
class LongestPrefix:
    """The messages are the whole conversation: goes on from the longest beginning of it that the
    tenant has a log of, or starts anew. Never waits."""

    model: str


@dataclass(frozen=True, slots=True)
class FromContext:
    """A new session on top of a context; the messages come after the context's."""

    context_id: str


Target = InSession | AfterTurn | LongestPrefix | FromContext


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """Messages and how to sample the reply.

    `max_tokens` None means the service's default, cut to what the window has left.
    `expected_turn` is the number that this turn should get: it makes repeating safe.
    `store` False keeps nothing of the turn but its usage event. `truncation` "auto" drops the
    oldest messages after the stable beginning instead of refusing a conversation that is too long.
    `response_schema` is a JSON schema that the reply must match (`{}`: any JSON object).
    """

    messages: tuple[Message, ...]
    framing: Framing = NO_FRAMING
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    response_schema: Mapping[str, Any] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    retention: RetentionName | None = None
    expected_turn: int | None = None

    def sampling(self, max_tokens: int, constraint: Constraint | None = None) -> Sampling:
        """For the engine, with the number of tokens that the turn may have."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            constraint=constraint,
        )

    def sampling_fields(self) -> Mapping[str, Any]:
        """As asked for: what is stored with the turn."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": {str(token): bias for token, bias in self.logit_bias.items()},
            "seed": self.seed,
            "stop": list(self.stop),
            "ignore_eos": self.ignore_eos,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "tool_choice": asdict(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_schema": self.response_schema,
            "truncation": self.truncation,
        }

    def body_hash(self) -> str:
        """Hex SHA-256 of everything that makes this turn another one. How it is delivered
        (streamed or not) does not; nor does `expected_turn`, which the number stands for."""
        body = {
            "messages": self.messages,
            "framing": self.framing.as_dict(),
            **self.sampling_fields(),
        }
        encoded = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        return hashlib.sha256(encoded).hexdigest()


@dataclass(frozen=True, slots=True)
class RetryKey:
    """What tells a repeat from a new request.

    `attempt` is `x-stainless-retry-count` (0: the first one), `scope` the route, `body_hash` the
    hex SHA-256 of the body as sent, `choice` the number of the choice where `n` > 1.
    """

    scope: str
    body_hash: str
    attempt: int = 0
    idempotency_key: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """A response object to keep in the turn's transaction, and to find by id while it runs.

    `request` is what its object echoes, `input_items` are in order with ids assigned,
    `output_items` makes the output's items of the committed turn and its deltas. `stored` False
    keeps a row that only a retry of the same request finds. `conversation_id` is the id of a
    conversation, `project_id` the project of the key that asked.
    """

    id: str
    surface: Literal["responses", "chat"]
    request: Mapping[str, Any]
    stored: bool = True
    input_items: Sequence[Mapping[str, Any]] = ()
    output_items: Callable[[Turn, Sequence[TurnDelta]], Sequence[Mapping[str, Any]]] = (
        lambda _turn, _deltas: ()
    )
    previous_response_id: str | None = None
    conversation_id: str | None = None
    project_id: ProjectId | None = None
