"""The node agent: one process per host that owns all bytes below the GPU."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import signal
from collections.abc import Container, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb

from agentmem.config import Settings
from agentmem.core import PageKey
from agentmem.errors import ConfigurationInvalid, StoreRefused
from agentmem.node.access import TcpListener, TlsFiles, tcp_listener
from agentmem.node.calls import Calls
from agentmem.node.demotion import Demotion
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.listening import Doors
from agentmem.node.objectsweep import ObjectSweep
from agentmem.node.objecttending import ObjectTending
from agentmem.node.ownership import Ownership
from agentmem.node.promises import Promises
from agentmem.node.retention import Retention
from agentmem.node.sealing import Sealer
from agentmem.node.slabs import Slabs
from agentmem.node.tiering import Tiering
from agentmem.node.verifying import Verification
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.slab import NODE_ID_HEX_DIGITS
from agentmem.secretfile import load_secret
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.keyring import Keyring
from agentmem.store.object import ObjectTier
from agentmem.store.objectstore import ObjectStore
from agentmem.store.pack import PACK_BYTES, sync_directory

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the shared memory of POSIX, not a temporary file
_IO_THREADS = 4
_HOUSEKEEPING_SECONDS = 1.0
_LEFTOVER_SECONDS = 30 * 86_400.0
# An object store has no bound of ours: what is promised is bounded per tenant then.
_CAPACITY_BYTES_WITH_OBJECTS = 1 << 60
_COMPACTED_PACKS_MAX = 4
_DRAIN_SECONDS_MAX = 30.0


class NodeAgent:
    """Owns a node directory (packs, index), a slab directory in shared memory, and its sockets.

    `start` raises ConfigurationInvalid when another agent owns the directory, OSError or lmdb.Error
    when it cannot be read. `stop` makes what is queued durable, for at most 30 s. `recovery`: what
    the disk tier found at the start.
    """

    def __init__(
        self,
        *,
        node_dir: Path,
        socket_path: Path,
        dram_bytes: int,
        disk_bytes: int,
        root_key: Path,
        object_url: str = "",
        object_endpoint: str = "",
        object_pack_bytes: int = PACK_BYTES,
        object_bytes: int = 0,
        object_leftover_seconds: float = _LEFTOVER_SECONDS,
        listener: TcpListener | None = None,
        tenant_promised_bytes: int = 0,
    ) -> None:
        self._node_dir = node_dir
        self._socket_path = socket_path
        self._dram_bytes = dram_bytes
        self._disk_bytes = disk_bytes
        self._root_key = root_key
        self._object_url = object_url
        self._object_endpoint = object_endpoint
        self._object_pack_bytes = object_pack_bytes
        self._object_bytes = object_bytes
        self._object_leftover_seconds = object_leftover_seconds
        self._listener = listener
        self._tenant_promised_bytes = tenant_promised_bytes
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def of(
        cls, settings: Settings, socket_path: Path, listener: TcpListener | None = None
    ) -> NodeAgent:
        """The agent of these settings, listening on a Unix socket and, where given, on TCP."""
        return cls(
            node_dir=settings.node_dir,
            socket_path=socket_path,
            dram_bytes=settings.dram_bytes,
            disk_bytes=settings.disk_bytes,
            root_key=settings.secrets_dir / "root_key",
            object_url=settings.object_url,
            object_endpoint=settings.object_endpoint,
            object_pack_bytes=settings.object_pack_bytes,
            object_bytes=settings.object_bytes,
            object_leftover_seconds=settings.object_leftover_seconds,
            tenant_promised_bytes=settings.tenant_promised_bytes,
            listener=listener,
        )

    @property
    def stats(self) -> dict[str, int]:
        """Gauges and counters, as the `stats` call gives them."""
        return self._calls.stats()

    async def start(self) -> None:
        """Recovers disk and slabs, then listens."""
        self._node_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_directory(self._node_dir.parent)
        self._lock = _lock(self._node_dir / "lock")
        node_id = _node_id(self._node_dir / "id")
        self._executor = ThreadPoolExecutor(_IO_THREADS, "node-io")
        sealer = await self._open_tiers(node_id)
        below: Container[PageKey] = frozenset() if self._objects is None else self._objects
        waiters = DurabilityWaiters(lambda key: key in self._disk or key in below)
        self._write_behind = WriteBehind(self._dram, self._disk, waiters, self._executor, sealer)
        ownership = Ownership(self._dram, self._disk, self._write_behind, waiters, below)
        promises = Promises(
            self._dram,
            self._disk,
            ownership,
            write_behind=self._write_behind,
            tenant_quota_bytes=self._tenant_promised_bytes,
        )
        await promises.open()
        self._retention = Retention(
            promises=promises,
            ownership=ownership,
            dram=self._dram,
            disk=self._disk,
            write_behind=self._write_behind,
            executor=self._executor,
            objects=self._objects,
        )
        self._slabs = Slabs(node_id, self._dram, ownership, self._executor)
        self._tiering = Tiering(
            dram=self._dram,
            disk=self._disk,
            objects=self._objects,
            sealer=sealer,
            ownership=ownership,
            slabs=self._slabs,
            executor=self._executor,
        )
        self._demotion = Demotion(self._dram, self._disk, self._tiering)
        if self._objects is not None:
            promises.capacity_bytes = _CAPACITY_BYTES_WITH_OBJECTS
        await self._retention.open()
        self._slabs.adopt_orphans()
        self._calls = Calls(
            node_id=node_id,
            dram=self._dram,
            disk=self._disk,
            ownership=ownership,
            write_behind=self._write_behind,
            retention=self._retention,
            slabs=self._slabs,
            tiering=self._tiering,
            sealer=sealer,
            objects=self._objects,
            demotion=self._demotion,
            verification=Verification(
                ownership=ownership,
                dram=self._dram,
                disk=self._disk,
                retention=self._retention,
                executor=self._executor,
                objects=self._objects,
            ),
            promises=promises,
        )
        self._begin_loops(promises)
        self._doors = Doors(self._calls, self._socket_path, self._listener)
        await self._doors.open()
        self._say_ready(node_id)

    async def stop(self) -> None:
        """Hangs up, makes what is queued durable (bounded), and lets go of the directory.

        Slabs of engines that live stay for the next agent; all other shared memory is given back.
        """
        await self._doors.close()
        self._slabs.adopt_orphans()
        await self._slabs.settle()
        drains = not self._disk.index_damaged.is_set()  # nothing becomes durable without it
        if not drains or not await self._write_behind.drain(_DRAIN_SECONDS_MAX):
            logger.error("%d pages are not durable yet", self._write_behind.queued_pages)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tiering.close()
        self._slabs.shed_all()
        await self._disk.close()
        if self._objects is not None:
            await self._objects.close()
        await self._keyring.close()
        self._executor.shutdown(wait=True)
        self._dram.close()
        os.close(self._lock)

    async def run_until(self, stopped: asyncio.Event) -> None:
        """Waits for `stopped`. Raises what ended one of the agent's loops before that."""
        wait = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait([wait, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        wait.cancel()
        for task in done - {wait}:
            task.result()

    async def _open_tiers(self, node_id: str) -> Sealer:
        self._dram = DramTier(_SHARED_MEMORY / f"agentmem-{node_id}", node_id, self._dram_bytes)
        self._disk = DiskTier(self._node_dir / "packs", node_id, self._disk_bytes)
        self.recovery = await self._disk.open()
        if any(self.recovery):
            logger.warning("disk tier recovered: %s", self.recovery)
        self._dram.open()
        sealer, self._objects = await self._open_objects(node_id)
        return sealer

    def _say_ready(self, node_id: str) -> None:
        logger.info(
            "node agent %s is ready on %s%s: %d pages in dram, %d on disk",
            node_id,
            self._socket_path,
            "" if self._doors.address is None else " and {}:{}".format(*self._doors.address),
            self._dram.usage().pages,
            self._disk.usage().pages,
        )

    def _begin_loops(self, promises: Promises) -> None:
        self._spawn(promises.run())
        self._spawn(self._write_behind.run())
        self._spawn(self._reclaim())
        self._spawn(self._watch_index())
        self._spawn(self._housekeeping())
        if self._objects is not None:
            sweep = ObjectSweep(
                self._objects,
                self._disk,
                self._write_behind.movements,
                leftover_seconds=self._object_leftover_seconds,
            )
            self._retention.on_claim = sweep.note_claimed
            self._retention.on_archived = self._demotion.note_archived
            self._retention.on_deleted = self._demotion.note_deleted
            self._objects.listing.on_lost = promises.note_lost
            self._spawn(ObjectTending(self._objects, self._keyring, sweep).run())
            self._spawn(self._demotion.run())

    async def _open_objects(self, node_id: str) -> tuple[Sealer, ObjectTier | None]:
        """Tenants' keys, and the object tier where there is one. Raises ConfigurationInvalid."""
        store = None
        if self._object_url:
            store = ObjectStore(self._object_url, endpoint=self._object_endpoint)
        self._keyring = Keyring(load_secret(self._root_key), self._node_dir / "keys", store)
        await self._keyring.open()
        sealer = Sealer(self._keyring, self._disk, self._executor)
        if store is None:
            return sealer, None
        objects = ObjectTier(
            store,
            self._node_dir / "objects",
            node_id,
            pack_bytes=self._object_pack_bytes,
            budget_bytes=self._object_bytes,
        )
        await objects.open()
        return sealer, objects

    def _spawn(self, loop: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(loop))

    async def _watch_index(self) -> None:
        """Ends the agent over a damaged index: its next start makes that anew from the packs."""
        await self._disk.index_damaged.wait()
        raise StoreRefused(
            "the index is damaged: the next start makes it anew from the packs",
            reason="index_failed",
        )

    async def _reclaim(self) -> None:
        while True:
            await self._disk.reclaim_wanted.wait()
            await self._attempt(self._disk.reclaim())

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            self._slabs.adopt_orphans()
            self._dram.unlink_empty()
            self._doors.tidy()
            await self._attempt(self._retention.sweep())
            await self._attempt(self._disk.reclaim())  # what could not be destroyed before
            await self._attempt(self._compact())

    async def _compact(self) -> None:
        """One pack a second while pages are written, a few while the disk is idle."""
        for _ in range(_COMPACTED_PACKS_MAX):
            if not await self._disk.compact() or not self._write_behind.idle:
                return

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets a failing medium stall the work of a loop, not end the loop."""
        try:
            await work
        except (OSError, lmdb.Error):
            self._calls.counters["housekeeping_failed"] += 1
            logger.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)


def run_node(settings: Settings) -> None:
    """Runs the node agent until SIGTERM or SIGINT. Raises AgentmemError when it cannot start.

    Logs one line when it is ready, to stderr unless the caller has set up logging.
    """
    logging.basicConfig(level=settings.log_level.upper())
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    listener = None
    if settings.node_listen:
        listener = tcp_listener(
            settings.node_listen,
            tls=TlsFiles(settings.node_tls_cert, settings.node_tls_key, settings.node_tls_ca),
            token_file=settings.node_token_file,
            clear_allowed=settings.node_token_in_clear,
        )
    agent = NodeAgent.of(settings, settings.node_socket, listener)
    await agent.start()
    try:
        await agent.run_until(stopped)
    finally:
        await agent.stop()


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise ConfigurationInvalid(
            f"another node agent owns {path.parent}", hint="Stop it, or set another data directory."
        ) from error
    return fd


def _node_id(path: Path) -> str:
    """The node's id, made once. Raises ConfigurationInvalid for a file that holds no id."""
    if not path.exists():
        temporary = path.with_suffix(".new")
        with temporary.open("w") as file:
            file.write(secrets.token_hex(NODE_ID_HEX_DIGITS // 2))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_directory(path.parent)
    node_id = path.read_text().strip()
    if len(node_id) != NODE_ID_HEX_DIGITS or not all(c in "0123456789abcdef" for c in node_id):
        raise ConfigurationInvalid(f"{path} does not hold a node id of {NODE_ID_HEX_DIGITS} digits")
    return node_id
