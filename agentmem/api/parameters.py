"""Every parameter that openai's SDKs can send, and what becomes of it here. Nothing is dropped.

The tables of docs/parameters.md are these; `python -m agentmem.api.parameters` prints them as
JSON, `--markdown` as the tables.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from agentmem.api.chat.parameters import CHAT_SURFACES
from agentmem.api.models import MODEL_SURFACES
from agentmem.api.surfaces import Surface

SURFACES: tuple[Surface, ...] = (*CHAT_SURFACES, *MODEL_SURFACES)


def as_json() -> str:
    """All surfaces, for those who hold them against the SDK's types."""
    return json.dumps([asdict(surface) for surface in SURFACES], indent=1)


def as_markdown() -> str:
    """The tables of docs/parameters.md."""
    return "\n".join(_section(surface) for surface in SURFACES)


def _section(surface: Surface) -> str:
    lines = [f"## {surface.operation}", f"`{surface.route}`", ""]
    rows = [*surface.parameters, *surface.extensions]
    if not rows:
        return "\n".join([*lines, "No parameters.", ""])
    lines += ["| parameter | | |", "|---|---|---|"]
    for row in rows:
        note = row.note
        if row in surface.extensions:
            note = f"agentmem's own; {note}" if note else "agentmem's own"
        if row.harmless:
            note += " Taken: " + ", ".join(f"`{json.dumps(value)}`" for value in row.harmless)
        lines.append(f"| `{row.name}` | {row.state} | {note} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(as_markdown() if "--markdown" in sys.argv[1:] else as_json() + "\n")
