"""Commands about plans: `agentmem plan ...`."""

from __future__ import annotations

import json as jsonlib
import tomllib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from agentmem.commands.options import DataDir, settings
from agentmem.errors import InvalidRequest
from agentmem.plans.definition import as_data
from agentmem.plans.operators import (
    Difference,
    assign_plan,
    create_plan,
    list_plans,
    plan_of_tenant,
    show_plan,
)

plan = App(name="plan", help="What tenants pay for: classes, limits, lapse (docs/plans.md).")

_FILE_BYTES_MAX = 1 << 20


@plan.command(name="create")
def plan_create(name: str, file: Path, /, *, data_dir: DataDir = None) -> None:
    """Write the next version of a plan from a JSON or TOML file, and print what it changes.

    Tenants stay with the version that they have until `agentmem plan set`.
    """
    from agentmem.app import in_catalog

    data = _read(file)
    made, changes = in_catalog(
        settings(data_dir=data_dir), lambda catalog: create_plan(catalog, name, data)
    )
    print(f"{made.name}@{made.version}  {made.id}")
    _print_changes(changes)


@plan.command(name="list")
def plan_list(*, data_dir: DataDir = None) -> None:
    """List all plans and their versions."""
    from agentmem.app import in_catalog

    for one in in_catalog(settings(data_dir=data_dir), list_plans):
        print(f"{one.name}@{one.version}  {one.id or 'built in'}")


@plan.command(name="show")
def plan_show(
    name: str = "",
    /,
    *,
    tenant: Annotated[str, Parameter(help="What this tenant has instead.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Print a plan (NAME, or NAME@VERSION) as JSON, or what a tenant has with its overrides."""
    from agentmem.app import in_catalog

    chosen = settings(data_dir=data_dir)
    if bool(name) == bool(tenant):
        raise InvalidRequest("Name a plan, or a tenant with --tenant.")
    if tenant:
        _, has = in_catalog(chosen, lambda catalog: plan_of_tenant(catalog, tenant))
        shown = {
            "plan": f"{has.name}@{has.version}",
            "state": has.state,
            "overrides": dict(has.overrides),
            **as_data(has.definition),
        }
    else:
        found = in_catalog(chosen, lambda catalog: show_plan(catalog, name))
        shown = {"plan": f"{found.name}@{found.version}", **as_data(found.definition)}
    print(jsonlib.dumps(shown, indent=2))


@plan.command(name="set")
def plan_set(
    tenant: str,
    name: str,
    /,
    *,
    overrides: Annotated[
        Path | None, Parameter(help="JSON or TOML file: what of the plan differs for this tenant.")
    ] = None,
    no_overrides: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    data_dir: DataDir = None,
) -> None:
    """Give a tenant a plan (NAME, NAME@VERSION, or default), and print what that changes.

    It holds on every gateway within a second; docs/plans.md says what becomes of sessions that are
    there. The tenant's overrides stay, unless --overrides or --no-overrides is given.
    """
    from agentmem.app import in_catalog

    given = {} if no_overrides else None if overrides is None else _read(overrides)
    done = in_catalog(
        settings(data_dir=data_dir),
        lambda catalog: assign_plan(catalog, tenant, name, overrides=given, dry_run=dry_run),
    )
    print("would change:" if dry_run else f"{tenant} has {done.plan.name}@{done.plan.version}")
    _print_changes(done.changes)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise InvalidRequest(f"{path} is larger than {_FILE_BYTES_MAX} bytes.")
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else jsonlib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{path} cannot be read: {error}.", hint="It is TOML if its name ends so, else JSON."
        ) from error
    if not isinstance(data, dict):
        raise InvalidRequest(f"{path} has no object.")
    return data


def _print_changes(changes: list[Difference]) -> None:
    for name, before, after in changes:
        print(f"  {name}: {_text(before)} -> {_text(after)}")
    if not changes:
        print("  no change")


def _text(value: Any) -> str:
    return "none" if value is None else jsonlib.dumps(value)
