"""What a batch is made of: memory of pages, jobs, outcomes."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from agentmem.core import PageKey

_PyBUF_SIMPLE = 0


class Outcome(StrEnum):
    """What became of one page of a batch."""

    MOVED = "moved"
    CORRUPT = "corrupt"  # bytes are there, but not this page's
    UNREADABLE = "unreadable"  # the medium or the file failed
    SEALED = "sealed"  # encrypted, and no secret was given
    LATE = "late"  # not begun, or given up: the deadline had passed


class StoreJob(NamedTuple):
    """Copy a page's buffers, concatenated, into the slot at address `record`, and commit it."""

    record: int
    key: PageKey


class LoadJob(NamedTuple):
    """Move one page's payload out of its record, and check it.

    The record lies at address `record` (`capacity` bytes may be read there) or, where that is 0, in
    file `fd` at `offset`. `key` None: whichever page it is; `payload_bytes` 0: of any length.
    `secret` opens a sealed record. With `slot`, the address of a slot, the page goes into that slot
    as a plain record and is committed there; its buffers are then that slot's payload.
    """

    key: PageKey | None
    payload_bytes: int
    record: int = 0
    capacity: int = 0
    fd: int = -1
    offset: int = 0
    slot: int = 0
    secret: bytes | None = None


class SealJob(NamedTuple):
    """Seal the plain record at address `record` to address `target` (of as many bytes)."""

    record: int
    target: int
    record_bytes: int
    key_id: bytes
    nonce: bytes
    secret: bytes


class PageBuffers:
    """Where the payloads of some pages lie in this process: `per_page` ranges of memory for each.

    `addresses` and `sizes` (bytes) list all ranges, page after page; `owner` keeps them alive.
    """

    __slots__ = ("addresses", "owner", "per_page", "sizes")

    def __init__(
        self, addresses: array[int], sizes: array[int], per_page: int, owner: object = None
    ) -> None:
        if len(addresses) != len(sizes) or (per_page < 1 and addresses):
            raise ValueError(f"{len(addresses)} addresses, {len(sizes)} sizes, {per_page} a page")
        if per_page and len(addresses) % per_page:
            raise ValueError(f"{len(addresses)} ranges are not {per_page} for each page")
        self.addresses = addresses
        self.sizes = sizes
        self.per_page = per_page
        self.owner = owner

    @classmethod
    def of_pointers(
        cls, pointers: Sequence[int], sizes: Sequence[int], per_page: int
    ) -> PageBuffers:
        """Memory that the caller keeps alive, as SGLang's host pool describes it."""
        return cls(array("Q", pointers), array("Q", sizes), per_page)

    @classmethod
    def of_views(cls, pages: Sequence[Sequence[memoryview]]) -> PageBuffers:
        """A list of contiguous views for each page."""
        per_page = max(map(len, pages), default=0)
        addresses, sizes = array("Q"), array("Q")
        for views in pages:
            unused = [0] * (per_page - len(views))
            addresses.extend([*map(address_of, views), *unused])
            sizes.extend([*(view.nbytes for view in views), *unused])
        return cls(addresses, sizes, per_page, pages)

    def __len__(self) -> int:
        return len(self.addresses) // self.per_page if self.per_page else 0

    def page_bytes(self, page: int) -> int:
        """Bytes of one page's ranges, together."""
        return sum(self.sizes[page * self.per_page : (page + 1) * self.per_page])

    def select(self, pages: Sequence[int]) -> PageBuffers:
        """The buffers of these pages, in this order."""
        step = self.per_page
        addresses, sizes = array("Q"), array("Q")
        for page in pages:
            addresses += self.addresses[page * step : (page + 1) * step]
            sizes += self.sizes[page * step : (page + 1) * step]
        return PageBuffers(addresses, sizes, step, self.owner)

    def views(self, page: int) -> list[memoryview]:
        """The ranges of one page as writable views, valid while the owner lives."""
        first = page * self.per_page
        places = range(first, first + self.per_page)
        return [view_of(self.addresses[at], self.sizes[at]) for at in places if self.sizes[at]]


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer (cpython/pybuffer.h); only `buf` is read."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(view: memoryview) -> int:
    """Address of a contiguous buffer, read-only ones included. Raises BufferError otherwise."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(
        ctypes.py_object(view), ctypes.byref(buffer), ctypes.c_int(_PyBUF_SIMPLE)
    )
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def view_of(address: int, size_bytes: int) -> memoryview:
    """A writable view of memory at an address, which the caller keeps alive."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")
