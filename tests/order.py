"""In which order tests run: those that take long begin first, for one that begins last is what all others wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def long_ones_first(items: Sequence[T], is_long: Callable[[T], bool], workers: int) -> list[T]:
    """The long ones in equal parts at the beginning of each worker's share; all others stay in their order.

    `--dist worksteal` gives each worker an equal share of the list, one after the other, and moves tests from the end
    of a share. Each worker begins at another place of the list of long ones, so that tests of one kind, which wait for
    the same things, do not run side by side.
    """
    long = [item for item in items if is_long(item)]
    others = (item for item in items if not is_long(item))
    ordered: list[T] = []
    for worker in range(workers):
        mine = long[worker::workers]
        middle = len(mine) * worker // workers
        share = (len(items) - len(ordered)) // (workers - worker)
        ordered += mine[middle:] + mine[:middle]
        ordered += islice(others, max(0, share - len(mine)))
    return ordered + list(others)
