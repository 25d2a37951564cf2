from __future__ import annotations

import inspect
import zlib
from array import array
from dataclasses import replace

import pytest

from agentmem.catalog import Catalog
from agentmem.catalog.blobs import pack_floats, pack_tokens, unpack_floats, unpack_tokens
from agentmem.catalog.database import Transaction
from agentmem.catalog.ids import is_id, new_id
from agentmem.catalog.records import Lease
from agentmem.core import Fingerprint, TenantId, TurnId, WorkerId
from agentmem.errors import InvalidRequest, NotFound
from tests.unit.catalog.conftest import make_session, make_turn, make_worker

OPERATORS = "perators' function"


_CARRIERS = {
    *("Session", "Turn", "Lease", "Response", "Sequence[Item]", "UsageEvent", "RetryRecord"),
    *("ContextRecord", "Item", "Slot"),
}


def test_every_function_takes_the_tenant_or_says_whose_it_is() -> None:
    checked = 0
    for repository in map(type, vars(Transaction(None)).values()):  # type: ignore[arg-type]
        of_module = OPERATORS in (inspect.getdoc(inspect.getmodule(repository)) or "")
        for name, function in inspect.getmembers(repository, inspect.iscoroutinefunction):
            checked += 1
            signature = inspect.signature(function)
            named = "tenant_id" in signature.parameters
            # These records carry the tenant that they were read with.
            carried = _CARRIERS & {
                str(parameter.annotation) for parameter in signature.parameters.values()
            }
            told = of_module or OPERATORS in (inspect.getdoc(function) or "")
            assert named or carried or told, f"{repository.__name__}.{name} names no tenant"
    assert checked > 30


class TestIds:
    def test_new_ids_are_ids_and_sort_by_time(self) -> None:
        ids = [new_id("ses") for _ in range(1_000)]
        assert len(set(ids)) == 1_000
        assert all(is_id(one, "ses") for one in ids)
        assert [one[:14] for one in ids] == sorted(one[:14] for one in ids)

    @pytest.mark.parametrize(
        "text", ["", "ses", "ses_", "ses_" + "0" * 25, "ses_" + "0" * 27, "turn_" + "0" * 26,
                 "ses_" + "i" * 26, "ses_" + "0" * 26 + "\n", "SES_" + "0" * 26]
    )  # fmt: skip
    def test_others_are_not(self, text: str) -> None:
        assert not is_id(text, "ses")


class TestBlobs:
    def test_round_trip(self) -> None:
        for largest, width in ((2**16 - 1, 1), (2**16, 2), (2**24 - 1, 2), (2**24, 3)):
            ids = [0, 1, largest, 2**15] * 100
            blob = pack_tokens(ids)
            assert blob[0] == width
            assert unpack_tokens(blob).tolist() == ids
        assert unpack_tokens(pack_tokens([2**32 - 1])).tolist() == [2**32 - 1]
        assert unpack_tokens(pack_tokens([])).tolist() == []
        assert unpack_tokens(pack_tokens(array("I", [7, 70_000]))).tolist() == [7, 70_000]
        floats = [-0.1, -1e-300, -0.0, -3.25]
        assert unpack_floats(pack_floats(floats)) == floats

    def test_chunks_from_before_are_read(self) -> None:
        """32 bits each in zlib, without a byte in front, at any level."""
        ids = array("I", [5, 49_151, 2**31])
        for level in (0, 1, 6, 9):
            assert unpack_tokens(zlib.compress(ids.tobytes(), level)) == ids

    def test_damaged_chunks_are_no_ids(self) -> None:
        blob = pack_tokens(range(40_000, 40_100))
        with pytest.raises(zlib.error):
            unpack_tokens(blob[:40] + bytes([blob[40] ^ 1]) + blob[41:])
        for damaged in (b"", b"\x09" + blob[1:], b"\x02" + pack_tokens([1, 2])[1:]):
            with pytest.raises((ValueError, zlib.error)):
                unpack_tokens(damaged)

    def test_ids_out_of_range(self) -> None:
        with pytest.raises(OverflowError):
            pack_tokens([2**32])
        with pytest.raises(OverflowError):
            pack_tokens([-1])


class TestTenants:
    async def test_names_are_unique(self, catalog: Catalog, tenant: TenantId) -> None:
        async with catalog.transaction() as tx:
            with pytest.raises(InvalidRequest, match="exists"):
                await tx.tenants.create("acme")
            assert (await tx.tenants.get(tenant)).name == "acme"
            assert (await tx.tenants.get("acme")).id == tenant
            with pytest.raises(NotFound):
                await tx.tenants.get("other")

    @pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\x00"])
    async def test_bad_names(self, catalog: Catalog, name: str) -> None:
        async with catalog.transaction() as tx:
            with pytest.raises(InvalidRequest):
                await tx.tenants.create(name)


class TestTurns:
    async def test_a_chain_reads_back_as_written(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        first = make_turn(session, None)
        second = make_turn(session, first, keep=2, rebased=True, log_tokens=6, logprobs=None)
        async with catalog.transaction() as tx:
            await tx.turns.insert(first)
            await tx.turns.insert(second)
        async with catalog.reading() as tx:
            bare = replace(first, logprobs=None)
            assert await tx.turns.chain(tenant, second.id) == [bare, second]
            assert await tx.turns.chain(tenant, first.id) == [bare]
            assert await tx.turns.numbered(tenant, second.id, 1) == first
            assert await tx.turns.numbered(tenant, first.id, 2) is None
            assert await tx.turns.number_of(tenant, second.id, first.id) == 1
            assert await tx.turns.number_of(tenant, first.id, second.id) is None
            for other in (TenantId("ten_other"),):
                assert await tx.turns.chain(other, second.id) == []
                assert await tx.turns.numbered(other, second.id, 1) is None
                assert await tx.turns.page(other, second.id, after=None, limit=9) == []

    async def test_prune_keeps_what_others_reach(self, catalog: Catalog, tenant: TenantId) -> None:
        #  1 ── 2 ── 3 ── 4      session a (head 4)
        #        └── 5           session b (head 5), session c (head 1)
        a, b, c = (make_session(tenant) for _ in range(3))
        one = make_turn(a, None)
        two = make_turn(a, one)
        three = make_turn(a, two)
        four = make_turn(a, three)
        five = make_turn(b, two)
        async with catalog.transaction() as tx:
            for turn in (one, two, three, four, five):
                await tx.turns.insert(turn)
            for session, head in ((a, four), (b, five), (c, one)):
                await tx.sessions.create(make_session(tenant, id=session.id, head_turn_id=head.id))

        async def delete(session_id: str, head: TurnId) -> list[int]:
            async with catalog.transaction() as tx:
                await tx.sessions.delete(tenant, session_id)
                await tx.turns.prune(tenant, head)
                return [await tx.turns.count(tenant)]

        assert await delete(a.id, four.id) == [3]
        async with catalog.reading() as tx:
            bare = [replace(turn, logprobs=None) for turn in (one, two, five)]
            assert await tx.turns.chain(tenant, five.id) == bare
            assert await tx.turns.chain(tenant, five.id, last=2) == bare[1:]
            assert await tx.turns.chain(tenant, five.id, last=1) == bare[2:]
            ids = await tx.turns.token_ids(tenant, five.id)
            assert ids == one.tokens + two.tokens + five.tokens
            assert await tx.turns.token_ids(TenantId("ten_x"), five.id) == array("I")
        assert await delete(b.id, five.id) == [1]
        assert await delete(c.id, one.id) == [0]

    async def test_prune_of_a_long_chain(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        turn = None
        async with catalog.transaction() as tx:
            for _ in range(1_201):
                turn = make_turn(session, turn, tokens=2, logprobs=None)
                await tx.turns.insert(turn)
            assert turn is not None
            assert await tx.turns.prune(tenant, turn.id) == 1_201
            assert await tx.turns.count(tenant) == 0


class TestSessions:
    async def test_advance_is_fenced_by_the_head(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        worker = make_worker(generation=3)
        first, second = make_turn(session, None, tokens=9), make_turn(session, None)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            await tx.turns.insert(first)
            await tx.turns.insert(second)
            assert await tx.sessions.advance(session, first, worker) == 0
            assert None is await tx.sessions.advance(session, second, worker)
            row = await tx.sessions.get(tenant, session.id)
            third, stale = make_turn(row, first), make_turn(row, first)
            await tx.turns.insert(third)
            await tx.turns.insert(stale)
            assert await tx.sessions.advance(row, third, worker) == 0
            assert await tx.sessions.advance(row, stale, worker) is None
            assert (await tx.sessions.get(tenant, session.id)).head_turn_id == third.id
        assert (row.head_turn_id, row.turns, row.tokens) == (first.id, 1, 9)
        assert (row.worker_id, row.worker_generation, row.page_tokens) == ("wkr_1", 3, 4)
        assert row.metadata == {"k": "v"}

    async def test_advance_cuts_the_durable_position(
        self, catalog: Catalog, tenant: TenantId
    ) -> None:
        session = make_session(tenant)
        worker = make_worker()
        first = make_turn(session, None, tokens=13)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            await tx.turns.insert(first)
            await tx.sessions.advance(session, first, worker)
            assert await tx.sessions.set_durable(tenant, session.id, first.id, position=12)
            assert not await tx.sessions.set_durable(tenant, session.id, TurnId("x"), position=0)
            row = await tx.sessions.get(tenant, session.id)
            assert row.durable_position == 12
            # Kept 7 tokens of the log: one full page of 4.
            second = make_turn(row, first, keep=7, rebased=True, log_tokens=11)
            await tx.turns.insert(second)
            await tx.sessions.advance(row, second, worker)
            row = await tx.sessions.get(tenant, session.id)
            assert (row.durable_position, row.rebases) == (4, 1)
            third = make_turn(row, second)
            await tx.turns.insert(third)
            other = make_worker(fingerprint=Fingerprint(bytes(16)))
            await tx.sessions.advance(row, third, other)
            assert (await tx.sessions.get(tenant, session.id)).durable_position == 0

    async def test_others_see_nothing(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        other = TenantId("ten_other")
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            for call in (tx.sessions.get, tx.sessions.delete):
                with pytest.raises(NotFound):
                    await call(other, session.id)
            assert await tx.sessions.list(other, after=None, limit=9) == []
            with pytest.raises(InvalidRequest):
                await tx.sessions.list(other, after=session.id, limit=9)
            await tx.sessions.set_state(other, session.id, "hibernated", worker=None)
            assert (await tx.sessions.get(tenant, session.id)).state == "active"


class TestLeases:
    async def test_one_owner_at_a_time(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            assert await tx.leases.find(tenant, session.id) is None
            lease = await tx.leases.acquire(tenant, session.id, "a", seconds=60)
            assert lease is not None
            assert lease.generation == 1
            assert await tx.leases.acquire(tenant, session.id, "b", seconds=60) is None
            other = TenantId("ten_other")
            assert await tx.leases.find(other, session.id) is None
            assert await tx.leases.held(other, [session.id]) == set()
            assert await tx.leases.acquire(tenant, session.id, "a", seconds=60) is None
            assert await tx.leases.held(tenant, [session.id]) == {session.id}
            assert await tx.leases.is_current(lease)
            assert await tx.leases.release(lease)
            assert not await tx.leases.release(lease)
            assert not await tx.leases.is_current(lease)
            again = await tx.leases.acquire(tenant, session.id, "b", seconds=60)
            assert again is not None
            assert again.generation == 2

    async def test_an_expired_lease_is_fenced_once_taken(
        self, catalog: Catalog, tenant: TenantId
    ) -> None:
        session = make_session(tenant)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            old = await tx.leases.acquire(tenant, session.id, "a", seconds=-1)
            assert old is not None
            assert await tx.leases.find(tenant, session.id) is None
            assert await tx.leases.is_current(old)  # nobody took it yet
            new = await tx.leases.acquire(tenant, session.id, "a", seconds=60)
            assert new is not None
            assert not await tx.leases.is_current(old)
            assert not await tx.leases.release(old)
            assert await tx.leases.is_current(new)

    async def test_renewal_is_the_owners(self, catalog: Catalog, tenant: TenantId) -> None:
        session = make_session(tenant)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            await tx.leases.acquire(tenant, session.id, "a", seconds=-1)
            assert await tx.leases.renew([session.id], "b", seconds=60) == 0
            assert await tx.leases.find(tenant, session.id) is None
            assert await tx.leases.renew([session.id], "a", seconds=60) == 1
            found = await tx.leases.find(tenant, session.id)
            assert found is not None
            assert found.owner == "a"
            assert await tx.leases.owners() == ["a"]
            assert await tx.leases.release_owner("a") == 1
            assert await tx.leases.owners() == []

    async def test_deleting_a_session_fences_its_lease(
        self, catalog: Catalog, tenant: TenantId
    ) -> None:
        session = make_session(tenant)
        async with catalog.transaction() as tx:
            await tx.sessions.create(session)
            lease = await tx.leases.acquire(tenant, session.id, "a", seconds=60)
            assert isinstance(lease, Lease)
            await tx.sessions.delete(tenant, session.id)
            assert not await tx.leases.is_current(lease)


class TestWorkers:
    async def test_generations_fence(self, catalog: Catalog) -> None:
        worker = make_worker()
        async with catalog.transaction() as tx:
            assert await tx.workers.register(worker) == 1
            assert await tx.workers.register(worker) == 2
            assert not await tx.workers.heartbeat(worker.id, 1, state="ready")
            assert await tx.workers.heartbeat(worker.id, 2, state="draining", detail="bye")
            assert not await tx.workers.update(make_worker(generation=1))
            changed = make_worker(
                generation=2,
                url="http://new",
                parser_address="127.0.0.1:1",
                tool_parser="hermes",
                reasoning_parser="qwen3",
            )
            assert await tx.workers.update(changed)
            (found,) = await tx.workers.list()
            assert replace(found, heartbeat_at=0) == replace(changed, heartbeat_at=0)
            assert found == await tx.workers.get(worker.id)
            await tx.workers.remove(worker.id)
            assert await tx.workers.get(WorkerId("wkr_1")) is None
        assert (found.url, found.generation, found.state) == ("http://new", 2, "ready")
        assert found.fingerprint == worker.fingerprint
        assert found.fingerprint.fields == {"dtype": "bf16"}

    async def test_states_are_checked(self, catalog: Catalog) -> None:
        async with catalog.transaction() as tx:
            with pytest.raises(ValueError, match="sleepy"):
                await tx.workers.register(make_worker(state="sleepy"))
            with pytest.raises(ValueError, match="sleepy"):
                await tx.workers.heartbeat(WorkerId("wkr_1"), 1, state="sleepy")


class TestUnclaims:
    async def test_due_then_postponed_then_done(self, catalog: Catalog, tenant: TenantId) -> None:
        keys = [bytes([i]) * 48 for i in range(3)]
        async with catalog.transaction() as tx:
            unclaim = await tx.unclaims.add(tenant, "ses_1", keys)
            (row,) = await tx.unclaims.due()
            assert (row.id, row.claim_id, row.keys) == (unclaim, "ses_1", tuple(keys))
            await tx.unclaims.postpone(unclaim, seconds=60)
            assert await tx.unclaims.due() == []
            assert await tx.unclaims.count() == 1
            await tx.unclaims.done(unclaim)
            assert await tx.unclaims.count() == 0
