"""Makes `.venv`, or brings it up to date. Standard library only; run through scripts/setup.sh.

The stamp, which says that all went well, is removed first and written last. What an interrupted
run left is kept if every installed file is whole, else the environment is made again.
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
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "agentmem-setup.json"
WHEELS = VENV / ".incoming"  # pip's scratch space: on the same disk, and often larger than /tmp
TORCH = ROOT / "requirements" / "torch.txt"
PINNED = tuple(ROOT / "requirements" / f"{n}.txt" for n in ("gateway", "engine-cpu", "dev"))
PIP_TRIES = 3

# Measured with Python 3.11 (CPU build) and 3.12 (PyPI's build), in GB: downloaded, and kept in
# .venv. At its fullest the disk holds what is kept, the wheels, and pip's cache of them.
DOWNLOAD_GB = {"cpu": 0.5, "cuda": 3.1}
KEPT_GB = {"cpu": 1.8, "cuda": 5.8}

# Imported at the end in one process: what is missing or broken shows here, not in a first turn.
SELF_CHECK = (
    "import accelerate, gguf, torch, transformers, xgrammar, zmq, orjson, tvm_ffi, "
    "fastapi, sqlalchemy.ext.asyncio, greenlet, lmdb, structlog, pytest, hypothesis, agentmem"
)


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    """One line of what is going on."""
    print(f"setup: {text}", flush=True)


def inputs_digest() -> str:
    """Changes whenever the environment has to."""
    digest = hashlib.sha256()
    for path in (TORCH, *PINNED, ROOT / "pyproject.toml", Path(__file__).resolve()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def wanted_stamp() -> dict[str, str]:
    """What the stamp holds when nothing has to be done."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    # Scripts in .venv/bin hold absolute paths: a moved checkout needs a new environment.
    return {"root": str(ROOT), "python": python, "inputs": inputs_digest()}


def is_current() -> bool:
    """Whether the environment is complete and up to date."""
    try:
        return bool(json.loads(STAMP.read_text()) == wanted_stamp())
    except (OSError, ValueError):
        return False


def check_machine() -> None:
    """Raises SetupError, naming the system package that is missing."""
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise SetupError(f"PyTorch's wheels need glibc 2.28 or later; this is {libc} {version}.")
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text("#include <vector>\nint main() { return std::vector<int>{0}.at(0); }\n")
        command = [*compiler, "-std=c++17", "-O1", str(source), "-o", str(source.with_suffix(""))]
        try:
            built = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise SetupError(
                f"{compiler[0]} is missing: SGLang compiles its page hash with it on first use.\n"
                f"  Install it with: {compiler_package()}"
            ) from None
    if built.returncode != 0:
        raise SetupError(
            f"{compiler[0]} is there but cannot build a C++17 program:\n{built.stderr.strip()}\n"
            f"  Its libraries may be missing: {compiler_package()}"
        )


def compiler_package() -> str:
    """The command that installs a C++ compiler on this distribution."""
    system = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    family = f"{system.get('ID', '')} {system.get('ID_LIKE', '')}"
    for names, command in (
        (("debian", "ubuntu"), "sudo apt-get install g++"),
        (("fedora", "rhel", "centos"), "sudo dnf install gcc-c++"),
        (("suse",), "sudo zypper install gcc-c++"),
        (("arch",), "sudo pacman -S gcc"),
    ):
        if any(name in family for name in names):
            return command
    return "your distribution's package of GCC's C++ compiler"


def pip_environment() -> dict[str, str]:
    """The caller's environment less what would send packages elsewhere than to `.venv`."""
    elsewhere = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
    kept = {k: v for k, v in os.environ.items() if k not in elsewhere}
    kept |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(WHEELS)}
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

    def __init__(self) -> None:
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
            fetched = bytes_below(WHEELS) / 1e9
            seconds = time.monotonic() - self._started
            text = f"  {seconds:4.0f} s, {fetched:.2f} GB fetched, {self._doing}"
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{text[:width]}", end="", flush=True)
            else:
                say(text)


def run_pip(*arguments: str) -> str:
    """Runs pip in the environment; shows progress; raises SetupError with what pip said."""
    command = [str(VENV_PYTHON), "-m", "pip", *arguments, "--progress-bar", "off"]
    for attempt in range(1, PIP_TRIES + 1):
        lines: list[str] = []
        with (
            Progress() as progress,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=pip_environment(),
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


def why_unusable() -> str | None:
    """Why an existing `.venv` has to be made again, if it has."""
    if not VENV_PYTHON.exists():
        return "it has no Python"
    probe = "import sys, pip; print(*sys.version_info[:2], sep='.')"
    found = subprocess.run(
        [str(VENV_PYTHON), "-I", "-c", probe], capture_output=True, text=True, check=False
    )
    version = found.stdout.strip()
    if found.returncode != 0:
        return "its Python or pip does not run"
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in ("3.11", "3.12") or (os.environ.get("PYTHON") and version != wanted):
        return f"it has Python {version}"
    if str(VENV) not in (VENV / "bin" / "activate").read_text(errors="replace"):
        return "it was made for another folder"
    damaged = damaged_file(VENV)
    return f"a file is missing or cut short: {damaged}" if damaged else None


def prepare_venv() -> None:
    """Leaves an intact `.venv` without a stamp, made anew if need be."""
    if VENV.exists() or VENV.is_symlink():
        reason = why_unusable()
        if reason is None:
            say(".venv is there; bringing it up to date")
            STAMP.unlink(missing_ok=True)
            return
        say(f".venv is made again: {reason}")
        if VENV.is_symlink():
            VENV.unlink()
        else:
            shutil.rmtree(VENV)
    say(f"making .venv with Python {platform.python_version()} ({sys.executable})")
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def torch_build() -> str:
    """'here' if torch is installed already, else which build pip would install: 'cpu' or 'cuda'."""
    pin = next(x for x in TORCH.read_text().splitlines() if x.startswith("torch=="))
    probe = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run(
        [str(VENV_PYTHON), "-I", "-c", probe], capture_output=True, text=True, check=False
    )
    if found.returncode == 0 and found.stdout.split("+")[0].strip() == pin.partition("==")[2]:
        return "here"
    known = subprocess.run(
        [str(VENV_PYTHON), "-m", "pip", "index", "versions", "torch"],
        env=pip_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    # pip prefers 2.13.0+cpu to 2.13.0 where it sees both.
    return "cpu" if f"{pin.partition('==')[2]}+cpu" in known.stdout else "cuda"


def announce(build: str) -> None:
    """Says what will be downloaded and kept, and raises SetupError if the disk is too full."""
    if build == "here":
        say("torch is installed already; the rest is at most 0.3 GB to download")
        needed = 1.0
    else:
        needed = KEPT_GB[build] + 2 * DOWNLOAD_GB[build]
        say(
            f"PyTorch's {build.upper()} build: about {DOWNLOAD_GB[build]:.1f} GB to download in "
            f"all (unless pip has it cached), {KEPT_GB[build]:.1f} GB kept in .venv"
        )
    if build == "cuda":
        say("  (a CPU build, where pip's configuration names one, takes 0.5 and 1.8 GB instead)")
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetupError(
            f"{free:.1f} GB are free on the disk of {ROOT}; set-up needs {needed:.1f} GB."
        )
    if shutil.which("nvidia-smi"):
        say(
            "an NVIDIA GPU seems to be here; this environment runs the engine on the CPU all the "
            "same (it leaves out SGLang's CUDA packages)"
        )


def install() -> None:
    """Installs all packages and agentmem itself, and tries them out."""
    build = torch_build()
    announce(build)
    constraints = [part for path in PINNED for part in ("--constraint", str(path))]
    if build != "here":
        say("1/4 torch")
        run_pip("install", *constraints, "--requirement", str(TORCH))
    say("2/4 SGLang, the gateway's packages, the model file, test tools")
    lists = [part for path in PINNED for part in ("--requirement", str(path))]
    run_pip("install", "--no-deps", *lists)
    say("3/4 agentmem itself (editable)")
    run_pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    say("4/4 trying it out")
    tried = subprocess.run(
        [str(VENV_PYTHON), "-I", "-c", SELF_CHECK], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        raise SetupError(f"what was installed does not import:\n{tried.stderr.strip()}")


def write_stamp() -> None:
    """Marks the environment as complete."""
    stamp = wanted_stamp()
    probe = "import sys; print(*sys.version_info[:2], sep='.')"
    found = subprocess.run(
        [str(VENV_PYTHON), "-I", "-c", probe], capture_output=True, text=True, check=True
    )
    stamp["python"] = found.stdout.strip()
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(stamp, indent=2) + "\n")
    partial.replace(STAMP)


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


def main() -> int:
    """Exit code 0: the environment is complete. With `--check`, only says whether it is."""
    if sys.argv[1:] == ["--check"]:
        return 0 if is_current() else 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        with only_one():
            check_machine()
            prepare_venv()
            shutil.rmtree(WHEELS, ignore_errors=True)
            WHEELS.mkdir()
            try:
                install()
            finally:
                shutil.rmtree(WHEELS, ignore_errors=True)
            write_stamp()
    except SetupError as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    kept = bytes_below(VENV) / 1e9
    say(f"ready: .venv holds {kept:.1f} GB, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
