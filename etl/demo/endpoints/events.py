"""GET /v2/observations: the v4 rows, by cursor."""

import base64
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import xxhash

from etl.demo import cursors, json_text
from etl.demo.answers import Answer
from etl.demo.endpoints.context import Choice, Context, any_of, equals
from etl.demo.filters import Column, field, instant
from etl.demo.pages import page_answer
from etl.demo.query import Reader
from etl.demo.table import Entry, Row, in_window
from etl.demo.times import iso, parse_ms

GROUPS: Mapping[str, tuple[str, ...]] = {
    "core": ("id", "traceId", "startTime", "endTime", "projectId", "parentObservationId", "type"),
    "basic": (
        "name",
        "level",
        "statusMessage",
        "version",
        "environment",
        "userId",
        "sessionId",
        "isRootObservation",
        "bookmarked",
        "public",
    ),
    "time": ("completionStartTime", "createdAt", "updatedAt"),
    "io": ("input", "output"),
    "metadata": ("metadata",),
    "model": ("model", "internalModelId", "modelParameters"),
    "usage": (
        "usageDetails",
        "inputUsage",
        "outputUsage",
        "totalUsage",
        "costDetails",
        "inputCost",
        "outputCost",
        "totalCost",
        "usagePricingTierId",
        "usagePricingTierName",
    ),
    "prompt": ("promptId", "promptName", "promptVersion"),
    "metrics": (),
    "trace_context": ("traceName", "release", "tags"),
}
_MODEL_FIELDS = ("modelId", "inputPrice", "outputPrice", "totalPrice")
_GROUPED_FIELDS = frozenset(name for names in GROUPS.values() for name in names)
_METADATA_CHARS = 200
_TEXT = ("string", "stringOptions")


def list_events(ctx: Context) -> Answer:
    """Start time, then xxHash32 of the trace id, then id, all descending: total but for rows that were written twice.

    The next page begins below the key of the last row, so of rows with that key some may be in no page.
    """
    read = Reader(ctx.params)
    limit = read.limit(1000, least=0)
    cursor = read.text("cursor")
    groups = _groups(read.text("fields"))
    full_metadata = "io" in groups or bool(read.text("expandMetadata"))
    if read.text("parseIoAsJson") == "true":
        read.issue(
            {
                "code": "custom",
                "path": ["parseIoAsJson"],
                "message": "parseIoAsJson=true is no longer supported on the v2 observations endpoint. Input/output "
                "fields are always returned as raw strings. Remove the parseIoAsJson parameter or set it to false.",
            }
        )
    choice = _choice(ctx, read)
    read.done()
    choice.overrule("startTime")
    after = None if cursor is None else _cursor(cursor)
    trace_id = ctx.params["traceId"][0] if "traceId" in choice.simple else choice.exact("traceId")

    def select() -> list[Entry]:
        table = ctx.dataset.event_table
        entries = (
            in_window(table.group(trace_id), choice.from_ms, choice.to_ms)
            if trace_id
            else table.window(choice.from_ms, choice.to_ms)
        )
        tests = [*choice.simple.values(), *(condition.holds for condition in choice.conditions)]
        if tests:
            entries = [entry for entry in entries if _passes(ctx.dataset.event(entry), tests)]
        return sorted(entries, key=_order, reverse=True)

    entries = ctx.select("events", ("limit", "cursor", "fields", "expandMetadata"), select)
    start = 0 if after is None else cursors.first_below(entries, _order, after)
    shown = ctx.tied(entries, _order)[start : start + limit]
    ctx.guard(
        len(entries), [str(e.row["id"]) for e in shown], heavy=not groups <= {"core", "basic", "time"}, legacy=False
    )
    rows = [_json_of(ctx, entry, groups, full_metadata=full_metadata) for entry in shown]
    meta = b"{}"
    if shown and start + limit < len(entries):
        meta = json_text.dumps({"cursor": _cursor_text(shown[-1])})
    return page_answer(rows, meta)


def _columns() -> Mapping[str, Column]:
    """What `filter` conditions of GET /v2/observations may name."""
    number = ("number",)
    names = ("id", "traceId", "name", "type", "level", "statusMessage", "version", "environment", "model", "promptName")
    found = [
        *(Column(name, field(name), _TEXT) for name in names),
        *(Column(name, field(name), _TEXT) for name in ("parentObservationId", "userId", "sessionId")),
        *(Column(name, field(name), _TEXT) for name in ("traceName", "input", "output")),
        *(Column(name, instant(name), ("datetime",)) for name in ("startTime", "endTime")),
        *(Column(name, field(name), number) for name in ("latency", "timeToFirstToken", "promptVersion")),
        *(Column(name, field(name), number) for name in ("inputCost", "outputCost", "totalCost")),
        Column("inputTokens", field("inputUsage"), number),
        Column("outputTokens", field("outputUsage"), number),
        Column("totalTokens", field("totalUsage"), number),
        Column("isRootObservation", field("isRootObservation"), ("boolean",)),
        Column("tags", field("tags"), ("arrayOptions",)),
        Column("metadata", field("metadata"), ("stringObject", "numberObject", "booleanObject", "categoryOptions")),
    ]
    return {column.name: column for column in found}


COLUMNS = _columns()


def _choice(ctx: Context, read: Reader) -> Choice:
    parent = read.text("parentObservationId")
    root = read.option("isRootObservation", ("true", "false"))
    simple = {
        **equals("traceId", read.text("traceId")),
        **equals("name", read.text("name")),
        **equals("type", read.text("type")),
        **equals("userId", read.text("userId")),
        **equals("sessionId", read.text("sessionId")),
        **equals("level", read.text("level")),
        **equals("version", read.text("version")),
        **any_of("parentObservationId", None if parent is None else [parent or None]),
        **any_of("isRootObservation", None if root is None else [root == "true"]),
        **any_of("environment", read.texts("environment")),
    }
    from_ms, to_ms = read.moment_ms("fromStartTime"), read.moment_ms("toStartTime")
    return Choice(simple, ctx.conditions(read, COLUMNS, matches=True), from_ms, to_ms)


def _passes(row: Row, tests: Iterable[Callable[[Row], bool]]) -> bool:
    return all(test(row) for test in tests)


def _groups(text: str | None) -> frozenset[str]:
    """Unknown names are dropped; core always comes."""
    if text is None:
        return frozenset({"core", "basic"})
    return frozenset({"core", *(name for name in (part.strip() for part in text.split(",")) if name in GROUPS)})


def _trace_hash(trace_id: str) -> int:
    """What ClickHouse's `xxHash32` gives: the server orders ties by it."""
    return xxhash.xxh32_intdigest(trace_id.encode("utf-8", "surrogatepass"))


def _order(entry: Entry) -> tuple[int, int, str]:
    return entry.time_ms, _trace_hash(_trace_id(entry)), entry.id


def _trace_id(entry: Entry) -> str:
    """A derived event of a trace still holds the trace's own row."""
    trace_id: str | None = entry.row["traceId"] if "startTime" in entry.row else entry.row["id"]
    return trace_id or ""


def _json_of(ctx: Context, entry: Entry, groups: frozenset[str], *, full_metadata: bool) -> bytes:
    def make() -> Row:
        row = ctx.dataset.event(entry)
        hidden = _hidden_fields(groups)
        shaped = {name: value for name, value in row.items() if name not in hidden} if hidden else dict(row)
        if "model" not in groups:
            shaped |= dict.fromkeys(_MODEL_FIELDS)
        if not groups & {"metrics", "time"}:
            shaped["timeToFirstToken"] = None
        if "metadata" in shaped and not full_metadata:
            # OTel ingestion stores texts with their quotes; only legacy traces have a pseudo span.
            quoted = not ctx.dataset.event_table.with_id(f"t-{row['traceId']}")
            shaped["metadata"] = {name: _cut(value, quoted=quoted) for name, value in row["metadata"].items()}
        return shaped

    return ctx.render(entry, _trace_id(entry), ("event", groups, full_metadata), make)


@cache
def _hidden_fields(groups: frozenset[str]) -> frozenset[str]:
    """Fields of groups that were not asked for are absent."""
    return _GROUPED_FIELDS.difference(name for group in groups for name in GROUPS[group])


def _cut(value: Any, *, quoted: bool) -> Any:
    """The light table keeps 200 characters of the stored text; what no longer parses as JSON stays text."""
    text = value if isinstance(value, str) and not quoted else json_text.dumps(value).decode()
    return value if len(text) <= _METADATA_CHARS else text[:_METADATA_CHARS]


def _cursor_text(entry: Entry) -> str:
    cursor = {"lastStartTimeTo": iso(entry.time_ms), "lastTraceId": _trace_id(entry), "lastId": entry.id}
    return base64.b64encode(json_text.dumps(cursor)).decode()


def _cursor(text: str) -> tuple[int, int, str]:
    cursor = cursors.decoded(text, "lastStartTimeTo", "lastTraceId", "lastId")
    return parse_ms(cursor["lastStartTimeTo"]), _trace_hash(cursor["lastTraceId"]), cursor["lastId"]
