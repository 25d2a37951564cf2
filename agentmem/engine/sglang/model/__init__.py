"""What agentmem knows of models: which it serves, what their KV depends on, where two come from.

`check` reads a model directory and refuses what cannot work, `fingerprint` makes the digest that
prefixes every page key, `smollm2` brings a real model out of a package, `tiny` makes a random one
for quick tests. None of them imports torch: where it is needed it runs in a process of its own.
"""

from __future__ import annotations

from agentmem.engine.sglang.model.check import ModelDescription, inspect_model
from agentmem.engine.sglang.model.fingerprint import fingerprint_of, weights_digest
from agentmem.engine.sglang.model.smollm2 import ensure_smollm2
from agentmem.engine.sglang.model.tiny import make_tiny_model

__all__ = [
    "ModelDescription",
    "ensure_smollm2",
    "fingerprint_of",
    "inspect_model",
    "make_tiny_model",
    "weights_digest",
]
