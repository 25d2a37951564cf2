"""Who administers: named in the audit log by an id, never by a name or an address."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """`id` as the audit log has it: `operator:opr_…`, `key:key_…`, `cli:root` or `system:…`."""

    id: str


def cli_actor() -> Actor:
    """Whoever runs the command line, by the name of the account on the machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such account, as in a container
        name = str(os.getuid())
    return Actor(f"cli:{name[:100]}")


def key_actor(api_key_id: str) -> Actor:
    """A tenant that administers itself with an API key."""
    return Actor(f"key:{api_key_id}")


SYSTEM = Actor("system:agentmem")
