"""GET /observations (v1) and GET /observations/{id}."""

from collections.abc import Callable, Mapping
from typing import Any

from etl.demo import shapes
from etl.demo.answers import Answer, not_found
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import Choice, Context, any_of, equals
from etl.demo.filters import Column, field, instant
from etl.demo.pages import offset, page_answer, page_meta
from etl.demo.query import Reader
from etl.demo.table import Entry, Row, in_window, newest

TYPES = (
    "SPAN",
    "EVENT",
    "GENERATION",
    "AGENT",
    "TOOL",
    "CHAIN",
    "RETRIEVER",
    "EVALUATOR",
    "EMBEDDING",
    "GUARDRAIL",
)
LEVELS = ("DEBUG", "DEFAULT", "WARNING", "ERROR")


def list_observations(ctx: Context) -> Answer:
    """Newest start first, no tie-break."""
    read = Reader(ctx.params)
    page, limit = read.page(whole=ctx.page_is_int), read.limit(100)
    found = columns(ctx.dataset)
    user_id = read.text("userId")
    simple = {
        **equals("type", read.option("type", TYPES)),
        **equals("name", read.text("name")),
        **({} if user_id is None else {"userId": lambda row: found["userId"].get(row) == user_id}),
        **equals("level", read.option("level", LEVELS)),
        **equals("traceId", read.text("traceId")),
        **equals("version", read.text("version")),
        **equals("parentObservationId", read.text("parentObservationId")),
        **(any_of("environment", read.texts("environment")) if "environment" in ctx.features else {}),
    }
    from_ms, to_ms = read.moment_ms("fromStartTime"), read.moment_ms("toStartTime")
    conditions = ctx.conditions(read, found)
    read.done()
    choice = Choice(simple, conditions, from_ms, to_ms)
    choice.overrule("startTime")
    trace_id = (ctx.params["traceId"][0] if "traceId" in choice.simple else None) or choice.exact("traceId")

    def select() -> list[Entry]:
        table = ctx.dataset.observation_table
        if trace_id:
            entries = in_window(table.group(trace_id), choice.from_ms, choice.to_ms)
        else:
            entries = table.window(choice.from_ms, choice.to_ms)
        return choice.keep(entries)[::-1]

    entries = ctx.select("observations", ("page", "limit"), select)
    total = ctx.total(entries, overcounted=True)
    start = offset(page, limit)
    shown = ctx.tied(entries, lambda entry: entry.time_ms)[start : start + limit]
    ctx.guard(len(entries), [e.id for e in shown], heavy=True, legacy=True)
    return page_answer([_row(ctx, entry) for entry in shown], page_meta(page, limit, total))


def get_observation(ctx: Context, observation_id: str) -> Answer:
    entry = newest(ctx.dataset.observation_table.with_id(observation_id))
    if entry is None:
        raise not_found(f"Observation with id {observation_id} not found")
    ctx.guard(1, [entry.id], heavy=True, legacy=True)
    return Answer(200, _row(ctx, entry))


def columns(dataset: Dataset) -> Mapping[str, Column]:
    """What `filter` conditions may name; some are the trace's."""

    def of_trace(name: str) -> Callable[[Row], Any]:
        return lambda row: (dataset.trace_of(row) or {}).get(name)

    text, number = ("string", "stringOptions"), ("number",)
    found = [
        *(
            Column(name, field(name), text)
            for name in (
                "id",
                "traceId",
                "name",
                "type",
                "level",
                "statusMessage",
                "version",
                "environment",
                "parentObservationId",
                "model",
                "promptName",
            )
        ),
        *(Column(name, instant(name), ("datetime",)) for name in ("startTime", "endTime")),
        *(Column(name, field(name), number) for name in ("latency", "timeToFirstToken", "promptVersion")),
        Column("inputTokens", field("promptTokens"), number),
        Column("outputTokens", field("completionTokens"), number),
        Column("totalTokens", field("totalTokens"), number),
        Column("inputCost", field("calculatedInputCost"), number),
        Column("outputCost", field("calculatedOutputCost"), number),
        Column("totalCost", field("calculatedTotalCost"), number),
        Column("metadata", field("metadata"), ("stringObject", "numberObject", "booleanObject")),
        *(Column(name, of_trace(name), text) for name in ("userId", "sessionId")),
        Column("traceName", of_trace("name"), text),
        Column("tags", of_trace("tags"), ("arrayOptions",)),
    ]
    return {column.name: column for column in found}


def _row(ctx: Context, entry: Entry) -> bytes:
    return ctx.render(entry, entry.row["traceId"], "v1", lambda: shapes.listed_observation(entry.row))
