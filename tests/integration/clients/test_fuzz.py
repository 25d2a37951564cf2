"""A small part of `make fuzz`."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.fuzz.run import fuzz

CASES = 2_000


def test_nothing_that_the_document_allows_breaks_it(tmp_path: Path) -> None:
    seed = secrets.randbelow(1 << 31)
    print(f"seed {seed}")
    outcome = fuzz(tmp_path, cases=CASES, seed=seed, seconds_max=240.0)
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.cases >= CASES
