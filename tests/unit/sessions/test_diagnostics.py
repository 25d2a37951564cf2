from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from agentmem.sessions.log import common_prefix

ids = st.lists(st.integers(0, 3), max_size=40)


@given(ids, ids, ids)
def test_the_common_prefix_is_found(shared: list[int], one: list[int], other: list[int]) -> None:
    first, second = [*shared, *one], [*shared, *other]
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_prefix(array("I", first), array("I", second)) == expected
