"""The tree of agentmem's errors. No HTTP here: `api.errors` maps them to statuses.

AgentmemError
├── InvalidRequest          the caller sent something that cannot be done
│   ├── ContextOverflow     more tokens than the model's window takes
│   └── ModelNotFound
├── AuthenticationFailed
├── PermissionDenied        known, but not allowed to do this
│   ├── ScopeMissing        the API key lacks a scope
│   ├── RoleMissing         the operator's role does not take it in
│   └── TenantSuspended     nothing is answered to this tenant's keys
├── TooManyAttempts         wrong credentials too often; later again
├── NotFound                no such thing, or not this tenant's
├── SessionBusy             another turn holds the session's lease
├── RateLimited             more in a minute, or at a time, than the tenant's plan allows
├── QuotaExceeded           the plan does not allow so many, or does not have it
├── TenantFrozen            the tenant's plan has lapsed: nothing new begins
├── TurnConflict            `expected_turn` does not fit the log
├── IdempotencyConflict     an Idempotency-Key came again with another body
├── LeaseLost               a lease was fenced off by a newer generation
├── WorkerUnavailable       no worker is ready
│   └── EngineFailed        the worker died or answered with an error mid-turn
├── ProviderUnavailable     the provider of operators' identities does not answer as it should
├── CatalogUnavailable      the database did not answer, or could not write
│   └── CatalogConflict     it undid a transaction in favour of another one
├── NotDurable              pages were missing when the deadline came
├── NodeUnavailable         the node agent did not answer in time
│   ├── NodeDenied          it does not trust this caller, or the caller does not trust it
│   └── ProtocolError       peer speaks another version, or sent a malformed frame
├── PageCorrupt             a stored page failed its checks
├── StoreRefused            a tier cannot take pages (budget, full or failing medium)
├── ModelUnsupported        a model whose KV cannot be kept (SWA, Mamba, MLA, ...)
└── ConfigurationInvalid    a setting or file that cannot be used
    └── KeyUnreadable       a data key that this root key does not open
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime


class AgentmemError(Exception):
    """Base of all errors that agentmem raises on purpose. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidRequest(AgentmemError):
    """The request cannot be carried out as sent; `param` names the field at fault, `code` the
    reason where there is a more exact one than that the value is invalid."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class ContextOverflow(InvalidRequest):
    """More tokens than the model's window takes; `tokens` of them, or at least so many."""

    def __init__(
        self, *, tokens: int, limit: int, param: str = "messages", at_least: bool = False
    ) -> None:
        needed = f"at least {tokens}" if at_least else str(tokens)
        super().__init__(
            f"The conversation and max_tokens need {needed} tokens; the model takes {limit}.",
            param=param,
            hint="Shorten the messages, lower max_tokens, or start a new session.",
        )
        self.tokens = tokens
        self.limit = limit


class ModelNotFound(InvalidRequest):
    """No worker serves this model."""

    def __init__(self, model: str, *, known: tuple[str, ...] = ()) -> None:
        names = ", ".join(known) or "none yet"
        super().__init__(f"Model {model!r} is not served here. Served: {names}.", param="model")
        self.model = model


class AuthenticationFailed(AgentmemError):
    """The API key is missing, malformed, unknown, expired or revoked."""


class PermissionDenied(AgentmemError):
    """Whoever asks is known, and may not do this."""


class ScopeMissing(PermissionDenied):
    """The API key lacks the scope that the route needs."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This API key lacks the scope {scope!r}, which this route needs.",
            hint="Use a key that has it, or have one made.",
        )
        self.scope = scope


class RoleMissing(PermissionDenied):
    """The operator's role does not take in what the route does."""

    def __init__(self, role: str, needed: tuple[str, ...]) -> None:
        super().__init__(f"Your role is {role!r}; this takes {' or '.join(needed)}.")
        self.role = role


class TenantSuspended(PermissionDenied):
    """The tenant is suspended: its keys are good, and nothing is answered to them."""

    def __init__(self) -> None:
        super().__init__("This account is suspended; its sessions are kept as they are.")


class TooManyAttempts(AgentmemError):
    """Credentials were wrong too often; not even good ones are looked at for a while."""

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__("Too many wrong credentials were sent; try again later.")
        self.retry_after_seconds = retry_after_seconds


class NotFound(AgentmemError):
    """No such object for this tenant (whether another tenant has one is not told)."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"No {kind} with id {object_id!r}.")
        self.kind = kind
        self.object_id = object_id


class SessionBusy(AgentmemError):
    """Another turn or operation holds the session's lease."""

    def __init__(
        self, object_id: str, *, retry_after_seconds: float, kind: str = "session"
    ) -> None:
        super().__init__(f"The {kind} {object_id!r} has a turn that runs; try again shortly.")
        self.object_id = object_id
        self.retry_after_seconds = retry_after_seconds


class RateLimited(AgentmemError):
    """More in a minute, or at a time, than the tenant's plan allows; nothing was counted.

    `limit` names the plan's field. `retry_after_seconds`: when the same request may do better;
    None: never, it is larger than the limit by itself.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        retry_after_seconds: float | None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(AgentmemError):
    """The tenant's plan does not allow so many of something, or does not have it at all; `limit`
    names the plan's field."""

    def __init__(self, message: str, *, limit: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class TenantFrozen(AgentmemError):
    """The tenant's plan has lapsed: nothing new begins; reading and deleting go on.

    Times are microseconds since the epoch; `until_us`: when everything is deleted.
    """

    def __init__(self, state: str, reason: str, *, since_us: int, until_us: int | None) -> None:
        why = f" ({reason})" if reason else ""
        message = f"This account is {state} since {_when(since_us)}{why}: no new turns run."
        hint = "Settle it with your operator."
        if state == "frozen":
            hint = f"Reading and deleting still work. {hint}"
        if until_us is not None:
            message += f" Everything is deleted at {_when(until_us)}."
        super().__init__(message, hint=hint)
        self.state = state
        self.since_us = since_us
        self.until_us = until_us


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


class TurnConflict(AgentmemError):
    """`expected_turn` does not fit the session's log."""

    def __init__(self, message: str, *, turns: int) -> None:
        super().__init__(message)
        self.turns = turns


class IdempotencyConflict(AgentmemError):
    """An Idempotency-Key was used before, with another body."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used with another body.",
            hint="Use a new key for a new request, and the same body to repeat one.",
        )


class LeaseLost(AgentmemError):
    """The lease expired and a newer generation took over; nothing of this turn was written."""


class WorkerUnavailable(AgentmemError):
    """No worker is ready to run the turn."""

    def __init__(self, message: str, *, retry_after_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineFailed(WorkerUnavailable):
    """The worker died or answered with an error while the turn ran; the log is where it was."""


class ProviderUnavailable(AgentmemError):
    """The provider of operators' identities (OIDC) does not answer as it should."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The provider of identities cannot be used now: {why}.")


class CatalogUnavailable(AgentmemError):
    """The database did not answer, or could not write; nothing of the transaction was kept.

    `uncertain`: the connection broke while it was being committed, so that it may be kept.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class CatalogConflict(CatalogUnavailable):
    """The database undid the transaction in favour of another one; it can be tried again."""


@dataclass(frozen=True, slots=True)
class MissingPages:
    """Which pages of a log are not durable: `indexes` counts pages from 0."""

    expected: int
    indexes: tuple[int, ...] = field(default=())


class NotDurable(AgentmemError):
    """Pages were still missing when the deadline came."""

    def __init__(self, missing: MissingPages, *, deadline_seconds: float) -> None:
        shown = ", ".join(str(i) for i in missing.indexes[:20])
        more = "" if len(missing.indexes) <= 20 else f" and {len(missing.indexes) - 20} more"
        super().__init__(
            f"{len(missing.indexes)} of {missing.expected} pages are not durable after "
            f"{deadline_seconds:g} s: page {shown}{more}.",
            hint="Call hibernate again; pages that the engine dropped are made by the next turn.",
        )
        self.missing = missing


class NodeUnavailable(AgentmemError):
    """The node agent did not answer within the deadline."""


class NodeDenied(NodeUnavailable):
    """The node agent does not take this caller (token or certificate), or is not trusted by it."""


class ProtocolError(NodeUnavailable):
    """The peer speaks another protocol version or sent a malformed frame."""


class PageCorrupt(AgentmemError):
    """A stored page failed its length, key, fingerprint or checksum check."""


class StoreRefused(AgentmemError):
    """A tier cannot take these pages now; `reason` is the name under which it is counted."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelUnsupported(AgentmemError):
    """The model's KV cache cannot be kept; the message says why."""


class ConfigurationInvalid(AgentmemError):
    """A setting, file or secret cannot be used; the message says which and what would be right."""


class KeyUnreadable(ConfigurationInvalid):
    """A tenant's data key was wrapped with another root key, or is damaged. Nothing was changed."""
