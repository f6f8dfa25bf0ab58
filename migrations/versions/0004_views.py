"""All views on both databases, and the indexes that they are read by.

Revision ID: 0004
"""

import runpy
from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"

MOST = 2**63 - 1
PERCENTS = (50, 95, 99)


def day(dialect: str, column: str) -> str:
    """The UTC day of an instant: `date` on Postgres, text on SQLite. Indexes hold exactly this expression."""
    return f"substr({column}, 1, 10)" if dialect == "sqlite" else f"CAST({column} AT TIME ZONE 'UTC' AS date)"


def tokens(dialect: str, column: str) -> str:
    """A sum of whole numbers: exact up to 2**63 - 1, and that number above. A plain sum fails there on SQLite."""
    if dialect != "sqlite":
        return f"CAST(least(greatest(coalesce(sum({column}), 0), {-MOST - 1}), {MOST}) AS bigint)"
    low = f"sum({column} & 4294967295)"
    high = f"(sum({column} >> 32) + ({low} >> 32))"
    return (
        f"CASE WHEN {high} > 2147483647 THEN {MOST} WHEN {high} < -2147483648 THEN -{MOST} - 1"
        f" ELSE coalesce(({high} << 32) | ({low} & 4294967295), 0) END"
    )


def costs(column: str) -> str:
    """Costs have 12 decimal places (`etl/transform/derive.py`); as whole numbers they are added without error.

    Up to 9,007 USD (2**53 units) the result is the double nearest to the sum, on every database; above, nearly so.
    """
    return f"coalesce(sum(round({column} * 1e12)), 0) / 1e12"


def table(dialect: str, name: str, alias: str, index: str) -> str:
    """A table that SQLite reads by this index: it has no statistics to choose one by, and would choose another."""
    return f"{name} {alias} INDEXED BY {index}" if dialect == "sqlite" else f"{name} {alias}"


def beside(dialect: str, parts: dict[str, str], source: str) -> tuple[str, str]:
    """Aggregates of the rows that belong to each row of a query: what to select, and what to join.

    SQLite looks each of them up, only for rows that are asked for; Postgres reads all of them at once.
    """
    if dialect == "sqlite":
        return ", ".join(f"(SELECT {part} {source}) AS {name}" for name, part in parts.items()), ""
    inner = ", ".join(f"{part} AS {name}" for name, part in parts.items())
    return ", ".join(f"parts.{name}" for name in parts), f"LEFT JOIN LATERAL (SELECT {inner} {source}) parts ON true"


def percentiles(dialect: str, group: dict[str, str], parts: dict[str, str], rows: str, values: dict[str, str]) -> str:
    """Nearest-rank percentiles and other aggregates of each group of `rows`.

    Postgres has an aggregate for it. SQLite numbers the values of a group, in the order of an index where there is
    one; a window function over all groups would not let a filter on the day through to the index.

    Args:
        dialect: `sqlite` or `postgresql`.
        group: Name to expression of what is grouped by.
        parts: Name to expression of other aggregates.
        rows: FROM and WHERE.
        values: Name to expression of what is measured; `<name>_p50` and so on are in the result.
    """
    keys = ", ".join(f"{expression} AS {name}" for name, expression in group.items())
    by = ", ".join(group.values())
    others = "".join(f", {expression} AS {name}" for name, expression in parts.items())
    wanted = [(name, expression, percent) for name, expression in values.items() for percent in PERCENTS]
    if dialect != "sqlite":
        ranked = "".join(
            f", percentile_disc(0.{percent}) WITHIN GROUP (ORDER BY {expression}) AS {name}_p{percent}"
            for name, expression, percent in wanted
        )
        return f"SELECT {keys}{others}{ranked} {rows} GROUP BY {by}"
    sizes = "".join(f", count({expression}) AS {name}_values" for name, expression in values.items())
    same = " AND ".join(f"{expression} IS g.{name}" for name, expression in group.items())
    ranked = "".join(
        f", (SELECT value FROM (SELECT {expression} AS value, row_number() OVER (ORDER BY {expression}) AS place"
        f" {rows} AND {same} AND {expression} IS NOT NULL)"
        f" WHERE place = (g.{name}_values * {percent} + 99) / 100) AS {name}_p{percent}"
        for name, expression, percent in wanted
    )
    shown = ", ".join(f"g.{name}" for name in (*group, *parts))
    return f"SELECT {shown}{ranked} FROM (SELECT {keys}{others}{sizes} {rows} GROUP BY {by}) g"


def views(dialect: str) -> dict[str, str]:
    """The query of each view."""
    observation_day, trace_day, score_day = (
        day(dialect, column) for column in ("o.start_time", "t.timestamp", "c.timestamp")
    )
    observations = "count(*)"
    errors = "count(CASE WHEN o.level = 'ERROR' THEN 1 END)"
    usage = {
        "input_tokens": tokens(dialect, "o.prompt_tokens"),
        "output_tokens": tokens(dialect, "o.completion_tokens"),
        "total_tokens": tokens(dialect, "o.total_tokens"),
    }
    usage_columns = ", ".join(f"{part} AS {name}" for name, part in usage.items())
    cost = costs("o.calculated_total_cost")
    if dialect == "sqlite":
        seconds = "round((julianday(max(t.timestamp)) - julianday(min(t.timestamp))) * 86400000.0) / 1000.0"
        join, nothing, null = "CROSS JOIN", "NULL", "NULL"  # SQLite takes the tables of a CROSS JOIN in this order
        # By a power of two, so that sums of the largest doubles stay finite and no digit is lost.
        average = f"avg(c.value / {2.0**70!r}) * {2.0**70!r}"
    else:
        seconds = "CAST(extract(epoch FROM max(t.timestamp) - min(t.timestamp)) AS double precision)"
        join, nothing, null = "JOIN", "CAST(NULL AS text)", "CAST(NULL AS double precision)"
        # Sums of doubles may overflow, and casts of the smallest numerics underflow: both are errors.
        average = "CAST(round(avg(CAST(c.value AS numeric)), 300) AS double precision)"

    trace_parts, trace_join = beside(
        dialect,
        {
            "observations": observations,
            "generations": "count(CASE WHEN o.type = 'GENERATION' THEN 1 END)",
            "errors": errors,
            **usage,
        },
        "FROM observations o WHERE o.project_id = t.project_id AND o.trace_id = t.id AND o.deleted_at IS NULL",
    )
    session_parts, session_join = beside(
        dialect,
        {"observations": observations, "errors": errors, "total_tokens": usage["total_tokens"]},
        f"FROM traces x {join} observations o ON o.project_id = x.project_id AND o.trace_id = x.id"
        " WHERE o.deleted_at IS NULL AND x.deleted_at IS NULL"
        " AND x.project_id = s.project_id AND x.session_id = s.session_id",
    )
    calls = (
        f"FROM {table(dialect, 'observations', 'o', 'vx_observations_day')}"
        " WHERE o.deleted_at IS NULL AND o.model IS NOT NULL"
    )
    call_day = {"day": observation_day, "project_id": "o.project_id"}
    call_parts = {"count": "count(*)", "errors": errors}
    call_values = {"latency": "o.latency", "first_token": "o.time_to_first_token"}
    traces = f"FROM {table(dialect, 'traces', 't', 'vx_traces_day')} WHERE t.deleted_at IS NULL"
    trace_group = {"day": trace_day, "project_id": "t.project_id"}
    trace_counts = {
        "count": "count(*)",
        # All errors are looked up once, in their small index; asking for each trace by itself took twice as long.
        "errors": "count(CASE WHEN (t.project_id, t.id) IN (SELECT o.project_id, o.trace_id FROM"
        f" {table(dialect, 'observations', 'o', 'vx_observations_errors')}"
        " WHERE o.level = 'ERROR' AND o.deleted_at IS NULL) THEN 1 END)",
    }

    def latencies(scope: str, name: str, query: str, first_token: str) -> str:
        first_tokens = ", ".join(first_token.format(percent) for percent in PERCENTS)
        return (
            f"SELECT p.project_id, p.day, '{scope}' AS scope, {name} AS name, p.count, p.errors, p.latency_p50,"
            f" p.latency_p95, p.latency_p99, {first_tokens} FROM ({query}) p"
        )

    def of_traces(group: dict[str, str]) -> str:
        return percentiles(dialect, trace_group | group, trace_counts, traces, {"latency": "t.latency"})

    def of_calls(group: dict[str, str]) -> str:
        return percentiles(dialect, call_day | group, call_parts, calls, call_values)

    no_token, token = f"{null} AS first_token_p{{}}", "p.first_token_p{}"
    return {
        "trace_summary": f"""
            SELECT t.project_id, t.id AS trace_id, t.timestamp, t.name, t.session_id, t.user_id, t.environment,
                t.release, t.version, t.latency, t.total_cost, {trace_parts},
                (SELECT count(*) FROM scores c
                    WHERE c.project_id = t.project_id AND c.trace_id = t.id AND c.deleted_at IS NULL) AS scores
            FROM traces t {trace_join}
            WHERE t.deleted_at IS NULL""",
        "session_summary": f"""
            SELECT s.project_id, s.session_id, s.first_timestamp, s.last_timestamp, s.duration, s.traces, s.users,
                {session_parts}, s.total_cost
            FROM (
                SELECT t.project_id, t.session_id, min(t.timestamp) AS first_timestamp,
                    max(t.timestamp) AS last_timestamp, {seconds} AS duration, count(*) AS traces,
                    count(DISTINCT t.user_id) AS users, {costs("t.total_cost")} AS total_cost
                FROM traces t
                WHERE t.deleted_at IS NULL AND t.session_id IS NOT NULL
                GROUP BY t.project_id, t.session_id
            ) s {session_join}""",
        "daily_usage": f"""
            SELECT o.project_id, {observation_day} AS day, o.model, count(*) AS calls, {usage_columns},
                {cost} AS total_cost
            {calls}
            GROUP BY {observation_day}, o.project_id, o.model""",
        "daily_cost": f"""
            SELECT c.project_id, c.day, t.name AS trace_name, t.user_id, t.session_id,
                nullif(c.trace_id, '') AS trace_id, c.model, c.calls, c.input_tokens, c.output_tokens, c.total_tokens,
                c.total_cost
            FROM (
                SELECT o.project_id, {observation_day} AS day, o.trace_id, o.model, count(*) AS calls, {usage_columns},
                    {cost} AS total_cost
                {calls}
                GROUP BY {observation_day}, o.project_id, o.trace_id, o.model
            ) c
            LEFT JOIN traces t ON t.project_id = c.project_id AND t.id = c.trace_id AND t.deleted_at IS NULL""",
        "latency_daily": " UNION ALL ".join(
            (
                latencies("traces", nothing, of_traces({}), no_token),
                latencies("trace_name", "p.name", of_traces({"name": "t.name"}), no_token),
                latencies("calls", nothing, of_calls({}), token),
                latencies("model", "p.name", of_calls({"name": "o.model"}), token),
            )
        ),
        # Every user is in `p`, so a filter on the user reaches both.
        "user_summary": f"""
            SELECT s.project_id, s.user_id, s.first_timestamp, s.last_timestamp, s.sessions, s.traces,
                p.observations, p.errors, p.total_tokens, s.total_cost
            FROM (
                SELECT t.project_id, t.user_id, min(t.timestamp) AS first_timestamp,
                    max(t.timestamp) AS last_timestamp, count(DISTINCT t.session_id) AS sessions, count(*) AS traces,
                    {costs("t.total_cost")} AS total_cost
                FROM traces t
                WHERE t.deleted_at IS NULL AND t.user_id IS NOT NULL
                GROUP BY t.project_id, t.user_id
            ) s
            JOIN (
                SELECT x.project_id, x.user_id, count(o.trace_id) AS observations, {errors} AS errors,
                    {usage["total_tokens"]} AS total_tokens
                FROM traces x
                LEFT JOIN observations o
                    ON o.project_id = x.project_id AND o.trace_id = x.id AND o.deleted_at IS NULL
                WHERE x.deleted_at IS NULL AND x.user_id IS NOT NULL
                GROUP BY x.project_id, x.user_id
            ) p ON p.project_id = s.project_id AND p.user_id = s.user_id""",
        "score_summary": f"""
            SELECT c.project_id, {score_day} AS day, c.name, c.source, c.data_type,
                CASE WHEN c.data_type = 'CATEGORICAL' THEN c.string_value END AS category, count(*) AS scores,
                {average} AS average,
                min(c.value) AS minimum, max(c.value) AS maximum
            FROM {table(dialect, "scores", "c", "vx_scores_day")}
            WHERE c.deleted_at IS NULL
            GROUP BY {score_day}, c.project_id, c.name, c.source, c.data_type,
                CASE WHEN c.data_type = 'CATEGORICAL' THEN c.string_value END""",
        "error_observations": f"""
            SELECT o.project_id, o.start_time, nullif(o.trace_id, '') AS trace_id, o.id AS observation_id, o.type,
                o.name, o.model, o.status_message, o.environment, o.latency, t.name AS trace_name, t.session_id,
                t.user_id
            FROM {table(dialect, "observations", "o", "vx_observations_errors")}
            LEFT JOIN traces t ON t.project_id = o.project_id AND t.id = o.trace_id AND t.deleted_at IS NULL
            WHERE o.deleted_at IS NULL AND o.level = 'ERROR'""",
        "prompt_version_stats": "SELECT p.project_id, p.prompt_name, p.prompt_version, p.first_used, p.last_used,"
        " p.calls, p.errors, p.input_tokens, p.output_tokens, p.total_tokens, p.total_cost,"
        " p.total_cost / p.calls AS average_cost, p.latency_p50, p.latency_p95, p.latency_p99,"
        " p.first_token_p50, p.first_token_p95, p.first_token_p99 FROM ("
        + percentiles(
            dialect,
            {"project_id": "o.project_id", "prompt_name": "o.prompt_name", "prompt_version": "o.prompt_version"},
            {
                "first_used": "min(o.start_time)",
                "last_used": "max(o.start_time)",
                "calls": "count(*)",
                "errors": errors,
                **usage,
                "total_cost": cost,
            },
            f"FROM {table(dialect, 'observations', 'o', 'vx_observations_prompt')}"
            " WHERE o.deleted_at IS NULL AND o.prompt_name IS NOT NULL",
            call_values,
        )
        + ") p",
    }


def indexes(dialect: str) -> dict[str, str]:
    """What each index is on."""
    start_day, time_day = day(dialect, "start_time"), day(dialect, "timestamp")
    if dialect == "sqlite":
        # They hold all that the views need of a row: its numbers lie behind its large texts. A column whose absence
        # is the condition of the index has to be in it, too; and a time beside its day.
        return {
            "vx_observations_day": f"observations ({start_day}, project_id, model, latency, time_to_first_token,"
            " prompt_tokens, completion_tokens, total_tokens, calculated_total_cost, level, trace_id, start_time,"
            " deleted_at) WHERE deleted_at IS NULL AND model IS NOT NULL",
            "vx_observations_trace": "observations (project_id, trace_id, type, level, total_tokens, prompt_tokens,"
            " completion_tokens, deleted_at) WHERE deleted_at IS NULL",
            "vx_observations_errors": "observations (start_time, project_id, trace_id, level, deleted_at)"
            " WHERE level = 'ERROR' AND deleted_at IS NULL",
            "vx_observations_prompt": "observations (project_id, prompt_name, prompt_version, latency,"
            " time_to_first_token, start_time, level, prompt_tokens, completion_tokens, total_tokens,"
            " calculated_total_cost, deleted_at) WHERE prompt_name IS NOT NULL AND deleted_at IS NULL",
            "vx_traces_timestamp": "traces (timestamp)",
            "vx_traces_day": f"traces ({time_day}, project_id, name, latency, id, timestamp, deleted_at)"
            " WHERE deleted_at IS NULL",
            "vx_traces_session": "traces (project_id, session_id, timestamp, user_id, total_cost, id, deleted_at)"
            " WHERE deleted_at IS NULL",
            "vx_traces_user": "traces (project_id, user_id, timestamp, session_id, total_cost, id, deleted_at)"
            " WHERE deleted_at IS NULL",
            "vx_scores_day": f"scores ({time_day}, project_id, name, source, data_type, string_value, value,"
            " timestamp, deleted_at) WHERE deleted_at IS NULL",
        }
    # An entry of a btree holds at most 2,704 bytes, and a longer text would not be stored at all; names and users are
    # of any length. Their hashes are not.
    return {
        "vx_observations_day": f"observations (({start_day})) WHERE deleted_at IS NULL AND model IS NOT NULL",
        "vx_observations_errors": "observations (start_time, project_id, trace_id)"
        " WHERE level = 'ERROR' AND deleted_at IS NULL",
        "vx_observations_prompt": "observations USING hash (prompt_name)"
        " WHERE prompt_name IS NOT NULL AND deleted_at IS NULL",
        "vx_traces_timestamp": "traces (timestamp)",
        "vx_traces_day": f"traces (({time_day})) WHERE deleted_at IS NULL",
        "vx_traces_user": "traces USING hash (user_id) WHERE deleted_at IS NULL",
        "vx_scores_day": f"scores (({time_day})) WHERE deleted_at IS NULL",
    }


BEFORE = ("trace_summary", "session_summary", "daily_usage")


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    for name in BEFORE:
        op.execute(f"DROP VIEW {name}")
    for name, columns in indexes(dialect).items():
        op.execute(f"CREATE INDEX {name} ON {columns}")
    for name, query in views(dialect).items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for name in reversed(views(dialect)):
        op.execute(f"DROP VIEW {name}")
    for name in indexes(dialect):
        op.execute(f"DROP INDEX {name}")
    first = runpy.run_path(str(Path(__file__).with_name("0002_views.py")))
    for name in BEFORE:
        op.execute(f"CREATE VIEW {name} AS{first['VIEWS'][name].format(**first['DIALECTS'][dialect])}")
