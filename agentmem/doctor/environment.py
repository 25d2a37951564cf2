"""Checks of the machine: kernel, memory, file system, limits. Nothing of the node is touched."""

from __future__ import annotations

import mmap
import os
import platform
import resource
import tempfile
from pathlib import Path

from agentmem.config import Settings
from agentmem.doctor.report import Check, Status
from agentmem.errors import PageCorrupt
from agentmem.native.datapath import is_native
from agentmem.pages.record import ALIGN_BYTES
from agentmem.pages.slab import SLAB_HEADER_BYTES, decode_slab_header
from agentmem.store.pack import pack_number, punch

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the shared memory of POSIX, not a temporary file
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_DESCRIPTORS_MIN = 1024
_MIB = 1 << 20
# madvise's POPULATE_WRITE, which keeps page faults out of the first copies.
_KERNEL_MIN = (5, 14)


def check_environment(settings: Settings) -> list[Check]:
    """All checks of the machine. Raises nothing: what cannot be looked at is `failed`."""
    checks = [_kernel, _data_path, _descriptors, _shared_memory, _file_system, _space, _alignment]
    results = []
    for check in checks:
        try:
            results.append(check(settings))
        except OSError as error:
            results.append(Check(check.__name__.strip("_"), Status.FAILED, str(error)))
    return results


def _kernel(_settings: Settings) -> Check:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    cores = len(os.sched_getaffinity(0))
    status = Status.OK if numbers >= _KERNEL_MIN else Status.NOTE
    return Check(
        "kernel", status, f"Linux {release}, {cores} cores", {"release": release, "cores": cores}
    )


def _data_path(_settings: Settings) -> Check:
    if is_native():
        return Check("data_path", Status.OK, "pages move in the C library", {"native": True})
    detail = "pages move in Python, which is slow: python -m agentmem.native.build"
    return Check("data_path", Status.NOTE, detail, {"native": False})


def _descriptors(_settings: Settings) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    status = Status.OK if soft >= _DESCRIPTORS_MIN else Status.NOTE
    detail = f"{soft} files may be open at once ({hard} at most)"
    return Check("descriptors", status, detail, {"soft": soft, "hard": hard})


def _shared_memory(settings: Settings) -> Check:
    space = os.statvfs(SHARED_MEMORY)
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    huge = (
        _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] if _HUGE_PAGES.exists() else ""
    )
    enough = total >= settings.dram_bytes
    detail = (
        f"{total // _MIB} MiB, {free // _MIB} free, for a budget of {settings.dram_bytes // _MIB}"
    )
    if huge in ("never", "deny", ""):
        detail += "; no huge pages for shared memory"
    return Check(
        "shared_memory",
        Status.OK if enough else Status.NOTE,
        detail,
        {"bytes": total, "free_bytes": free, "budget_bytes": settings.dram_bytes, "huge": huge},
    )


def _file_system(settings: Settings) -> Check:
    directory = _nearest(settings.node_dir)
    kind = _file_system_type(directory)
    direct, holes = _takes_direct(directory), _has_holes(directory)
    lacks = [
        what
        for what, there in (
            ("O_DIRECT: reads and writes go through the page cache", direct),
            ("holes: deleted pages give space back with their pack only", holes),
        )
        if not there
    ]
    detail = f"{kind}" + (
        f" without {' and without '.join(lacks)}" if lacks else ", O_DIRECT, holes"
    )
    return Check(
        "file_system",
        Status.NOTE if lacks else Status.OK,
        detail,
        {"type": kind, "direct": direct, "holes": holes},
    )


def _space(settings: Settings) -> Check:
    space = os.statvfs(_nearest(settings.node_dir))
    free = space.f_bavail * space.f_frsize
    used = sum(
        path.stat().st_blocks * 512 for path in settings.node_dir.rglob("*") if path.is_file()
    )
    missing = settings.disk_bytes - used - free
    detail = f"{used // _MIB} MiB of {settings.disk_bytes // _MIB} used, {free // _MIB} free"
    if missing > 0:
        detail += f": {missing // _MIB} too few for the whole budget"
    return Check(
        "space",
        Status.NOTE if missing > 0 else Status.OK,
        detail,
        {"free_bytes": free, "used_bytes": used, "budget_bytes": settings.disk_bytes},
    )


def _alignment(settings: Settings) -> Check:
    """Packs and slots on the boundaries that O_DIRECT and the data path count on."""
    wrong: list[str] = []
    files = 0
    packs = settings.node_dir / "packs"
    for path in sorted(packs.iterdir()) if packs.exists() else ():
        if pack_number(path) is not None:
            files += 1
            # The end of the newest pack may be a torn write, until the agent's next start.
            if path.stat().st_size % ALIGN_BYTES:
                wrong.append(f"{path.name} ends within a block")
    node_id = settings.node_dir / "id"
    if node_id.exists():
        for path in sorted(SHARED_MEMORY.glob(f"agentmem-{node_id.read_text().strip()}/slab-*")):
            files += 1
            with path.open("rb") as file:
                try:
                    header = decode_slab_header(file.read(SLAB_HEADER_BYTES))
                except PageCorrupt as error:
                    wrong.append(f"{path.name}: {error}")
                    continue
            if path.stat().st_size != header.file_bytes:
                wrong.append(f"{path.name} has another length than its header says")
    if wrong:
        return Check("alignment", Status.FOUND, "; ".join(wrong), {"files": files})
    detail = f"{files} packs and slabs, records on {ALIGN_BYTES}-byte boundaries"
    return Check("alignment", Status.OK, detail, {"files": files})


def _nearest(directory: Path) -> Path:
    """The directory, or the first one above it that exists."""
    while not directory.exists():
        directory = directory.parent
    return directory


def _file_system_type(directory: Path) -> str:
    """Type of the file system that holds a directory, as the kernel names it."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, after = line.partition(" - ")
        if fields.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def _takes_direct(directory: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-") as file:
        try:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return False
        block = mmap.mmap(-1, ALIGN_BYTES)  # aligned to a page
        try:
            return os.pwrite(fd, block, 0) == ALIGN_BYTES
        except OSError:
            return False
        finally:
            block.close()
            os.close(fd)


def _has_holes(directory: Path) -> bool:
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x" * (4 * ALIGN_BYTES))
        file.flush()
        os.fsync(file.fileno())
        before = os.fstat(file.fileno()).st_blocks
        punch(file.fileno(), ALIGN_BYTES, 2 * ALIGN_BYTES)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_blocks < before
