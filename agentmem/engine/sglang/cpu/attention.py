"""Attention on a CPU whose result for a token depends on that token and those before it only.

SGLang's `TorchNativeAttnBackend` computes a prefill's attention for the whole sequence and throws
the rows of the cached prefix away, so that a prefix hit would save nothing of it. And torch's
kernel rounds differently with the number of keys in its last block (of 512) and for fewer than
four rows, so that the KV of a token depends on how the prompt was cut into chunks, and on whether a
prefill or decoding made it. Here each row always sees whole blocks of keys, masked, and is one of
at least four (which is faster, too). Together with `linear`, recomputed KV equals what it replaces
to the last bit; tests/unit/sglang/test_cpu.py holds it to that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

Tensor = Any

# Keys per block of torch's CPU flash kernel (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp).
KEY_BLOCK = 512
# Seen with torch 2.13.0: one to three rows go through another matrix kernel. Rows are cut into
# blocks of 32, 64 or 256 by their number, and what is left over may be as few.
ROWS_MULTIPLE = 4


def extend(
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
    """Prefill: attention of `query` (new tokens, heads, head size) over each sequence's cache.

    Cases that agentmem does not serve (encoders, cross attention, windows) go to SGLang's function.
    """
    if not causal or not _is_plain(encoder_lens, is_cross_attn, sliding_window_size):
        return self._agentmem_extend(
            query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
            extend_prefix_lens, extend_seq_lens, encoder_lens, scaling, enable_gqa, causal,
            is_cross_attn, sliding_window_size,
        )  # fmt: skip
    start = 0
    for sequence in range(seq_lens.shape[0]):
        new, length = int(extend_seq_lens[sequence]), int(seq_lens[sequence])
        slots = req_to_token[req_pool_indices[sequence], :length]
        rows = query[start : start + new]
        output[start : start + new] = _attend(rows, k_cache, v_cache, slots, scaling, enable_gqa)
        start += new
    return output


def decode(
    self: Any,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Decoding: one row of `query` for each sequence, the last of its tokens."""
    if not _is_plain(encoder_lens, is_cross_attn, sliding_window_size):
        return self._agentmem_decode(
            query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
            encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size,
        )  # fmt: skip
    for sequence in range(seq_lens.shape[0]):
        slots = req_to_token[req_pool_indices[sequence], : int(seq_lens[sequence])]
        rows = query[sequence : sequence + 1]
        output[sequence : sequence + 1] = _attend(
            rows, k_cache, v_cache, slots, scaling, enable_gqa
        )
    return output


def _is_plain(encoder_lens: Tensor | None, is_cross_attn: bool, window: int | None) -> bool:
    return encoder_lens is None and not is_cross_attn and (window is None or window < 0)


def _attend(
    rows: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    scaling: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Attention of the sequence's last `rows` (n, heads, size) over all of its `slots`."""
    import torch
    from torch.nn.functional import pad, scaled_dot_product_attention

    count, length = rows.shape[0], slots.shape[0]
    blocks = -(-length // KEY_BLOCK) * KEY_BLOCK
    # Any slot does behind the end, since the mask hides it; the first one holds real numbers.
    slots = pad(slots, (0, blocks - length), value=int(slots[0]))
    missing = -count % ROWS_MULTIPLE
    if missing:
        # Copies of the last row; a view that repeats it would take another way through the kernel.
        rows = torch.cat([rows, rows[-1:].repeat(missing, 1, 1)])
    result = scaled_dot_product_attention(
        rows.movedim(0, 1).unsqueeze(0),  # (1, heads, rows, size)
        k_cache[slots].movedim(0, 1).unsqueeze(0).to(rows.dtype),
        v_cache[slots].movedim(0, 1).unsqueeze(0).to(rows.dtype),
        attn_mask=_mask(length - count, count, blocks),
        scale=scaling,
        enable_gqa=enable_gqa,
    )
    return result.squeeze(0).movedim(1, 0)[:count]


# One mask serves all layers of a forward pass.
@lru_cache(maxsize=8)
def _mask(prefix: int, rows: int, keys: int) -> Tensor:
    """(rows or more, keys): row i sees keys up to prefix + i; added rows see what the last does."""
    import torch

    padded = rows + -rows % ROWS_MULTIPLE
    last = torch.arange(prefix, prefix + padded).clamp(max=prefix + rows - 1)
    return torch.arange(keys) <= last.unsqueeze(1)


def install() -> None:
    """Replaces the backend's two functions; the originals stay for the cases not handled here."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend as Backend

    Backend._agentmem_extend = Backend._run_sdpa_forward_extend
    Backend._agentmem_decode = Backend._run_sdpa_forward_decode
    Backend._run_sdpa_forward_extend = extend
    Backend._run_sdpa_forward_decode = decode
