"""The copies between the KV pool and HiCache's host pool that SGLang has as CUDA kernels only.

Signatures are those of `sgl_kernel.kvcacheio` as `pool_host/mha.py` calls them (io backend
`direct`). Shapes, for L layers, P pages of `page_size` tokens, H heads of D:
layer_first `(tokens, H, D)` per layer; page_first_direct `(P, L, page_size, H, D)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Tensor = Any


def transfer_kv_direct(
    src_layers: Sequence[Tensor],
    dst_layers: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Copies tokens `src_indices` of each layer to `dst_indices`; both sides layer_first."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Backs tokens up, all layers: `src_ptrs` are the layers of K, then of V; `dst_ptrs` [K, V]."""
    layers = len(src_ptrs) // len(dst_ptrs)
    page, offset = dst_indices // page_size, dst_indices % page_size
    for part, target in enumerate(dst_ptrs):
        for layer in range(layers):
            target[page, layer, offset] = src_ptrs[part * layers + layer][src_indices]


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Loads one layer of tokens: `src_ptrs` is [K, V] page_first_direct, `dst_ptrs` layer_first."""
    page, offset = src_indices // page_size, src_indices % page_size
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        target[dst_indices] = source[page, layer_id, offset]


def install() -> None:
    """Sets the three names that `pool_host.mha` imports only where CUDA or HIP is."""
    from sglang.srt.mem_cache.pool_host import mha

    mha.transfer_kv_direct = transfer_kv_direct
    mha.transfer_kv_all_layer_direct_lf_pf = transfer_kv_all_layer_direct_lf_pf
    mha.transfer_kv_per_layer_direct_pf_lf = transfer_kv_per_layer_direct_pf_lf
