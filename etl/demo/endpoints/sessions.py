"""GET /sessions and GET /sessions/{id}. The list is windowed on when the server first saw the session."""

from etl.demo.answers import Answer, json_answer, not_found
from etl.demo.endpoints.context import Context
from etl.demo.pages import offset, page_answer
from etl.demo.query import Reader
from etl.demo.shapes import SESSION_TRACE
from etl.demo.table import Entry


def list_sessions(ctx: Context) -> Answer:
    """Newest first, no tie-break. `environment` is not split at commas here."""
    read = Reader(ctx.params)
    page, limit = read.page(whole=ctx.page_is_int), read.limit(100)
    from_ms, to_ms = read.moment_ms("fromTimestamp"), read.moment_ms("toTimestamp")
    environments = read.repeated("environment") if "environment" in ctx.features else None
    read.done()

    def select() -> list[Entry]:
        entries = ctx.dataset.session_table.window(from_ms, to_ms)
        return [e for e in entries if environments is None or e.row["environment"] in environments][::-1]

    entries = ctx.select("sessions", ("page", "limit"), select)
    start = offset(page, limit)
    shown = ctx.tied(entries, lambda entry: entry.time_ms)[start : start + limit]
    ctx.guard(len(entries), [e.id for e in shown], heavy=False, legacy=True)
    number = int(page) if page == int(page) else page
    total = len(entries)
    meta = f'{{"totalItems":{total},"totalPages":{-(-total // limit)},"page":{number},"limit":{limit}}}'
    return page_answer([_row(ctx, entry) for entry in shown], meta.encode())


def get_session(ctx: Context, session_id: str) -> Answer:
    """The session with all its traces, latest written first, unpaged."""
    entry = ctx.dataset.session_table.get(session_id)
    if entry is None:
        raise not_found("Session not found within authorized project")
    traces = [trace.row for trace in ctx.dataset.trace_table.group(session_id)]
    traces.sort(key=lambda row: str(row["updatedAt"]), reverse=True)
    ctx.guard(len(traces), [row["id"] for row in traces], heavy=True, legacy=True)
    return json_answer(entry.row | {"traces": [{name: row[name] for name in SESSION_TRACE} for row in traces]})


def _row(ctx: Context, entry: Entry) -> bytes:
    return ctx.render(entry, None, "session", lambda: entry.row)
