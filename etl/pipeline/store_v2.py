"""One page of GET /v2/observations into the tables, with the traces and sessions that follow from its rows.

Of most traces nothing was stored before. What becomes of these follows from the page, and nothing of them is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from etl.load.compare import differences
from etl.load.derived import derive_sessions, is_derivable, stored_parts, write_traces
from etl.load.keys import Key
from etl.load.metrics import columns_by_key, metrics_at_hand, refresh_trace_metrics, set_trace_metrics, trace_metrics
from etl.load.tables import observations
from etl.load.trace_states import TraceState, trace_states, unsettled_traces
from etl.load.upsert import Stored, Written, newest_by_key, stored_rows, upsert, written_together
from etl.transform.pages import session_ids, trace_ids
from etl.transform.rows import Row


def store_observations_v2(
    conn: Connection,
    tables: Mapping[str, Sequence[Row]],
    *,
    project_id: str,
    now: datetime,
    traces: Collection[str],
    distrust: bool,
) -> Written:
    """See `store_rows`."""
    changed = trace_ids(tables)
    unchanged = set(traces) - changed
    # Of rows that the older API gave nobody may have derived a trace or a session yet.
    before = trace_states(conn, project_id, changed) | unsettled_traces(conn, project_id, unchanged)
    stored: dict[Key, Stored] = {
        (project_id, id_): state.stored for id_, state in before.items() if state.stored is not None
    }
    observed, parts = _store_observations(conn, tables["observations"], before, now, distrust=distrust)
    told = changed | {id_ for id_, state in before.items() if state.stored is None}
    derivable = {id_ for id_ in told if is_derivable(before[id_].stored)}
    parts |= stored_parts(conn, project_id, derivable - parts.keys())
    known = metrics_at_hand(parts) | trace_metrics(conn, project_id, told - parts.keys())
    # A new trace is written with the metrics that follow from its observations, not twice.
    with_new = columns_by_key(known)
    damaged = differences(conn, "traces", tables["traces"]).keys if distrust else ()
    copied = upsert(conn, "traces", tables["traces"], now, damaged=damaged, with_new=with_new, stored=stored)
    copies = {row["id"] for row in tables["traces"]}
    parts = {id_: those for id_, those in parts.items() if id_ in derivable and id_ not in copies}
    named = write_traces(conn, project_id, parts, now, stored=stored, with_new=with_new, distrust=distrust)
    sessions_before = {id_: state.session_id for id_, state in before.items() if state.session_id}
    named |= {session_id for id_, session_id in sessions_before.items() if id_ not in parts and id_ not in copies}
    # A session that a trace has left may have another earliest one now, and so another environment.
    left = set(sessions_before.values()) - named
    derive_sessions(conn, project_id, session_ids(tables), now, if_alive=named, left=left, distrust=distrust)
    others = {id_: new for id_, new in known.items() if before[id_].stored is not None and before[id_].metrics != new}
    set_trace_metrics(conn, project_id, others, now)
    refresh_trace_metrics(conn, project_id, unchanged - told, now)
    return written_together([observed, copied])


def _store_observations(
    conn: Connection, rows: Sequence[Row], before: Mapping[str, TraceState], now: datetime, *, distrust: bool
) -> tuple[Written, dict[str, list[Row]]]:
    """Upserts them, and gives out those of the traces of which none was stored before."""
    newest = newest_by_key(observations, rows)
    of_new: dict[str, list[Row]] = {id_: [] for id_, state in before.items() if not state.has_observations}
    for row in newest.values():
        if row["trace_id"] in of_new:
            of_new[row["trace_id"]].append(row)
    written = upsert(
        conn,
        "observations",
        newest.values(),
        now,
        damaged=differences(conn, "observations", rows).keys if distrust else (),
        stored=stored_rows(conn, observations, [key for key, row in newest.items() if row["trace_id"] not in of_new]),
    )
    return written, of_new
