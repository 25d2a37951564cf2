"""Compaction: what is left of a nearly empty pack moves, and its file goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb
import pytest

from agentmem.store import packwriter, reclaim
from agentmem.store.disk import DiskTier
from agentmem.store.pack import PACK_HEADER_BYTES
from tests.unit.store.conftest import Opener
from tests.unit.store.records import RECORD, bytes_of, held, key_of, payload_of, read, record_of


async def sparse(open_disk: Opener) -> DiskTier:
    """Three packs; of the first two one page each is left: 3 and 7 of 0 to 9."""
    disk = await open_disk()
    records = [record_of(n) for n in range(10)]
    records[3] = records[3]._replace(position=33, key_id=b"k" * 16)
    await disk.append(records)
    await disk.remove([key_of(n) for n in (0, 1, 2, 4, 5, 6)])
    return disk


def packs(directory: Path) -> list[str]:
    return [path.name[11:13] for path in sorted(directory.glob("pack-*"))]


async def everything_is_right(disk: DiskTier, numbers: list[int]) -> None:
    assert held(disk, range(10)) == numbers
    assert [read(disk, n) for n in numbers] == [payload_of(n) for n in numbers]
    audit = await disk.audit()
    assert audit.differences == []
    assert audit.record_bytes == audit.medium_bytes == disk.usage().reserved_bytes


@pytest.fixture(autouse=True)
def quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of four with one page left is sparse enough."""
    monkeypatch.setattr("agentmem.store.compaction.LIVE_SHARE", 0.26)


async def test_pages_of_sparse_packs_move_and_the_files_go(
    open_disk: Opener, tmp_path: Path
) -> None:
    disk = await sparse(open_disk)
    assert packs(tmp_path) == ["00", "01", "02"]
    assert [await disk.compact() for _ in range(3)] == [RECORD, RECORD, 0]
    assert packs(tmp_path) == ["02"]
    await everything_is_right(disk, [3, 7, 8, 9])
    disk = await open_disk()
    await everything_is_right(disk, [3, 7, 8, 9])
    copy = disk.get(key_of(3))
    assert copy is not None
    assert (copy.position, copy.key_id) == (33, b"k" * 16)


async def test_a_share_is_of_all_that_was_written_also_after_a_restart(
    open_disk: Opener, tmp_path: Path
) -> None:
    await sparse(open_disk)
    disk = await open_disk()
    assert await disk.compact() == RECORD
    assert packs(tmp_path) == ["01", "02"]


async def test_a_reader_keeps_the_place_it_was_told(open_disk: Opener, tmp_path: Path) -> None:
    disk = await sparse(open_disk)
    copy = disk.get(key_of(3))
    assert copy is not None
    disk.hold(copy)
    before = disk.location(copy)
    await disk.compact()
    assert copy.gone
    assert payload_of(3)[:64] in Path(before.path).read_bytes()
    assert disk.get(key_of(3)) is not copy
    await everything_is_right(disk, [3, 7, 8, 9])
    disk.unhold(copy)
    await disk.reclaim()
    assert packs(tmp_path) == ["01", "02"]
    await everything_is_right(disk, [3, 7, 8, 9])


async def test_a_page_deleted_while_its_record_moves_stays_deleted(
    open_disk: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await sparse(open_disk)
    read_live = disk._compactor.read

    async def read_then_delete(*args: object, **options: object) -> object:
        live = await read_live(*args, **options)  # type: ignore[arg-type]
        await disk.remove([key_of(3)])
        return live

    monkeypatch.setattr(disk._compactor, "read", read_then_delete)
    await disk.compact()
    assert payload_of(3)[:64] not in bytes_of(tmp_path)
    await everything_is_right(disk, [7, 8, 9])
    await everything_is_right(await open_disk(), [7, 8, 9])


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "broken"), lmdb.Error("broken")])
async def test_a_failing_medium_leaves_every_page_where_it_was(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    disk = await sparse(open_disk)

    def fail(*_: object) -> None:
        raise fault

    with monkeypatch.context() as patched:
        if isinstance(fault, OSError):
            patched.setattr(packwriter, "write_records", fail)
        else:
            patched.setattr(disk._index, "move", fail)
        with pytest.raises(type(fault)):
            await disk.compact()
    await everything_is_right(disk, [3, 7, 8, 9])
    assert await disk.compact() == RECORD
    await everything_is_right(await open_disk(), [3, 7, 8, 9])


async def test_a_move_that_the_medium_kept_though_it_said_no_is_taken_back(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await sparse(open_disk)
    move, panicked = disk._index.move, lmdb.PanicError("the meta page could not be written")

    def keep_and_fail(*args: object) -> None:
        move(*args)  # type: ignore[arg-type]
        raise panicked

    with monkeypatch.context() as patched:
        patched.setattr(disk._index, "move", keep_and_fail)
        with pytest.raises(lmdb.PanicError):
            await disk.compact()
    await everything_is_right(disk, [3, 7, 8, 9])
    await everything_is_right(await open_disk(), [3, 7, 8, 9])


async def test_a_crash_between_copy_and_move_leaves_one_copy(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = await sparse(open_disk)
    pack = sorted(tmp_path.glob("pack-*"))[-1]

    def crash() -> None:  # the copy is behind the committed end
        with pack.open("ab") as file:
            file.write(record_of(3).view)

    disk = await open_disk(meanwhile=crash)
    await everything_is_right(disk, [3, 7, 8, 9])
    assert bytes_of(tmp_path).count(payload_of(3)[:64]) == 1


async def test_without_holes_the_space_comes_back_with_the_file(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_holes(fd: int, offset: int, size_bytes: int) -> bool:
        os.pwrite(fd, bytes(size_bytes), offset)
        return False

    monkeypatch.setattr(reclaim, "punch", no_holes)
    disk = await open_disk()
    await disk.append([record_of(n) for n in range(6)])
    await disk.remove([key_of(n) for n in (0, 1, 2)])
    assert disk.usage().reserved_bytes == 6 * RECORD  # the file system has them still
    assert (await disk.audit()).differences == []
    assert await disk.compact() == RECORD
    assert packs(tmp_path) == ["01"]
    assert disk.usage().reserved_bytes == 3 * RECORD
    size = (tmp_path / "pack-00000001.agm").stat().st_size
    assert size == PACK_HEADER_BYTES + 3 * RECORD


async def test_where_the_room_is_gone_by_then_nothing_moves_and_nothing_is_evicted(
    open_disk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await sparse(open_disk)
    read_live = disk._compactor.read

    async def read_while_others_write(*args: object, **options: object) -> object:
        live = await read_live(*args, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(disk, "_budget_bytes", disk.usage().reserved_bytes)
        return live

    monkeypatch.setattr(disk._compactor, "read", read_while_others_write)
    assert await disk.compact() == 0
    await everything_is_right(disk, [3, 7, 8, 9])
    assert disk.counters["evicted_disk_pages"] == 0
