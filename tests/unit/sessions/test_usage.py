from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.core import PageKey, Tier, TierTokens
from agentmem.engine.base import CachedTokens
from agentmem.sessions.usage import LoadWatch, recomputed_tokens, split_tiers
from agentmem.telemetry import Metrics
from agentmem.testing.fake_worker import fake_fingerprint
from agentmem.testing.pages import InMemoryPages

KEY = PageKey(bytes(48))


class TestRecomputed:
    @pytest.mark.parametrize(
        ("kept", "log", "cached", "expected"),
        [
            (0, 0, 0, 0),  # a first turn
            (100, 100, 96, 3),  # the last token never had KV
            (100, 100, 99, 0),
            (100, 100, 0, 99),
            (60, 100, 48, 12),  # re-based: only what was kept could have come back
            (60, 100, 96, 0),  # a hit on pages of another session goes further
        ],
    )
    def test_cases(self, kept: int, log: int, cached: int, expected: int) -> None:
        assert recomputed_tokens(kept=kept, log_tokens=log, cached=cached) == expected


class TestSplit:
    def test_as_told(self) -> None:
        cached = CachedTokens(device=64, host=32, storage=48)
        split = split_tiers(cached, {Tier.DRAM: 1, Tier.DISK: 2}, 16)
        assert split == TierTokens(hbm=64, dram=32 + 16, disk=32)

    def test_more_was_read_than_used(self) -> None:
        split = split_tiers(CachedTokens(storage=16), {Tier.DRAM: 1, Tier.DISK: 9}, 16)
        assert split == TierTokens(dram=16)

    def test_untold(self) -> None:
        assert split_tiers(CachedTokens(storage=48), {Tier.OBJECT: 1}, 16) == TierTokens(
            disk=32, object=16
        )

    @given(
        storage=st.integers(0, 100),
        loads=st.dictionaries(
            st.sampled_from([Tier.DRAM, Tier.DISK, Tier.OBJECT]), st.integers(0, 9)
        ),
    )
    def test_nothing_is_lost_or_made_up(self, storage: int, loads: dict[Tier, int]) -> None:
        cached = CachedTokens(device=7, host=5, storage=storage)
        assert split_tiers(cached, loads, 16).total == cached.total


class TestLoadWatch:
    async def test_counts_what_nobody_told(self) -> None:
        pages, metrics = InMemoryPages(fake_fingerprint(16), page_bytes=1), Metrics()
        watch = LoadWatch(pages, metrics)
        await watch.start()
        tiers = await watch.tiers(CachedTokens(storage=32), [KEY], 16)
        assert tiers == TierTokens(disk=32)
        assert metrics.unattributed._value.get() == 32

    async def test_an_agent_that_went_down(self) -> None:
        pages, metrics = InMemoryPages(fake_fingerprint(16), page_bytes=1), Metrics()
        watch = LoadWatch(pages, metrics)
        await watch.start()
        pages.down = True
        assert await watch.tiers(CachedTokens(storage=16), [KEY], 16) == TierTokens(disk=16)
        assert metrics.node_failures.labels("loads")._value.get() == 1
        # Nothing loaded, nothing asked.
        assert await watch.tiers(CachedTokens(device=16), [KEY], 16) == TierTokens(hbm=16)
        assert metrics.node_failures.labels("loads")._value.get() == 1
