"""One session, straight from the API into the tables: all of it, or nothing."""

from __future__ import annotations

import marshal
import tempfile

from sqlalchemy import Engine

from etl.extract.readers import Reader
from etl.load import lease
from etl.load.engine import writing
from etl.pipeline.scope import Scope
from etl.pipeline.store import store_rows
from etl.transform.items import items_of, listed_text
from etl.transform.pages import SHAPES, Kind, rows_of


def refresh_session(engine: Engine, owner: lease.Owner, reader: Reader, scope: Scope, session_id: str) -> int:
    """Reads a session whole, then stores what is kept of it in one transaction; returns how many objects that were.

    No window is entered in the ledger and no watermark moves: a session is no stretch of time.

    Raises:
        ApiError, RowError: The session could not be read to its end; nothing was written.
        DatabaseError, LeaseLostError: It could not be stored; nothing was written.
    """
    count = pages = 0
    # Pages wait on disk: the database must not be locked while Langfuse is asked.
    with tempfile.TemporaryFile() as waiting:
        for page in reader.session(session_id, scope.now):
            if SHAPES[page.kind].table not in scope.kept:
                continue
            count, pages = count + len(page.items), pages + 1
            marshal.dump((page.kind.value, listed_text(page.items)), waiting)
        waiting.seek(0)
        with writing(engine) as conn:
            lease.renew(conn, owner)
            for _ in range(pages):
                name, text = marshal.load(waiting)  # noqa: S302 - written above
                kind = Kind(name)
                tables = rows_of(kind, items_of(text), project_id=scope.project_id, contents=scope.contents)
                store_rows(
                    conn, kind, tables, project_id=scope.project_id, now=scope.now,
                    observations_copied=scope.observations_copied,
                )  # fmt: skip
    return count
