"""GET /v3/scores: every score, by cursor; strict about its parameters."""

import base64
from collections.abc import Callable

from etl.demo import cursors, json_text, shapes
from etl.demo.answers import Answer, ApiError, invalid_data
from etl.demo.endpoints.context import Context, any_of
from etl.demo.pages import page_answer
from etl.demo.query import Reader, js_number, option_issue
from etl.demo.table import Entry, Row, in_window
from etl.demo.times import iso, parse_ms

_GROUPS = ("core", "details", "subject", "annotation")
_LISTS = {
    "id": "id",
    "name": "name",
    "source": "source",
    "dataType": "dataType",
    "environment": "environment",
    "configId": "configId",
    "queueId": "queueId",
    "authorUserId": "authorUserId",
    "traceId": "traceId",
    "sessionId": "sessionId",
    "observationId": "observationId",
    "experimentId": "datasetRunId",
}
_PARAMETERS = {
    *_LISTS,
    "limit",
    "cursor",
    "fields",
    "value",
    "valueMin",
    "valueMax",
    "fromTimestamp",
    "toTimestamp",
}


def list_scores_v3(ctx: Context) -> Answer:
    """Time, then id, descending; deduplicated by id."""
    _refuse_unknown(ctx)
    read = Reader(ctx.params)
    limit = read.limit(100)
    cursor = read.text("cursor")
    groups = _groups(read)
    simple, exact_trace = _tests(read)
    from_ms, to_ms = _loose_moment(read, "fromTimestamp"), _loose_moment(read, "toTimestamp")
    read.done()
    after = None if not cursor else _cursor(cursor)

    def select() -> list[Entry]:
        table = ctx.dataset.score_table
        entries = (
            in_window((e for trace_id in exact_trace for e in table.group(trace_id)), from_ms, to_ms)
            if exact_trace
            else table.window(from_ms, to_ms)
        )
        seen: dict[str, Entry] = {}
        for entry in entries:
            if all(test(entry.row) for test in simple):
                seen[entry.id] = entry
        return sorted(seen.values(), key=lambda entry: entry.order, reverse=True)

    entries = ctx.select("scores_v3", ("limit", "cursor", "fields"), select)
    start = 0 if after is None else cursors.first_below(entries, lambda entry: entry.order, after)
    shown = entries[start : start + limit]
    ctx.guard(len(entries), [e.id for e in shown], heavy=False, legacy=False)
    # CORRECTION scores do not fit the v3 shape: they are dropped after paging.
    rows = [_json_of(ctx, entry, groups) for entry in shown if entry.row["dataType"] != "CORRECTION"]
    meta: Row = {"limit": limit}
    if start + limit < len(entries):
        meta["cursor"] = _cursor_text(shown[-1])
    return page_answer(rows, json_text.dumps(meta))


def _refuse_unknown(ctx: Context) -> None:
    """This endpoint alone is strict."""
    unknown = [name for name in ctx.params if name not in _PARAMETERS]
    if unknown:
        listed = ", ".join(f'"{name}"' for name in unknown)
        word = "keys" if len(unknown) > 1 else "key"
        raise invalid_data(
            [{"code": "unrecognized_keys", "keys": unknown, "path": [], "message": f"Unrecognized {word}: {listed}"}]
        )


def _groups(read: Reader) -> frozenset[str]:
    text = read.text("fields")
    if not text:
        return frozenset()
    names = [name.strip() for name in text.split(",")]
    for index, name in enumerate(names):
        if name not in _GROUPS:
            read.issue(option_issue(["fields", index], _GROUPS))
    return frozenset(names)


def _tests(read: Reader) -> tuple[list[Callable[[Row], bool]], list[str]]:
    """The tests that a score must pass, and the trace ids asked for."""
    lists = {name: text.split(",") for name in _LISTS if (text := read.text(name))}
    if sum(name in lists for name in ("traceId", "sessionId", "experimentId")) > 1:
        raise _custom("Only one of traceId, sessionId, experimentId can be specified.")
    if "observationId" in lists and "traceId" not in lists:
        raise _custom("observationId requires traceId.")
    tests = [test for name, values in lists.items() for test in any_of(_LISTS[name], values).values()]
    value, least, most = read.text("value"), read.text("valueMin"), read.text("valueMax")
    if (least or most) and lists.get("dataType") != ["NUMERIC"]:
        raise _custom("valueMin and valueMax require dataType=NUMERIC.")
    if value:
        wanted = value.split(",")
        tests.append(lambda row: shapes.raw_text(shapes.score_v3(row, frozenset())["value"]) in wanted)
    if least:
        tests.append(lambda row: bool(row["value"] >= js_number(least)))
    if most:
        tests.append(lambda row: bool(row["value"] <= js_number(most)))
    return tests, lists.get("traceId", [])


def _custom(message: str) -> ApiError:
    # Read in the source, not recorded: the wording may differ.
    return invalid_data([{"code": "custom", "path": [], "message": message}])


def _loose_moment(read: Reader, name: str) -> int | None:
    """Anything JavaScript's Date parses; here: what Python's does, or milliseconds."""
    text = read.text(name)
    if not text:
        return None
    try:
        return parse_ms(text)
    except ValueError:
        read.issue({"code": "invalid_type", "expected": "date", "path": [name], "message": "Invalid input"})
        return None


def _cursor_text(entry: Entry) -> str:
    cursor = {"v": 1, "lastTimestamp": iso(entry.time_ms), "lastId": entry.id}
    return base64.urlsafe_b64encode(json_text.dumps(cursor)).decode().rstrip("=")


def _cursor(text: str) -> tuple[int, str]:
    cursor = cursors.decoded(text, "lastTimestamp", "lastId")
    return parse_ms(cursor["lastTimestamp"]), cursor["lastId"]


def _json_of(ctx: Context, entry: Entry, groups: frozenset[str]) -> bytes:
    return ctx.render(entry, entry.row["traceId"], ("v3", groups), lambda: shapes.score_v3(entry.row, groups))
