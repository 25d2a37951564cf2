"""Before a turn runs: its worker, its log, its prompt, its limits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Worker
from agentmem.core import TurnId
from agentmem.engine.output import OutputSpec
from agentmem.errors import ContextOverflow, InvalidRequest
from agentmem.sessions.bases import Base, Bases, conversation_hash
from agentmem.sessions.chat import Chat
from agentmem.sessions.context import Context
from agentmem.sessions.log import Log, Prompt, continued, fill_prompt
from agentmem.sessions.messages import NO_FRAMING, Framing
from agentmem.sessions.requests import Caller, ResponsePlan, RetryKey, Target, TurnRequest
from agentmem.sessions.retries import Attempt
from agentmem.sessions.terms import under_plan
from agentmem.sessions.truncation import truncated


@dataclass(frozen=True, slots=True)
class TurnCall:
    """One call of the service for a turn. `arrived` is on the monotonic clock."""

    caller: Caller
    target: Target
    request: TurnRequest
    plan: ResponsePlan | None
    retry: tuple[Attempt, RetryKey] | None
    arrived: float


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """Everything that a turn needs to run.

    `arrived` is on the monotonic clock, `created_at` in microseconds since the epoch.
    `prefix_hash` is that of the whole conversation up to the reply.
    """

    turn_id: TurnId
    number: int
    caller: Caller
    base: Base
    log: Log
    prompt: Prompt
    prefix_hash: bytes
    chat: Chat
    worker: Worker
    max_tokens: int
    output: OutputSpec
    request: TurnRequest
    body_hash: str
    plan: ResponsePlan | None
    retry: tuple[Attempt, RetryKey] | None
    arrived: float
    created_at: int


class Preparation:
    """Prepares turns. Changes nothing."""

    def __init__(self, context: Context, bases: Bases) -> None:
        self._context = context
        self._bases = bases

    async def prepare(self, call: TurnCall, base: Base) -> PreparedTurn:
        """Raises ModelNotFound, WorkerUnavailable, ContextOverflow or InvalidRequest."""
        request = call.request
        plan = await self._context.plans.of(base.session.tenant_id)
        session = under_plan(base.session, plan.definition, request.retention)
        base = replace(base, session=session)
        worker = await self._context.router.choose(base.session.model, base.session.worker_id)
        chat = await self._context.chat(worker)
        _check_bias(chat, request)
        now = now_us()
        log = await self._context.log_at(base.session.tenant_id, base.turn_id, chat, now_us=now)
        framing = _framing(log, base, request.framing)
        _refuse_hopeless(chat, base, request, window(worker))
        prompt = await fill_prompt(chat, log, continued(log, base.messages, framing))
        prompt, max_tokens = await self._fitted(_Place(chat, log, worker), prompt, request)
        known = base.known_hash
        return PreparedTurn(
            turn_id=TurnId(new_id("turn")),
            number=log.number + 1,
            caller=call.caller,
            base=base,
            log=log,
            prompt=prompt,
            prefix_hash=known
            or conversation_hash(log, framing, base.messages, model=base.session.model),
            chat=chat,
            worker=worker,
            max_tokens=max_tokens,
            output=OutputSpec(
                tools=prompt.framing.tools,
                tool_choice=request.tool_choice,
                parallel_tool_calls=request.parallel_tool_calls,
                reasoning=request.framing.reasoning_effort != "none",
                opening=chat.opening(prompt.framing.reasoning_effort),
            ),
            request=request,
            body_hash=request.body_hash(),
            plan=call.plan,
            retry=call.retry,
            arrived=call.arrived,
            created_at=now,
        )

    async def count_tokens(self, caller: Caller, target: Target, request: TurnRequest) -> int:
        """How many tokens the prompt of such a turn would have. Takes no lease, runs nothing."""
        base = await self._bases.look(caller.tenant_id, target, request)
        worker = await self._context.router.choose(base.session.model, base.session.worker_id)
        chat = await self._context.chat(worker)
        log = await self._context.log_at(
            base.session.tenant_id, base.turn_id, chat, now_us=now_us()
        )
        framing = _framing(log, base, request.framing)
        prompt = await fill_prompt(chat, log, continued(log, base.messages, framing))
        return len(prompt.ids)

    async def _fitted(
        self, place: _Place, prompt: Prompt, request: TurnRequest
    ) -> tuple[Prompt, int]:
        """The prompt within the window, and how many tokens the reply may have."""
        limit = window(place.worker)
        wanted = request.max_tokens or 1
        if len(prompt.ids) + wanted > limit and request.truncation == "auto":
            room = limit - wanted
            prompt = await truncated(place.chat, place.log, prompt, limit_tokens=room)
        left = limit - len(prompt.ids)
        if left < wanted:
            raise ContextOverflow(tokens=len(prompt.ids) + wanted, limit=limit)
        default = min(self._context.limits.turn_tokens_default, left)
        return prompt, request.max_tokens or default


@dataclass(frozen=True, slots=True)
class _Place:
    """What a prompt is made for."""

    chat: Chat
    log: Log
    worker: Worker


def window(worker: Worker) -> int:
    """The most tokens that prompt and reply may have together on this worker."""
    return min(worker.context_tokens, worker.hbm_tokens or worker.context_tokens)


def _check_bias(chat: Chat, request: TurnRequest) -> None:
    for token in request.logit_bias:
        if token >= chat.vocabulary_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; the model has {chat.vocabulary_size} tokens.",
                param="logit_bias",
            )


def _refuse_hopeless(chat: Chat, base: Base, request: TurnRequest, limit: int) -> None:
    """Raises ContextOverflow for texts that cannot fit, without tokenizing megabytes first."""
    characters = sum(len(message.get("content") or "") for message in base.messages)
    tokens_min = characters // chat.token_characters_max
    if tokens_min > limit and request.truncation == "disabled":
        raise ContextOverflow(tokens=tokens_min, limit=limit, at_least=True)


def _framing(log: Log, base: Base, framing: Framing) -> Framing:
    """What frames this turn: the log's instructions and tools where it inherits them."""
    return log.framing if base.inherits and framing == NO_FRAMING else framing
