"""Every route of the admin API says which roles it takes, and the docs say the same."""

from __future__ import annotations

import re
from pathlib import Path

from agentmem.administration.roles import ROLES
from agentmem.api.roles import PUBLIC_ROUTES, ROUTE_ROLES
from agentmem.app import build_app
from agentmem.config import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "administration.md"


def test_every_route_of_the_document_is_in_the_table(tmp_path: Path) -> None:
    paths = build_app(Settings(data_dir=tmp_path, engine="fake")).openapi()["paths"]
    routes = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if path.startswith("/v1/admin/")
    }
    assert routes == set(ROUTE_ROLES) | PUBLIC_ROUTES
    assert not set(ROUTE_ROLES) & PUBLIC_ROUTES
    assert all(roles and roles <= set(ROLES) for roles in ROUTE_ROLES.values())


def test_the_docs_have_the_same_table() -> None:
    section = DOCUMENT.read_text().split("### Which role")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+) (/\S+)` \| (.+?) \|$", section, re.MULTILINE)
    told = {(method, path): frozenset(roles.split(", ")) for method, path, roles in rows}
    everybody = frozenset(("nobody needs to be signed in",))
    assert told == {**ROUTE_ROLES, **dict.fromkeys(PUBLIC_ROUTES, everybody)}
