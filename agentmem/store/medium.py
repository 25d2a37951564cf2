"""Why a medium takes nothing, in one word each: for refusals, counters and the agent's stats."""

from __future__ import annotations

import errno
import os

import lmdb

# Order of the numbers in the stat `disk_degraded`; 0 is none of them.
REASONS = (
    "disk_budget",  # the budget is used up by pages that must stay
    "disk_full",
    "disk_read_only",
    "disk_failed",
    "no_descriptors",
    "index_full",
    "index_failed",
)
_BY_ERRNO = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EROFS: "disk_read_only",
    errno.EMFILE: "no_descriptors",
    errno.ENFILE: "no_descriptors",
}


def reason_of(error: OSError | lmdb.Error) -> str:
    """Which of `REASONS` an error of the medium is."""
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno or 0, "disk_failed")
    if isinstance(error, lmdb.MapFullError):
        return "index_full"
    # LMDB passes an error of the file system on as its words.
    if isinstance(error, lmdb.DiskError) or "No space left" in str(error):
        return "disk_full"
    if os.strerror(errno.EROFS) in str(error):
        return "disk_read_only"
    return "index_failed"
