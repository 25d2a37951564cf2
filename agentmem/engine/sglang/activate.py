"""Entry point of SGLang's plugin group: what agentmem changes inside of SGLang's processes.

SGLang logs a plugin's exception and carries on without it, so a worker that started is no proof:
`activate` leaves a file that the launcher looks for, one for each process it ran in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agentmem.engine.sglang.version import SGLANG_VERSION

DEVICE_VARIABLE = "AGENTMEM_ENGINE_DEVICE"
PROOF_VARIABLE = "AGENTMEM_ACTIVATION_DIR"

_POOL_INIT = "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.__init__"
# Position of `pin_memory` among the arguments of HostKVCache.__init__, `self` included.
_PIN_MEMORY_POSITION = 6


def activate() -> None:
    """Patches this process, if it belongs to a worker of agentmem.

    Raises RuntimeError on another SGLang version: each patch was read against 0.5.20's source.
    """
    device = os.environ.get(DEVICE_VARIABLE)
    if device is None:
        return
    import sglang.version

    if sglang.version.__version__ != SGLANG_VERSION:
        raise RuntimeError(
            f"agentmem fits SGLang {SGLANG_VERSION}, not {sglang.version.__version__}"
        )
    from agentmem.engine.sglang import aborts, seeding

    aborts.install()
    seeding.install(cpu=device == "cpu")
    if device == "cpu":
        _activate_cpu()
    proof = Path(os.environ[PROOF_VARIABLE]) / f"activated-{os.getpid()}"
    proof.write_text(SGLANG_VERSION)


def _activate_cpu() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from agentmem.engine.sglang.cpu import allocation, attention, copies, linear

    HookRegistry.register(_POOL_INIT, _without_pinning, HookType.BEFORE)
    allocation.install()
    copies.install()
    attention.install()
    linear.install()


def _without_pinning(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pinning host memory calls cudaHostRegister; a CPU has no such thing."""
    if len(args) > _PIN_MEMORY_POSITION:
        head, tail = args[:_PIN_MEMORY_POSITION], args[_PIN_MEMORY_POSITION + 1 :]
        return (*head, False, *tail), kwargs
    return args, {**kwargs, "pin_memory": False}
