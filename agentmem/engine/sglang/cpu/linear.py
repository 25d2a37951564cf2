"""Linear layers whose result for a token does not depend on it being alone.

For a single row torch takes a matrix-vector kernel that sums in another order: with SmolLM2-135M
in bfloat16 one row in ten of the widest layer differed in its last bit. Two rows cost the same.
"""

from __future__ import annotations

from typing import Any

Tensor = Any


def apply(self: Any, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`UnquantizedLinearMethod.apply`; `x` is (rows, inputs), the result (rows, outputs)."""
    if x.dim() != 2 or x.shape[0] != 1:
        return self._agentmem_apply(layer, x, bias)
    return self._agentmem_apply(layer, x.repeat(2, 1), bias)[:1]


def install() -> None:
    """Wraps the method of layers that are not quantised."""
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    UnquantizedLinearMethod._agentmem_apply = UnquantizedLinearMethod.apply
    UnquantizedLinearMethod.apply = apply
