"""How the interpreter is set up for bulk work: once, by the command itself, before it does anything."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

# mallopt(3): M_ARENA_MAX.
_M_ARENA_MAX = -8
# Parsed pages are thousands of dicts that die without help; by default they are searched for cycles every 700.
_ALLOCATIONS_PER_COLLECTION = 50_000


def prepare_for_bulk() -> None:
    """One heap for all threads, and a collector of cycles that looks rarely, and never at what was imported.

    The GNU C library gives each thread a heap of its own, and they grow side by side.
    """
    with suppress(OSError, AttributeError):  # other systems have no such thing
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
