"""Which role each route of the admin API needs (docs/administration.md has the same table)."""

from __future__ import annotations

from collections.abc import Mapping

from agentmem.administration.roles import OWN, VIEW

# For those who are about to sign in.
PUBLIC_ROUTES: frozenset[tuple[str, str]] = frozenset(
    {
        ("POST", "/v1/admin/sign-in"),
        ("GET", "/v1/admin/oidc/start"),
        ("GET", "/v1/admin/oidc/callback"),
    }
)

ROUTE_ROLES: Mapping[tuple[str, str], frozenset[str]] = {
    ("GET", "/v1/admin/me"): VIEW,
    ("POST", "/v1/admin/sign-out"): VIEW,
    ("GET", "/v1/admin/tokens"): VIEW,
    ("POST", "/v1/admin/tokens"): VIEW,
    ("DELETE", "/v1/admin/tokens/{token_id}"): VIEW,
    ("GET", "/v1/admin/operators"): VIEW,
    ("POST", "/v1/admin/operators"): OWN,
    ("PATCH", "/v1/admin/operators/{operator_id}"): OWN,
}
