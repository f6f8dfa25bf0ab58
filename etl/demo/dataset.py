"""The data behind the mock server: put and deleted at any time, also while requests are answered."""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from etl.demo import json_text, shapes
from etl.demo.table import Entry, Row, Table, newest
from etl.demo.times import parse_ms

_EVENT_COPY = "copy"


class Dataset:
    """Traces, observations, scores and sessions of one project.

    Rows are dicts in the shape of the v1 API (scores: v2). Missing fields get the server's defaults, so
    `put_trace({"id": …, "timestamp": …})` is enough. Rows given must not be changed afterwards; put again instead.
    Keys are the real server's: a trace id with timestamps on two UTC dates makes two rows.

    For the v4 API each trace and observation has a derived event row; `put_event` gives one directly.

    Attributes:
        lock: Held for each change and for the computing of each answer.
        version: Grows with every change.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self.trace_table = Table()
        self.observation_table = Table()
        self.score_table = Table()
        self.session_table = Table()
        self.event_table = Table()
        self._epochs: dict[str | None, int] = {}
        self._given_events: set[Hashable] = set()
        self._unfilled: set[Hashable] = set()

    # -- changes

    def put_trace(self, row: Mapping[str, Any], *, pseudo_span: bool = True) -> None:
        """Insert or replace by (date, id), and register its session as ingestion does.

        Args:
            row: A list row of GET /traces; what is derived from observations and scores is ignored.
            pseudo_span: Whether GET /v2/observations shows the trace as `t-<id>`; not so for traces sent over OTel.
        """
        full = shapes.complete_trace(row)
        with self.lock:
            entry = _entry(full, "timestamp", (full["timestamp"][:10],))
            before = self.trace_table.get(entry.key)
            self._drop_derived(before, f"t-{entry.id}")
            self.trace_table.put(entry, full["sessionId"])
            if pseudo_span:
                self._put_derived(f"t-{full['id']}", entry)
            if full["sessionId"] and not self.session_table.get(full["sessionId"]):
                self.put_session(
                    {
                        "id": full["sessionId"],
                        # When the server first saw it, however old the trace is that was given to it.
                        "createdAt": full["createdAt"] if before is None else full["updatedAt"],
                        "projectId": full["projectId"],
                        "environment": full["environment"],
                    }
                )
            self._touch(full["id"])

    def put_observation(self, row: Mapping[str, Any]) -> None:
        """Insert or replace by (type, date, id)."""
        full = shapes.complete_observation(row)
        with self.lock:
            entry = _entry(full, "startTime", (full["type"], full["startTime"][:10]))
            self._drop_derived(self.observation_table.get(entry.key), entry.id)
            self.observation_table.put(entry, full["traceId"])
            self._put_derived(full["id"], entry)
            self._touch(full["traceId"])

    def put_score(self, row: Mapping[str, Any]) -> None:
        """Insert or replace by (date, name, id)."""
        full = shapes.complete_score(row)
        with self.lock:
            self.score_table.put(_entry(full, "timestamp", (full["timestamp"][:10], full["name"])), full["traceId"])
            self._touch(full["traceId"])

    def put_session(self, row: Mapping[str, Any]) -> None:
        """Insert or replace by id."""
        full: Row = {"id": None, "createdAt": None, "projectId": "proj-shop", "environment": "default"} | dict(row)
        with self.lock:
            self.session_table.put(_entry(full, "createdAt", None), None)
            self.version += 1

    def put_event(self, row: Mapping[str, Any], *, again: bool = False) -> None:
        """Insert or replace a row of GET /v2/observations by (trace id, id, start time).

        Args:
            row: All field groups; missing ones get defaults.
            again: Keep the stored one too, as the server does until it merges.
        """
        full = shapes.complete_event(row)
        with self.lock:
            key = _event_key(full["traceId"], full["id"], full["startTime"])
            while again and self.event_table.get(key):
                key = (*key, _EVENT_COPY)
            self._given_events.add(key)
            self.event_table.put(Entry(key, full["id"], parse_ms(full["startTime"]), full), full["traceId"])
            self._touch(full["traceId"])

    def delete_trace(self, trace_id: str) -> None:
        """Remove its rows of every date, its observations, scores and events; the session stays, as on a server."""
        with self.lock:
            _remove_all(self.trace_table, self.trace_table.with_id(trace_id))
            for table in (self.observation_table, self.score_table, self.event_table):
                _remove_all(table, table.group(trace_id))
            self._touch(trace_id)

    def delete_observation(self, observation_id: str) -> None:
        with self.lock:
            for entry in self.observation_table.with_id(observation_id):
                self._touch(entry.row["traceId"])
                self.observation_table.remove(entry)
            _remove_all(self.event_table, self.event_table.with_id(observation_id))
            self.version += 1

    def delete_score(self, score_id: str) -> None:
        with self.lock:
            for entry in self.score_table.with_id(score_id):
                self._touch(entry.row["traceId"])
                self.score_table.remove(entry)

    def delete_session(self, session_id: str) -> None:
        """Its traces stay."""
        with self.lock:
            _remove_all(self.session_table, self.session_table.with_id(session_id))
            self.version += 1

    def merge(self) -> None:
        """Forget that rows were sent twice, as the server's database does at a time of its own: the newest stays."""
        with self.lock:
            for table in (self.trace_table, self.observation_table, self.score_table):
                for entry in table:
                    entry.sends = 1
            for key in {_written_to(entry) for entry in self.event_table if _written_to(entry) != entry.key}:
                self._merge_event(key, [entry for entry in self.event_table if _written_to(entry) == key])
            self.version += 1

    def empty_v4(self) -> None:
        """Hide all that came in so far from the v4 API, as right after an upgrade."""
        with self.lock:
            derived = [entry for entry in self.event_table if entry.key not in self._given_events]
            self._unfilled.update(entry.key for entry in derived)
            _remove_all(self.event_table, derived)
            self.version += 1

    def fill_v4(self, most: int | None = None) -> int:
        """Show up to so many hidden rows again, oldest first, as the server's copying does; how many are still hidden.

        What was deleted meanwhile does not come back.
        """
        with self.lock:
            hidden = [
                (event_id, entry)
                for table, prefix in ((self.trace_table, "t-"), (self.observation_table, ""))
                for entry in table
                if _derived_key(entry.row, event_id := f"{prefix}{entry.id}") in self._unfilled
            ]
            hidden.sort(key=lambda pair: pair[1].time_ms)
            shown = hidden if most is None else hidden[:most]
            for event_id, entry in shown:
                self._unfilled.discard(_derived_key(entry.row, event_id))
                self._put_derived(event_id, entry)
                self._touch(entry.row["traceId"] if "startTime" in entry.row else entry.id)
            return len(hidden) - len(shown)

    # -- the truth

    def traces(self) -> list[Row]:
        """As GET /traces answers in a window that is wide enough, oldest first."""
        with self.lock:
            return [self.whole_trace(entry.row) for entry in self.trace_table]

    def observations(self) -> list[Row]:
        """As GET /observations answers, oldest first."""
        with self.lock:
            return [shapes.listed_observation(entry.row) for entry in self.observation_table]

    def scores(self) -> list[Row]:
        """As GET /v2/scores answers, oldest first."""
        with self.lock:
            return [shapes.score_v2(entry.row, self.trace_of(entry.row)) for entry in self.score_table]

    def sessions(self) -> list[Row]:
        """As GET /sessions answers, oldest first."""
        with self.lock:
            return [entry.row for entry in self.session_table]

    def events(self) -> list[Row]:
        """As GET /v2/observations answers with all field groups, oldest first."""
        with self.lock:
            return [self.event(entry) for entry in self.event_table]

    # -- for the endpoints; callers hold the lock

    def trace_of(self, row: Row) -> Row | None:
        """The trace that a row belongs to."""
        entry = newest(self.trace_table.with_id(row["traceId"])) if row["traceId"] else None
        return entry.row if entry else None

    def whole_trace(self, row: Row) -> Row:
        observations = [entry.row for entry in self.observation_table.group(row["id"])]
        return row | {
            "observations": [o["id"] for o in observations],
            "scores": [s.id for s in self.score_table.group(row["id"]) if s.row["dataType"] != "CORRECTION"],
            "totalCost": shapes.total_cost(observations),
            "latency": shapes.list_latency(observations),
        }

    def event(self, entry: Entry) -> Row:
        """The v4 row of an entry of the event table."""
        if entry.key in self._given_events:
            return entry.row
        if "startTime" not in entry.row:
            return shapes.event_of_trace(entry.row)
        return shapes.event_of_observation(entry.row, self.trace_of(entry.row))

    def rendered(self, entry: Entry, trace_id: str | None, shape: Hashable, make: Callable[[], Row]) -> bytes:
        """JSON of a row in a shape, kept until something of its trace changes."""
        epoch = self._epochs.get(trace_id, 0)
        kept = entry.cache.get(shape)
        if kept is not None and kept[0] == epoch:
            return kept[1]
        text = json_text.dumps(make())
        entry.cache[shape] = (epoch, text)
        return text

    def _put_derived(self, event_id: str, entry: Entry) -> None:
        key = _derived_key(entry.row, event_id)
        self._given_events.discard(key)
        self._unfilled.discard(key)
        self.event_table.put(Entry(key, event_id, entry.time_ms, entry.row), key[0])

    def _merge_event(self, key: Hashable, written: list[Entry]) -> None:
        kept = newest(written)
        if kept is None:
            return
        group, given = self.event_table.group_of(kept), kept.key in self._given_events
        _remove_all(self.event_table, written)
        self._given_events.difference_update(entry.key for entry in written)
        if given:
            self._given_events.add(key)
        self.event_table.put(Entry(key, kept.id, kept.time_ms, kept.row), group)

    def _drop_derived(self, replaced: Entry | None, event_id: str) -> None:
        """The replacing row may have another start, and so another key."""
        event = None if replaced is None else self.event_table.get(_derived_key(replaced.row, event_id))
        if event is not None:
            self.event_table.remove(event)

    def _touch(self, trace_id: str | None) -> None:
        self.version += 1
        self._epochs[trace_id] = self._epochs.get(trace_id, 0) + 1


def _entry(row: Row, time_field: str, key: tuple[str, ...] | None) -> Entry:
    row_id: str = row["id"]
    return Entry(row_id if key is None else (*key, row_id), row_id, parse_ms(row[time_field]), row)


def _event_key(trace_id: str | None, event_id: str, start: str) -> tuple[str, ...]:
    return (trace_id or "", event_id, start)


def _derived_key(row: Row, event_id: str) -> tuple[str, ...]:
    if "startTime" in row:
        return _event_key(row["traceId"], event_id, row["startTime"])
    return _event_key(row["id"], event_id, row["timestamp"])


def _written_to(event: Entry) -> Hashable:
    """The key of an event without what tells copies apart."""
    return event.key[:3] if isinstance(event.key, tuple) else event.key


def _remove_all(table: Table, entries: Iterable[Entry]) -> None:
    for entry in list(entries):
        table.remove(entry)
