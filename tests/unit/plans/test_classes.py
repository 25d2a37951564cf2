"""Retention classes by name and by term."""

from __future__ import annotations

import pytest

from agentmem.plans.classes import CLASSES, class_of


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_found_by_its_own_term(name: str) -> None:
    assert class_of(CLASSES[name].kv_retention_seconds) == name  # type: ignore[index]


@pytest.mark.parametrize(
    ("seconds", "name"), [(1, "ephemeral"), (43_199, "ephemeral"), (86_400, "standard")]
)
def test_a_term_of_ones_own_is_of_the_class_that_it_surpasses(seconds: int, name: str) -> None:
    assert class_of(seconds) == name
