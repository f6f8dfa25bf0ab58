"""The page for people at /: made here, whole, readable without scripts; no trace contents, no keys.

Pure: everything shown comes in as arguments, and everything is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from html import escape

from etl import __version__
from etl.intervals import Window
from etl.load.status import Run, StreamProgress
from etl.service.board import ProjectState, Role
from etl.service.health import Readiness
from etl.service.snapshot import ProjectSnapshot, Snapshot
from etl.settings import STREAMS

_REFRESH_S = 30
_STRIP_WIDTH = 1000.0
_MARKS_SHOWN = 6
# What is missing or doubted must be seen, however short it is.
_SMALLEST_MARK = 6.0
_DAY = timedelta(days=1)

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --quiet: #5b6675; --line: #dfe3e8;
  --good: #2f8f5b; --gap: #d9dee5; --doubt: #d98a00; --bad: #c8372d; --goodtext: #1e6f44; --badtext: #a82a21;
  --doubttext: #8a5700; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --card: #1d232b; --text: #e6e9ed; --quiet: #98a3b0;
  --line: #333c47; --good: #3fa66d; --gap: #3a4450; --doubt: #e0a030; --bad: #e5604f; --goodtext: #6fd09a;
  --badtext: #ff9184; --doubttext: #f0bd62; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, footer { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.25rem; }
h1 { font-size: 1.25rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 0; font-weight: 600; }
p { margin: .25rem 0; }
.quiet, footer, time { color: var(--quiet); }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem;
  font-size: .85rem; font-weight: 600; white-space: nowrap; }
.good { color: var(--goodtext); } .bad { color: var(--badtext); } .doubt { color: var(--doubttext); }
.note { border-left: 4px solid var(--bad); padding: .4rem .75rem; margin: .75rem 0; background: var(--card);
  overflow-wrap: anywhere; }
.note.calm { border-color: var(--doubt); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
.head { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: baseline; justify-content: space-between; }
.stream { border-top: 1px solid var(--line); padding: .7rem 0 .5rem; margin-top: .7rem; }
.figures { font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 14px; margin: .35rem 0 .1rem; border-radius: 3px; }
.axis { display: flex; justify-content: space-between; gap: .5rem; font-size: .78rem; color: var(--quiet); }
.none { fill: var(--gap); } .covered { fill: var(--good); } .partial, .doubtful { fill: var(--doubt); }
.failed { fill: var(--bad); }
ul { margin: .35rem 0 0; padding-left: 1.1rem; font-size: .85rem; }
details { margin-top: .8rem; border-top: 1px solid var(--line); padding-top: .6rem; }
summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
.scroll { overflow-x: auto; }
time { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.error { overflow-wrap: anywhere; min-width: 12rem; }
.number { text-align: right; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .82rem; color: var(--quiet); margin: .75rem 0 0;
  padding: 0; list-style: none; }
.legend svg { display: inline-block; width: 12px; height: 12px; margin: 0 .35rem -1px 0; }
footer { padding-bottom: 2rem; font-size: .85rem; }
a { color: inherit; }
@media (max-width: 640px) {
  thead { display: none; } tr { display: block; border-bottom: 1px solid var(--line); padding: .3rem 0; }
  td { display: inline-block; border: 0; padding: 0 .6rem 0 0; } td.error { display: block; min-width: 0; }
  td.number { text-align: left; } td[data-label]::after { content: " " attr(data-label); color: var(--quiet); }
}
"""
# The page may load nothing, and run nothing; its one style is named by its hash.
POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_RUN_COLUMNS = (
    "<th>began</th><th>by</th><th>status</th>"
    + "".join(f'<th class="number">{name}</th>' for name in ("took", "read", "written", "requests"))
    + "<th>why</th>"
)
_NBSP = "\N{NO-BREAK SPACE}"
_BADGES = {"ok": "good", "failed": "bad", "interrupted": "doubt", "running": "quiet"}


def render(
    role: Role,
    detail: str | None,
    states: Sequence[ProjectState],
    snapshot: Snapshot | None,
    ready: Readiness,
    *,
    ready_lag: timedelta,
    database: str,
    now: datetime,
) -> str:
    """The whole page.

    Args:
        states: What the service does with each project; empty where another process leads.
        snapshot: What the database says; None if it was never read.
        ready_lag: A live edge that is further behind is marked.
        database: Its address, without a password.
    """
    stored = {project.name: project for project in (snapshot.projects if snapshot else ())}
    doing = {state.name: state for state in states}
    names = [*doing, *(name for name in stored if name not in doing)]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="refresh" content="{_REFRESH_S}"><title>{_title(ready)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        *_header(role, detail, ready),
        "<main>",
        *(part for name in names for part in _project(name, doing.get(name), stored.get(name), ready_lag, now)),
        *(['<p class="quiet">No project was read yet.</p>'] if not names else []),
        _legend(),
        "</main>",
        f"<footer><p>langfuse-etl {escape(__version__)}, {escape(database)}</p>",
        f"<p>As of {_moment(now)}; all times are UTC. Read again every {_REFRESH_S} s. ",
        '<a href="/metrics">/metrics</a> <a href="/readyz">/readyz</a> <a href="/healthz">/healthz</a></p></footer>',
        "</body></html>\n",
    ]
    return "".join(parts)


def _title(ready: Readiness) -> str:
    return "langfuse-etl" if ready.ready else "! langfuse-etl"


def _header(role: Role, detail: str | None, ready: Readiness) -> Iterator[str]:
    word, kind = {
        "leader": ("up to date", "good") if ready.ready and not ready.notes else ("running", "good"),
        "standby": ("standby", "doubt"),
        "starting": ("starting", "quiet"),
        "upgrading": ("upgrading", "quiet"),
        "stopping": ("stopping", "doubt"),
    }[role]
    if not ready.ready:
        word, kind = "not ready", "bad"
    yield f'<header><div class="head"><h1>langfuse-etl</h1>{_badge(word, kind)}</div>'
    for reason in ready.reasons:
        yield f'<p class="note">{escape(reason)}</p>'
    notes = [*ready.notes] if role != "standby" else [detail or "another process writes to this database"]
    for note in notes:
        yield f'<p class="note calm">{escape(note)}</p>'
    yield "</header>"


def _project(
    name: str, state: ProjectState | None, stored: ProjectSnapshot | None, ready_lag: timedelta, now: datetime
) -> Iterator[str]:
    yield f'<section><div class="head"><h2>{escape(name)}</h2>'
    if stored is not None:
        version = f", Langfuse {stored.server_version}" if stored.server_version else ""
        yield f'<span class="quiet">{escape(f"{stored.api} API{version}")}</span>'
    yield "</div>"
    if state is not None:
        yield f'<p class="figures">{_doing(state, now)}</p>'
        if (trouble := state.trouble) is not None:
            times = "1 run" if trouble.failures == 1 else f"{trouble.failures} runs in a row"
            yield (
                f'<p class="note">{times} came to nothing since {_moment(trouble.since)}: {escape(trouble.reason)}</p>'
            )
    if stored is None:
        yield '<p class="quiet">Nothing of it is stored yet.</p></section>'
        return
    for stream in sorted(stored.streams, key=lambda one: STREAMS.index(one.name)):
        yield from _stream(stream, ready_lag, now)
    yield from _runs(stored.runs, stored.last_success_at, now)
    yield "</section>"


def _doing(state: ProjectState, now: datetime) -> str:
    if state.running_since is not None:
        so_far = f", {state.windows_done:,} of {state.windows_planned:,} windows" if state.windows_planned else ""
        return f"<b>Running</b> for {_duration(now - state.running_since)}{so_far}."
    if state.next_run_at is None:
        return "No run is planned."
    return f"Next run in {_duration(max(timedelta(0), state.next_run_at - now))}, at {_moment(state.next_run_at)}."


def _stream(stream: StreamProgress, ready_lag: timedelta, now: datetime) -> Iterator[str]:
    edge = stream.live_edge
    yield f'<div class="stream"><div class="head"><h3>{escape(stream.name)}</h3>'
    if edge is None:
        yield '<span class="quiet">nothing was read yet</span></div></div>'
        return
    gaps = len(stream.gaps)
    behind = f"{_duration(now - edge)} behind"
    words = [
        f"live edge {_moment(edge)}",
        f'<span class="doubt">{behind}</span>' if now - edge > ready_lag else behind,
        f'<span class="doubt">{gaps} {"gap" if gaps == 1 else "gaps"}</span>' if gaps else "no gaps",
    ]
    if not stream.complete:
        words.append("first load in progress")
    yield f'<span class="quiet figures">{" · ".join(words)}</span></div>'
    whole = Window(min(stream.origin, stream.covered[0].start), max(edge, now))
    yield _strip(stream, whole, f"Coverage of {stream.name} since its beginning")
    yield _axis(whole, "everything")
    if whole.end - whole.start > 2 * _DAY:
        recent = Window(now - _DAY, now)
        yield _strip(stream, recent, f"Coverage of {stream.name} in the last 24 hours")
        yield _axis(recent, "last 24 hours")
    yield from _marks(stream)
    yield "</div>"


def _strip(stream: StreamProgress, shown: Window, title: str) -> str:
    """What was read over time, drawn in the order in which nothing is hidden by what is better."""
    covered = list(_shapes("covered", stream.covered, shown, smallest=1.0))
    # A gap shorter than a pixel would vanish between its neighbours.
    gaps = list(_shapes("none", [gap for gap in stream.gaps if gap.start < shown.end], shown, _SMALLEST_MARK))
    unproven = [
        shape
        for state in ("partial", "doubtful", "failed")
        for shape in _shapes(
            state, [one.window for one in stream.unproven if one.state == state], shown, _SMALLEST_MARK
        )
    ]
    summary = f"{title}: {len(stream.gaps)} gaps, {len(stream.unproven)} stretches without full proof"
    return (
        f'<svg viewBox="0 0 {_STRIP_WIDTH:g} 14" preserveAspectRatio="none" role="img" aria-label="{escape(summary)}">'
        f'<rect class="none" width="{_STRIP_WIDTH:g}" height="14"/>{"".join([*covered, *gaps, *unproven])}</svg>'
    )


def _shapes(kind: str, windows: Iterable[Window], shown: Window, smallest: float) -> Iterator[str]:
    scale = _STRIP_WIDTH / (shown.end - shown.start).total_seconds()
    for window in windows:
        start, end = max(window.start, shown.start), min(window.end, shown.end)
        if start >= end:
            continue
        width = max(smallest, (end - start).total_seconds() * scale)
        left = min((start - shown.start).total_seconds() * scale, _STRIP_WIDTH - width)
        yield f'<rect class="{kind}" x="{left:.2f}" width="{width:.2f}" height="14"/>'


def _axis(shown: Window, name: str) -> str:
    form = "%Y-%m-%d" if shown.end - shown.start > 2 * _DAY else "%m-%d %H:%M"
    ends = shown.start.strftime(form), name, shown.end.strftime(form)
    return f'<div class="axis">{"".join(f"<span>{text}</span>" for text in ends)}</div>'


def _marks(stream: StreamProgress) -> Iterator[str]:
    """The newest gaps and doubts, in words."""
    found = [("gap", gap) for gap in stream.gaps] + [(one.state, one.window) for one in stream.unproven]
    if not found:
        return
    found.sort(key=lambda mark: mark[1].end, reverse=True)
    yield "<ul>"
    for word, window in found[:_MARKS_SHOWN]:
        yield f"<li>{escape(word)}: {_moment(window.start)} to {_moment(window.end)}</li>"
    if len(found) > _MARKS_SHOWN:
        yield f"<li>and {len(found) - _MARKS_SHOWN:,} more</li>"
    yield "</ul>"


def _runs(runs: Sequence[Run], last_success_at: datetime | None, now: datetime) -> Iterator[str]:
    success = "never" if last_success_at is None else f"{_duration(now - last_success_at)} ago"
    troubled = any(run.status not in ("ok", "running") for run in runs)
    yield f"<details{' open' if troubled else ''}><summary>Last runs</summary>"
    yield f'<p class="quiet">Last success: {success}.</p>'
    if runs:
        yield f'<div class="scroll"><table><thead><tr>{_RUN_COLUMNS}</tr></thead><tbody>'
        for run in runs:
            took = "" if run.finished_at is None else _duration(run.finished_at - run.started_at)
            yield (
                f"<tr><td>{_moment(run.started_at)}</td><td>{escape(run.trigger)}</td>"
                f'<td>{_badge(run.status, _BADGES.get(run.status, "quiet"))}</td><td class="number">{took}</td>'
                f'<td class="number" data-label="read">{run.rows_read:,}</td>'
                f'<td class="number" data-label="written">{run.rows_written:,}</td>'
                f'<td class="number" data-label="requests">{run.requests:,}</td>'
                f'<td class="error">{escape(run.error or "")}</td></tr>'
            )
        yield "</tbody></table></div>"
    yield "</details>"


def _legend() -> str:
    words = {
        "covered": "read, with proof",
        "none": "not read",
        "doubtful": "doubtful, or rows without contents",
        "failed": "failed",
    }
    box = '<svg viewBox="0 0 12 12" aria-hidden="true"><rect class="{}" width="12" height="12"/></svg>'
    items = (f"<li>{box.format(kind)}{word}</li>" for kind, word in words.items())
    return f'<ul class="legend">{"".join(items)}</ul>'


def _badge(word: str, kind: str) -> str:
    return f'<span class="badge {kind}">{escape(word)}</span>'


def _moment(moment: datetime) -> str:
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M:%S}</time>'


def _duration(length: timedelta) -> str:
    """The two largest units: `3 d 4 h`, `2 min 5 s`, `0 s`."""
    seconds = max(0, int(length.total_seconds()))
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            count, rest = divmod(seconds, size)
            return f"{count:,}{_NBSP}{unit}" + (f" {rest // part}{_NBSP}{smaller}" if rest // part else "")
    return f"{seconds}{_NBSP}s"
