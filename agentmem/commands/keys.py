"""`agentmem key …`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from agentmem.administration.actors import cli_actor
from agentmem.commands.options import DataDir, administer, print_table, seconds_of, shown_time

key = App(name="key", help="API keys of a tenant.")


@key.command(name="create")
def key_create(
    tenant: str,
    /,
    *,
    name: str = "",
    project: str | None = None,
    scope: Annotated[list[str] | None, Parameter(negative=())] = None,
    expires_in: str | None = None,
    data_dir: DataDir = None,
) -> None:
    """Create an API key of a tenant (its name or id). The key is shown this once.

    --scope may be given several times: inference, sessions:read (these two by default),
    billing:read, admin. --expires-in takes 90s, 15m, 12h, 30d or 2w.
    """
    lifetime = seconds_of(expires_in, param="expires_in")
    made = administer(
        data_dir,
        lambda all_: all_.keys.create(
            cli_actor(),
            tenant,
            name=name,
            project=project,
            scopes=scope,
            expires_seconds=lifetime,
        ),
    )
    print(made.secret)


@key.command(name="list")
def key_list(tenant: str, /, *, data_dir: DataDir = None) -> None:
    """List a tenant's keys, oldest first; of each key only its beginning is known."""
    from agentmem.administration.keys import key_state
    from agentmem.catalog.ids import default_project

    found = administer(data_dir, lambda all_: all_.keys.list(tenant))
    rows = [
        (
            one.id,
            one.prefix,
            key_state(one),
            ",".join(one.scopes.split()),
            one.project_id or default_project(one.tenant_id),
            shown_time(one.expires_at, never="never"),
            shown_time(one.last_used_at, never="never"),
            one.name,
        )
        for one in found
    ]
    header = ("id", "prefix", "state", "scopes", "project", "expires", "last used", "name")
    print_table(header, rows)


@key.command(name="rotate")
def key_rotate(
    tenant: str,
    key: str,
    /,
    *,
    overlap: str = "1d",
    expires_in: str | None = None,
    data_dir: DataDir = None,
) -> None:
    """Replace a key (its id or prefix) by a new one, which is shown this once.

    The old one ends by itself after --overlap, a day by default; 0s: now.
    """
    overlap_seconds = seconds_of(overlap, param="overlap")
    assert overlap_seconds is not None, "it has a default"
    lifetime = seconds_of(expires_in, param="expires_in")
    made = administer(
        data_dir,
        lambda all_: all_.keys.rotate(
            cli_actor(), tenant, key, overlap_seconds=overlap_seconds, expires_seconds=lifetime
        ),
    )
    print(made.secret)


@key.command(name="revoke")
def key_revoke(tenant: str, key: str, /, *, data_dir: DataDir = None) -> None:
    """End a key (its id or prefix) now: it works on no gateway any more within a second."""
    ended = administer(data_dir, lambda all_: all_.keys.revoke(cli_actor(), tenant, key))
    print(f"{ended.id} was revoked at {shown_time(ended.revoked_at)}")
