"""Many texts in eight bytes each, so that a session of any size needs hardly any memory."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable


def fingerprint(text: str) -> int:
    """64 bits that are the same for the same text, in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Fingerprints:
    """A collection of fingerprints, each as often as it was added.

    Two texts have the same one by chance about once in 10^11 collections of 20,000. Whoever asks must be safe then.
    """

    def __init__(self, first: Iterable[int] = ()) -> None:
        self._all = array("Q", first)
        self._is_sorted = False

    def add(self, one: int) -> None:
        self._all.append(one)
        self._is_sorted = False

    def __contains__(self, one: object) -> bool:
        if not isinstance(one, int):
            return False
        self._sort()
        place = bisect_left(self._all, one)
        return place < len(self._all) and self._all[place] == one

    def repeated(self) -> set[int]:
        """Those that were added more than once."""
        self._sort()
        return {one for one, next_one in zip(self._all, self._all[1:], strict=False) if one == next_one}

    def common(self, other: Fingerprints) -> set[int]:
        """Those that are in `other` as well."""
        few, many = sorted((self, other), key=lambda each: len(each._all))
        return {one for one in few._all if one in many}

    def _sort(self) -> None:
        if not self._is_sorted:
            self._all = array("Q", sorted(self._all))
            self._is_sorted = True
