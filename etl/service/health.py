"""Is the service ready? Pure: from what the board and the database say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from etl.service.board import ProjectState, Role
from etl.service.snapshot import ProjectSnapshot, Snapshot
from etl.values import format_duration


@dataclass(frozen=True)
class Readiness:
    """`reasons` say why it is not ready, `notes` what else there is to know; one line each."""

    reasons: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def ready(self) -> bool:
        return not self.reasons


def readiness(
    role: Role,
    detail: str | None,
    states: Sequence[ProjectState],
    snapshot: Snapshot | None,
    *,
    now: datetime,
    ready_lag: timedelta,
) -> Readiness:
    """Not ready: the live edge of a stream lags more than `ready_lag`, or a run failed for a cause that needs a person.

    A first load that is under way is no failure as long as live data comes in meanwhile, and a standby is ready as
    long as it can see the database.
    """
    if snapshot is None or snapshot.error is not None:
        return Readiness([snapshot.error if snapshot and snapshot.error else "the database was not read yet"])
    if role == "standby":
        return Readiness([], [f"standby: {detail}"])
    if role != "leader":
        return Readiness([detail or role])
    reasons: list[str] = []
    notes: list[str] = []
    known = {project.name: project for project in snapshot.projects}
    for state in states:
        trouble, project = state.trouble, known.get(state.name)
        if trouble is not None and trouble.needs_person:
            reasons.append(f"project {state.name}: {trouble.reason}")
            continue
        if project is None:
            # Nothing was ever read: its first run is under way, or has not got through to Langfuse.
            if trouble is None:
                notes.append(f"project {state.name}: first load in progress")
            else:
                reasons.append(f"project {state.name}: {trouble.reason}")
            continue
        _judge_lag(project, trouble is not None, now, ready_lag, reasons, notes)
    return Readiness(reasons, notes)


def _judge_lag(
    project: ProjectSnapshot, troubled: bool, now: datetime, ready_lag: timedelta, reasons: list[str], notes: list[str]
) -> None:
    for stream in project.streams:
        if not (stream.complete or troubled):
            notes.append(f"project {project.name}: first load of {stream.name} in progress")
        # Each run reads live data first, so once one has ended the live edge tells, long before the history is whole.
        if not (stream.complete or any(run.finished_at for run in project.runs)):
            continue
        if stream.live_edge is not None and now - stream.live_edge > ready_lag:
            behind = format_duration(timedelta(seconds=int((now - stream.live_edge).total_seconds())))
            reasons.append(
                f"project {project.name}: {stream.name} lags {behind}, more than service.ready_lag"
                f" ({format_duration(ready_lag)})"
            )
