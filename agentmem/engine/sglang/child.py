"""First code of SGLang's main process: ties its life to the worker's, then becomes the server.

`python -m agentmem.engine.sglang.child PARENT_PID ARGUMENT...`
"""

from __future__ import annotations

import runpy
import sys

from agentmem.lifeline import die_with_parent


def main() -> None:
    """Runs `sglang.launch_server`. SGLang's own children die with this process in the same way."""
    die_with_parent(int(sys.argv[1]))
    sys.argv = ["sglang.launch_server", *sys.argv[2:]]
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
