"""Two requests to the allocator of GNU's C library, which do nothing where there is another one.

What it does by itself suits neither a process whose large arrays are mapped from files nor one that
replaces small arrays of all sizes for hours.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["hand_back_freed_memory", "keep_freed_memory"]

# Of malloc.h: memory is handed back when more than this is free at the end of the heap; arrays
# above the other get memory of their own, for which the library allows 32 MiB at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 2**25


def keep_freed_memory() -> None:
    """Let this process use again what it has freed, instead of handing it back at once.

    The library learns what to keep from the largest array freed so far. Where the large arrays are
    mapped it learns little, hands the memory of every evaluation back to the system and gets it
    again page by page.
    """
    set_option = _function("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST_REUSED)
        set_option(_TRIM_THRESHOLD, 4 * _LARGEST_REUSED)


def hand_back_freed_memory() -> None:
    """Give the system what is free between arrays that are still in use.

    Caches that drop old entries for new ones of other sizes leave such holes, more and more of
    them, although what they hold together stays the same.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(_LARGEST_REUSED))


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
