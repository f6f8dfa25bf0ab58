"""Rows in time order, with lookups by id and by one other field; the store under `Dataset`."""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator
from operator import attrgetter
from typing import Any

Row = dict[str, Any]

_order = attrgetter("order")


class Entry:
    """A row in a table, with what is often needed of it.

    Attributes:
        row: The row as put, completed. For a derived row of the v4 API this is the row it is derived from.
        order: (time in ms, id): ascending, the table's own order.
        sends: How often the row was put under its key, for servers that count unmerged versions.
        cache: Serialised forms by shape, each with the epoch it was made in.
    """

    __slots__ = ("cache", "id", "key", "order", "row", "sends", "time_ms")

    def __init__(self, key: Hashable, row_id: str, time_ms: int, row: Row) -> None:
        self.key = key
        self.id = row_id
        self.time_ms = time_ms
        self.order = (time_ms, row_id)
        self.row = row
        self.sends = 1
        self.cache: dict[Hashable, tuple[int, bytes]] = {}


class Table:
    """Entries by key, by id, by group (the value of one field), and by time."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Entry] = {}
        self._by_id: dict[str, list[Entry]] = {}
        self._by_group: dict[Hashable, list[Entry]] = {}
        self._group_of: dict[Hashable, Hashable] = {}
        self._sorted: list[Entry] = []
        self._unsorted: list[Entry] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Entry]:
        """Oldest first."""
        return iter(self._in_order())

    def put(self, entry: Entry, group: Hashable) -> None:
        """Insert, or replace the entry with the same key."""
        old = self._by_key.get(entry.key)
        if old is not None:
            entry.sends = old.sends + 1
            self.remove(old)
        self._by_key[entry.key] = entry
        self._by_id.setdefault(entry.id, []).append(entry)
        self._by_group.setdefault(group, []).append(entry)
        self._group_of[entry.key] = group
        self._unsorted.append(entry)

    def remove(self, entry: Entry) -> None:
        self._in_order()
        position = bisect_left(self._sorted, entry.order, key=_order)
        while self._sorted[position] is not entry:
            position += 1
        del self._sorted[position]
        del self._by_key[entry.key]
        _drop(self._by_id, entry.id, entry)
        _drop(self._by_group, self._group_of.pop(entry.key), entry)

    def get(self, key: Hashable) -> Entry | None:
        return self._by_key.get(key)

    def with_id(self, row_id: str) -> list[Entry]:
        return list(self._by_id.get(row_id, ()))

    def group(self, value: Hashable) -> list[Entry]:
        """In the order of insertion."""
        return list(self._by_group.get(value, ()))

    def group_of(self, entry: Entry) -> Hashable:
        return self._group_of[entry.key]

    def window(self, from_ms: int | None, to_ms: int | None) -> list[Entry]:
        """Entries with `from_ms` <= time < `to_ms`, oldest first; None leaves that side open."""
        entries = self._in_order()
        low = 0 if from_ms is None else bisect_left(entries, (from_ms, ""), key=_order)
        high = len(entries) if to_ms is None else bisect_left(entries, (to_ms, ""), key=_order)
        return entries[low:high]

    def _in_order(self) -> list[Entry]:
        if len(self._unsorted) > 100:
            self._sorted = sorted([*self._sorted, *self._unsorted], key=_order)
        else:
            for entry in self._unsorted:
                insort(self._sorted, entry, key=_order)
        self._unsorted.clear()
        return self._sorted


def in_window(entries: Iterable[Entry], from_ms: int | None, to_ms: int | None) -> list[Entry]:
    """As `Table.window`, for some entries; oldest first."""
    kept = [
        entry
        for entry in entries
        if (from_ms is None or entry.time_ms >= from_ms) and (to_ms is None or entry.time_ms < to_ms)
    ]
    kept.sort(key=_order)
    return kept


def _drop(lists: dict[Any, list[Entry]], key: Hashable, entry: Entry) -> None:
    rest = [other for other in lists[key] if other is not entry]
    if rest:
        lists[key] = rest
    else:
        del lists[key]


def newest(entries: Iterable[Entry]) -> Entry | None:
    """The version of a row that the server reads: the latest `updatedAt`."""
    return max(entries, key=lambda entry: str(entry.row.get("updatedAt")), default=None)
