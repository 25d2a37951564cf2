"""Failing media, batches in flight, and the audit that finds what is not as it should be."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import lmdb
import pytest

from agentmem.errors import StoreRefused
from agentmem.store import index as index_module
from agentmem.store import packwriter, reclaim
from agentmem.store.pack import PACK_HEADER_BYTES
from tests.unit.store.conftest import Clock, Opener
from tests.unit.store.records import RECORD, bytes_of, held, key_of, payload_of, read, record_of


def failure(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EIO, "disk_failed"),
        (errno.EROFS, "disk_read_only"),
        (errno.EMFILE, "no_descriptors"),
    ],
)
@pytest.mark.parametrize("where", ["create_pack", "write_records"])
async def test_the_reason_is_told_until_it_works_again(
    open_disk: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    code: int, reason: str, where: str,
) -> None:  # fmt: skip
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(4)])  # the pack is full
    await disk.claim(b"claim", [key_of(n) for n in range(4)], clock.now + 10)

    def fail(*_: object) -> None:
        raise failure(code)

    with monkeypatch.context() as patched:
        patched.setattr(packwriter, where, fail)
        with pytest.raises(StoreRefused) as refused:
            await disk.append([record_of(4)])
    assert refused.value.reason == disk.degraded == reason
    assert disk.counters[f"refused_{reason}"] == 1
    await disk.append([record_of(4)])
    assert disk.degraded == ""
    assert held(disk, range(5)) == [0, 1, 2, 3, 4]
    assert (await disk.audit()).differences == []


async def test_the_next_batch_is_written_while_one_is_committed(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk()
    commit, write = disk._index.commit, packwriter.write_records
    written, writes = threading.Event(), 0
    visible: list[list[int]] = []

    def counted(*args: object) -> int:
        nonlocal writes
        end = write(*args)  # type: ignore[arg-type]
        writes += 1
        if writes == 2:
            written.set()
        return end

    def late(*args: object) -> object:
        assert written.wait(5), "the second batch waited for the first one's commit"
        visible.append(held(disk, range(4)))
        return commit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(packwriter, "write_records", counted)
    monkeypatch.setattr(disk._index, "commit", late)
    await asyncio.gather(
        disk.append([record_of(0), record_of(1)]), disk.append([record_of(2), record_of(3)])
    )
    assert visible == [[], [0, 1]]
    assert [read(disk, n) for n in range(4)] == [payload_of(n) for n in range(4)]


@pytest.mark.parametrize("kept", [False, True])
async def test_a_commit_that_fails_takes_back_what_was_written_behind_it(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool
) -> None:
    """Also when the medium `kept` the commit: a failed write of LMDB's last page."""
    disk = await open_disk()
    await disk.append([record_of(9)])
    commit, write = disk._index.commit, packwriter.write_records
    written, writes = threading.Event(), 0

    def counted(*args: object) -> int:
        nonlocal writes
        end = write(*args)  # type: ignore[arg-type]
        writes += 1
        if writes == 2:
            written.set()
        return end

    commits = 0

    def fail(*args: object) -> object:
        nonlocal commits
        commits += 1
        assert written.wait(5)
        if commits > 1:  # of the batch behind it, whose bytes are taken back as well
            return commit(*args)  # type: ignore[arg-type]
        if kept:
            commit(*args)  # type: ignore[arg-type]
        raise lmdb.PanicError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(packwriter, "write_records", counted)
        patched.setattr(disk._index, "commit", fail)
        first, second = [record_of(n) for n in range(2)], [record_of(n) for n in range(2, 6)]
        refusals = await asyncio.gather(
            disk.append(first), disk.append(second), return_exceptions=True
        )
    assert [type(refusal) for refusal in refusals] == [StoreRefused, StoreRefused]
    assert held(disk, range(10)) == [9]
    assert bytes_of(tmp_path).count(payload_of(0)[:64]) == 0
    assert (await disk.audit()).differences == []
    assert await disk.append(first + second) == []
    disk = await open_disk()
    assert held(disk, range(10)) == [0, 1, 2, 3, 4, 5, 9]
    assert (await disk.audit()).differences == []


async def test_a_full_index_grows(open_disk: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MAP_BYTES", 192 << 10)
    disk = await open_disk()
    for number in range(0, 4000, 500):
        await disk.claim(b"claim", [key_of(n) for n in range(number, number + 500)], 2000.0)
    assert disk.index_bytes > 192 << 10
    await disk.append([record_of(0)])
    assert read(disk, 0) == payload_of(0)


async def test_an_index_that_is_cut_off_is_rebuilt(open_disk: Opener, tmp_path: Path) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(6)])
    await disk.claim(b"claim", [key_of(n) for n in range(2000)], 2000.0)
    data = tmp_path / "index" / "data.mdb"
    disk = await open_disk(meanwhile=lambda: os.truncate(data, data.stat().st_size // 2))
    assert disk.recovery.index_rebuilt  # type: ignore[attr-defined]
    assert held(disk, range(6)) == [0, 1, 2, 3, 4, 5]


async def test_an_index_that_ended_three_starts_is_set_aside(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(0)])
    opening = tmp_path / "index.opening"
    assert not opening.exists()
    for attempts, rebuilt in ((1, False), (3, True), (2, False)):
        disk = await open_disk(meanwhile=lambda n=attempts: opening.write_bytes(b"." * n))
        assert disk.recovery.index_rebuilt is rebuilt  # type: ignore[attr-defined]
        assert read(disk, 0) == payload_of(0)


async def test_what_could_not_be_destroyed_is_tried_again(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(2)])

    def fail(*_: object) -> bool:
        raise failure(errno.EIO)

    with monkeypatch.context() as patched:
        patched.setattr(reclaim, "punch", fail)
        await disk.remove([key_of(0)])
    assert disk.counters["punch_failed"] == 1
    assert disk.usage().reserved_bytes == 2 * RECORD
    await disk.reclaim()
    assert payload_of(0)[:64] not in bytes_of(tmp_path)
    assert disk.usage().reserved_bytes == RECORD
    assert (await disk.audit()).differences == []


class TestAudit:
    async def test_bytes_that_nothing_refers_to(self, open_disk: Opener, tmp_path: Path) -> None:
        disk = await open_disk()
        await disk.append([record_of(n) for n in range(5)])
        await disk.remove([key_of(1)])
        pack = tmp_path / "pack-00000000.agm"
        with pack.open("r+b") as file:
            file.seek(PACK_HEADER_BYTES + RECORD)
            file.write(record_of(7).view)
        kinds = {d.kind: d for d in (await disk.audit()).differences}
        assert set(kinds) == {"orphan", "accounting"}
        assert kinds["orphan"][1:4] == (0, PACK_HEADER_BYTES + RECORD, RECORD)

    async def test_entries_without_bytes_and_with_those_of_another(
        self, open_disk: Opener, tmp_path: Path
    ) -> None:
        disk = await open_disk()
        await disk.append([record_of(n) for n in range(6)])
        with (tmp_path / "pack-00000000.agm").open("r+b") as file:
            file.seek(PACK_HEADER_BYTES + RECORD)
            file.write(record_of(7).view)
            reclaim.punch(file.fileno(), PACK_HEADER_BYTES + 2 * RECORD, RECORD)
        (tmp_path / "pack-00000001.agm").unlink()
        found = [(d.kind, d.pack, d.offset) for d in (await disk.audit()).differences]
        assert ("no_bytes", 0, PACK_HEADER_BYTES + 2 * RECORD) in found
        assert ("wrong_record", 0, PACK_HEADER_BYTES + RECORD) in found
        assert ("missing_pack", 1, 0) in found
        quick = {d.kind for d in (await disk.audit(headers=False)).differences}
        assert quick == {"no_bytes", "missing_pack", "accounting"}
