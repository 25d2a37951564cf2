"""Virtual environments of pinned lists: their stamp, their state, pip with progress.

Standard library only. The stamp, which says that all went well, is removed first and written last.
What an interrupted run left is kept if every installed file is whole, else it is made again.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP_TRIES = 3


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    """One line of what is going on."""
    print(f"setup: {text}", flush=True)


def pip_environment(scratch: Path) -> dict[str, str]:
    """The caller's, less what would send packages elsewhere; pip unpacks in `scratch`."""
    elsewhere = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
    kept = {k: v for k, v in os.environ.items() if k not in elsewhere}
    kept |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(scratch)}
    return kept


def bytes_below(folder: Path) -> int:
    """Bytes of the files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total


class Progress:
    """Shows what pip does: one moving line on a terminal, a line now and then elsewhere."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._doing = "looking up packages"
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._ticker.join()
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)

    def pip_said(self, line: str) -> None:
        """Takes one line of pip's output."""
        if found := re.match(r"\s*(Downloading|Using cached|Processing) (\S+)(?: \((.+)\))?", line):
            name = found[2].rpartition("/")[2].split("#")[0]
            size = f", {found[3]}" if found[3] else ""
            self._doing = f"{found[1].lower()} {'-'.join(name.split('-')[:2])}{size}"
            large = re.fullmatch(r"(\d+)\.\d+ MB", found[3] or "")
            if not self._terminal and large and int(large[1]) >= 20:
                say(f"  {self._doing}")
        elif line.startswith("Installing collected packages"):
            count = line.count(",") + 1
            self._doing = f"unpacking {count} packages" if count > 1 else "unpacking"
            if not self._terminal and count > 1:
                say(f"  {self._doing}")

    def _tick(self) -> None:
        while not self._done.wait(1.0 if self._terminal else 20.0):
            fetched = bytes_below(self._scratch) / 1e9
            seconds = time.monotonic() - self._started
            text = f"  {seconds:4.0f} s, {fetched:.2f} GB fetched, {self._doing}"
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{text[:width]}", end="", flush=True)
            else:
                say(text)


def damaged_file(venv: Path) -> str | None:
    """The first installed file that is missing or has another size than its package says."""
    for info in sorted(venv.glob("lib/python3.*/site-packages/*.dist-info")):
        record = info / "RECORD"
        if not record.exists():
            return f"{info.name} has no RECORD"
        with record.open(newline="") as rows:
            for name, _, size in csv.reader(rows):
                path = info.parent / name
                if size and (not path.exists() or path.stat().st_size != int(size)):
                    return f"{name} of {info.stem}"
    return None


def version_of_python() -> str:
    """Of the interpreter that runs this: "3.11" or "3.12"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True)
class Environment:
    """One virtual environment of this checkout. It is made anew when one of `inputs` changes.

    `same_python`: it must have the Python that runs this, also where the caller named none.
    """

    venv: Path
    inputs: Sequence[Path]
    same_python: bool = False

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.venv.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """There when the environment is complete."""
        return self.venv / "agentmem-setup.json"

    @property
    def scratch(self) -> Path:
        """Where pip unpacks: on the same disk, and often larger than /tmp."""
        return self.venv / ".incoming"

    def wanted_stamp(self) -> dict[str, str]:
        """What the stamp holds when nothing has to be done."""
        digest = hashlib.sha256()
        for path in (*self.inputs, Path(__file__).resolve()):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
        # Scripts in its bin folder hold absolute paths: a moved checkout needs a new one.
        return {"root": str(ROOT), "python": version_of_python(), "inputs": digest.hexdigest()}

    def is_current(self) -> bool:
        """Whether it is complete and up to date."""
        try:
            return bool(json.loads(self.stamp.read_text()) == self.wanted_stamp())
        except (OSError, ValueError):
            return False

    def run_python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs a line of Python in it, its output captured."""
        return subprocess.run(
            [str(self.python), "-I", "-c", code], capture_output=True, text=True, check=False
        )

    def why_unusable(self) -> str | None:
        """Why an existing one has to be made again, if it has."""
        if not self.python.exists():
            return "it has no Python"
        found = self.run_python("import sys, pip; print(*sys.version_info[:2], sep='.')")
        version = found.stdout.strip()
        if found.returncode != 0:
            return "its Python or pip does not run"
        strict = self.same_python or os.environ.get("PYTHON")
        if version not in ("3.11", "3.12") or (strict and version != version_of_python()):
            return f"it has Python {version}"
        if str(self.venv) not in (self.venv / "bin" / "activate").read_text(errors="replace"):
            return "it was made for another folder"
        damaged = damaged_file(self.venv)
        return f"a file is missing or cut short: {damaged}" if damaged else None

    def prepare(self) -> None:
        """Leaves it intact and without a stamp, made anew if need be."""
        if self.venv.exists() or self.venv.is_symlink():
            reason = self.why_unusable()
            if reason is None:
                say(f"{self.name} is there; bringing it up to date")
                self.stamp.unlink(missing_ok=True)
                return
            say(f"{self.name} is made again: {reason}")
            if self.venv.is_symlink():
                self.venv.unlink()
            else:
                shutil.rmtree(self.venv)
        say(f"making {self.name} with Python {platform.python_version()} ({sys.executable})")
        subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)

    @contextlib.contextmanager
    def scratch_space(self) -> Iterator[None]:
        """An empty folder for pip, gone afterwards."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def pip(self, *arguments: str) -> str:
        """Runs pip in it; shows progress; raises SetupError with what pip said."""
        command = [str(self.python), "-m", "pip", *arguments, "--progress-bar", "off"]
        for attempt in range(1, PIP_TRIES + 1):
            lines: list[str] = []
            with (
                Progress(self.scratch) as progress,
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=pip_environment(self.scratch),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    close_fds=False,  # it inherits the lock: see only_one()
                ) as pip,
            ):
                assert pip.stdout is not None
                for line in pip.stdout:
                    lines.append(line.rstrip())
                    progress.pip_said(line)
            if pip.returncode == 0:
                return "\n".join(lines)
            if attempt < PIP_TRIES and any("timed out" in x or "Connection" in x for x in lines):
                say(f"the connection failed; trying again ({attempt} of {PIP_TRIES - 1})")
                continue
            break
        telling = [x for x in lines if x.lstrip().startswith("ERROR")] or lines[-25:]
        raise SetupError(
            f"pip failed (exit code {pip.returncode}):\n  "
            + "\n  ".join(telling)
            + f"\n  The command was: {shlex.join(command)}"
        )

    def check_imports(self, code: str) -> None:
        """Raises SetupError when `code` does not run in it."""
        tried = self.run_python(code)
        if tried.returncode != 0:
            raise SetupError(f"what was installed does not import:\n{tried.stderr.strip()}")

    def write_stamp(self) -> None:
        """Marks it as complete."""
        found = self.run_python("import sys; print(*sys.version_info[:2], sep='.')")
        stamp = self.wanted_stamp() | {"python": found.stdout.strip()}
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(json.dumps(stamp, indent=2) + "\n")
        partial.replace(self.stamp)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Keeps a second set-up of the same checkout waiting.

    pip inherits the lock, so that one that outlives a killed set-up is waited for as well.
    """
    with Path(__file__).open("rb") as own:
        os.set_inheritable(own.fileno(), True)
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(own, fcntl.LOCK_EX)
        yield


def run(work: Callable[[], None]) -> int:
    """Runs `work` alone, and turns what goes wrong into a sentence. Returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with only_one():
            work()
    except SetupError as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0
