"""One page into the tables, in the transaction that the caller opened."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from etl.extract.readers import Page
from etl.load.derived import refresh_trace_metrics
from etl.load.upsert import Written, upsert
from etl.transform.pages import SHAPES, rows_of, trace_ids


def store_page(conn: Connection, page: Page, *, project_id: str, contents: bool, now: datetime) -> Written:
    """Upserts the rows of a page and derives what follows from them for every trace they belong to.

    Args:
        contents: False drops inputs and outputs.
        now: The time of `first_seen_at` and `changed_at`.
    Raises:
        RowError: An object without a usable key; the caller rolls the page back.
    """
    rows = rows_of(page.kind, page.items, project_id=project_id, plain=page.plain, contents=contents)
    table = SHAPES[page.kind].table
    written = upsert(conn, table, rows, now)
    touched = trace_ids(rows, table)
    if touched:
        refresh_trace_metrics(conn, project_id, touched, now)
    return written
