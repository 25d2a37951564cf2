"""What a plan says, as its author writes it down: strictly checked, immutable.

A limit that is null (or left out) is none. `DEFAULT` limits nothing: the gateway's settings hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentmem.errors import InvalidRequest
from agentmem.plans.classes import CLASSES, NAMES, RetentionName

DEFAULT_NAME = "default"
_DAY = 86_400
_COUNT_MAX = 10**10
_SECONDS_MAX = 100 * 365 * _DAY

Count = Annotated[int, Field(ge=0, le=_COUNT_MAX)]
Rate = Annotated[int, Field(ge=1, le=_COUNT_MAX)]
Seconds = Annotated[int, Field(ge=0, le=_SECONDS_MAX)]
DurableTier = Literal["disk", "object"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ClassTerms(_Strict):
    """What a retention class promises in this plan: seconds from the last turn on."""

    kv_retention_seconds: Seconds
    log_retention_seconds: Seconds


class LapseTerms(_Strict):
    """How long a tenant that lapses stays in each state, in seconds."""

    notice_seconds: Seconds = 7 * _DAY
    grace_seconds: Seconds = 7 * _DAY
    frozen_seconds: Seconds = 30 * _DAY


class PromisedTokens(_Strict):
    """Most tokens of a tenant's logs whose KV may be promised at a time, by tier.

    `object` counts sessions of the class archive, `disk` all others.
    """

    disk: Count | None = None
    object: Count | None = None


def _all_classes() -> dict[RetentionName, ClassTerms]:
    return {
        name: ClassTerms(
            kv_retention_seconds=terms.kv_retention_seconds,
            log_retention_seconds=terms.log_retention_seconds,
        )
        for name, terms in CLASSES.items()
    }


class Terms(_Strict):
    """What a session is kept for: `retention` None, numbers one by one. `asked` is the class that
    was asked for where the plan does not have it, else None."""

    retention: RetentionName | None
    kv_retention_seconds: int
    log_retention_seconds: int
    asked: RetentionName | None = None


class PlanDefinition(_Strict):
    """A plan. `retention`: the classes that it has, with their terms. The two `_max` bound terms
    that are given as numbers. `promised_bytes`: of one node's disk."""

    retention: dict[RetentionName, ClassTerms] = Field(default_factory=_all_classes, min_length=1)
    kv_retention_seconds_max: Seconds | None = None
    log_retention_seconds_max: Seconds | None = None
    tiers: tuple[DurableTier, ...] = Field(("disk", "object"), strict=False)
    promised_bytes: Count | None = None
    promised_tokens: PromisedTokens = PromisedTokens()
    requests_per_minute: Rate | None = None
    input_tokens_per_minute: Rate | None = None
    output_tokens_per_minute: Rate | None = None
    concurrent_turns: Rate | None = None
    sessions: Count | None = None
    contexts: Count | None = None
    lapse: LapseTerms = LapseTerms()

    @model_validator(mode="after")
    def _check(self) -> PlanDefinition:
        if "disk" not in self.tiers:
            raise ValueError("tiers must have disk: what is claimed is written there first")
        if "archive" in self.retention and "object" not in self.tiers:
            raise ValueError("the class archive needs the tier object")
        return self

    def terms(
        self,
        retention: RetentionName | None,
        *,
        kv_retention_seconds: int,
        log_retention_seconds: int,
    ) -> Terms:
        """What this plan gives to who asks for a class, or, without one, for these two numbers.

        A class that the plan lacks falls to the strongest one that it has and that is no stronger;
        where it has none such, to its weakest. Numbers are cut to the plan's bounds.
        """
        if retention is None:
            return Terms(
                retention=None,
                kv_retention_seconds=_cut(kv_retention_seconds, self.kv_retention_seconds_max),
                log_retention_seconds=_cut(log_retention_seconds, self.log_retention_seconds_max),
            )
        given = self.given_class(retention)
        terms = self.retention[given]
        return Terms(
            retention=given,
            kv_retention_seconds=terms.kv_retention_seconds,
            log_retention_seconds=terms.log_retention_seconds,
            asked=None if given == retention else retention,
        )

    def given_class(self, asked: RetentionName) -> RetentionName:
        """The class of this plan that stands for the one that was asked for; see `terms`."""
        has = [name for name in NAMES if name in self.retention]
        no_stronger = [name for name in has if NAMES.index(name) <= NAMES.index(asked)]
        return no_stronger[-1] if no_stronger else has[0]


DEFAULT = PlanDefinition()


def read_definition(data: Any) -> PlanDefinition:
    """A definition out of parsed JSON or TOML. Raises InvalidRequest that names what is wrong."""
    if not isinstance(data, dict):
        raise InvalidRequest("A plan is an object with the fields of docs/plans.md.", param="plan")
    try:
        # As JSON: strict types, but lists for tuples.
        return PlanDefinition.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "plan"
        raise InvalidRequest(
            f"The plan's {where} is not valid: {first['msg'].removeprefix('Value error, ')}.",
            param=where,
            hint="docs/plans.md has the fields and their units.",
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"The plan cannot be read: {error}.", param="plan") from error


def with_overrides(definition: PlanDefinition, overrides: Mapping[str, Any]) -> PlanDefinition:
    """A tenant's plan: what `overrides` names replaces the plan's, objects field by field.

    Raises InvalidRequest when what comes out is no plan.
    """
    if not overrides:
        return definition
    return read_definition(_merged(as_data(definition), overrides))


def as_data(definition: PlanDefinition) -> dict[str, Any]:
    """As JSON has it."""
    data: dict[str, Any] = definition.model_dump(mode="json")
    return data


def differences(old: PlanDefinition, new: PlanDefinition) -> list[tuple[str, Any, Any]]:
    """What changes from one to the other: field (with dots), value before, value after."""
    before, after = _flat(as_data(old)), _flat(as_data(new))
    names = sorted({*before, *after})
    return [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        # The classes of a plan are a whole: to add or take one away they are named all.
        if isinstance(inner, dict) and isinstance(value, Mapping) and name != "retention":
            merged[name] = _merged(inner, value)
        else:
            merged[name] = value
    return merged


def _flat(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def _cut(seconds: int, seconds_max: int | None) -> int:
    return seconds if seconds_max is None else min(seconds, seconds_max)
