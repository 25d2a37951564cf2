"""Every route that takes an API key says which scope it needs, and the docs say the same."""

from __future__ import annotations

import re
from pathlib import Path

from agentmem.administration.scopes import SCOPES
from agentmem.api.scopes import ANY, ROUTE_SCOPES
from agentmem.app import build_app
from agentmem.config import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "administration.md"
ADMIN = "/v1/admin/"


def test_every_route_of_the_document_is_in_the_table(tmp_path: Path) -> None:
    paths = build_app(Settings(data_dir=tmp_path, engine="fake")).openapi()["paths"]
    routes = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if path.startswith("/v1/") and not path.startswith(ADMIN)
    }
    assert len(routes) > 40
    assert routes == set(ROUTE_SCOPES)
    assert set(ROUTE_SCOPES.values()) <= {*SCOPES, ANY}


def test_the_docs_have_the_same_table() -> None:
    section = DOCUMENT.read_text().split("### Which scope")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+) (/\S+)` \| (\S+) \|$", section, re.MULTILINE)
    assert {(method, path): scope for method, path, scope in rows} == ROUTE_SCOPES
