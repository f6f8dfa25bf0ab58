"""What a run did, counted as it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal


@dataclass
class StreamReport:
    """Counts of one stream in one run. `failed_windows` counts windows without proof: failed, partial or doubtful.

    `derived`: it was not read, but follows from another stream, whose counts tell of both.
    """

    rows_read: int = 0
    rows_written: int = 0
    windows: int = 0
    failed_windows: int = 0
    watermark: datetime | None = None
    derived: bool = False

    def as_json(self) -> dict[str, Any]:
        mark = None if self.watermark is None else self.watermark.isoformat(timespec="milliseconds")
        return {
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "windows": self.windows,
            "failed_windows": self.failed_windows,
            "watermark": mark and mark.replace("+00:00", "Z"),
        }


@dataclass
class RunReport:
    """One run of one project.

    `error` is the first reason why it is not `ok`, `exit_code` how a command ends. `ended_by` is what ended the run
    before it had been through everything that was due, if something did. `put_off` says that some of the history was
    left to the next run.
    """

    project: str
    status: Literal["ok", "failed", "interrupted"] = "ok"
    requests: int = 0
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    streams: dict[str, StreamReport] = field(default_factory=dict)
    ended_by: Exception | None = None
    put_off: bool = False

    def stream(self, name: str) -> StreamReport:
        """The counts of a stream, made at first use."""
        return self.streams.setdefault(name, StreamReport())

    def fail(self, reason: str) -> None:
        """Notes that the run is not complete; the first reason is kept."""
        self.status = "failed"
        self.exit_code = self.exit_code or 1
        self.error = self.error or reason

    def total(self, count: str) -> int:
        """The sum of one count over all streams."""
        return sum(getattr(stream, count) for stream in self.streams.values())
