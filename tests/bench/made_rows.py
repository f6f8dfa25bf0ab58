"""Many rows made by SQL inside the database: 30 days, 5 observations and 1 score for each trace."""

from __future__ import annotations

from sqlalchemy import Connection

from etl.load.engine import schema_of

DAYS = 30
PROJECT = "project-of-bench"
_MS_PER_DAY = 86_400_000
_FIRST_DAY = "2026-10-01"

# How each dialect counts, writes an instant that is `{ms}` after the first day, and makes an id of `{n}`.
_WORDS = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n + 1 < {count})"
        " SELECT n FROM c) numbers",
        "instant": f"strftime('%Y-%m-%dT%H:%M:%fZ', julianday('{_FIRST_DAY}') + ({{ms}}) / {_MS_PER_DAY}.0 + 5e-9)",
        "id": "printf('%08x%08x%016x', {n} * 2654435761 % 4294967296, {n} * 40503 % 4294967296, {n})",
        "text": "substr(replace(hex(zeroblob({size} / 2)), '00', printf('%08x', {n} * 2654435761 % 4294967296)), 1,"
        " {size})",
        "json": "{text}",
        "yes": "1",
    },
    "postgresql": {
        "numbers": "generate_series(0, {count} - 1) AS numbers(n)",
        "instant": f"timestamptz '{_FIRST_DAY} 00:00:00Z' + ({{ms}}) * interval '1 millisecond'",
        "id": "md5(({n})::text)",
        "text": "left(repeat(md5(({n})::text), {size} / 32 + 1), {size})",
        "json": "({text})::jsonb",
        "yes": "true",
    },
}  # fmt: skip
_BOOKKEEPING = "content_hash, read_from, first_seen_at, changed_at"


def make_rows(conn: Connection, *, traces: int, io_bytes: int = 1000) -> None:
    """Fills the empty tables; a tenth of the traces has no session, a fiftieth of the observations is an error.

    Args:
        conn: A writing connection to an upgraded, empty database.
        traces: How many; there are five observations and one score for each.
        io_bytes: Characters of input and output of each row together.
    """
    words = _WORDS[conn.dialect.name]
    schema = schema_of(conn)
    to = f"{schema}." if schema else ""
    step_ms = DAYS * _MS_PER_DAY / traces
    trace = "n / 5"
    moment_ms = f"CAST(({{n}}) * {step_ms} AS bigint)"

    def instant(n: str, plus_ms: str = "0") -> str:
        return words["instant"].format(ms=f"{moment_ms.format(n=n)} + {plus_ms}")

    def identity(n: str) -> str:
        return words["id"].format(n=f"({n})")

    def json(n: str) -> str:
        text = words["text"].format(n=f"({n})", size=io_bytes // 2)
        return words["json"].format(text=f"'\"' || {text} || '\"'")

    kept = f"'hash', 'traces', {instant('0')}, {instant('n')}"
    kept_of_part = kept.replace(instant("n"), instant(trace))
    for statement in (
        f"INSERT INTO {to}traces (id, project_id, name, timestamp, environment, tags, bookmarked, release, version,"
        f" user_id, session_id, public, input, output, metadata, created_at, updated_at, total_cost, latency,"
        f" {_BOOKKEEPING})"
        f" SELECT {identity('n')}, '{PROJECT}', 'trace ' || (n % 8), {instant('n')}, 'production',"
        f" {words['json'].format(text=chr(39) + '[]' + chr(39))}, NOT {words['yes']}, 'r1', 'v' || (n % 4),"
        f" 'user ' || (n * 7919 % 3000), CASE WHEN n % 10 > 0 THEN 'session ' || (n / 20) END, NOT {words['yes']},"
        f" {json('n')}, {json('n + 1')}, {words['json'].format(text=chr(39) + '{}' + chr(39))},"
        f" {instant('n')}, {instant('n')}, n % 997 * 0.00001, n % 7919 * 0.001, {kept}"
        f" FROM {words['numbers'].format(count=traces)}",
        f"INSERT INTO {to}observations (id, trace_id, start_time, end_time, project_id, type, environment, name, level,"
        f" status_message, version, created_at, updated_at, input, output, metadata, model, completion_start_time,"
        f" prompt_name, prompt_version, latency, time_to_first_token, calculated_total_cost, prompt_tokens,"
        f" completion_tokens, total_tokens, {_BOOKKEEPING})"
        f" SELECT {identity('n + 7')}, {identity(trace)}, {instant(trace, 'n % 5 * 100')},"
        f" {instant(trace, 'n % 5 * 100 + 50')}, '{PROJECT}',"
        f" CASE WHEN n % 5 IN (1, 3) THEN 'GENERATION' ELSE 'SPAN' END, 'production', 'step ' || (n % 5),"
        f" CASE WHEN n % 50 = 1 THEN 'ERROR' ELSE 'DEFAULT' END, CASE WHEN n % 50 = 1 THEN 'it broke' END, 'v1',"
        f" {instant(trace)}, {instant(trace)}, {json('n')}, {json('n + 1')},"
        f" {words['json'].format(text=chr(39) + '{}' + chr(39))},"
        f" CASE WHEN n % 5 IN (1, 3) THEN 'model ' || (n % 4) END,"
        f" CASE WHEN n % 5 IN (1, 3) THEN {instant(trace, 'n % 5 * 100 + 20')} END,"
        f" CASE WHEN n % 5 = 1 THEN 'prompt ' || (n % 3) END, CASE WHEN n % 5 = 1 THEN n / {traces} END,"
        f" n % 7907 * 0.001, CASE WHEN n % 5 IN (1, 3) THEN n % 311 * 0.001 END,"
        f" CASE WHEN n % 5 IN (1, 3) THEN n % 997 * 0.00001 END, n % 1009, n % 211, n % 1009 + n % 211, {kept_of_part}"
        f" FROM {words['numbers'].format(count=5 * traces)}",
        f"INSERT INTO {to}scores (id, project_id, environment, name, value, source, created_at, updated_at, timestamp,"
        f" trace_id, string_value, data_type, {_BOOKKEEPING})"
        f" SELECT {identity('n')}, '{PROJECT}', 'production', 'score ' || (n % 5),"
        f" CASE WHEN n % 5 < 4 THEN n % 101 * 0.01 END, CASE WHEN n % 3 = 0 THEN 'EVAL' ELSE 'API' END, {instant('n')},"
        f" {instant('n')}, {instant('n')}, {identity('n')}, CASE WHEN n % 5 = 4 THEN 'class ' || (n % 7) END,"
        f" CASE WHEN n % 5 = 4 THEN 'CATEGORICAL' ELSE 'NUMERIC' END, {kept}"
        f" FROM {words['numbers'].format(count=traces)}",
    ):
        conn.exec_driver_sql(statement.replace("%", "%%") if conn.dialect.name == "postgresql" else statement)
