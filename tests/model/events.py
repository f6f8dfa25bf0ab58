"""What can happen at a server: small steps, written so that a failing history can be read and shrunk."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from etl.demo import Dataset

# Shorter than the defaults, so that a history is a few days and not months.
LOOKBACK = (timedelta(minutes=40), timedelta(hours=5), timedelta(hours=60))
LARGEST_TIER = LOOKBACK[-1]
MOST_TRACES = 20
_TYPES = ("SPAN", "GENERATION", "EVENT")
_SECOND = timedelta(seconds=1)

Row = dict[str, Any]


@dataclass
class World:
    """A server's data, what it ever held, and what happened further back than any tier looks."""

    far: bool = False
    """Things happen further back than any tier looks, too; else such events are left out."""
    modern: bool = False
    """Written by the SDK of v4: traces are copied into their observations, and there are traces without a copy."""
    began: datetime = datetime(2025, 3, 4, 12, tzinfo=UTC)
    now: datetime = began
    data: Dataset = field(default_factory=Dataset)
    ever: dict[str, set[tuple[str, ...]]] = field(
        default_factory=lambda: {"traces": set(), "observations": set(), "scores": set(), "sessions": set()}
    )
    beyond: list[str] = field(default_factory=list)
    """Events that no lookback tier has to find."""
    deleted: int = 0
    """How many rows, of all kinds."""
    numbers: int = 0
    writes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def happen(self, event: Event) -> None:
        with self.lock:
            event.happen(self)

    def ago(self, minutes: float) -> datetime:
        """A whole minute, so that many rows share a millisecond."""
        return self.now.replace(second=0, microsecond=0) - timedelta(minutes=minutes)

    def stamp(self) -> str:
        """The server's time of writing; later each time."""
        self.writes += 1
        return iso(self.now + timedelta(milliseconds=self.writes))

    def new_id(self, kind: str) -> str:
        self.numbers += 1
        return f"{kind}{self.numbers}"

    def put_trace(self, row: Row) -> None:
        # On v4 observations carry the trace's values, so they are written anew.
        carriers = [entry.row for entry in self.data.observation_table.group(row["id"])] if self.modern else []
        if not all(self._may(time, f"trace {row['id']}") for time in (row["timestamp"], *_starts(carriers))):
            return
        self.ever["traces"].add((row["id"],))
        if row.get("sessionId"):
            self.ever["sessions"].add((row["sessionId"],))
        self.data.put_trace(row)
        for carrier in carriers:
            self.data.put_observation(carrier | {"updatedAt": self.stamp()})

    def put_observation(self, row: Row) -> None:
        if not self._may(row["startTime"], f"observation {row['id']}"):
            return
        self.ever["observations"].add((row["traceId"], row["id"]))
        self.ever["traces"].add((row["traceId"],))  # v4 derives it
        self.data.put_observation(row)

    def put_event(self, row: Row, *, again: bool = False) -> None:
        if not self._may(row["startTime"], f"event {row['id']}"):
            return
        self.ever["observations"].add((row["traceId"], row["id"]))
        self.ever["traces"].add((row["traceId"],))
        if row.get("sessionId"):
            self.ever["sessions"].add((row["sessionId"],))
        self.data.put_event(row, again=again)

    def put_score(self, row: Row) -> None:
        if not self._may(row["timestamp"], f"score {row['id']}"):
            return
        self.ever["scores"].add((row["id"],))
        self.data.put_score(row)

    def may_go(self, rows: Iterable[Row]) -> bool:
        """Whether these rows may be deleted."""
        gone = list(rows)
        if not self.far and any(self._is_beyond(row.get("startTime") or row["timestamp"]) for row in gone):
            return False
        for row in gone:
            self._may(row.get("startTime") or row["timestamp"], f"deleted {row['id']}")
        self.deleted += len(gone)
        return True

    def lost(self) -> dict[str, set[tuple[str, ...]]]:
        """What the server had once and has no more, by table; it never loses a session."""
        events = [(row["traceId"], row["id"]) for row in self.data.events()]
        present = {
            "traces": {(row["id"],) for row in self.data.traces()} | {(trace_id,) for trace_id, _ in events},
            "observations": {(row["traceId"], row["id"]) for row in self.data.observations()} | set(events),
            "scores": {(row["id"],) for row in self.data.scores()},
        }
        return {table: self.ever[table] - keys for table, keys in present.items()}

    def native_events(self) -> list[Row]:
        """Rows that were sent to the v4 API itself."""
        return [entry.row for entry in self.data.event_table if "isRootObservation" in entry.row]

    def _may(self, time: str, what: str) -> bool:
        if self._is_beyond(time):
            if not self.far:
                return False
            self.beyond.append(what)
        return True

    def _is_beyond(self, time: str) -> bool:
        return self.now - datetime.fromisoformat(time) > LARGEST_TIER / 2


class Event(ABC):
    """Something that happens at the server at `World.now`."""

    @abstractmethod
    def happen(self, world: World) -> None: ...


@dataclass(frozen=True)
class Insert(Event):
    """Traces of one millisecond, each with observations and scores of the same; `age` in minutes before now."""

    age: int
    traces: int = 1
    observations: int = 0
    scores: int = 0
    session: int = 0
    native: bool = False

    def happen(self, world: World) -> None:
        start = world.ago(self.age)
        for _ in range(self.traces):
            if len(world.ever["traces"]) >= MOST_TRACES:
                return
            trace_id = world.new_id("t")
            common = {"environment": ("default", "production")[world.numbers % 2]} | _written(world)
            session = f"s{self.session}" if self.session else None
            if self.native and world.modern:
                for number in range(self.observations + 1):
                    at = start + number * _SECOND
                    world.put_event(
                        {
                            "id": world.new_id("e"), "traceId": trace_id, "startTime": iso(at), "traceName": "native",
                            "endTime": iso(at + _SECOND), "sessionId": session or "", "type": _TYPES[number % 3],
                            "parentObservationId": "root" if number else None, "input": f"in {number}",
                            "totalCost": 0.25,
                        } | common
                    )  # fmt: skip
                return
            world.put_trace(
                {"id": trace_id, "timestamp": iso(start), "name": "new", "sessionId": session, "input": {"n": 1}}
                | common
            )
            for number in range(self.observations):
                world.put_observation(
                    {
                        "id": world.new_id("o"), "traceId": trace_id, "startTime": iso(start),
                        "endTime": iso(start + (number + 1) * _SECOND), "type": _TYPES[number % 3],
                        "costDetails": {"total": 0.5},
                    } | common
                )  # fmt: skip
            for _ in range(self.scores):
                world.put_score(
                    {"id": world.new_id("c"), "traceId": trace_id, "timestamp": iso(start), "value": 1} | common
                )


@dataclass(frozen=True)
class EditTrace(Event):
    """It is sent again with another name and session; `back` counts from the newest trace."""

    back: int
    session: int = 0

    def happen(self, world: World) -> None:
        chosen = _pick(world.data.traces(), self.back)
        if chosen is None:
            return
        change = {
            "name": world.new_id("name "), "sessionId": f"s{self.session}" if self.session else None,
            "output": {"edited": world.numbers}, "updatedAt": world.stamp(),
        }  # fmt: skip
        world.put_trace(chosen | change)


@dataclass(frozen=True)
class OtherDate(Event):
    """The id of a trace once more, a day earlier or later: two rows of one trace."""

    back: int
    days: int

    def happen(self, world: World) -> None:
        chosen = _pick(world.data.traces(), self.back)
        if chosen is None:
            return
        moment = datetime.fromisoformat(chosen["timestamp"]) + timedelta(days=self.days)
        world.put_trace(chosen | {"timestamp": iso(moment), "name": "other date", "updatedAt": world.stamp()})


@dataclass(frozen=True)
class EditObservation(Event):
    back: int
    native: bool = False
    again: bool = False

    def happen(self, world: World) -> None:
        cost = {"updatedAt": world.stamp(), "output": f"edit {world.new_id('x')}"}
        if self.native:
            chosen = _pick(world.native_events(), self.back)
            if chosen is not None:
                world.put_event(chosen | cost | {"totalCost": float(world.numbers)}, again=self.again)
            return
        chosen = _pick(world.data.observations(), self.back)
        if chosen is not None:
            world.put_observation(chosen | cost | {"calculatedTotalCost": float(world.numbers)})


@dataclass(frozen=True)
class AddObservation(Event):
    """To a trace that may be old."""

    back: int
    age: int

    def happen(self, world: World) -> None:
        trace = _pick(world.data.traces(), self.back)
        if trace is None:
            return
        start = world.ago(self.age)
        world.put_observation(
            {"id": world.new_id("o"), "traceId": trace["id"], "startTime": iso(start), "endTime": iso(start + _SECOND)}
            | _written(world)
        )


@dataclass(frozen=True)
class Orphan(Event):
    """An observation whose trace comes later, if ever."""

    age: int

    def happen(self, world: World) -> None:
        start = iso(world.ago(self.age))
        world.put_observation(
            {"id": world.new_id("o"), "traceId": world.new_id("t"), "startTime": start} | _written(world)
        )


@dataclass(frozen=True)
class AddTrace(Event):
    """The trace of an orphan."""

    back: int
    age: int

    def happen(self, world: World) -> None:
        known = {row["id"] for row in world.data.traces()}
        chosen = _pick([row for row in world.data.observations() if row["traceId"] not in known], self.back)
        if chosen is not None:
            trace = {"id": chosen["traceId"], "timestamp": iso(world.ago(self.age)), "name": "late", "sessionId": "s1"}
            world.put_trace(trace | _written(world))


@dataclass(frozen=True)
class AddScore(Event):
    back: int
    age: int

    def happen(self, world: World) -> None:
        trace = _pick(world.data.traces(), self.back)
        if trace is None:
            return
        world.put_score(
            {"id": world.new_id("c"), "traceId": trace["id"], "timestamp": iso(world.ago(self.age)), "value": 3}
            | _written(world)
        )


@dataclass(frozen=True)
class EditScore(Event):
    back: int

    def happen(self, world: World) -> None:
        chosen = _pick(world.data.scores(), self.back)
        if chosen is not None:
            row = {name: value for name, value in chosen.items() if name != "trace"}
            world.numbers += 1
            world.put_score(row | {"value": world.numbers, "updatedAt": world.stamp()})


@dataclass(frozen=True)
class Delete(Event):
    """`what`: trace (with all it owns), observation, or score."""

    what: str
    back: int

    def happen(self, world: World) -> None:
        data = world.data
        if self.what == "trace":
            natives = [{"id": row["traceId"], "timestamp": row["startTime"]} for row in world.native_events()]
            chosen = _pick([*data.traces(), *natives], self.back)
            if chosen is not None:
                tables = (data.observation_table, data.score_table, data.event_table)
                owned = [entry.row for table in tables for entry in table.group(chosen["id"])]
                if world.may_go([*owned, *(entry.row for entry in data.trace_table.with_id(chosen["id"]))]):
                    data.delete_trace(chosen["id"])
        elif self.what == "observation":
            chosen = _pick([*data.observations(), *world.native_events()], self.back)
            if chosen is not None and world.may_go([chosen]):
                data.delete_observation(chosen["id"])
        else:
            chosen = _pick(data.scores(), self.back)
            if chosen is not None and world.may_go([chosen]):
                data.delete_score(chosen["id"])


@dataclass(frozen=True)
class Merge(Event):
    """The server forgets that rows were sent twice."""

    def happen(self, world: World) -> None:
        world.data.merge()


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _written(world: World) -> Row:
    at = world.stamp()
    return {"createdAt": at, "updatedAt": at}


def _starts(rows: list[Row]) -> list[str]:
    return [row["startTime"] for row in rows]


def _pick(rows: list[Row], back: int) -> Row | None:
    return rows[-1 - back % len(rows)] if rows else None
