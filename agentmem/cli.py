"""The command line. Each command reads settings, calls one function, and prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from agentmem import __version__
from agentmem.commands.audit import audit
from agentmem.commands.keys import key
from agentmem.commands.operators import operator
from agentmem.commands.options import DataDir
from agentmem.commands.options import settings as _settings
from agentmem.commands.plans import plan
from agentmem.commands.tenants import project, tenant
from agentmem.errors import AgentmemError
from agentmem.lifeline import PARENT_VARIABLE, die_with_parent

cli = App(name="agentmem", version=__version__, help="A stateful runtime for agent sessions.")
bench = App(name="bench", help="Measurements, side by side with their limits.")
objects = App(name="objects", help="What nodes have put into the object store.")
cli.command(objects)
cli.command(plan)
cli.command(bench)
for group in (tenant, project, key, operator, audit):
    cli.command(group)


Model = Annotated[Path | None, Parameter(help="Hugging Face model directory.")]


@cli.command
def serve(
    *,
    data_dir: DataDir = None,
    model: Model = None,
    host: str | None = None,
    port: int | None = None,
    engine: str | None = None,
) -> int:
    """Run gateway, node agent and one SGLang worker on this machine. Ctrl-C stops all, cleanly."""
    from agentmem.serve import run_serve

    return run_serve(
        _settings(data_dir=data_dir, model=_path(model), host=host, port=port, engine=engine)
    )


@cli.command
def gateway(*, data_dir: DataDir = None, host: str | None = None, port: int | None = None) -> None:
    """Run a gateway: the API."""
    from agentmem.app import run_gateway

    run_gateway(_settings(data_dir=data_dir, host=host, port=port))


@cli.command
def worker(*, data_dir: DataDir = None, model: Model = None) -> None:
    """Run a worker: one SGLang server, watched and restarted."""
    from agentmem.telemetry import configure_logging
    from agentmem.worker import run_worker

    settings = _settings(data_dir=data_dir, model=_path(model))
    configure_logging(settings.log_level)
    run_worker(settings)


@cli.command
def node(*, data_dir: DataDir = None) -> None:
    """Run the node agent: owner of all pages below the GPU on this host."""
    from agentmem.node.server import run_node
    from agentmem.telemetry import configure_logging

    settings = _settings(data_dir=data_dir)
    configure_logging(settings.log_level)
    run_node(settings)


@cli.command
def doctor(*, verify: bool = False, json: bool = False, data_dir: DataDir = None) -> int:
    """Check this machine and the node's pages; repair what can be repaired, and say so.

    --verify reads every record and checks it. With the node agent running it is asked; without, its
    directory is opened. Exit code 0: healthy, 1: something was found, 2: it could not be checked.
    """
    from agentmem.doctor.run import run_doctor

    return run_doctor(_settings(data_dir=data_dir), verify=verify, as_json=json)


@objects.command(name="list")
def objects_list(*, data_dir: DataDir = None) -> None:
    """List whose objects lie in the store, how many bytes, and when each node wrote last."""
    from agentmem.doctor.objects import list_objects

    print(list_objects(_settings(data_dir=data_dir)))


@objects.command(name="adopt")
def objects_adopt(node_id: str, /, *, force: bool = False, data_dir: DataDir = None) -> int:
    """Move a lost node's pages into objects of this node's own.

    Refused where that node has written within a day, unless --force. Exit code 1: some objects
    could not be read, and are still there.
    """
    from agentmem.doctor.objects import take_objects

    moved = take_objects(_settings(data_dir=data_dir), node_id, delete=False, force=force)
    print(f"{moved.pages:,} pages of {moved.packs:,} objects are this node's")
    if moved.unreadable:
        print(f"{moved.unreadable:,} objects could not be read: they stay as they are")
    return 1 if moved.unreadable else 0


@objects.command(name="delete")
def objects_delete(node_id: str, /, *, force: bool = False, data_dir: DataDir = None) -> None:
    """Delete a lost node's objects, with all pages in them.

    Refused where that node has written within a day, unless --force.
    """
    from agentmem.doctor.objects import take_objects

    moved = take_objects(_settings(data_dir=data_dir), node_id, delete=True, force=force)
    print(f"{moved.packs:,} objects are deleted")


@cli.command
def migrate(
    *, check: Annotated[bool, Parameter(negative=())] = False, data_dir: DataDir = None
) -> int:
    """Bring the catalog's schema to this version.

    --check changes nothing: exit code 0 when there is nothing to do, 1 when there is.
    """
    from agentmem.app import check_catalog, migrate_catalog

    if check:
        state = check_catalog(_settings(data_dir=data_dir))
        print(f"catalog {state}")
        return 0 if state.is_current else 1
    print(f"catalog schema: {migrate_catalog(_settings(data_dir=data_dir))}")
    return 0


@cli.command
def demo(
    *,
    json: bool = False,
    model: Model = None,
    keep: bool = False,
    tier: Literal["disk", "object"] = "disk",
) -> int:
    """Prove it: hibernate, kill -9 everything, resume bit-exact, fork, corrupt, delete.

    --tier object: hibernate into an object store, and lose the disk as well.
    """
    from agentmem.demo.run import run_demo

    return run_demo(as_json=json, model=_path(model), keep=keep, tier=tier)


@bench.command(name="gateway")
def bench_gateway(
    *, json: Path | None = None, rounds: int = 5, memory_requests: int = 100_000
) -> None:
    """Measure what the gateway adds to the (fake) engine. --json writes a report.

    The memory's part takes most of the time: --memory-requests 0 leaves it out.
    """
    from agentmem.bench.gateway import run_gateway_bench
    from agentmem.bench.report import write

    write(run_gateway_bench(rounds=rounds, memory_requests=memory_requests), json)


@bench.command(name="store")
def bench_store(
    *,
    json: Path | None = None,
    rows: str = "",
    rounds: int = 5,
    page_bytes: str = "both",
    model: Model = None,
    dir: Path | None = None,  # noqa: A002 - the name of the option
) -> None:
    """Measure every tier against memcpy and the raw disk. --json writes a report.

    --rows takes names separated by commas; --page-bytes 1474560, 8388608 or both; --dir the
    directory, and so the disk, that is measured. --rows index_1m takes minutes and 12 GB.
    """
    from agentmem.bench.report import write
    from agentmem.bench.store import run_store_bench

    wanted = tuple(name.strip() for name in rows.split(",") if name.strip())
    result = run_store_bench(
        rows=wanted,
        rounds=rounds,
        page_bytes=page_bytes,
        directory=dir,
        model=_path(model) or "",
        say=print,
    )
    write(result, json)


@bench.command(name="resume")
def bench_resume(
    *,
    json: Path | None = None,
    rounds: int = 5,
    tokens: int = 7000,
    model: Model = None,
    load: Literal["always", "never", "auto"] = "auto",
    dir: Path | None = None,  # noqa: A002 - the name of the option
) -> None:
    """Measure the first token of a session that comes back after a restart of everything.

    Against SGLang's own file backend, in turns, on a real engine. --load always loads all that is
    stored, never recomputes, auto does what the product does. --json writes a report.
    """
    from agentmem.bench.report import write
    from agentmem.bench.resume import run_resume_bench

    result = run_resume_bench(
        rounds=rounds, tokens=tokens, model=_path(model) or "", load=load, directory=dir, say=print
    )
    write(result, json)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def main() -> None:
    """Entry point. Errors of agentmem print as a sentence and exit with 1."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        die_with_parent(int(parent))
    try:
        code = cli()
    except AgentmemError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        print(f"agentmem: {error.message}{hint}", file=sys.stderr)
        raise SystemExit(1) from error
    raise SystemExit(code if isinstance(code, int) else 0)
