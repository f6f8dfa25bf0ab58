"""The tables of the database. Migrations build them; a test holds the two in step."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text

from etl.load.meanings import TABLES, meaning_of
from etl.load.types import COLUMN_TYPES, Instant, JsonText
from etl.transform.fields import OBSERVATION, OBSERVATION_V2_ONLY, SCORE_LEGACY, SESSION, TRACE_DOCUMENT, Field

# What a light reading leaves out; metadata first, because people ask for it most.
CONTENTS = ("metadata", "input", "output")
# Alembic's own table; whoever has it is ours.
VERSION_TABLE = "langfuse_etl_version"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _rows(name: str, fields: tuple[Field, ...], key: tuple[str, ...], *indexes: tuple[str, ...]) -> Table:
    """A table of API rows: the API's fields, what we know about each row, then the contents.

    Contents may be megabytes. SQLite walks through all of a row that stands before the column it wants.
    """
    columns = [Column(f.column, COLUMN_TYPES[f.kind](), nullable=f.column not in key) for f in fields]
    return Table(
        name,
        metadata,
        *(column for column in columns if column.name not in CONTENTS),
        Column("extra", JsonText()),
        Column("exact", JsonText()),
        Column("content_hash", Text, nullable=False),
        Column("read_from", Text, nullable=False),
        Column("first_seen_at", Instant(), nullable=False),
        Column("changed_at", Instant(), nullable=False),
        Column("deleted_at", Instant()),
        *sorted((column for column in columns if column.name in CONTENTS), key=lambda c: CONTENTS.index(c.name)),
        PrimaryKeyConstraint(*key),
        *(Index(None, *columns) for columns in (*indexes, ("changed_at",))),
    )


traces = _rows(
    "traces",
    TRACE_DOCUMENT.fields,
    ("project_id", "id"),
    ("project_id", "timestamp"),
    ("project_id", "session_id", "timestamp"),
)
observations = _rows(
    "observations",
    OBSERVATION.fields + OBSERVATION_V2_ONLY,
    ("project_id", "trace_id", "id"),
    ("project_id", "start_time"),
)
scores = _rows(
    "scores",
    SCORE_LEGACY.fields,
    ("project_id", "id"),
    ("project_id", "trace_id"),
    ("project_id", "timestamp"),
)
sessions = _rows("sessions", SESSION.fields, ("project_id", "id"), ("project_id", "created_at"))

ROW_TABLES = {table.name: table for table in (traces, observations, scores, sessions)}
# The instant of each stream that windows are cut by.
TIME_COLUMNS = {
    "traces": traces.c.timestamp,
    "observations": observations.c.start_time,
    "scores": scores.c.timestamp,
    "sessions": sessions.c.created_at,
}

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text),
    Column("base_url", Text, nullable=False),
    Column("organization_id", Text),
    Column("server_version", Text),
    Column("api", Text),
    Column("retention_days", Integer),
    Column("entry", Text),
)

sync_state = Table(
    "sync_state",
    metadata,
    Column("project_id", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("api", Text, nullable=False),
    Column("watermark", Instant()),
    Column("filters_hash", Text, nullable=False),
    Column("origin", Instant(), nullable=False),
    Column("plan", JsonText()),
    PrimaryKeyConstraint("project_id", "stream"),
)

sync_absences = Table(
    "sync_absences",
    metadata,
    Column("project_id", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("noticed_at", Instant(), nullable=False),
    PrimaryKeyConstraint("project_id", "stream", "trace_id", "id"),
)

sync_runs = Table(
    "sync_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", Text),
    Column("trigger", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("started_at", Instant(), nullable=False),
    Column("finished_at", Instant()),
    Column("status", Text, nullable=False),
    Column("rows_read", BigInteger, nullable=False),
    Column("rows_written", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("error", Text),
)

sync_windows = Table(
    "sync_windows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("filters_hash", Text, nullable=False),
    Column("window_start", Instant(), nullable=False),
    Column("window_end", Instant(), nullable=False),
    Column("tier", Text, nullable=False),
    Column("api", Text, nullable=False),
    Column("proof", Text, nullable=False),
    Column("promised", BigInteger),
    Column("read", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("finished_at", Instant(), nullable=False),
    Column("error", Text),
    Index(None, "project_id", "stream", "window_end"),
)

sync_lease = Table(
    "sync_lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("acquired_at", Instant(), nullable=False),
    Column("heartbeat_at", Instant(), nullable=False),
)

sync_schedule = Table(
    "sync_schedule",
    metadata,
    Column("entry", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("next_run_at", Instant()),
    Column("failures", Integer, nullable=False),
    Column("failing_since", Instant()),
    Column("reason", Text),
    Column("needs_person", Boolean, nullable=False),
)

for _table in metadata.tables.values():
    _table.comment = TABLES[_table.name]
    for _column in _table.c:
        _column.comment = meaning_of(_table.name, _column.name)
