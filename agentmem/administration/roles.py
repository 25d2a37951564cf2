"""What operators may do, by role."""

from __future__ import annotations

from typing import Literal, get_args

from agentmem.errors import InvalidRequest

RoleName = Literal["viewer", "operator", "billing", "owner"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)

# Everybody who is signed in reads; some act on what tenants have; owners decide about people and
# about keys, which open what tenants have.
VIEW = frozenset[str](ROLES)
ACT = frozenset[str](("operator", "owner"))
OWN = frozenset[str](("owner",))


def checked_role(role: str) -> RoleName:
    """The role of this name. Raises InvalidRequest."""
    for known in ROLES:
        if role == known:
            return known
    raise InvalidRequest(f"{role!r} is no role; there are {', '.join(ROLES)}.", param="role")
