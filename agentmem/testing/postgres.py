"""A real PostgreSQL that a test run starts for itself, with a database per test.

PostgreSQL refuses to run as root: then it runs as the user that its package made, or as nobody.
Nothing of it outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from agentmem.catalog import migrate

_VERSIONS = Path("/usr/lib/postgresql")
_USER = "agentmem"
_TEMPLATE = "agentmem_template"
_START_SECONDS_MAX = 30.0
_STOP_SECONDS_MAX = 30.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_UNPRIVILEGED = ("postgres", "nobody")
# What is lost with this machine's power is lost with the test run.
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off")


class PostgresMissing(AssertionError):
    """PostgreSQL's programs are not installed; the message says what to install."""


def programs() -> Path:
    """The folder of the newest PostgreSQL's programs. Raises PostgresMissing."""
    folders = sorted(_VERSIONS.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if folders:
        return folders[-1].parent
    found = shutil.which("postgres")
    if found is None:
        raise PostgresMissing(
            "PostgreSQL's server is not installed. These tests start one of their own: "
            "install the package postgresql-15 (Debian: apt-get install postgresql-15)."
        )
    return Path(found).resolve().parent


class PostgresServer:
    """A server of its own on a Unix socket. `start` it, `stop` it; `database` makes databases.

    `settings` are server settings, "name=value". With `durable` it syncs as it would in earnest.
    """

    def __init__(self, *, durable: bool = False, settings: Sequence[str] = ()) -> None:
        self._programs = programs()
        # Short: a socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ampg-"))
        self._data = self.folder / "data"
        self._settings = (*(() if durable else _FAST), "max_connections=300", *settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    @property
    def pid(self) -> int:
        """The server's main process."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{_USER}@/{database}?host={self.folder}"

    def start(self) -> None:
        """Makes the cluster the first time, starts it, and waits until it answers."""
        if not self._data.exists():
            self._make()
        arguments = [str(self._programs / "postgres"), "-D", str(self._data)]
        where = ("listen_addresses=", f"unix_socket_directories={self.folder}")
        for setting in (*self._settings, *where):
            arguments += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - a single call into the kernel
                **_other_user(),
            )
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            try:
                self._run("postgres", "SELECT 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = (self.folder / "log").read_text()[-2_000:]
                    raise AssertionError(f"PostgreSQL did not start:\n{tail}") from None
                time.sleep(0.05)

    def stop(self, *, immediately: bool = False) -> None:
        """Ends it and whatever is connected; `immediately`: as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            process.wait(_STOP_SECONDS_MAX)

    def remove(self) -> None:
        """Stops it and deletes its data."""
        self.stop(immediately=True)
        shutil.rmtree(self.folder)

    def empty_database(self) -> str:
        """The URL of a new database without a schema."""
        return self._create("template0")

    def database(self) -> str:
        """The URL of a new database with this version's schema."""
        known = self._run("postgres", "SELECT 1 FROM pg_database WHERE datname = %s", _TEMPLATE)
        if not known:
            self._run("postgres", f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
            asyncio.run(migrate(self.url(_TEMPLATE)))
        return self._create(_TEMPLATE)

    def drop(self, url: str) -> None:
        """Drops a database, whoever is connected to it."""
        name = url.rpartition("/")[0].rpartition("@/")[2].partition("?")[0]
        self._run("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def cut_connections(self) -> int:
        """Ends every other connection, as a failing network would; returns how many."""
        rows = self._run(
            "postgres",
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE usename = %s AND pid <> pg_backend_pid()",
            _USER,
        )
        return len(rows)

    def _create(self, template: str) -> str:
        self._count += 1
        name = f"test_{self._count}"
        self._run("postgres", f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(name)

    def _run(self, database: str, statement: str, *values: Any) -> list[Any]:
        plain = self.url(database).replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True, connect_timeout=5) as connection:
            found = connection.execute(statement.encode(), values or None)
            return found.fetchall() if found.description else []

    def _make(self) -> None:
        other = _other_user()
        if other:
            os.chown(self.folder, other["user"], other["group"])
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", _USER]
        options = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        made = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, cwd="/", **other
        )
        assert made.returncode == 0, f"initdb failed:\n{made.stderr}"


def _other_user() -> dict[str, Any]:
    """What makes a child run as somebody else, where this process is root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(names[name] for name in _UNPRIVILEGED if name in names)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    # SIGQUIT ends the server's children, too, where SIGKILL would leave them.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
