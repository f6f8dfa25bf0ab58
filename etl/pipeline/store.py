"""One page into the tables, in the transaction that the caller opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from etl.load.compare import differences
from etl.load.deletions import mark_left_without_rows, mark_sessions_left_without_traces
from etl.load.derived import derive_sessions, derive_traces
from etl.load.metrics import columns_by_key, refresh_trace_metrics, trace_metrics
from etl.load.selection import of_stored_traces, session_ids_of
from etl.load.upsert import Written, upsert, written_together
from etl.pipeline.scope import Scope
from etl.pipeline.store_v2 import store_observations_v2
from etl.transform.derive import Metrics
from etl.transform.pages import OBSERVATIONS_V2, Kind, trace_ids
from etl.transform.rows import Row


def store_rows(
    conn: Connection,
    kind: Kind,
    tables: Mapping[str, Sequence[Row]],
    *,
    project_id: str,
    now: datetime,
    traces: Collection[str] = (),
    distrust: bool = False,
    observations_copied: bool = True,
) -> Written:
    """Upserts the rows of one page and derives what follows from them for every trace they belong to.

    The counts returned are those of the objects that the API answered.

    Args:
        tables: As `pages.rows_of` gives them.
        traces: Others that rows were read of, which are stored as they are.
        now: The time of `first_seen_at` and `changed_at`.
        observations_copied: Whether the children that latency and cost follow from are in the database.
        distrust: Look at the stored columns themselves, not only at their hashes.
    """
    if kind in OBSERVATIONS_V2:
        return store_observations_v2(conn, tables, project_id=project_id, now=now, traces=traces, distrust=distrust)
    changed = trace_ids(tables)
    known: dict[str, Metrics] = {}
    written: list[Written] = []
    # Traces come last: a new one is written with the metrics that follow from its observations, not twice.
    for table, rows in sorted(tables.items(), key=lambda entry: entry[0] == "traces"):
        if table == "traces" and observations_copied:
            known = trace_metrics(conn, project_id, changed)
        damaged = differences(conn, table, rows).keys if distrust else ()
        written.append(upsert(conn, table, rows, now, damaged=damaged, with_new=columns_by_key(known)))
    # Without observations there is nothing to derive from: these traces brought their metrics along.
    if observations_copied:
        # A trace that came alone, as it is stored, says nothing of its children.
        told = changed.union(traces) if "observations" in tables else changed
        refresh_trace_metrics(conn, project_id, told, now, known=known)
    return written_together(written)


def of_selected_traces(
    conn: Connection, scope: Scope, kind: Kind, tables: Mapping[str, list[Row]]
) -> Mapping[str, list[Row]]:
    """What of the rows of one page belongs to selected traces; on v4 the filters select the rows themselves."""
    if not scope.filtered:
        return tables
    if kind not in OBSERVATIONS_V2:
        return of_stored_traces(conn, scope.project_id, tables)
    return {name: [row for row in rows if name != "observations" or row["trace_id"]] for name, rows in tables.items()}


def refresh_after_deletion(
    conn: Connection, kind: Kind, project_id: str, traces: Collection[str], now: datetime, *, read_at: datetime
) -> None:
    """Derives anew what follows from these traces, of which some, or some of their observations, were marked.

    Args:
        now: The time of `deleted_at` and `changed_at`.
        read_at: When the read was over that lacked them.
    """
    if kind in OBSERVATIONS_V2:
        sessions = session_ids_of(conn, project_id, traces, with_deleted=True)
        derive_traces(conn, project_id, traces, now)
        mark_left_without_rows(conn, project_id, traces, now, read_at=read_at)
        sessions |= session_ids_of(conn, project_id, traces)
        derive_sessions(conn, project_id, mark_sessions_left_without_traces(conn, project_id, sessions, now), now)
    refresh_trace_metrics(conn, project_id, traces, now)
