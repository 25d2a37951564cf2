"""What a session is kept for, by the plan that its tenant has when it is made or used."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from agentmem.catalog.records import Session
from agentmem.plans.classes import RetentionName
from agentmem.plans.definition import PlanDefinition


def under_plan(session: Session, plan: PlanDefinition, asked: RetentionName | None) -> Session:
    """The session with the terms that the plan gives it from now on.

    `asked`: the class that is asked for now; None: what it was asked for before. A class that the
    plan lacks falls to one that it has, and `asked_retention` says which one was wanted.
    """
    wanted = asked or cast("RetentionName | None", session.asked_retention or session.retention)
    terms = plan.terms(
        wanted,
        kv_retention_seconds=session.kv_retention_seconds,
        log_retention_seconds=session.log_retention_seconds,
    )
    return replace(
        session,
        retention=terms.retention,
        asked_retention=terms.asked,
        kv_retention_seconds=terms.kv_retention_seconds,
        log_retention_seconds=terms.log_retention_seconds,
    )
