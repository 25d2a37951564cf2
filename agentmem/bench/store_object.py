"""Row of the object tier: packs in a local S3 server to a host pool, against raw ranged GETs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from agentmem.bench.limits import GB, MIB
from agentmem.bench.report import Goal, Moved, Row, ratio_row
from agentmem.bench.store_system import (
    BenchEngine,
    BenchFailed,
    HostPool,
    Node,
    Shape,
    attempted,
    claim,
    running_node,
    wait_durable,
)
from agentmem.core import PageKey, Tier
from agentmem.lifeline import PARENT_VARIABLE
from agentmem.loopback import free_port
from agentmem.store.objectstore import ObjectStore

ROWS = {"object_read": Goal("GB/s", 0.8)}
_BUCKET = "bench"
_SET_SHARE = 4
_RANGES = 8
_RANGE_BYTES = 8 * MIB
_SECONDS_MAX = 120.0
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_REGION": "us-east-1",
}
_SERVER = """
import os, sys
from agentmem.lifeline import die_with_parent
die_with_parent(int(sys.argv[1]))
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[2]])
"""


def run_object(directory: Path, shape: Shape, wanted: Sequence[str], rounds: int) -> list[Row]:
    """The row `object_read`, for pages of one shape."""
    with _s3_server() as endpoint:
        settings = {
            "object_url": f"s3://{_BUCKET}/packs",
            "object_endpoint": endpoint,
            "dram_bytes": 2 * shape.set_pages * shape.page_bytes + 256 * MIB,
            "disk_bytes": 2 * shape.set_pages * shape.page_bytes,
        }
        with running_node(directory / "object", environment=_CREDENTIALS, **settings) as node:
            engine = BenchEngine(node.settings.node_socket, shape.page_bytes)

            def row(rounds: int) -> Row:
                pool = HostPool(shape.set_pages // _SET_SHARE, shape.page_bytes)
                target = HostPool(shape.set_pages // _SET_SHARE, shape.page_bytes)
                pool.fill()
                numbers = range(pool.pages)
                keys = engine.keys(engine.hashes("object", numbers))
                claim(node, "object", keys, encrypted=True)
                engine.store("object", pool, numbers)
                wait_durable(node, keys)
                size = pool.pages * shape.page_bytes
                rates, limits = [], []
                for number in range(-1, rounds):
                    _leave_to_the_store(node, keys)
                    limit = asyncio.run(_raw(endpoint))
                    begun = time.perf_counter()
                    fetched = node.client.prefetch(keys, Tier.DRAM, _SECONDS_MAX)
                    if fetched != len(keys):
                        raise BenchFailed(f"{fetched} of {len(keys)} pages were fetched")
                    engine.load("object", target, numbers)
                    rate = size / (time.perf_counter() - begun) / GB
                    if number < 0 and not target.equals(pool):
                        raise BenchFailed("the object tier gave back other bytes")
                    if number >= 0:
                        rates.append(rate)
                        limits.append(limit / GB)
                return ratio_row(
                    f"object_read{shape.suffix}",
                    rates,
                    limits,
                    ROWS["object_read"],
                    detail=(
                        "prefetched to dram by the agent, decrypted, verified, and loaded; beside "
                        f"it ranged GETs of {_RANGE_BYTES // MIB} MiB of the same objects, "
                        f"{_RANGES} at once, by the same client; the server is moto, in a process "
                        "of its own"
                    ),
                    moved=Moved(size, _RANGES, _RANGE_BYTES, shape.page_bytes),
                )

            try:
                return [attempted(name, ROWS[name], row, rounds, shape) for name in wanted]
            finally:
                engine.close()


def _leave_to_the_store(node: Node, keys: Sequence[PageKey]) -> None:
    """Until no other tier holds these pages: what was fetched may be on its way to the disk."""
    deadline = time.monotonic() + _SECONDS_MAX
    while True:
        behind = node.client.demote(keys, release=True, timeout_seconds=_SECONDS_MAX)
        node.client.drop_dram()
        held = node.client.residency(keys)
        if not behind and all(one.tiers == {Tier.OBJECT} for one in held):
            return
        if time.monotonic() > deadline:
            raise BenchFailed(f"{len(behind)} pages were not demoted; held in {held[0].tiers}")
        time.sleep(0.2)


async def _raw(endpoint: str) -> float:
    """Bytes per second of ranged GETs of all packs."""
    store = ObjectStore(
        f"s3://{_BUCKET}/packs",
        endpoint=endpoint,
        access_key_id="bench",
        secret_access_key="bench",  # noqa: S106 - of a server that takes any
        region="us-east-1",
    )
    packs = await store.list("packs/")
    gate = asyncio.Semaphore(_RANGES)

    async def get(name: str, start: int, end: int) -> int:
        async with gate:
            found = await store.get_range(name, start, end)
            return 0 if found is None else found.nbytes

    begun = time.perf_counter()
    sizes = await asyncio.gather(
        *[
            get(name, at, min(size, at + _RANGE_BYTES))
            for name, size in packs
            for at in range(0, size, _RANGE_BYTES)
        ]
    )
    if not sum(sizes):
        raise BenchFailed("there is no object to read")
    return sum(sizes) / (time.perf_counter() - begun)


@contextmanager
def _s3_server() -> Iterator[str]:
    """A local server of S3's protocol with one bucket; its URL. Raises BenchFailed."""
    if importlib.util.find_spec("moto") is None:
        raise BenchFailed("there is no local S3 server: moto[server] is not installed")
    url = f"http://127.0.0.1:{free_port()}"
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(os.getpid()), url.rpartition(":")[2]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != PARENT_VARIABLE},
    ) as process:
        try:
            deadline = time.monotonic() + _SECONDS_MAX
            while True:
                try:
                    httpx2.put(f"{url}/{_BUCKET}", trust_env=False).raise_for_status()
                    break
                except httpx2.HTTPError as error:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise BenchFailed(f"the local S3 server did not start: {error}") from None
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
