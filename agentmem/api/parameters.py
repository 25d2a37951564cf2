"""Every parameter that openai's SDKs can send, and what becomes of it here. Nothing is dropped.

The tables of docs/parameters.md are these; `python -m agentmem.api.parameters` prints them as
JSON, `--markdown` as the tables.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

from agentmem.api.chat.parameters import CHAT_SURFACES
from agentmem.api.models import MODEL_SURFACES
from agentmem.api.responses.parameters import CONVERSATIONS_SURFACES, RESPONSES_SURFACES
from agentmem.api.surfaces import Surface

_INTRODUCTION = """# Parameters

Every parameter that the `openai` SDKs know, and what becomes of it here. Nothing is dropped: what
is not implemented is answered with a 400 that names it (`param`, code `unsupported_parameter`).
Null is the same as left out, also for a refused parameter; so are the values listed as taken. A
field that no SDK knows is a 400 with code `unknown_parameter`.

`python -m agentmem.api.parameters` prints these tables as JSON, with `--markdown` as this page.
"""

SURFACES: tuple[Surface, ...] = (
    *CHAT_SURFACES,
    *RESPONSES_SURFACES,
    *CONVERSATIONS_SURFACES,
    *MODEL_SURFACES,
)


def as_json() -> str:
    """All surfaces, for those who hold them against the SDK's types."""
    return json.dumps([asdict(surface) for surface in SURFACES], indent=1)


def as_markdown() -> str:
    """docs/parameters.md."""
    return "\n".join([_INTRODUCTION, *(_section(surface) for surface in SURFACES)])


def _section(surface: Surface) -> str:
    lines = [f"## {surface.operation}", f"`{surface.route}`", ""]
    own = [replace(row, note=f"agentmem's own: {row.note}") for row in surface.extensions]
    rows = [*surface.parameters, *own]
    if not rows:
        return "\n".join([*lines, "No parameters.", ""])
    lines += ["| parameter | | what it does, or the answer |", "|---|---|---|"]
    for row in rows:
        note = row.note
        if row.harmless:
            note += " Taken: " + ", ".join(f"`{json.dumps(value)}`" for value in row.harmless)
        lines.append(f"| `{row.name}` | {row.state} | {note} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(as_markdown() if "--markdown" in sys.argv[1:] else as_json() + "\n")
