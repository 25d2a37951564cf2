"""Claims: terms, promises and their counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from agentmem.core import PageKey
from agentmem.store.claims import TABLES, Admit, ClaimTable, Holder, Terms

TENANT = b"t" * 16


def key_of(number: int) -> PageKey:
    return PageKey(b"f" * 16 + number.to_bytes(32, "big"))


def keys_of(*numbers: int) -> list[PageKey]:
    return [key_of(number) for number in numbers]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[ClaimTable]:
    with lmdb.open(str(tmp_path), max_dbs=TABLES, map_size=1 << 26) as env:
        yield ClaimTable(env)


def upto(limit: int) -> Admit:
    def admit(_holder: Holder, pages: int, promised: Counter[Holder]) -> int:
        return max(0, min(pages, limit - promised.total()))

    return admit


def promised(table: ClaimTable, *numbers: int, now_us: int = 0) -> list[int]:
    with table._env.begin() as tx:
        return [n for n in numbers if table.is_promised(tx, key_of(n), now_us)]


def unclaim(table: ClaimTable, claim_id: bytes, *numbers: int) -> None:
    with table.counting() as (tx, change):
        table.unclaim(tx, claim_id, keys_of(*numbers), change)


def recount(table: ClaimTable) -> Counter[Holder]:
    """Promises by looking at every row."""
    found: dict[PageKey, Holder] = {}
    with table._env.begin(db=table._pages) as tx:
        for raw, _row in tx.cursor():
            holder = table._promiser(tx, PageKey(bytes(raw)))
            if holder is not None:
                found[PageKey(bytes(raw))] = holder
    return Counter(found.values())


def prune(table: ClaimTable, now_us: int, rows_max: int = 1000) -> list[PageKey]:
    with table.counting() as (tx, change):
        return [ended.key for ended in table.prune(tx, now_us, rows_max, change)[0]]


def test_a_promise_ends_where_there_is_no_room_and_goes_on_when_there_is(
    table: ClaimTable,
) -> None:
    assert table.claim(b"a", keys_of(0, 1, 2, 3), Terms(100, TENANT), upto(2)) == 2
    assert promised(table, 0, 1, 2, 3) == [0, 1]
    assert table.claimed(keys_of(0, 1, 2, 3), 0) == set(keys_of(0, 1, 2, 3))
    # Pages after a gap of the promise are worthless: no room is spent on them.
    assert table.claim(b"a", keys_of(4), Terms(100, TENANT, start=4), upto(9)) == 0
    assert table.claim(b"a", keys_of(2, 3, 4), Terms(100, TENANT, start=2), upto(9)) == 3
    assert promised(table, 0, 1, 2, 3, 4) == [0, 1, 2, 3, 4]
    assert table.promised.total() == 5


def test_what_was_promised_stays_promised(table: ClaimTable) -> None:
    table.claim(b"a", keys_of(1, 2), Terms(100, TENANT, start=1), upto(2))
    assert table.claim(b"a", keys_of(0, 1, 2), Terms(100, TENANT), upto(2)) == 0
    assert promised(table, 0, 1, 2) == [1, 2]
    assert table.promised == recount(table)


def test_a_page_is_counted_once_and_until_its_last_promise_ends(table: ClaimTable) -> None:
    table.claim(b"a", keys_of(0, 1), Terms(100, TENANT))
    assert table.claim(b"b", keys_of(0, 1, 2), Terms(100, TENANT), upto(2)) == 2
    assert table.promised == {(TENANT, b"f" * 16): 2}
    unclaim(table, b"a", 0, 1)
    assert promised(table, 0, 1) == [0, 1]
    unclaim(table, b"b", 0, 1, 2)
    assert table.promised.total() == 0


def test_a_renewal_is_of_the_whole_claim(table: ClaimTable) -> None:
    table.claim(b"a", keys_of(0, 1), Terms(10))
    table.claim(b"a", keys_of(2), Terms(90, start=2))
    assert prune(table, 50) == []
    assert {c.expires_at_us for n in range(3) for c in table.of_page(key_of(n))} == {90}
    assert sorted(prune(table, 90)) == keys_of(0, 1, 2)
    assert table.promised.total() == 0


def test_counts_are_right_after_anything_and_a_restart(table: ClaimTable) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for step in range(600):
        claim_id = b"%d" % rng.randrange(5)
        start = rng.randrange(4)
        numbers = range(start, start + rng.randrange(1, 8))
        match rng.randrange(3):
            case 0 | 1:
                terms = Terms(step + rng.randrange(60), rng.choice((b"", TENANT)), start=start)
                table.claim(claim_id, keys_of(*numbers), terms, upto(rng.randrange(12)))
            case _:
                unclaim(table, claim_id, *numbers)
        prune(table, step, rows_max=rng.randrange(1, 9))
        assert +table.promised == recount(table), f"seed {seed}, step {step}"
    assert ClaimTable(table._env).promised == +table.promised


def test_a_claim_whose_head_a_damaged_index_lost_has_ended_and_can_be_made_again(
    table: ClaimTable,
) -> None:
    table.claim(b"one", keys_of(1), Terms(100))
    with table._env.begin(write=True, db=table._heads) as tx:
        cursor = tx.cursor()
        assert cursor.first()
        cursor.delete()
    assert table.claimed(keys_of(1), 0) == set()
    table.claim(b"one", keys_of(1), Terms(100))
    assert table.claimed(keys_of(1), 0) == set(keys_of(1))
