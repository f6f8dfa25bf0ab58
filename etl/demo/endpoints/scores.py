"""GET /scores (v1) and GET /v2/scores, with their by-id forms."""

from collections.abc import Callable

from etl.demo import shapes
from etl.demo.answers import Answer, invalid_data, json_answer, not_found
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import Choice, Context, any_of, equals
from etl.demo.filters import Column, field, instant
from etl.demo.pages import offset, page_answer, page_meta
from etl.demo.query import Reader, js_number, option_issue
from etl.demo.table import Entry, Row, in_window, newest

DATA_TYPES = ("NUMERIC", "CATEGORICAL", "BOOLEAN", "CORRECTION", "TEXT")
SOURCES = ("API", "EVAL", "ANNOTATION")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda found, value: found < value,
    ">": lambda found, value: found > value,
    "<=": lambda found, value: found <= value,
    ">=": lambda found, value: found >= value,
    "!=": lambda found, value: found != value,
    "=": lambda found, value: found == value,
}


def list_scores_v1(ctx: Context) -> Answer:
    """Scores that have a trace and no session or dataset run; newest first."""
    return _list(ctx, v2=False)


def list_scores_v2(ctx: Context) -> Answer:
    """Every score, newest first."""
    return _list(ctx, v2=True)


def get_score_v1(ctx: Context, score_id: str) -> Answer:
    entry = newest(ctx.dataset.score_table.with_id(score_id))
    if entry is None or not _is_v1(entry.row):
        raise not_found("Score not found")
    return json_answer(shapes.score_in_trace(entry.row))


def get_score_v2(ctx: Context, score_id: str) -> Answer:
    entry = newest(ctx.dataset.score_table.with_id(score_id))
    if entry is None:
        raise not_found("Score not found")
    return json_answer({name: value for name, value in entry.row.items() if name != "trace"})


def _list(ctx: Context, *, v2: bool) -> Answer:
    read = Reader(ctx.params)
    page, limit = read.page(whole=ctx.page_is_int), read.limit(100)
    choice = Choice(_simple(ctx, read, v2=v2), [], read.moment_ms("fromTimestamp"), read.moment_ms("toTimestamp"))
    with_trace = _with_trace(read) if v2 else True
    choice.conditions = ctx.conditions(read, columns(ctx.dataset))
    read.done()
    choice.overrule("timestamp")
    trace_id = ctx.params["traceId"][0] if "traceId" in choice.simple else choice.exact("traceId")

    def select() -> list[Entry]:
        table = ctx.dataset.score_table
        entries = (
            in_window(table.group(trace_id), choice.from_ms, choice.to_ms)
            if trace_id
            else table.window(choice.from_ms, choice.to_ms)
        )
        entries = choice.keep(entries)
        if not v2:
            entries = [entry for entry in entries if _is_v1(entry.row)]
        entries.sort(key=_version_order, reverse=True)
        return entries

    entries = ctx.select("scores_v2" if v2 else "scores_v1", ("page", "limit", "fields"), select)
    start = offset(page, limit)
    shown = ctx.tied(entries, _version_order)[start : start + limit]
    ctx.guard(len(entries), [e.id for e in shown], heavy=True, legacy=True)
    # Rows that fail the v1 schema are counted, but left out of the page.
    rows = [_row(ctx, e, v2=v2, with_trace=with_trace) for e in shown if v2 or e.row["dataType"] != "CORRECTION"]
    return page_answer(rows, page_meta(page, limit, ctx.total(entries, overcounted=True)))


def _simple(ctx: Context, read: Reader, *, v2: bool) -> dict[str, Callable[[Row], bool]]:
    found = columns(ctx.dataset)
    user_id, tags = read.text("userId"), read.texts("traceTags")
    simple = {
        **({} if user_id is None else {"userId": lambda row: found["userId"].get(row) == user_id}),
        **equals("dataType", read.option("dataType", DATA_TYPES)),
        **equals("configId", read.text("configId")),
        **equals("queueId", read.text("queueId")),
        **({} if tags is None else {"tags": lambda row: set(tags) <= set(found["tags"].get(row) or ())}),
        **(any_of("environment", read.texts("environment")) if "environment" in ctx.features else {}),
        **equals("name", read.text("name")),
        **equals("source", read.option("source", SOURCES)),
        **any_of("id", _commas(read.text("scoreIds"))),
        **_value(read),
    }
    if v2:
        simple |= {
            **equals("traceId", read.text("traceId")),
            **equals("sessionId", read.text("sessionId")),
            **equals("datasetRunId", read.text("datasetRunId")),
            **any_of("observationId", _commas(read.text("observationId"))),
        }
    return simple


def _value(read: Reader) -> dict[str, Callable[[Row], bool]]:
    text, operator = read.text("value"), read.option("operator", tuple(_OPERATORS))
    if text is None or operator not in _OPERATORS:
        return {}
    test, value = _OPERATORS[operator], js_number(text)
    return {"value": lambda row: row.get("value") is not None and test(row["value"], value)}


def _with_trace(read: Reader) -> bool:
    """Whether `fields` of v2 asks for the trace."""
    text = read.text("fields")
    if text is None:
        return True
    names = text.split(",")
    unknown = next((i for i, name in enumerate(names) if name not in ("score", "trace")), None)
    if unknown is not None:
        raise invalid_data([option_issue(["fields", unknown], ("score", "trace"))])
    if "score" not in names:
        # Read in the source, not recorded: the wording may differ.
        raise invalid_data([{"code": "custom", "path": ["fields"], "message": "Scores needs to be selected always."}])
    return "trace" in names


def columns(dataset: Dataset) -> dict[str, Column]:
    """What `filter` conditions may name."""
    text = ("string", "stringOptions")
    names = ("id", "name", "traceId", "observationId", "sessionId", "datasetRunId", "source", "dataType", "stringValue")
    found = [
        *(Column(name, field(name), text) for name in (*names, "environment", "authorUserId", "configId", "queueId")),
        Column("comment", field("comment"), text),
        Column("value", field("value"), ("number",)),
        Column("timestamp", instant("timestamp"), ("datetime",)),
        Column("metadata", field("metadata"), ("stringObject", "numberObject", "booleanObject")),
        Column("userId", lambda row: (dataset.trace_of(row) or {}).get("userId"), text),
        Column("tags", lambda row: (dataset.trace_of(row) or {}).get("tags"), ("arrayOptions",)),
    ]
    return {column.name: column for column in found}


def _commas(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _is_v1(row: Row) -> bool:
    return bool(row["traceId"]) and not row["sessionId"] and not row["datasetRunId"]


def _version_order(entry: Entry) -> tuple[int, str]:
    return entry.time_ms, str(entry.row["updatedAt"])


def _row(ctx: Context, entry: Entry, *, v2: bool, with_trace: bool) -> bytes:
    def make() -> Row:
        trace = ctx.dataset.trace_of(entry.row)
        row = shapes.score_v2(entry.row, trace) if v2 else shapes.score_v1(entry.row, trace)
        return row if with_trace else {name: value for name, value in row.items() if name != "trace"}

    return ctx.render(entry, entry.row["traceId"], ("score", v2, with_trace), make)
