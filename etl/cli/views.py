"""How reports look: as JSON documents, and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etl.cli.output import failure, print_json, print_table, say, say_error

if TYPE_CHECKING:
    from etl.pipeline.report import RunReport, StreamReport
    from etl.service.check import Check

_COUNTS = ("rows_read", "rows_written", "windows", "failed_windows")


def checks_document(checks: Sequence[Check]) -> dict[str, Any]:
    """`{ok, checks: [{name, ok, message, fix}]}`; see `output.failure` for what it begins with if they are not ok."""
    failed = "\n".join(f"{one.name}: {one.message}" for one in checks if not one.ok)
    return (failure(failed) if failed else {}) | {
        "ok": not failed,
        "checks": [{"name": one.name, "ok": one.ok, "message": one.message, "fix": one.fix} for one in checks],
    }


def print_checks(checks: Sequence[Check]) -> None:
    """One row a finding."""
    print_table(
        "langfuse-etl check",
        ("check", "", "finding"),
        [
            (one.name, "ok" if one.ok else "FAILED", one.message if one.ok else f"{one.message}\n-> {one.fix}")
            for one in checks
        ],
    )


def sync_document(reports: Sequence[RunReport]) -> dict[str, Any]:
    """The counts of all projects together, and `projects` with those of each; `error` says why the status is not ok."""
    projects = [{"name": one.project, **_document([one]), "error": _reason(one)} for one in reports]
    return failing_first(_document(reports) | {"projects": projects}, reports)


def failing_first(document: dict[str, Any], reports: Sequence[RunReport]) -> dict[str, Any]:
    """`document`; where a run was not completed it begins as `output.failure` says."""
    errors = errors_in(reports)
    return (failure("\n".join(errors), _worst_status(reports)) if errors else {}) | document


def errors_in(reports: Sequence[RunReport]) -> list[str]:
    """A line for each run that was not completed."""
    return [f"{report.project}: {reason}" for report in reports if (reason := _reason(report)) is not None]


def _worst_status(reports: Sequence[RunReport]) -> str:
    """`failed` before `interrupted` before `ok`."""
    statuses = [report.status for report in reports]
    return next((bad for bad in ("failed", "interrupted") if bad in statuses), "ok")


def _reason(report: RunReport) -> str | None:
    return report.error or (None if report.status == "ok" else report.status)


def show_sync(command: str, reports: Sequence[RunReport], as_json: bool) -> None:
    """One JSON document, or one row a stream and the reason of a failure on stderr."""
    if as_json:
        print_json(sync_document(reports))
    else:
        _print_sync(command, reports)


def _print_sync(command: str, reports: Sequence[RunReport]) -> None:
    rows = [
        (report.project, name, *_counts_shown(one), one.as_json()["watermark"])
        for report in reports
        for name, one in sorted(report.streams.items())
    ]
    if rows:
        print_table(
            f"langfuse-etl {command}",
            ("project", "stream", "read", "written", "windows", "unproven", "watermark"),
            rows,
        )
    for report in reports:
        summary = f"{report.project}: {report.status}, {report.requests} requests, {report.seconds:.1f} s"
        if report.error is None:
            say(summary)
        else:
            say_error(f"{summary}: {report.error}")


def _counts_shown(stream: StreamReport) -> tuple[int | str | None, ...]:
    if stream.derived:
        return ("derived", "derived", None, None)
    return tuple(getattr(stream, count) for count in _COUNTS)


def print_status(document: dict[str, Any]) -> None:
    """One row a stream."""
    rows = [
        (
            project["name"], project["api"] or "never read", stream["stream"], stream["rows"], stream["watermark"],
            stream["lag_seconds"], stream["gaps"], (stream["last_run"] or {}).get("status"),
        )
        for project in document["projects"]
        for stream in project["streams"]
    ]  # fmt: skip
    columns = ("project", "api", "stream", "rows", "watermark", "lag (s)", "gaps", "last run")
    print_table("langfuse-etl status", columns, rows)
    for project in document["projects"]:
        if project["trouble"] is not None:
            trouble = project["trouble"]
            say_error(
                f"{project['name']}: {trouble['failures']} runs in a row since {trouble['since']} came to nothing:"
                f" {trouble['reason']}"
            )
        if project["next_run"] is not None:
            say(f"{project['name']}: next run at {project['next_run']}")
        for stream in project["streams"]:
            if (under_way := stream["after_switch"]) is not None:
                say(
                    f"{project['name']}: {stream['stream']} are read once more since the API changed:"
                    f" pass {under_way['pass']}, {under_way['days_left']} days of it left"
                )
    service = document["database"]["service"]
    if service["running"]:
        say(f"the service runs as process {service['pid']} on {service['host']} since {service['since']}")
    database = document["database"]
    say(f"database {database['url']}, revision {database['revision'] or 'none yet'}")


def _document(reports: Sequence[RunReport]) -> dict[str, Any]:
    return {
        "status": _worst_status(reports),
        "rows_read": sum(report.total("rows_read") for report in reports),
        "rows_written": sum(report.total("rows_written") for report in reports),
        "requests": sum(report.requests for report in reports),
        "windows": sum(report.total("windows") for report in reports),
        "failed_windows": sum(report.total("failed_windows") for report in reports),
        "seconds": round(sum(report.seconds for report in reports), 3),
        "streams": _streams(reports),
    }


def _streams(reports: Sequence[RunReport]) -> dict[str, Any]:
    """Each stream over all projects; its watermark is the one that is furthest behind."""
    streams: dict[str, Any] = {}
    for report in reports:
        for name, one in sorted(report.streams.items()):
            new, old = one.as_json(), streams.get(name)
            if old is None:
                streams[name] = new
                continue
            marks = (old["watermark"], new["watermark"])
            streams[name] = {count: old[count] + new[count] for count in _COUNTS}
            streams[name]["watermark"] = None if None in marks else min(marks)
    return streams
