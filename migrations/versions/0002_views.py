"""The first views: traces, sessions, usage per day, and what was read.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

# The two dialects differ in how they print a day and subtract instants; everything else is one text.
DIALECTS = {
    "sqlite": {
        "day": "substr(o.start_time, 1, 10)",
        "duration": "round((julianday(max(t.timestamp)) - julianday(min(t.timestamp))) * 86400000.0) / 1000.0",
    },
    "postgresql": {
        "day": "to_char(o.start_time AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
        "duration": "CAST(extract(epoch FROM max(t.timestamp) - min(t.timestamp)) AS double precision)",
    },
}


def sum_of_costs(column: str) -> str:
    """Costs have 12 decimal places (`etl/transform/derive.py`); as whole numbers they are added without error.

    Up to 9,007 USD (2**53 units) the result is the double nearest to the sum, on every database; above, nearly so.
    """
    return f"coalesce(sum(round({column} * 1e12)), 0) / 1e12"


OF_TRACE = "FROM observations o WHERE o.project_id = t.project_id AND o.trace_id = t.id AND o.deleted_at IS NULL"
OF_SESSION = (
    "FROM traces x JOIN observations o ON o.project_id = x.project_id AND o.trace_id = x.id AND o.deleted_at IS NULL"
    " WHERE x.project_id = s.project_id AND x.session_id = s.session_id AND x.deleted_at IS NULL"
)


def later(alias: str) -> str:
    """Reads of parts of the window `w` after it that make them good; rows left without contents do not mend that."""
    return (
        f"SELECT 1 FROM sync_windows {alias} WHERE {alias}.project_id = w.project_id AND {alias}.stream = w.stream"
        f" AND {alias}.filters_hash = w.filters_hash AND {alias}.id > w.id"
        f" AND ({alias}.proof IN ('counted', 'walked') OR {alias}.proof = 'partial' AND w.proof <> 'partial')"
    )


VIEWS = {
    "trace_summary": f"""
        SELECT t.project_id, t.id AS trace_id, t.timestamp, t.name, t.session_id, t.user_id, t.environment, t.release,
            t.version, t.latency, t.total_cost,
            (SELECT count(*) {OF_TRACE}) AS observations,
            (SELECT count(*) {OF_TRACE} AND o.type = 'GENERATION') AS generations,
            (SELECT count(*) {OF_TRACE} AND o.level = 'ERROR') AS errors,
            (SELECT CAST(coalesce(sum(o.prompt_tokens), 0) AS bigint) {OF_TRACE}) AS input_tokens,
            (SELECT CAST(coalesce(sum(o.completion_tokens), 0) AS bigint) {OF_TRACE}) AS output_tokens,
            (SELECT CAST(coalesce(sum(o.total_tokens), 0) AS bigint) {OF_TRACE}) AS total_tokens,
            (SELECT count(*) FROM scores c
                WHERE c.project_id = t.project_id AND c.trace_id = t.id AND c.deleted_at IS NULL) AS scores
        FROM traces t
        WHERE t.deleted_at IS NULL""",
    "session_summary": f"""
        SELECT s.project_id, s.session_id, s.first_timestamp, s.last_timestamp, s.duration, s.traces, s.users,
            (SELECT count(*) {OF_SESSION}) AS observations,
            (SELECT count(*) {OF_SESSION} AND o.level = 'ERROR') AS errors,
            (SELECT CAST(coalesce(sum(o.total_tokens), 0) AS bigint) {OF_SESSION}) AS total_tokens,
            s.total_cost
        FROM (
            SELECT t.project_id, t.session_id, min(t.timestamp) AS first_timestamp, max(t.timestamp) AS last_timestamp,
                {{duration}} AS duration, count(*) AS traces, count(DISTINCT t.user_id) AS users,
                {sum_of_costs("t.total_cost")} AS total_cost
            FROM traces t
            WHERE t.deleted_at IS NULL AND t.session_id IS NOT NULL
            GROUP BY t.project_id, t.session_id
        ) s""",
    "daily_usage": f"""
        SELECT o.project_id, {{day}} AS day, o.model, count(*) AS calls,
            CAST(coalesce(sum(o.prompt_tokens), 0) AS bigint) AS input_tokens,
            CAST(coalesce(sum(o.completion_tokens), 0) AS bigint) AS output_tokens,
            CAST(coalesce(sum(o.total_tokens), 0) AS bigint) AS total_tokens,
            {sum_of_costs("o.calculated_total_cost")} AS total_cost
        FROM observations o
        WHERE o.deleted_at IS NULL AND o.model IS NOT NULL
        GROUP BY o.project_id, {{day}}, o.model""",
    # Neighbouring windows that were read whole become one range; of the others those that later
    # reads did not make good: nothing covers the start, or the end of something that lies before the end.
    "sync_coverage": f"""
        WITH whole AS (
            SELECT w.project_id, w.stream, w.id, w.window_start, w.window_end, w.finished_at,
                max(w.window_end) OVER (
                    PARTITION BY w.project_id, w.stream ORDER BY w.window_start, w.window_end, w.id
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) AS reached
            FROM sync_windows w
            JOIN sync_state s
                ON s.project_id = w.project_id AND s.stream = w.stream AND s.filters_hash = w.filters_hash
            WHERE w.proof IN ('counted', 'walked', 'partial')
        ), islands AS (
            SELECT project_id, stream, window_start, window_end, finished_at,
                sum(CASE WHEN window_start <= reached THEN 0 ELSE 1 END) OVER (
                    PARTITION BY project_id, stream ORDER BY window_start, window_end, id
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS island
            FROM whole
        )
        SELECT project_id, stream, min(window_start) AS range_start, max(window_end) AS range_end,
            'covered' AS state, max(finished_at) AS read_at
        FROM islands
        GROUP BY project_id, stream, island
        UNION ALL
        SELECT w.project_id, w.stream, w.window_start, w.window_end, w.proof, max(w.finished_at)
        FROM sync_windows w
        JOIN sync_state s ON s.project_id = w.project_id AND s.stream = w.stream AND s.filters_hash = w.filters_hash
        WHERE w.proof IN ('partial', 'doubtful', 'failed') AND (
            NOT EXISTS ({later("a")} AND a.window_start <= w.window_start AND a.window_end > w.window_start)
            OR EXISTS (
                {later("a")} AND a.window_end > w.window_start AND a.window_end < w.window_end AND NOT EXISTS (
                    {later("b")} AND b.window_start <= a.window_end AND b.window_end > a.window_end
                )
            )
        )
        GROUP BY w.project_id, w.stream, w.window_start, w.window_end, w.proof""",
}


def upgrade() -> None:
    words = DIALECTS[op.get_bind().dialect.name]
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS{query.format(**words)}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
