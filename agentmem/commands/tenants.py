"""`agentmem tenant …` and `agentmem project …`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from agentmem.administration.actors import cli_actor
from agentmem.commands.options import DataDir, administer, print_table, shown_time

tenant = App(name="tenant", help="Paying customers.")
project = App(name="project", help="Parts of what a tenant does, told apart in lists and usage.")


@tenant.command(name="create")
def tenant_create(name: str, /, *, data_dir: DataDir = None) -> None:
    """Create a tenant and print its id."""
    print(administer(data_dir, lambda all_: all_.tenants.create(cli_actor(), name)).id)


@tenant.command(name="list")
def tenant_list(*, data_dir: DataDir = None) -> None:
    """List all tenants, oldest first."""
    found = administer(data_dir, lambda all_: all_.tenants.list())
    rows = [
        (
            one.id,
            "active" if one.suspended_at is None else f"suspended {shown_time(one.suspended_at)}",
            shown_time(one.created_at),
            one.name,
        )
        for one in found
    ]
    print_table(("id", "state", "created", "name"), rows)


@tenant.command(name="set")
def tenant_set(
    tenant: str,
    /,
    *,
    default_model: str | None = None,
    alias: Annotated[list[str] | None, Parameter(negative=())] = None,
    no_alias: Annotated[bool, Parameter(negative=())] = False,
    data_dir: DataDir = None,
) -> None:
    """Set a tenant's models: what a request without a model gets, and other names for it.

    --alias takes a pattern such as 'gpt-*' and may be given several times: together they replace
    the ones before. --no-alias, or --default-model with an empty text, go back to the gateway's.
    """
    aliases = [] if no_alias else alias
    changed = administer(
        data_dir,
        lambda all_: all_.tenants.set_models(
            cli_actor(), tenant, default_model=default_model, model_aliases=aliases
        ),
    )
    print("default model:", changed.default_model or "as the gateway is set")
    print("aliases:", ", ".join(changed.model_aliases or ()) or "as the gateway is set")


@tenant.command(name="suspend")
def tenant_suspend(
    tenant: str,
    /,
    *,
    undo: Annotated[bool, Parameter(negative=())] = False,
    data_dir: DataDir = None,
) -> None:
    """Answer nothing to a tenant's keys any more, within a second; --undo: answer again.

    What is kept stays kept.
    """
    changed = administer(
        data_dir,
        lambda all_: all_.tenants.suspend(cli_actor(), tenant, suspended=not undo),
    )
    since = shown_time(changed.suspended_at)
    print(f"{changed.id} is", "active" if changed.suspended_at is None else f"suspended ({since})")


@project.command(name="create")
def project_create(tenant: str, name: str, /, *, data_dir: DataDir = None) -> None:
    """Create a project of a tenant (its name or id) and print its id."""
    made = administer(
        data_dir,
        lambda all_: all_.tenants.create_project(cli_actor(), tenant, name),
    )
    print(made.id)


@project.command(name="list")
def project_list(tenant: str, /, *, data_dir: DataDir = None) -> None:
    """List a tenant's projects, oldest first."""
    found = administer(data_dir, lambda all_: all_.tenants.projects(tenant))
    rows = [(one.id, shown_time(one.created_at), one.name) for one in found]
    print_table(("id", "created", "name"), rows)
