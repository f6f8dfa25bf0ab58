"""How the interpreter is set up for bulk work: once, by the command itself, before it does anything."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

# mallopt(3). By default the bound above which memory goes back to the system at once grows with what was freed, and
# the room of a page stays between small things.
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
_LARGE_BYTES = 256 * 1024
# Parsed pages are thousands of dicts that die without help; by default they are searched for cycles every 700.
_ALLOCATIONS_PER_COLLECTION = 50_000


def prepare_for_bulk() -> None:
    """One heap for all threads that gives pages back; a collector of cycles that looks rarely, and not at imports.

    The GNU C library gives each thread a heap of its own, and they grow side by side.
    """
    with suppress(OSError, AttributeError):  # other systems have no such thing
        malloc_option = ctypes.CDLL(None).mallopt
        malloc_option(_M_ARENA_MAX, 1)
        malloc_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
