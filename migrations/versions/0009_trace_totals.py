"""SQLite: what the observations of a trace add up to is kept, in a table that triggers write; Postgres stays as it is.

The sums over traces, sessions and users looked every trace up in an index with an entry for each observation, at 8
microseconds a trace. The table has one row for each trace and takes a fifth of the room of that index, which is gone.
Triggers go with their table: a migration that makes `observations` anew has to make them, too.

Revision ID: 0009
"""

import runpy
from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"

FIRST, OLD = (runpy.run_path(str(Path(__file__).with_name(name))) for name in ("0006_views.py", "0007_views.py"))
MOST, numbers = OLD["MOST"], OLD["numbers"]
INDEX = "vx_observations_trace"

TOKENS = {"input": "prompt_tokens", "output": "completion_tokens", "total": "total_tokens"}
# Column of the table to what one observation `{row}` adds to it. Numbers of tokens are added in halves of 32 bits, so
# that no sum overflows and an observation can be taken out again.
AMOUNTS = {
    "observations": "1",
    "generations": "({row}.type IS 'GENERATION')",
    "errors": "({row}.level IS 'ERROR')",
    **{f"{name}_low": f"coalesce({{row}}.{column} & 4294967295, 0)" for name, column in TOKENS.items()},
    **{f"{name}_high": f"coalesce({{row}}.{column} >> 32, 0)" for name, column in TOKENS.items()},
}
READ = ("trace_id", "project_id", "type", "level", *TOKENS.values(), "deleted_at")

TABLE = (
    "CREATE TABLE vx_trace_totals (trace_id TEXT NOT NULL, project_id TEXT NOT NULL,"
    f" {', '.join(f'{name} INTEGER NOT NULL' for name in AMOUNTS)}, PRIMARY KEY (trace_id, project_id)) WITHOUT ROWID"
)


def amounts(row: str) -> dict[str, str]:
    return {name: amount.format(row=row) for name, amount in AMOUNTS.items()}


INTO = f"INSERT INTO vx_trace_totals (trace_id, project_id, {', '.join(AMOUNTS)})"
# What is there already.
FILL = (
    f"{INTO} SELECT o.trace_id, o.project_id, {', '.join(f'sum({amount})' for amount in amounts('o').values())}"
    f" FROM observations o INDEXED BY {INDEX} WHERE o.deleted_at IS NULL GROUP BY o.trace_id, o.project_id"
)


def taken_in(row: str) -> str:
    return (
        f"{INTO} SELECT {row}.trace_id, {row}.project_id, {', '.join(amounts(row).values())}"
        f" WHERE {row}.deleted_at IS NULL ON CONFLICT (trace_id, project_id)"
        f" DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in AMOUNTS)};"
    )


def taken_out(row: str) -> str:
    less = ", ".join(f"{name} = {name} - {amount}" for name, amount in amounts(row).items())
    key = f"trace_id = {row}.trace_id AND project_id = {row}.project_id"
    return f"UPDATE vx_trace_totals SET {less} WHERE {key} AND {row}.deleted_at IS NULL;"


DIFFER = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in READ)
TRIGGERS = {
    "vx_trace_totals_insert": f"AFTER INSERT ON observations BEGIN {taken_in('NEW')} END",
    "vx_trace_totals_update": f"AFTER UPDATE OF {', '.join(READ)} ON observations WHEN {DIFFER}"
    f" BEGIN {taken_out('OLD')} {taken_in('NEW')} END",
    "vx_trace_totals_delete": f"AFTER DELETE ON observations BEGIN {taken_out('OLD')} END",
}


def tokens(low: str, high: str) -> str:
    """A number of two halves: exact up to 2**63 - 1, and that number above; null where there are none."""
    carried = f"({high} + ({low} >> 32))"
    return (
        f"CASE WHEN {carried} > 2147483647 THEN {MOST} WHEN {carried} < -2147483648 THEN -{MOST} - 1"
        f" ELSE ({carried} << 32) | ({low} & 4294967295) END"
    )


TRACE_SUMMARY = f"""
    SELECT t.project_id, t.id AS trace_id, t.timestamp, t.name, t.session_id, t.user_id, t.environment, t.release,
        t.version, t.latency, t.total_cost,
        {", ".join(f"coalesce(o.{name}, 0) AS {name}" for name in ("observations", "generations", "errors"))},
        {", ".join(f"coalesce({tokens(f'o.{n}_low', f'o.{n}_high')}, 0) AS {n}_tokens" for n in TOKENS)},
        (SELECT count(*) FROM scores c
            WHERE c.project_id = t.project_id AND c.trace_id = t.id AND c.deleted_at IS NULL) AS scores
    FROM traces t LEFT JOIN vx_trace_totals o ON o.trace_id = t.id AND o.project_id = t.project_id
    WHERE t.deleted_at IS NULL"""


def of_traces(owner: str) -> str:
    """What belongs to the traces of each session or user `s`; the tables of a CROSS JOIN are read in this order."""
    total = tokens("sum(o.total_low)", "sum(o.total_high)")
    return f"""
    JOIN json_each(
        (SELECT json_array(coalesce(sum(o.observations), 0), coalesce(sum(o.errors), 0), coalesce({total}, 0))
            FROM traces x CROSS JOIN vx_trace_totals o ON o.trace_id = x.id AND o.project_id = x.project_id
            WHERE x.deleted_at IS NULL AND x.project_id = s.project_id AND x.{owner} = s.{owner}),
        '$[0]') parts"""


VIEWS = {
    "trace_summary": TRACE_SUMMARY,
    "session_summary": f"""
    SELECT s.project_id, s.session_id, s.first_timestamp, s.last_timestamp,
        round((julianday(s.last_timestamp) - julianday(s.first_timestamp)) * 86400000.0) / 1000.0 AS duration,
        s.traces, s.others AS users, {numbers("observations", "errors", "total_tokens")}, s.total_cost
    FROM ({FIRST["traces_by"]("sqlite", "session_id", "user_id")}) s{of_traces("session_id")}""",
    "user_summary": f"""
    SELECT s.project_id, s.user_id, s.first_timestamp, s.last_timestamp, s.others AS sessions, s.traces,
        {numbers("observations", "errors", "total_tokens")}, s.total_cost
    FROM ({FIRST["traces_by"]("sqlite", "user_id", "session_id")}) s{of_traces("user_id")}""",
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    op.execute(TABLE)
    op.execute(FILL)
    for name, what in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {what}")
    replace(VIEWS)
    op.execute(f"DROP INDEX {INDEX}")


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    op.execute(f"CREATE INDEX {INDEX} ON {OLD['INDEXES'][INDEX]}")
    replace({name: OLD["VIEWS"][name] for name in VIEWS})
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name}")
    op.execute("DROP TABLE vx_trace_totals")


def replace(views: dict[str, str]) -> None:
    for name, query in views.items():
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
