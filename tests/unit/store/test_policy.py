"""Eviction, shares and admission."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentmem.store.claims import RETENTIONS
from agentmem.store.policy import (
    Admission,
    Page,
    PrefillCost,
    Returns,
    Waiting,
    Watermarks,
    admit,
    fair_shares,
    plan_eviction,
    value_per_byte,
    write_order,
)

NOW = 1_000_000.0
TENANTS = (b"a", b"b", b"c")


@st.composite
def forests(draw: st.DrawFn) -> list[Page]:
    """Pages of several logs that share beginnings; the order says nothing."""
    pages: list[Page] = []
    for number in range(draw(st.integers(0, 40))):
        parent = pages[draw(st.integers(0, number - 1))] if number and draw(st.booleans()) else None
        pages.append(
            Page(
                key=b"%04d" % number,
                size_bytes=draw(st.integers(1, 100)),
                position=parent.position + 1 if parent else 0,
                parent=parent.key if parent else None,
                last_used=NOW - draw(st.integers(0, 100_000)),
                retention=draw(st.sampled_from(("", *RETENTIONS))),
                tenant=parent.tenant if parent else draw(st.sampled_from(TENANTS)),
                kept=draw(st.integers(0, 9)) == 0,
            )
        )
    return draw(st.permutations(pages))


def used_by(pages: Sequence[Page]) -> Counter[bytes]:
    used: Counter[bytes] = Counter()
    for page in pages:
        used[page.tenant] += page.size_bytes
    return used


def may_go(pages: Sequence[Page]) -> set[bytes]:
    """Pages that neither are kept nor have one that is behind them."""
    by_key = {page.key: page for page in pages}
    barred: set[bytes] = set()
    for page in pages:
        at: Page | None = page if page.kept else None
        while at is not None:
            barred.add(at.key)
            at = by_key.get(at.parent) if at.parent else None
    return by_key.keys() - barred


@given(forests(), st.integers(0, 3000), st.integers(0, 2000))
def test_eviction_is_closed_sufficient_and_no_larger_than_needed(
    pages: list[Page], need: int, capacity: int
) -> None:
    shares = fair_shares(capacity, used_by(pages))
    victims = plan_eviction(pages, need, NOW, shares=shares)
    gone: set[bytes] = set()
    for victim in victims:
        gone.add(victim.key)
        left = [page for page in pages if page.key not in gone]
        assert not any(page.parent == victim.key for page in left), "a page lost its ancestor"
    assert not any(page.kept for page in victims)
    freed = sum(page.size_bytes for page in victims)
    if freed < need:
        assert gone == may_go(pages), "something more could have gone"
    else:
        assert not victims or freed - victims[-1].size_bytes < need


@given(forests(), st.integers(0, 3000), st.randoms())
def test_eviction_does_not_depend_on_the_order_of_what_it_is_given(
    pages: list[Page], need: int, random: object
) -> None:
    once = plan_eviction(pages, need, NOW)
    random.shuffle(pages)  # type: ignore[attr-defined]
    assert plan_eviction(pages, need, NOW) == once


@given(forests(), st.integers(1, 3000))
def test_the_tenant_above_its_share_gives_before_any_other(pages: list[Page], need: int) -> None:
    shares = dict.fromkeys(TENANTS, 0.0) | {b"b": 1e9, b"c": 1e9}
    victims = plan_eviction(pages, need, NOW, shares=shares)
    owners = [page.tenant for page in victims]
    assert owners == sorted(owners, key=lambda tenant: tenant != b"a")


@given(
    st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 1000), min_size=1),
    st.integers(1, 2000),
    st.integers(0, 500),
)
def test_shares_are_fair(used: dict[bytes, int], capacity: int, quota: int) -> None:
    shares = fair_shares(capacity, used, quota_bytes=quota)
    granted = {tenant: min(used[tenant], shares[tenant]) for tenant in used}
    assert sum(granted.values()) <= capacity + 1e-6
    if quota:
        assert max(shares.values()) <= quota
    elif sum(used.values()) <= capacity:
        assert granted == used
    else:
        assert sum(granted.values()) >= capacity - 1e-6, "room is left while somebody wants it"
    wanting = [granted[t] for t in used if granted[t] < used[t]]
    assert all(got >= max(granted.values()) - 1e-6 for got in wanting)


def test_a_tenant_with_twice_the_weight_has_twice_the_share() -> None:
    used = {b"a": 900, b"b": 900, b"c": 30}
    assert fair_shares(330, used, {b"b": 2.0}) == {b"c": 82.5, b"a": 100.0, b"b": 200.0}


def test_of_one_log_the_end_goes_first_though_it_costs_more_to_make_again() -> None:
    log = [
        Page(b"%d" % n, 10, position=n, parent=b"%d" % (n - 1) if n else None, last_used=NOW)
        for n in range(5)
    ]
    assert value_per_byte(log[4], NOW, PrefillCost(), Returns()) > value_per_byte(
        log[0], NOW, PrefillCost(), Returns()
    )
    assert [page.key for page in plan_eviction(log, 25, NOW)] == [b"4", b"3", b"2"]


def test_what_pages_are_worth() -> None:
    cost, returns = PrefillCost(), Returns(learned_seconds={b"slow": 1e9})
    page = Page(b"k", 100, position=50, last_used=NOW - 3600, retention="standard")

    def value(**changes: object) -> float:
        return value_per_byte(replace(page, **changes), NOW, cost, returns)  # type: ignore[arg-type]

    assert value(position=500) > value()
    assert value(size_bytes=50) > value()
    assert value(last_used=NOW) > value()
    assert value(retention="persistent") > value() > value(retention="ephemeral")
    assert value(tenant=b"slow") > value()
    assert value(is_below=True) < value()
    fresh = value(last_used=NOW, retention="")
    assert fresh > value(last_used=NOW, retention="persistent", is_below=True)
    assert value(last_used=NOW + 5) == value(last_used=NOW), "a clock that went back"
    assert value(last_used=-1e12, retention="ephemeral") >= 0


def test_page_seconds_add_up_to_a_prefill() -> None:
    cost = PrefillCost(page_tokens=4, token_seconds=2.0, attention_seconds=3.0)
    whole = sum(2.0 + 3.0 * before for before in range(12))
    assert sum(cost.page_seconds(position) for position in range(3)) == whole


def test_watermarks() -> None:
    marks = Watermarks(high=0.9, low=0.5)
    assert marks.surplus_bytes(900, 1000) == 0
    assert marks.surplus_bytes(901, 1000) == 401


def test_admission() -> None:
    room = {"promised_bytes": 60, "capacity_bytes": 100}
    assert admit(4, 10, **room) == Admission(4)
    assert admit(5, 10, **room) == Admission(4, "capacity")
    assert admit(5, 0, **room) == Admission(5)
    assert admit(5, 10, promised_bytes=200, capacity_bytes=100) == Admission(0, "capacity")
    quota = {"tenant_promised_bytes": 10, "tenant_quota_bytes": 30}
    assert admit(5, 10, **room, **quota) == Admission(2, "quota")


def test_promised_pages_are_written_before_others_and_the_strongest_class_first() -> None:
    queue = [
        Waiting(b"cache", 0.0, "archive", promised=False),
        Waiting(b"late", 9.0, "standard"),
        Waiting(b"early", 1.0, "standard"),
        Waiting(b"strong", 10.0, "persistent"),
    ]
    order = [page.key for page in write_order(queue, RETENTIONS)]
    assert order == [b"strong", b"early", b"late", b"cache"]


def test_no_more_goes_than_is_needed() -> None:
    pages = [Page(b"a", 10), Page(b"b", 10)]
    assert plan_eviction(pages, 0, NOW) == []
    assert len(plan_eviction(pages, 10, NOW)) == 1


def test_of_equally_worthless_pages_the_one_further_back_goes_first() -> None:
    pages = [Page(b"%d" % n, 10, position=n) for n in (3, 9, 1)]
    order = plan_eviction(pages, 30, NOW, returns=Returns(weights={"": 0.0}))
    assert [page.position for page in order] == [9, 3, 1]
