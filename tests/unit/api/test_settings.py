"""docs/settings.md and Settings say the same."""

from __future__ import annotations

import re
from pathlib import Path

from agentmem.config import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def test_every_setting_is_documented_with_its_default_and_text() -> None:
    rows = {
        match[1]: (match[2], match[3])
        for match in re.finditer(
            r"^\| `AGENTMEM_(\w+)` \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE
        )
    }
    expected = {
        name.upper(): (f"`{field.default}`" if str(field.default) else "", field.description)
        for name, field in Settings.model_fields.items()
    }
    assert rows == expected
