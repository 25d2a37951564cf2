"""Makes `.venv`, or brings it up to date. Standard library only; run through scripts/setup.sh."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Isolated mode (-I) leaves a script's own folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from installing import ROOT, Environment, SetupError, bytes_below, pip_environment, run, say

TORCH = ROOT / "requirements" / "torch.txt"
PINNED = tuple(ROOT / "requirements" / f"{n}.txt" for n in ("gateway", "engine-cpu", "dev"))

# Measured with Python 3.11 (CPU build) and 3.12 (PyPI's build), in GB: downloaded, and kept in
# .venv. At its fullest the disk holds what is kept, the wheels, and pip's cache of them.
DOWNLOAD_GB = {"cpu": 0.5, "cuda": 3.1}
KEPT_GB = {"cpu": 1.8, "cuda": 5.8}

# Imported at the end in one process: what is missing or broken shows here, not in a first turn.
SELF_CHECK = (
    "import accelerate, gguf, torch, transformers, xgrammar, zmq, orjson, tvm_ffi, "
    "fastapi, sqlalchemy.ext.asyncio, greenlet, lmdb, structlog, pytest, hypothesis, agentmem"
)


def main_environment() -> Environment:
    """`.venv`, with everything that agentmem needs."""
    native = sorted((ROOT / "agentmem" / "native" / "src").iterdir())
    own = (ROOT / "pyproject.toml", ROOT / "hatch_build.py", Path(__file__).resolve(), *native)
    return Environment(ROOT / ".venv", (TORCH, *PINNED, *own))


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


def torch_build(environment: Environment) -> str:
    """'here' if torch is installed already, else which build pip would install: 'cpu' or 'cuda'."""
    pin = next(x for x in TORCH.read_text().splitlines() if x.startswith("torch=="))
    wanted = pin.partition("==")[2]
    found = environment.run_python(
        "from importlib.metadata import version; print(version('torch'))"
    )
    if found.returncode == 0 and found.stdout.split("+")[0].strip() == wanted:
        return "here"
    known = subprocess.run(
        [str(environment.python), "-m", "pip", "index", "versions", "torch"],
        env=pip_environment(environment.scratch),
        capture_output=True,
        text=True,
        check=False,
    )
    # pip prefers 2.13.0+cpu to 2.13.0 where it sees both.
    return "cpu" if f"{wanted}+cpu" in known.stdout else "cuda"


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


def install(environment: Environment) -> None:
    """Installs all packages and agentmem itself, and tries them out."""
    build = torch_build(environment)
    announce(build)
    constraints = [part for path in PINNED for part in ("--constraint", str(path))]
    if build != "here":
        say("1/4 torch")
        environment.pip("install", *constraints, "--requirement", str(TORCH))
    say("2/4 SGLang, the gateway's packages, the model file, test tools")
    lists = [part for path in PINNED for part in ("--requirement", str(path))]
    environment.pip("install", "--no-deps", *lists)
    say("3/4 agentmem itself (editable)")
    environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    say("4/4 trying it out")
    environment.check_imports(SELF_CHECK)


def set_up() -> None:
    """Leaves `.venv` complete. Raises SetupError."""
    started = time.monotonic()
    environment = main_environment()
    check_machine()
    environment.prepare()
    with environment.scratch_space():
        install(environment)
    environment.write_stamp()
    kept = bytes_below(environment.venv) / 1e9
    say(f"ready: .venv holds {kept:.1f} GB, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    # With `--check` it only says whether there is nothing to do.
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if main_environment().is_current() else 1)
    sys.exit(run(set_up))
