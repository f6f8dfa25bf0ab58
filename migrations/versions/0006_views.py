"""The day of a view is text on both databases, and what belongs to a row is looked up once for all its columns.

Revision ID: 0006
"""

import runpy
from pathlib import Path

from alembic import op

from etl.load.comments import comment_on_all

revision = "0006"
down_revision = "0005"

OLD = runpy.run_path(str(Path(__file__).with_name("0004_views.py")))
tokens, costs, table, PERCENTS = OLD["tokens"], OLD["costs"], OLD["table"], OLD["PERCENTS"]
INSTANTS = {"observations": "start_time", "traces": "timestamp", "scores": "timestamp"}


def date(dialect: str, column: str) -> str:
    """The UTC day of an instant: what rows are grouped by."""
    return f"substr({column}, 1, 10)" if dialect == "sqlite" else f"CAST({column} AT TIME ZONE 'UTC' AS date)"


def day(dialect: str, column: str) -> str:
    """The UTC day of an instant as `YYYY-MM-DD`. Indexes hold exactly this expression.

    On Postgres neither `to_char` nor a cast of a date to text may stand in an index, for both hang on settings; these
    functions do not. Rows are grouped by the date itself, which is worked out in a tenth of the time.
    """
    if dialect == "sqlite":
        return date(dialect, column)
    parts = ("year", 4), ("month", 2), ("day", 2)
    return " || '-' || ".join(
        f"lpad(CAST(date_part('{part}', {date(dialect, column)}) AS text), {width}, '0')" for part, width in parts
    )


def beside(dialect: str, parts: dict[str, str], source: str, name: str = "parts") -> tuple[dict[str, str], str]:
    """Aggregates of the rows that belong to each row of a query: how to select each, and what to join.

    Each is looked up for the rows that are asked for, all aggregates at once. SQLite has no LATERAL, but the argument
    of a table-valued function may name the tables before it.
    """
    if dialect == "sqlite":
        shown = {part: f"json_extract({name}.value, '$[{place}]')" for place, part in enumerate(parts)}
        return shown, f"JOIN json_each((SELECT json_array(json_array({', '.join(parts.values())})) {source})) {name}"
    inner = ", ".join(f"{expression} AS {part}" for part, expression in parts.items())
    return {part: f"{name}.{part}" for part in parts}, f"CROSS JOIN LATERAL (SELECT {inner} {source}) {name}"


def columns(expressions: dict[str, str]) -> str:
    return ", ".join(f"{expression} AS {name}" for name, expression in expressions.items())


def percentiles(
    dialect: str, keys: dict[str, tuple[str, str]], parts: dict[str, str], rows: str, values: dict[str, str]
) -> str:
    """Nearest-rank percentiles and other aggregates of each group of `rows`.

    Postgres has an aggregate for it. SQLite numbers the values of a group, in the order of an index where there is
    one; a window function over all groups would not let a filter on the day through to the index.

    Args:
        dialect: `sqlite` or `postgresql`.
        keys: Name to what is shown of a group, and what is grouped by; on SQLite these are the same.
        parts: Name to expression of other aggregates.
        rows: FROM and WHERE.
        values: Name to expression of what is measured; `<name>_p50` and so on are in the result.
    """
    shown = {name: expression for name, (expression, _) in keys.items()}
    by = ", ".join(expression for _, expression in keys.values())
    if dialect != "sqlite":
        ranked = {
            f"{name}_p{percent}": f"percentile_disc(0.{percent}) WITHIN GROUP (ORDER BY {expression})"
            for name, expression in values.items()
            for percent in PERCENTS
        }
        return f"SELECT {columns(shown | parts | ranked)} {rows} GROUP BY {by}"
    sizes = {f"{name}_values": f"count({expression})" for name, expression in values.items()}
    same = " AND ".join(f"{expression} IS g.{name}" for name, expression in shown.items())
    found, joins = {name: f"g.{name}" for name in (*keys, *parts)}, ""
    for name, expression in values.items():
        # JSON would cut digits off a number; `quote` writes as many as it takes to read the same one again.
        ranks = {
            f"{name}_p{percent}": f"max(CASE WHEN place = (g.{name}_values * {percent} + 99) / 100"
            " THEN quote(value) END)"
            for percent in PERCENTS
        }
        numbered = (
            f"FROM (SELECT {expression} AS value, row_number() OVER (ORDER BY {expression}) AS place"
            f" {rows} AND {same} AND {expression} IS NOT NULL)"
        )
        texts, join = beside(dialect, ranks, numbered, f"{name}_ranks")
        found |= {rank: f"CAST({text} AS REAL)" for rank, text in texts.items()}
        joins += f" {join}"
    return f"SELECT {columns(found)} FROM (SELECT {columns(shown | parts | sizes)} {rows} GROUP BY {by}) g{joins}"


def traces_by(dialect: str, owner: str, other: str) -> str:
    """Times, cost and number of the traces of each session or user, and how many different `others` they have.

    Postgres sorts all rows for `count(DISTINCT …)`; grouping twice takes half the time. SQLite reads an index in order.
    """
    whole = f"FROM traces t WHERE t.deleted_at IS NULL AND t.{owner} IS NOT NULL GROUP BY t.project_id, t.{owner}"
    if dialect == "sqlite":
        return f"""
            SELECT t.project_id, t.{owner}, min(t.timestamp) AS first_timestamp, max(t.timestamp) AS last_timestamp,
                count(*) AS traces, count(DISTINCT t.{other}) AS others, {costs("t.total_cost")} AS total_cost
            {whole}"""
    return f"""
        SELECT project_id, {owner}, min(first_timestamp) AS first_timestamp, max(last_timestamp) AS last_timestamp,
            CAST(sum(traces) AS bigint) AS traces, count({other}) AS others,
            coalesce(sum(cost_units), 0) / 1e12 AS total_cost
        FROM (
            SELECT t.project_id, t.{owner}, t.{other}, min(t.timestamp) AS first_timestamp,
                max(t.timestamp) AS last_timestamp, count(*) AS traces, sum(round(t.total_cost * 1e12)) AS cost_units
            {whole}, t.{other}
        ) parts
        GROUP BY project_id, {owner}"""


def views(dialect: str) -> dict[str, str]:
    """The query of each view that is new."""
    call_day, trace_day, score_day = (
        (day(dialect, column), date(dialect, column)) for column in ("o.start_time", "t.timestamp", "c.timestamp")
    )
    observations = "count(*)"
    errors = "count(CASE WHEN o.level = 'ERROR' THEN 1 END)"
    usage = {
        "input_tokens": tokens(dialect, "o.prompt_tokens"),
        "output_tokens": tokens(dialect, "o.completion_tokens"),
        "total_tokens": tokens(dialect, "o.total_tokens"),
    }
    cost = costs("o.calculated_total_cost")
    if dialect == "sqlite":
        seconds = "round((julianday(s.last_timestamp) - julianday(s.first_timestamp)) * 86400000.0) / 1000.0"
        join, nothing, null = "CROSS JOIN", "NULL", "NULL"  # SQLite takes the tables of a CROSS JOIN in this order
        # By a power of two, so that sums of the largest doubles stay finite and no digit is lost.
        average = f"avg(c.value / {2.0**70!r}) * {2.0**70!r}"
    else:
        seconds = "CAST(extract(epoch FROM s.last_timestamp - s.first_timestamp) AS double precision)"
        join, nothing, null = "JOIN", "CAST(NULL AS text)", "CAST(NULL AS double precision)"
        # Sums of doubles may overflow, and casts of the smallest numerics underflow: both are errors.
        average = "CAST(round(avg(CAST(c.value AS numeric)), 300) AS double precision)"

    of_trace, trace_join = beside(
        dialect,
        {
            "observations": observations,
            "generations": "count(CASE WHEN o.type = 'GENERATION' THEN 1 END)",
            "errors": errors,
            **usage,
        },
        "FROM observations o WHERE o.project_id = t.project_id AND o.trace_id = t.id AND o.deleted_at IS NULL",
    )

    def of_traces_of(owner: str) -> tuple[dict[str, str], str]:
        """What belongs to the traces of each session or user `s`."""
        return beside(
            dialect,
            {"observations": observations, "errors": errors, "total_tokens": usage["total_tokens"]},
            f"FROM traces x {join} observations o ON o.project_id = x.project_id AND o.trace_id = x.id"
            " WHERE o.deleted_at IS NULL AND x.deleted_at IS NULL"
            f" AND x.project_id = s.project_id AND x.{owner} = s.{owner}",
        )

    of_session, session_join = of_traces_of("session_id")
    if dialect == "sqlite":
        of_user, user_join = of_traces_of("user_id")
    else:
        # A user may have very many traces: read at once rather than looked up. Every user is in `p`, so a filter on
        # the user reaches both.
        of_user = {name: f"p.{name}" for name in of_session}
        user_join = f"""
            JOIN (
                SELECT x.project_id, x.user_id, count(o.trace_id) AS observations, {errors} AS errors,
                    {usage["total_tokens"]} AS total_tokens
                FROM traces x
                LEFT JOIN observations o
                    ON o.project_id = x.project_id AND o.trace_id = x.id AND o.deleted_at IS NULL
                WHERE x.deleted_at IS NULL AND x.user_id IS NOT NULL
                GROUP BY x.project_id, x.user_id
            ) p ON p.project_id = s.project_id AND p.user_id = s.user_id"""
    calls = (
        f"FROM {table(dialect, 'observations', 'o', 'vx_observations_day')}"
        " WHERE o.deleted_at IS NULL AND o.model IS NOT NULL"
    )
    call_keys = {"day": call_day, "project_id": ("o.project_id",) * 2}
    call_parts = {"count": "count(*)", "errors": errors}
    call_values = {"latency": "o.latency", "first_token": "o.time_to_first_token"}
    traces = f"FROM {table(dialect, 'traces', 't', 'vx_traces_day')} WHERE t.deleted_at IS NULL"
    trace_keys = {"day": trace_day, "project_id": ("t.project_id",) * 2}
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

    def of_traces(keys: dict[str, tuple[str, str]]) -> str:
        return percentiles(dialect, trace_keys | keys, trace_counts, traces, {"latency": "t.latency"})

    def of_calls(keys: dict[str, tuple[str, str]]) -> str:
        return percentiles(dialect, call_keys | keys, call_parts, calls, call_values)

    no_token, token = f"{null} AS first_token_p{{}}", "p.first_token_p{}"
    category = "CASE WHEN c.data_type = 'CATEGORICAL' THEN c.string_value END"
    return {
        "trace_summary": f"""
            SELECT t.project_id, t.id AS trace_id, t.timestamp, t.name, t.session_id, t.user_id, t.environment,
                t.release, t.version, t.latency, t.total_cost, {columns(of_trace)},
                (SELECT count(*) FROM scores c
                    WHERE c.project_id = t.project_id AND c.trace_id = t.id AND c.deleted_at IS NULL) AS scores
            FROM traces t {trace_join}
            WHERE t.deleted_at IS NULL""",
        "session_summary": f"""
            SELECT s.project_id, s.session_id, s.first_timestamp, s.last_timestamp, {seconds} AS duration, s.traces,
                s.others AS users, {columns(of_session)}, s.total_cost
            FROM ({traces_by(dialect, "session_id", "user_id")}) s {session_join}""",
        "daily_usage": f"""
            SELECT o.project_id, {call_day[0]} AS day, o.model, count(*) AS calls, {columns(usage)},
                {cost} AS total_cost
            {calls}
            GROUP BY {call_day[1]}, o.project_id, o.model""",
        "daily_cost": f"""
            SELECT c.project_id, c.day, t.name AS trace_name, t.user_id, t.session_id,
                nullif(c.trace_id, '') AS trace_id, c.model, c.calls, c.input_tokens, c.output_tokens, c.total_tokens,
                c.total_cost
            FROM (
                SELECT o.project_id, {call_day[0]} AS day, o.trace_id, o.model, count(*) AS calls, {columns(usage)},
                    {cost} AS total_cost
                {calls}
                GROUP BY {call_day[1]}, o.project_id, o.trace_id, o.model
            ) c
            LEFT JOIN traces t ON t.project_id = c.project_id AND t.id = c.trace_id AND t.deleted_at IS NULL""",
        "latency_daily": " UNION ALL ".join(
            (
                latencies("traces", nothing, of_traces({}), no_token),
                latencies("trace_name", "p.name", of_traces({"name": ("t.name",) * 2}), no_token),
                latencies("calls", nothing, of_calls({}), token),
                latencies("model", "p.name", of_calls({"name": ("o.model",) * 2}), token),
            )
        ),
        "user_summary": f"""
            SELECT s.project_id, s.user_id, s.first_timestamp, s.last_timestamp, s.others AS sessions, s.traces,
                {columns(of_user)}, s.total_cost
            FROM ({traces_by(dialect, "user_id", "session_id")}) s {user_join}""",
        "score_summary": f"""
            SELECT c.project_id, {score_day[0]} AS day, c.name, c.source, c.data_type,
                {category} AS category, count(*) AS scores, {average} AS average,
                min(c.value) AS minimum, max(c.value) AS maximum
            FROM {table(dialect, "scores", "c", "vx_scores_day")}
            WHERE c.deleted_at IS NULL
            GROUP BY {score_day[1]}, c.project_id, c.name, c.source, c.data_type, {category}""",
        "prompt_version_stats": "SELECT p.project_id, p.prompt_name, p.prompt_version, p.first_used, p.last_used,"
        " p.calls, p.errors, p.input_tokens, p.output_tokens, p.total_tokens, p.total_cost,"
        " p.total_cost / p.calls AS average_cost, p.latency_p50, p.latency_p95, p.latency_p99,"
        " p.first_token_p50, p.first_token_p95, p.first_token_p99 FROM ("
        + percentiles(
            dialect,
            {name: (f"o.{name}",) * 2 for name in ("project_id", "prompt_name", "prompt_version")},
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
    """What each index is on that is new, or now on something else."""
    if dialect == "sqlite":
        return {}
    days = {
        f"vx_{relation}_day": f"{relation} (({day(dialect, column)})) WHERE deleted_at IS NULL"
        for relation, column in INSTANTS.items()
    }
    days["vx_observations_day"] += " AND model IS NOT NULL"
    # All that sums over a trace need, so that the wide rows are not read. The trace is a key already, types and levels
    # are short words: no entry grows too long.
    of_trace = (
        "observations (project_id, trace_id)"
        " INCLUDE (type, level, prompt_tokens, completion_tokens, total_tokens) WHERE deleted_at IS NULL"
    )
    return days | {"vx_observations_trace": of_trace}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    drop(dialect)
    for name, on in indexes(dialect).items():
        op.execute(f"CREATE INDEX {name} ON {on}")
    for relation, column in INSTANTS.items() if dialect != "sqlite" else ():
        # Postgres guesses what a partial index holds, and then looks up traces one by one where it should hash them.
        op.execute(
            f"CREATE STATISTICS vx_{relation}_day (ndistinct)"
            f" ON ({day(dialect, column)}), ({date(dialect, column)}) FROM {relation}"
        )
        op.execute(f"ANALYZE {relation}")
    for name, query in views(dialect).items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    comment_on_all(op.get_bind())


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    drop(dialect)
    for relation in INSTANTS if dialect != "sqlite" else ():
        op.execute(f"DROP STATISTICS vx_{relation}_day")
    for name in indexes(dialect).keys() & OLD["indexes"](dialect).keys():
        op.execute(f"CREATE INDEX {name} ON {OLD['indexes'](dialect)[name]}")
    for name in views(dialect):
        op.execute(f"CREATE VIEW {name} AS {OLD['views'](dialect)[name]}")


def drop(dialect: str) -> None:
    """The views and indexes that stand otherwise in the other revision."""
    for name in views(dialect):
        op.execute(f"DROP VIEW {name}")
    for name in indexes(dialect):
        op.execute(f"DROP INDEX IF EXISTS {name}")
