"""SQLite: the views that read the most rows do so with less work. Postgres stays as it is.

Revision ID: 0007
"""

import runpy
from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"

FIRST, OLD = (runpy.run_path(str(Path(__file__).with_name(name))) for name in ("0004_views.py", "0006_views.py"))
MOST = 2**63 - 1


def tokens(column: str) -> str:
    """A sum of whole numbers: exact up to 2**63 - 1, and that number above; a plain sum fails there on SQLite.

    Both halves of the numbers are added. The upper one is nearly always zero, and then left out.
    """
    low = f"sum({column} & 4294967295)"
    high = f"sum({column} >> 32) FILTER (WHERE {column} >> 32 <> 0)"
    carried = f"({high} + ({low} >> 32))"
    return (
        f"CASE WHEN {high} IS NULL THEN coalesce({low}, 0)"
        f" WHEN {carried} > 2147483647 THEN {MOST} WHEN {carried} < -2147483648 THEN -{MOST} - 1"
        f" ELSE ({carried} << 32) | ({low} & 4294967295) END"
    )


ERRORS = "count(*) FILTER (WHERE o.level = 'ERROR')"


def numbers(*names: str) -> str:
    """Columns from `parts`, a list in JSON of all that is looked up for a row; SQLite has no LATERAL.

    They are taken out of its text, the hidden column `json` of `json_each`: `value` is written anew for each of them.
    """
    return ", ".join(f"json_extract(parts.json, '$[{place}]') AS {name}" for place, name in enumerate(names))


TRACE_SUMMARY = f"""
    SELECT t.project_id, t.id AS trace_id, t.timestamp, t.name, t.session_id, t.user_id, t.environment, t.release,
        t.version, t.latency, t.total_cost,
        {numbers("observations", "generations", "errors", "input_tokens", "output_tokens", "total_tokens")},
        (SELECT count(*) FROM scores c
            WHERE c.project_id = t.project_id AND c.trace_id = t.id AND c.deleted_at IS NULL) AS scores
    FROM traces t
    JOIN json_each(
        (SELECT json_array(
                count(*), count(*) FILTER (WHERE o.type = 'GENERATION'), {ERRORS},
                {tokens("o.prompt_tokens")}, {tokens("o.completion_tokens")}, {tokens("o.total_tokens")})
            FROM observations o
            WHERE o.project_id = t.project_id AND o.trace_id = t.id AND o.deleted_at IS NULL),
        '$[0]') parts
    WHERE t.deleted_at IS NULL"""


def of_traces(owner: str) -> str:
    """What belongs to the traces of each session or user `s`; the tables of a CROSS JOIN are read in this order."""
    return f"""
    JOIN json_each(
        (SELECT json_array(count(*), {ERRORS}, {tokens("o.total_tokens")})
            FROM traces x CROSS JOIN observations o ON o.project_id = x.project_id AND o.trace_id = x.id
            WHERE o.deleted_at IS NULL AND x.deleted_at IS NULL
                AND x.project_id = s.project_id AND x.{owner} = s.{owner}),
        '$[0]') parts"""


SESSION_SUMMARY = f"""
    SELECT s.project_id, s.session_id, s.first_timestamp, s.last_timestamp,
        round((julianday(s.last_timestamp) - julianday(s.first_timestamp)) * 86400000.0) / 1000.0 AS duration,
        s.traces, s.others AS users, {numbers("observations", "errors", "total_tokens")}, s.total_cost
    FROM ({OLD["traces_by"]("sqlite", "session_id", "user_id")}) s{of_traces("session_id")}"""

USER_SUMMARY = f"""
    SELECT s.project_id, s.user_id, s.first_timestamp, s.last_timestamp, s.others AS sessions, s.traces,
        {numbers("observations", "errors", "total_tokens")}, s.total_cost
    FROM ({OLD["traces_by"]("sqlite", "user_id", "session_id")}) s{of_traces("user_id")}"""

# Grouped by the trace first: most rows differ in it, so sorting them compares one column, and traces are then looked
# up in the order of their index.
DAILY_COST = f"""
    SELECT c.project_id, c.day, t.name AS trace_name, t.user_id, t.session_id, nullif(c.trace_id, '') AS trace_id,
        c.model, c.calls, c.input_tokens, c.output_tokens, c.total_tokens, c.total_cost
    FROM (
        SELECT o.project_id, substr(o.start_time, 1, 10) AS day, o.trace_id, o.model, count(*) AS calls,
            {tokens("o.prompt_tokens")} AS input_tokens,
            {tokens("o.completion_tokens")} AS output_tokens,
            {tokens("o.total_tokens")} AS total_tokens,
            {OLD["costs"]("o.calculated_total_cost")} AS total_cost
        FROM observations o INDEXED BY vx_observations_day
        WHERE o.deleted_at IS NULL AND o.model IS NOT NULL
        GROUP BY o.trace_id, o.model, substr(o.start_time, 1, 10), o.project_id
    ) c
    LEFT JOIN traces t INDEXED BY vx_traces_id
        ON t.project_id = c.project_id AND t.id = c.trace_id AND t.deleted_at IS NULL"""

VIEWS = {
    "trace_summary": TRACE_SUMMARY,
    "session_summary": SESSION_SUMMARY,
    "user_summary": USER_SUMMARY,
    "daily_cost": DAILY_COST,
}

INDEXES = {
    # The trace before the project, which is the same in nearly all rows: a search then compares one column.
    "vx_observations_trace": "observations (trace_id, project_id, type, level, total_tokens, prompt_tokens,"
    " completion_tokens, deleted_at) WHERE deleted_at IS NULL",
    "vx_traces_id": "traces (id, project_id, name, user_id, session_id, deleted_at) WHERE deleted_at IS NULL",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        replace(VIEWS, INDEXES)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        replace({name: OLD["views"]("sqlite")[name] for name in VIEWS}, FIRST["indexes"]("sqlite"))


def replace(views: dict[str, str], indexes: dict[str, str]) -> None:
    """Makes the views and indexes of this revision anew; those that `indexes` does not know are gone after it."""
    for name in views:
        op.execute(f"DROP VIEW {name}")
    for name in INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {name}")
        if name in indexes:
            op.execute(f"CREATE INDEX {name} ON {indexes[name]}")
    for name, query in views.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
