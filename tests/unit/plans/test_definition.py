from __future__ import annotations

from typing import Any

import pytest

from agentmem.errors import InvalidRequest
from agentmem.plans.classes import CLASSES
from agentmem.plans.definition import (
    DEFAULT,
    as_data,
    differences,
    read_definition,
    with_overrides,
)

EPHEMERAL = {"kv_retention_seconds": 60, "log_retention_seconds": 120}
STANDARD = {"kv_retention_seconds": 600, "log_retention_seconds": 1200}
SMALL: dict[str, Any] = {"retention": {"ephemeral": EPHEMERAL, "standard": STANDARD}}


def test_the_default_changes_nothing() -> None:
    for name, terms in CLASSES.items():
        given = DEFAULT.terms(name, kv_retention_seconds=1, log_retention_seconds=2)
        assert (given.kv_retention_seconds, given.log_retention_seconds) == (
            terms.kv_retention_seconds,
            terms.log_retention_seconds,
        )
        assert (given.retention, given.asked) == (name, None)
    given = DEFAULT.terms(None, kv_retention_seconds=10**9, log_retention_seconds=7)
    assert (given.kv_retention_seconds, given.log_retention_seconds) == (10**9, 7)
    limits = as_data(DEFAULT)
    assert all(limits[name] is None for name in limits if "per_minute" in name)
    assert [limits[name] for name in ("concurrent_turns", "sessions", "contexts")] == [None] * 3


def test_it_survives_being_stored() -> None:
    plan = read_definition({**SMALL, "tiers": ["disk"], "requests_per_minute": 3})
    assert read_definition(as_data(plan)) == plan


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("ephemeral", "ephemeral"),
        ("standard", "standard"),
        ("persistent", "standard"),
        ("archive", "standard"),
    ],
)
def test_a_class_that_is_lacking_falls_to_the_strongest_no_stronger(asked: Any, given: str) -> None:
    terms = read_definition(SMALL).terms(asked, kv_retention_seconds=1, log_retention_seconds=1)
    assert terms.retention == given
    assert terms.asked == (None if asked == given else asked)


def test_where_none_is_weak_enough_it_is_the_weakest() -> None:
    plan = read_definition({"retention": {"standard": STANDARD}})
    assert plan.given_class("ephemeral") == "standard"


def test_numbers_are_cut() -> None:
    plan = read_definition({"kv_retention_seconds_max": 5, "log_retention_seconds_max": 9})
    terms = plan.terms(None, kv_retention_seconds=7, log_retention_seconds=8)
    assert (terms.kv_retention_seconds, terms.log_retention_seconds) == (5, 8)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"request_per_minute": 1}, "request_per_minute"),
        ({"requests_per_minute": "5"}, "requests_per_minute"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"sessions": -1}, "sessions"),
        ({"sessions": 10**11}, "sessions"),
        ({"retention": {}}, "retention"),
        ({"retention": {"gold": STANDARD}}, "retention.gold"),
        ({"retention": {"standard": {"kv_retention_seconds": 1}}}, "retention.standard"),
        ({"tiers": ["tape", "disk"]}, "tiers.0"),
        ({"tiers": ["object"]}, "disk"),
        ({"tiers": ["disk"]}, "archive"),
        ([], "object"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(data: Any, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_definition(data)
    assert named in refused.value.message


def test_overrides_replace_what_they_name() -> None:
    plan = read_definition({"sessions": 5, "promised_tokens": {"disk": 1, "object": 2}})
    mine = with_overrides(plan, {"sessions": None, "promised_tokens": {"disk": 3}})
    assert (mine.sessions, mine.promised_tokens.disk, mine.promised_tokens.object) == (None, 3, 2)
    assert with_overrides(plan, SMALL).retention.keys() == {"ephemeral", "standard"}
    with pytest.raises(InvalidRequest):
        with_overrides(plan, {"sessoins": 6})


def test_differences_are_told_field_by_field() -> None:
    plan = read_definition({"sessions": 5, "lapse": {"grace_seconds": 1}})
    assert differences(DEFAULT, plan) == [
        ("lapse.grace_seconds", 604_800, 1),
        ("sessions", None, 5),
    ]
