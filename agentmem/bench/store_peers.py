"""Processes beside the bench's own: one asks for pages, one stores as fast as it can.

`python -m agentmem.bench.store_peers PARENT find SOCKET PAGE_BYTES NAME KEYS CALLS` prints the
seconds of each call as JSON; `... PARENT store SOCKET PAGE_BYTES` stores, and has claimed, sets of
pages until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from agentmem.bench.store_system import BenchEngine, HostPool
from agentmem.lifeline import die_with_parent
from agentmem.node.client import NodeClient

STORED_PAGES = 32
_KEPT_SETS = 8
_CLAIM_SECONDS = 600.0


def find(socket: Path, page_bytes: int, name: str, keys: int, calls: int) -> None:
    """Finds the first `keys` pages of a set, `calls` times, and prints how long each took."""
    engine = BenchEngine(socket, page_bytes, engine_id="finder")
    hashes = engine.hashes(name, range(keys))
    seconds = []
    for call in range(calls + calls // 10):
        begun = time.perf_counter()
        found = engine.transfer.find(hashes)
        if call >= calls // 10:
            seconds.append(time.perf_counter() - begun)
        if found != keys:
            raise SystemExit(f"{found} of {keys} pages were found")
    engine.close()
    print(json.dumps(seconds))


def store(socket: Path, page_bytes: int) -> None:
    """Stores new pages without a pause, and lets go of those of some sets before."""
    engine = BenchEngine(socket, page_bytes, engine_id="storer")
    client = NodeClient(socket, role="gateway")
    pool = HostPool(STORED_PAGES, page_bytes)
    pool.fill()
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    stored, number = 0, 0
    print("ready", flush=True)
    begun = time.perf_counter()
    while not ended.is_set():
        name = f"set {number}"
        hashes = engine.hashes(name, range(STORED_PAGES))
        client.claim(name, engine.keys(hashes), time.time() + _CLAIM_SECONDS)
        stored += engine.transfer.store(hashes, pool.buffers(range(STORED_PAGES))).count(True)
        number += 1
        if number > _KEPT_SETS:
            old = f"set {number - _KEPT_SETS - 1}"
            client.unclaim(old, engine.keys(engine.hashes(old, range(STORED_PAGES))))
    rate = stored * page_bytes / (time.perf_counter() - begun)
    engine.close()
    client.close()
    print(json.dumps(rate))


def main() -> None:
    """One of the two, by the arguments."""
    parent, what, socket, page_bytes, *rest = sys.argv[1:]
    die_with_parent(int(parent))
    if what == "find":
        name, keys, calls = rest
        find(Path(socket), int(page_bytes), name, int(keys), int(calls))
    else:
        store(Path(socket), int(page_bytes))


if __name__ == "__main__":
    main()
