"""GET /traces and GET /traces/{id}."""

from collections.abc import Callable, Mapping
from typing import Any

from etl.demo import shapes
from etl.demo.answers import Answer, invalid_request, json_answer, not_found
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import Choice, Context, all_tags, any_of, equals
from etl.demo.filters import Column, Condition, field
from etl.demo.pages import offset, page_answer, page_meta
from etl.demo.query import Reader, option_issue
from etl.demo.table import Entry, Row, in_window, newest
from etl.demo.times import parse_ms

GROUPS = frozenset({"core", "io", "scores", "observations", "metrics"})
ORDER_COLUMNS = ("timestamp", "name", "id", "userId", "sessionId", "release", "version", "public", "bookmarked")

# Measured on 4.16.0: an observation counts in the list if it started at most about two days before fromTimestamp.
OBSERVATION_SLACK_MS = 2 * 24 * 3600 * 1000

# Where one of these is filtered, the server adds the row version to the order and counts unmerged versions.
_VERSIONED = {"userId", "sessionId", "metadata"}


def list_traces(ctx: Context) -> Answer:
    read = Reader(ctx.params)
    page, limit = read.page(whole=ctx.page_is_int), read.limit(100)
    simple = {
        **equals("userId", read.text("userId")),
        **equals("name", read.text("name")),
        **all_tags(read.texts("tags")),
        **equals("sessionId", read.text("sessionId")),
        **equals("version", read.text("version")),
        **equals("release", read.text("release")),
        **(any_of("environment", read.texts("environment")) if "environment" in ctx.features else {}),
    }
    column, descending = _order_by(read)
    from_ms, to_ms = read.moment_ms("fromTimestamp"), read.moment_ms("toTimestamp")
    groups = _groups(read.text("fields"), known="fields" in ctx.features)
    conditions = ctx.conditions(read, columns(ctx.dataset))
    read.done()
    if column not in ORDER_COLUMNS:
        raise invalid_request(f"Invalid order by column: {column}")

    choice = Choice(simple, conditions, from_ms, to_ms)
    choice.overrule("timestamp")
    session_id = (ctx.params["sessionId"][0] if "sessionId" in choice.simple else None) or choice.exact("sessionId")
    versioned = not _VERSIONED.isdisjoint(choice.columns())
    key = _sort_key(column, versioned=versioned)

    def select() -> list[Entry]:
        if session_id:
            entries = in_window(ctx.dataset.trace_table.group(session_id), choice.from_ms, choice.to_ms)
        else:
            entries = ctx.dataset.trace_table.window(choice.from_ms, choice.to_ms)
        return _ordered(choice.keep(entries), column, key, descending=descending)

    entries = ctx.select("traces", ("page", "limit", "fields"), select)
    # Without any filter the count is over versions too.
    bare = choice.from_ms is None and choice.to_ms is None and not choice.columns()
    total = ctx.total(entries, overcounted=versioned or bare)
    start = offset(page, limit)
    shown = ctx.tied(entries, key)[start : start + limit]
    ctx.guard(len(entries), [e.id for e in shown], heavy=groups != {"core"}, legacy=True)
    environments = _environment_tests(choice)
    rows = [_list_row(ctx, entry, groups, choice.from_ms, environments) for entry in shown]
    return page_answer(rows, page_meta(page, limit, total))


def get_trace(ctx: Context, trace_id: str) -> Answer:
    read = Reader(ctx.params)
    groups = _groups(read.text("fields"), known="fields_by_id" in ctx.features)
    read.done()
    entry = newest(ctx.dataset.trace_table.with_id(trace_id))
    if entry is None:
        raise not_found(f"Trace {trace_id} not found within authorized project")
    observations = _by_version(ctx.dataset.observation_table.group(trace_id))
    scores = [row for row in _by_version(ctx.dataset.score_table.group(trace_id)) if row["dataType"] != "CORRECTION"]
    ctx.guard(1, [trace_id], heavy=groups != {"core"}, legacy=True)
    answer = shapes.trace_by_id(entry.row, groups, observations, scores)
    if "environment" not in ctx.features:
        del answer["environment"]
    return json_answer(answer)


def delete_trace(ctx: Context, trace_id: str) -> Answer:
    """Gone at once; a real server takes some seconds."""
    ctx.dataset.delete_trace(trace_id)
    return json_answer({"message": "Trace deleted successfully"})


def columns(dataset: Dataset) -> Mapping[str, Column]:
    """What `filter` conditions may name (packages/shared/src/server/tableMappings/mapTracesTable.ts)."""

    def observed(name: str, value: Callable[[list[Row]], Any]) -> Column:
        def get(trace: Row) -> Any:
            return value([entry.row for entry in dataset.observation_table.group(trace["id"])])

        return Column(name, get, ("number",))

    def scored(name: str, data_types: tuple[str, ...], value: str, kinds: tuple[str, ...]) -> Column:
        def get(trace: Row) -> Mapping[str, Any]:
            found: dict[str, list[Any]] = {}
            for entry in dataset.score_table.group(trace["id"]):
                if entry.row["dataType"] in data_types:
                    found.setdefault(entry.row["name"], []).append(entry.row.get(value))
            if value == "value" and "numberObject" in kinds:
                return {name: sum(values) / len(values) for name, values in found.items()}
            return found

        return Column(name, get, kinds)

    text = ("string", "stringOptions")
    found = [
        *(Column(name, field(name), text) for name in ("id", "name", "userId", "sessionId", "version", "release")),
        Column("environment", field("environment"), text),
        Column("timestamp", lambda trace: parse_ms(trace["timestamp"]), ("datetime",)),
        Column("metadata", field("metadata"), ("stringObject", "numberObject", "booleanObject")),
        Column("tags", field("tags"), ("arrayOptions",)),
        Column("bookmarked", field("bookmarked"), ("boolean",)),
        Column("level", lambda trace: _levels(dataset, trace), ("stringOptions",)),
        observed("latency", shapes.list_latency),
        observed("totalCost", shapes.total_cost),
        observed("inputCost", lambda rows: sum(row["calculatedInputCost"] or 0 for row in rows)),
        observed("outputCost", lambda rows: sum(row["calculatedOutputCost"] or 0 for row in rows)),
        observed("inputTokens", lambda rows: sum(row["promptTokens"] for row in rows)),
        observed("outputTokens", lambda rows: sum(row["completionTokens"] for row in rows)),
        observed("totalTokens", lambda rows: sum(row["totalTokens"] for row in rows)),
        *(observed(f"{level.lower()}Count", _count(level)) for level in ("ERROR", "WARNING", "DEFAULT", "DEBUG")),
        scored("scores_avg", ("NUMERIC", "BOOLEAN"), "value", ("numberObject",)),
        scored("score_categories", ("CATEGORICAL",), "stringValue", ("categoryOptions",)),
        scored("score_booleans", ("BOOLEAN",), "value", ("booleanObject",)),
    ]
    named = {column.name: column for column in found}
    return named | {"traceId": named["id"]}


def _levels(dataset: Dataset, trace: Row) -> list[str]:
    return [entry.row["level"] for entry in dataset.observation_table.group(trace["id"])]


def _count(level: str) -> Callable[[list[Row]], int]:
    return lambda rows: sum(row["level"] == level for row in rows)


def _order_by(read: Reader) -> tuple[str, bool]:
    """(column, descending)."""
    text = read.text("orderBy")
    if not text:
        return "timestamp", True
    column, _, direction = text.partition(".")
    if direction.upper() not in ("ASC", "DESC"):
        read.issue(option_issue(["orderBy", "order"], ("ASC", "DESC")))
    return column, direction.upper() == "DESC"


def _groups(text: str | None, *, known: bool) -> frozenset[str]:
    """Unknown names are dropped; if none is left, or the server does not know the parameter, all groups come."""
    if text is None or not known:
        return GROUPS
    asked = GROUPS.intersection(name.strip() for name in text.split(","))
    return asked | {"core"} if asked else GROUPS


def _sort_key(column: str, *, versioned: bool) -> Callable[[Entry], Any]:
    if column == "timestamp":
        if versioned:
            return lambda entry: (entry.time_ms, entry.row["updatedAt"])
        return lambda entry: entry.time_ms
    if column == "id":
        return lambda entry: entry.id
    if versioned:
        return lambda entry: (entry.row[column], entry.row["updatedAt"])
    return lambda entry: entry.row[column]


def _ordered(entries: list[Entry], column: str, key: Callable[[Entry], Any], *, descending: bool) -> list[Entry]:
    """`entries` come oldest first. Nulls are last in both directions."""
    known = [entry for entry in entries if entry.row[column] is not None]
    known.sort(key=key, reverse=descending)
    return known + [entry for entry in entries if entry.row[column] is None]


def _by_version(entries: list[Entry]) -> list[Row]:
    """Latest written first, as GET /traces/{id} embeds its parts."""
    rows = [entry.row for entry in entries]
    rows.sort(key=lambda row: str(row["updatedAt"]), reverse=True)
    return rows


def _environment_tests(choice: Choice) -> list[Callable[[Row], bool]]:
    """The environment filter holds for a trace's observations and scores too."""
    tests = [choice.simple["environment"]] if "environment" in choice.simple else []
    conditions: list[Condition] = choice.conditions
    return tests + [condition.holds for condition in conditions if condition.column.name == "environment"]


def _list_row(
    ctx: Context,
    entry: Entry,
    groups: frozenset[str],
    from_ms: int | None,
    environments: list[Callable[[Row], bool]],
) -> bytes:
    """A trace of the list: its parts count only as far as the window and the environment filter let them."""
    if not groups & {"scores", "observations", "metrics"}:
        return ctx.render(entry, entry.id, ("list", groups), lambda: _listed(entry.row, groups, [], []))
    every = ctx.dataset.observation_table.group(entry.id), ctx.dataset.score_table.group(entry.id)
    observations, scores = every
    if from_ms is not None:
        earliest = from_ms - OBSERVATION_SLACK_MS
        observations = [o for o in observations if o.time_ms >= earliest]
        scores = [s for s in scores if s.time_ms >= from_ms]
    for test in environments:
        observations = [o for o in observations if test(o.row)]
        scores = [s for s in scores if test(s.row)]
    whole = (len(observations), len(scores)) == (len(every[0]), len(every[1]))
    shape = ("list", groups) if whole else ("list", groups, *(e.key for e in (*observations, *scores)))
    return ctx.render(entry, entry.id, shape, lambda: _listed(entry.row, groups, observations, scores))


def _listed(row: Row, groups: frozenset[str], observations: list[Entry], scores: list[Entry]) -> Row:
    """A row of the list; groups that were not asked for hold placeholders."""
    io, metrics = "io" in groups, "metrics" in groups
    children = [entry.row for entry in observations]
    return row | {
        "input": row["input"] if io else None,
        "output": row["output"] if io else None,
        "metadata": row["metadata"] if io else {},
        "observations": [entry.id for entry in observations] if "observations" in groups else [],
        "scores": [s.id for s in scores if s.row["dataType"] != "CORRECTION"] if "scores" in groups else [],
        "totalCost": shapes.total_cost(children) if metrics else -1,
        "latency": shapes.list_latency(children) if metrics else -1,
    }
