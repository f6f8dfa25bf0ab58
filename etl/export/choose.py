"""Which stored sessions a selection means, and what to say if it means none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sqlalchemy import Connection

from etl.errors import ExportError, UnknownSessionError
from etl.export.selection import Selection
from etl.load.queries import (
    StoredSession,
    latest_session_ids,
    project_names,
    sessions_of_traces,
    stored_sessions,
)

# Near names are looked for among the latest sessions only: comparing costs some microseconds each.
_COMPARED = 5_000
_COMPARED_CHARACTERS = 200
_NEAR = 3
_SHOWN = 5


def choose_sessions(conn: Connection, selection: Selection) -> list[StoredSession]:
    """The sessions that hold what is selected: named ones in their order, others by project and id.

    Raises:
        ExportError: Nothing is selected, a name is unknown, or belongs to several projects and none was chosen.
    """
    if selection.is_empty:
        raise ExportError("nothing is selected: name sessions, or use --all, --trace, --where or --from/--to")
    project_ids = _projects(conn, selection.project)
    if selection.sessions:
        chosen = _named_sessions(conn, list(dict.fromkeys(selection.sessions)), project_ids)
    else:
        chosen = stored_sessions(conn, project_ids=project_ids, start=selection.start, end=selection.end)
    return _with_traces(conn, chosen, selection, project_ids) if selection.traces else chosen


def _projects(conn: Connection, wanted: str | None) -> list[str]:
    """Ids of the projects to look into: all, or the one with this id or name."""
    known = project_names(conn)
    if wanted is None:
        return sorted(known)
    if wanted in known:
        return [wanted]
    named = sorted(project_id for project_id, name in known.items() if name == wanted)
    if len(named) > 1:
        raise ExportError(f"several projects are called {wanted!r}; give one of the ids {_listed(named)}")
    if not named:
        names = {name for pair in known.items() for name in pair if name}
        raise ExportError(f"no project {wanted!r} is stored{_near(wanted, names)}")
    return named


def _named_sessions(conn: Connection, names: list[str], project_ids: list[str]) -> list[StoredSession]:
    found: dict[str, list[StoredSession]] = {}
    for one in stored_sessions(conn, project_ids=project_ids, session_ids=names):
        if one.session_id is not None:
            found.setdefault(one.session_id, []).append(one)
    for name in names:
        if name not in found:
            near = _near(name, latest_session_ids(conn, project_ids, _COMPARED))
            raise UnknownSessionError(f"no session {name!r} is stored{near}")
        if len(found[name]) > 1:
            owners = _listed(one.project_id for one in found[name])
            raise ExportError(f"session {name!r} is in the projects {owners}; choose one with --project")
    return [found[name][0] for name in names]


def _with_traces(
    conn: Connection, sessions: list[StoredSession], selection: Selection, project_ids: list[str]
) -> list[StoredSession]:
    """Those sessions that hold the traces which are named."""
    homes = sessions_of_traces(conn, project_ids, selection.traces)
    known = {(one.project_id, one.session_id) for one in sessions}
    for trace_id in selection.traces:
        owners = sorted({project_id for project_id, _ in homes.get(trace_id, ())})
        if not owners:
            raise ExportError(f"no trace {trace_id!r} is stored; is it younger than the last `langfuse-etl sync`?")
        if len(owners) > 1:
            raise ExportError(f"trace {trace_id!r} is in the projects {_listed(owners)}; choose one with --project")
        if selection.sessions and not homes[trace_id] & known:
            raise ExportError(f"trace {trace_id!r} is not in the sessions that are named")
    wanted = {home for found in homes.values() for home in found}
    return [one for one in sessions if (one.project_id, one.session_id) in wanted]


def _near(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing."""
    by_folded = {one[:_COMPARED_CHARACTERS].casefold(): one for one in known}
    close = difflib.get_close_matches(name[:_COMPARED_CHARACTERS].casefold(), by_folded, n=_NEAR)
    return f" (did you mean {_listed((by_folded[one] for one in close), 'or')}?)" if close else ""


def _listed(names: Iterable[str], word: str = "and") -> str:
    *first, last = [repr(name) for name in names]
    return f"{', '.join(first[:_SHOWN])} {word} {last}" if first else last
