"""The disk tier: commit before visible, recovery, deletion, budget, failing media."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import lmdb
import pytest

from agentmem.errors import StoreRefused
from agentmem.store import packwriter
from agentmem.store.pack import PACK_HEADER_BYTES
from tests.unit.store.conftest import Clock, Opener
from tests.unit.store.records import (
    PAYLOAD_BYTES,
    RECORD,
    bytes_of,
    held,
    key_of,
    payload_of,
    read,
    record_of,
)


async def test_pages_are_there_after_a_reopen_over_several_packs(open_disk: Opener) -> None:
    disk = await open_disk()
    assert await disk.append([record_of(n) for n in range(6)]) == []
    await disk.append([record_of(n) for n in range(6, 10)])
    for _ in range(2):
        assert [read(disk, n) for n in range(10)] == [payload_of(n) for n in range(10)]
        assert disk.usage()[:3] == (10, 10 * PAYLOAD_BYTES, 10 * RECORD)
        disk = await open_disk()
        assert disk.recovery == (0, 0, 0, False)  # type: ignore[attr-defined]
    await disk.append([record_of(10)])
    assert read(disk, 10) == payload_of(10)


async def test_records_behind_the_committed_end_are_kept_when_whole_and_cut_off_when_torn(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    pack = Path(disk.location(disk.get(key_of(0))).path)  # type: ignore[arg-type]
    with pack.open("ab") as file:
        file.write(record_of(1).view)
        file.write(bytes(record_of(2).view[: RECORD - 6000]))
    disk = await open_disk()
    assert held(disk, range(3)) == [0, 1]
    assert read(disk, 1) == payload_of(1)
    assert disk.recovery[0] == 1  # type: ignore[attr-defined]
    assert pack.stat().st_size == PACK_HEADER_BYTES + 2 * RECORD
    await disk.append([record_of(2)])
    assert [read(disk, n) for n in range(3)] == [payload_of(n) for n in range(3)]


async def test_a_batch_that_reached_the_medium_out_of_order_keeps_its_whole_records(
    open_disk: Opener,
) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    pack = Path(disk.location(disk.get(key_of(0))).path)  # type: ignore[arg-type]
    torn = bytearray(record_of(1).view)
    torn[5000] ^= 1
    with pack.open("ab") as file:
        file.write(torn + record_of(2).view)
    disk = await open_disk()
    assert held(disk, range(3)) == [0, 2]
    assert bytes(torn[4096:8192]) not in pack.read_bytes()


async def test_a_lost_index_is_rebuilt_from_the_packs(open_disk: Opener, tmp_path: Path) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(9)])
    await disk.remove([key_of(2)])
    disk = await open_disk(meanwhile=lambda: shutil.rmtree(tmp_path / "index"))
    assert disk.recovery == (8, 0, 0, True)  # type: ignore[attr-defined]
    assert held(disk, range(9)) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [read(disk, n) for n in (0, 8)] == [payload_of(0), payload_of(8)]
    await disk.append([record_of(2)])
    assert read(disk, 2) == payload_of(2)


async def test_an_unreadable_index_is_set_aside_and_rebuilt(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    data = tmp_path / "index" / "data.mdb"
    disk = await open_disk(meanwhile=lambda: data.write_bytes(b"nonsense" * 4096))
    assert disk.recovery.index_rebuilt  # type: ignore[attr-defined]
    assert read(disk, 0) == payload_of(0)
    assert len(list(tmp_path.glob("index.bad-*"))) == 1


async def test_entries_whose_bytes_are_gone_are_forgotten(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(6)])
    (tmp_path / "pack-00000000.agm").unlink()
    os.truncate(tmp_path / "pack-00000001.agm", PACK_HEADER_BYTES + RECORD)
    disk = await open_disk()
    assert held(disk, range(6)) == [4]
    assert disk.recovery.lost_pages == 5  # type: ignore[attr-defined]
    await disk.append([record_of(5)])
    assert read(disk, 5) == payload_of(5)


async def test_deleting_punches_the_bytes_out_of_the_pack(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(3)])
    pack = tmp_path / "pack-00000000.agm"
    blocks, size = pack.stat().st_blocks, pack.stat().st_size
    assert payload_of(1)[:64] in bytes_of(tmp_path)
    assert await disk.remove([key_of(1), key_of(77)]) == 1
    assert disk.get(key_of(1)) is None
    copy = bytes_of(tmp_path)
    assert copy[PACK_HEADER_BYTES + RECORD : PACK_HEADER_BYTES + 2 * RECORD] == bytes(RECORD)
    assert payload_of(1)[:64] not in copy
    assert pack.stat().st_size == size
    assert pack.stat().st_blocks <= blocks - RECORD // 512
    assert [read(disk, n) for n in (0, 2)] == [payload_of(0), payload_of(2)]


async def test_bytes_being_read_go_with_the_last_hold(open_disk: Opener, tmp_path: Path) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    copy = disk.get(key_of(0))
    assert copy is not None
    disk.hold(copy)
    await disk.remove([key_of(0)])
    assert disk.get(key_of(0)) is None
    assert payload_of(0) in bytes_of(tmp_path)
    disk.unhold(copy)
    assert disk.reclaim_wanted.is_set()
    await disk.reclaim()
    assert payload_of(0)[:64] not in bytes_of(tmp_path)
    assert disk.usage()[:3] == (0, 0, 0)


async def test_a_deletion_cut_short_by_a_crash_is_finished_at_start(
    open_disk: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(2)])
    with monkeypatch.context() as patched:
        # The agent dies before it punches.
        patched.setattr(disk._reclaimer, "_destroy", lambda work: ([], work))
        await disk.remove([key_of(0)])
    assert payload_of(0)[:64] in bytes_of(tmp_path)
    disk = await open_disk()
    assert held(disk, range(2)) == [1]
    assert payload_of(0)[:64] not in bytes_of(tmp_path)


async def test_an_empty_pack_is_unlinked_unless_it_is_written_to(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(6)])
    await disk.remove([key_of(n) for n in range(6)])
    assert [path.name for path in tmp_path.glob("pack-*")] == ["pack-00000001.agm"]
    disk = await open_disk()
    await disk.append([record_of(0)])
    assert read(disk, 0) == payload_of(0)


async def test_over_the_budget_the_oldest_unclaimed_pages_go_first(
    open_disk: Opener, clock: Clock
) -> None:
    disk = await open_disk(budget_bytes=4 * RECORD)
    await disk.append([record_of(n) for n in range(4)])
    await disk.claim(b"claim", [key_of(0)], clock.now + 10)
    await disk.append([record_of(4)])
    assert held(disk, range(5)) == [0, 2, 3, 4]
    clock.now += 11  # the claim expires: page 0 is the oldest again
    await disk.append([record_of(5)])
    assert held(disk, range(6)) == [2, 3, 4, 5]
    assert disk.counters["evicted_disk_pages"] == 2


async def test_a_budget_full_of_claimed_pages_refuses(open_disk: Opener, clock: Clock) -> None:
    disk = await open_disk(budget_bytes=2 * RECORD)
    await disk.append([record_of(n) for n in range(2)])
    await disk.claim(b"claim", [key_of(0), key_of(1)], clock.now + 10)
    with pytest.raises(StoreRefused) as refused:
        await disk.append([record_of(2)])
    assert refused.value.reason == "disk_budget"
    assert disk.counters["refused_disk_budget"] == 1
    assert held(disk, range(3)) == [0, 1]


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_failed")]
)
async def test_a_failing_medium_refuses_and_the_next_append_is_whole(
    open_disk: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    await disk.claim(b"claim", [key_of(0)], clock.now + 10)  # nothing can be evicted

    def fail(fd: int, records: list[memoryview], offset: int) -> int:
        os.pwrite(fd, records[0][:5000], offset)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(packwriter, "write_records", fail)
        with pytest.raises(StoreRefused) as refused:
            await disk.append([record_of(1)])
    assert refused.value.reason == reason
    assert disk.counters[f"refused_{reason}"] == 1
    assert held(disk, range(2)) == [0]
    pack = Path(disk.location(disk.get(key_of(0))).path)  # type: ignore[arg-type]
    assert pack.stat().st_size == PACK_HEADER_BYTES + RECORD
    await disk.append([record_of(1)])
    disk = await open_disk()
    assert [read(disk, n) for n in range(2)] == [payload_of(0), payload_of(1)]


async def test_a_full_disk_evicts_before_it_refuses(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(2)])
    write, calls = packwriter.write_records, []

    def fail_once(fd: int, records: list[memoryview], offset: int) -> int:
        calls.append(len(records))
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, records, offset)

    monkeypatch.setattr(packwriter, "write_records", fail_once)
    await disk.append([record_of(2)])
    assert len(calls) == 2
    assert held(disk, range(3)) == [1, 2]


async def test_what_the_index_did_not_take_is_no_page(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk()

    def fail(*_: object) -> None:
        raise lmdb.MapFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(disk._index, "commit", fail)
        with pytest.raises(StoreRefused) as refused:
            await disk.append([record_of(0)])
    assert refused.value.reason == "index_full"
    disk = await open_disk()
    assert held(disk, range(1)) == []


class TestClaims:
    async def test_a_page_goes_with_its_last_claim(
        self, open_disk: Opener, clock: Clock, tmp_path: Path
    ) -> None:
        disk = await open_disk()
        await disk.append([record_of(n) for n in range(2)])
        keys = [key_of(0), key_of(1)]
        await disk.claim(b"one", keys, clock.now + 10)
        await disk.claim(b"one1", [key_of(0)], clock.now + 10)  # the other's name and more
        unclaimed = await disk.unclaim(b"one", keys)
        await disk.reclaim()
        assert unclaimed.keys == [key_of(1)]
        assert held(disk, range(2)) == [0]
        assert payload_of(1)[:64] not in bytes_of(tmp_path)
        assert (await disk.unclaim(b"one1", keys)).keys == keys
        assert held(disk, range(2)) == []

    async def test_an_expired_claim_keeps_nothing(self, open_disk: Opener, clock: Clock) -> None:
        disk = await open_disk()
        await disk.append([record_of(0)])
        await disk.claim(b"one", [key_of(0)], clock.now + 10)
        await disk.claim(b"two", [key_of(0)], clock.now + 5)
        await disk.claim(b"two", [key_of(0)], clock.now + 20)  # renewed
        clock.now += 15
        assert (await disk.unclaim(b"three", [key_of(0)])).keys == []
        clock.now += 10
        assert (await disk.unclaim(b"three", [key_of(0)])).keys == [key_of(0)]

    async def test_claims_survive_a_restart_and_expired_ones_are_pruned(
        self, open_disk: Opener, clock: Clock
    ) -> None:
        disk = await open_disk()
        for number in range(10):
            await disk.claim(b"long", [key_of(number)], clock.now + 100)
            await disk.claim(b"short", [key_of(number)], clock.now + 1)
        disk = await open_disk()
        clock.now += 2
        turns = 0
        while await disk.prune_claims(rows_max=3):
            turns += 1
        assert turns == 3
        assert disk.counters["claims_expired"] == 10
        claims = disk._index.claims.of_page(key_of(5))
        assert [(c.claim_id, c.expires_at_us) for c in claims] == [
            (b"long", int((clock.now + 98) * 1e6))
        ]

    async def test_a_page_deleted_while_it_was_written_does_not_come_back(
        self, open_disk: Opener, tmp_path: Path
    ) -> None:
        disk = await open_disk()
        unclaimed = await disk.unclaim(b"one", [key_of(0)])
        late = await disk.append([record_of(0, sequence=unclaimed.sequence), record_of(1)])
        assert [record.key for record in late] == [key_of(0)]
        assert held(disk, range(2)) == [1]
        await disk.reclaim()
        assert payload_of(0)[:64] not in bytes_of(tmp_path)
        assert await disk.doomed() == {key_of(0): unclaimed.sequence}
        await disk.append([record_of(0, sequence=unclaimed.sequence + 1)])  # made again since
        assert held(disk, range(2)) == [0, 1]
