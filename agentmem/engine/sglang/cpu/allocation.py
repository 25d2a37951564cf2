"""The paged allocator's two triton kernels (pages of more than one token) in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tensor = Any


class _Kernel:
    """Looks like a triton kernel to its caller: `kernel[grid](*arguments)`."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._function


def alloc_extend(
    prefix_lens: Tensor,
    seq_lens: Tensor,
    last_loc: Tensor,
    free_pages: Tensor,
    out_indices: Tensor,
    batch_size: int,
    page_size: int,
) -> None:
    """Slots for the new tokens of each sequence, through SGLang's own plain version."""
    from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

    # The caller counts the pages afterwards and discards the result if there were too few;
    # the kernel must not fail before.
    pages = free_pages if free_pages.numel() else free_pages.new_zeros(1)
    alloc_extend_naive(
        prefix_lens, seq_lens, last_loc, pages, out_indices, page_size, out_indices.device
    )


def alloc_decode(
    seq_lens: Tensor,
    last_loc: Tensor,
    free_pages: Tensor,
    out_indices: Tensor,
    batch_size: int,
    page_size: int,
) -> None:
    """One slot for each sequence: the next of its page, or the first of a free page."""
    import torch

    needs_page = (seq_lens - 1) % page_size == 0
    page_of = torch.cumsum(needs_page.to(torch.int64), 0) - 1
    pages = free_pages if free_pages.numel() else free_pages.new_zeros(1)
    first = pages[page_of.clamp(0, pages.numel() - 1)] * page_size
    out_indices.copy_(torch.where(needs_page, first, last_loc + 1))


def install() -> None:
    """Replaces the kernels that `allocator.paged` imported by name."""
    from sglang.srt.mem_cache.allocator import paged

    paged.alloc_extend_kernel = _Kernel(alloc_extend)
    paged.alloc_decode_kernel = _Kernel(alloc_decode)
