"""`agentmem operator …`."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

from cyclopts import App, Parameter

from agentmem.administration.actors import cli_actor
from agentmem.commands.options import DataDir, administer, print_table, seconds_of, shown_time
from agentmem.errors import InvalidRequest

operator = App(name="operator", help="People of the provider, who use the admin API.")

Stdin = Annotated[
    bool, Parameter(negative=(), help="Read the password from standard input, not the terminal.")
]


@operator.command(name="create")
def operator_create(
    email: str,
    /,
    *,
    role: str,
    oidc: Annotated[bool, Parameter(negative=())] = False,
    password_stdin: Stdin = False,
    data_dir: DataDir = None,
) -> None:
    """Create an operator (viewer, operator, billing or owner) and ask for the password.

    --oidc: without a password; the first sign-in at the provider with this address, verified, is
    tied to the operator.
    """
    password = None if oidc else _password(from_stdin=password_stdin)
    made = administer(
        data_dir,
        lambda all_: all_.operators.create(cli_actor(), email, role, password=password),
    )
    print(made.id)


@operator.command(name="list")
def operator_list(*, data_dir: DataDir = None) -> None:
    """List all operators, oldest first."""
    found = administer(data_dir, lambda all_: all_.operators.list())
    rows = [
        (
            one.id,
            one.role,
            "active" if one.disabled_at is None else "disabled",
            "password" if one.password_hash else "-",
            "oidc" if one.subject else "-",
            one.email,
        )
        for one in found
    ]
    print_table(("id", "role", "state", "password", "identity", "email"), rows)


@operator.command(name="set")
def operator_set(
    operator: str,
    /,
    *,
    role: str | None = None,
    disabled: bool | None = None,
    password: Annotated[bool, Parameter(negative=())] = False,
    password_stdin: Stdin = False,
    data_dir: DataDir = None,
) -> None:
    """Change an operator's (address or id) role or password, or let it in no more (--disabled)."""
    new = _password(from_stdin=password_stdin) if password or password_stdin else None
    actor = cli_actor()
    if role is not None:
        wanted = role
        administer(data_dir, lambda all_: all_.operators.set_role(actor, operator, wanted))
    if disabled is not None:
        ended = disabled
        administer(data_dir, lambda all_: all_.operators.disable(actor, operator, disabled=ended))
    if new is not None:
        administer(data_dir, lambda all_: all_.operators.set_password(actor, operator, new))


@operator.command(name="token")
def operator_token(
    operator: str,
    /,
    *,
    name: str = "",
    expires_in: str = "90d",
    data_dir: DataDir = None,
) -> None:
    """Create a bearer token of an operator (address or id) for scripts. It is shown this once."""
    lifetime = seconds_of(expires_in, param="expires_in")
    assert lifetime is not None, "it has a default"
    made = administer(
        data_dir,
        lambda all_: all_.operators.create_token(
            cli_actor(), operator, name=name, expires_seconds=lifetime
        ),
    )
    print(made.secret)


@operator.command(name="tokens")
def operator_tokens(
    operator: str,
    /,
    *,
    revoke: str | None = None,
    data_dir: DataDir = None,
) -> None:
    """List an operator's tokens; --revoke ends one of them (its id) first."""
    if revoke is not None:
        ended = revoke
        administer(data_dir, lambda all_: all_.operators.revoke_token(cli_actor(), operator, ended))
    found = administer(data_dir, lambda all_: all_.operators.tokens(operator))
    rows = [
        (
            one.id,
            one.prefix,
            shown_time(one.expires_at),
            shown_time(one.revoked_at),
            shown_time(one.last_used_at, never="never"),
            one.name,
        )
        for one in found
    ]
    print_table(("id", "prefix", "expires", "revoked", "last used", "name"), rows)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise InvalidRequest("The two passwords differ.", param="password")
    return first
