"""Prefill attention of the new rows only.

SGLang's `TorchNativeAttnBackend` computes the attention of the whole sequence and throws the rows
of the cached prefix away, so that a prefix hit would save nothing of it.
"""

from __future__ import annotations

from typing import Any

Tensor = Any


def extend_new_rows(
    self: Any,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_prefix_lens: Tensor,
    extend_seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Attention of `query` (new tokens, heads, head size) over each sequence's cache.

    Encoder, cross-attention and sliding-window cases go to SGLang's own function.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    windowed = sliding_window_size is not None and sliding_window_size > -1
    if encoder_lens is not None or is_cross_attn or windowed:
        return self._agentmem_whole_extend(
            query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
            extend_prefix_lens, extend_seq_lens, encoder_lens, scaling, enable_gqa, causal,
            is_cross_attn, sliding_window_size,
        )  # fmt: skip
    start = 0
    for row in range(seq_lens.shape[0]):
        new, length = int(extend_seq_lens[row]), int(seq_lens[row])
        prefix = int(extend_prefix_lens[row])
        slots = req_to_token[req_pool_indices[row], :length]
        # (tokens, heads, size) -> (1, heads, tokens, size)
        keys = k_cache[slots].movedim(0, 1).unsqueeze(0).to(query.dtype)
        values = v_cache[slots].movedim(0, 1).unsqueeze(0).to(query.dtype)
        rows = query[start : start + new].movedim(0, 1).unsqueeze(0)
        mask = None
        if causal and prefix:
            # Row i sees the prefix and the new tokens up to itself.
            mask = torch.ones(new, length, dtype=torch.bool).tril(diagonal=prefix)
        result = scaled_dot_product_attention(
            rows,
            keys,
            values,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        output[start : start + new] = result.squeeze(0).movedim(1, 0)
        start += new
    return output


def install() -> None:
    """Replaces the backend's prefill; the original stays for the cases not handled here."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    TorchNativeAttnBackend._agentmem_whole_extend = TorchNativeAttnBackend._run_sdpa_forward_extend
    TorchNativeAttnBackend._run_sdpa_forward_extend = extend_new_rows
