"""Huge pages for the pools, which on a CPU are ordinary memory that nobody has touched yet.

Without them the first resume after a start pays a page fault and a zeroing for each 4 KiB, twice:
in the host pool, where pages are loaded to, and in the KV pool, where they are copied to.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
from collections.abc import Iterable
from typing import Any

Tensor = Any

logger = logging.getLogger("agentmem.cpu")


def advise_huge_pages(tensors: Iterable[Tensor]) -> int:
    """madvise(MADV_HUGEPAGE) for the whole memory pages of each tensor. Returns bytes advised.

    A kernel without transparent huge pages refuses; that costs speed only and is logged.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    advised = 0
    for tensor in tensors:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.numel() * tensor.element_size() - begin
        length -= length % mmap.PAGESIZE
        if length <= 0:
            continue
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE) != 0:
            logger.warning("no huge pages: %s", errno.errorcode.get(ctypes.get_errno(), "unknown"))
            break
        advised += length
    return advised
