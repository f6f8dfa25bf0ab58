"""Every kind of object a reader meets, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

from etl.transform import fields, observations_v2
from etl.transform.fields import Shape
from etl.transform.rows import Row, exact_text, from_api, merged_exact
from etl.transform.scores import flatten as flatten_score


class Kind(Enum):
    """The endpoint an object came from, where that decides how it is stored."""

    TRACE = "trace"
    TRACE_ALONE = "trace with its metrics and ids of its children"
    TRACE_WITHOUT_SCORES = "trace with the ids of its scores"
    TRACE_CORE = "trace without contents"
    OBSERVATION = "observation"
    OBSERVATION_V2 = "observation of v2"
    OBSERVATION_V2_CORE = "observation of v2 without contents"
    SCORE_LEGACY = "score of v1 or v2"
    SCORE_V3 = "score of v3"
    SESSION = "session"


_CONTENTS = ("input", "output")
# How `exact` names the fields of a row whose contents the server could not send.
CONTENTS_MISSING = (*_CONTENTS, "metadata")
# What GET /v2/observations leaves out with `fields=core,basic,time`, under the names of `observations_v2.flatten`.
_NOT_IN_V2_CORE = (
    *_CONTENTS, "metadata", "model", "modelParameters", "modelId", "inputPrice", "outputPrice", "totalPrice",
    "usageDetails", "promptTokens", "completionTokens", "totalTokens", "unit", "usage", "costDetails",
    "calculatedInputCost", "calculatedOutputCost", "calculatedTotalCost", "usagePricingTierId", "usagePricingTierName",
    "promptId", "promptName", "promptVersion", "traceName", "release", "tags",
)  # fmt: skip

SHAPES = {
    Kind.TRACE: fields.TRACE,
    Kind.TRACE_ALONE: fields.TRACE_ALONE,
    Kind.TRACE_WITHOUT_SCORES: fields.TRACE_WITHOUT_SCORES,
    Kind.TRACE_CORE: fields.TRACE.without(*_CONTENTS, "metadata"),
    Kind.OBSERVATION: fields.OBSERVATION,
    Kind.OBSERVATION_V2: fields.OBSERVATION_V2,
    Kind.OBSERVATION_V2_CORE: fields.OBSERVATION_V2.without(*_NOT_IN_V2_CORE),
    Kind.SCORE_LEGACY: fields.SCORE_LEGACY,
    Kind.SCORE_V3: fields.SCORE_V3,
    Kind.SESSION: fields.SESSION,
}
# Traces among the rows of GET /v2/observations.
_COPY_SHAPES = {
    Kind.OBSERVATION_V2: fields.TRACE_V2,
    Kind.OBSERVATION_V2_CORE: fields.TRACE_V2.without(*_NOT_IN_V2_CORE),
}

# Pages of these kinds tell of traces and sessions, too.
OBSERVATIONS_V2 = frozenset(_COPY_SHAPES)


def rows_of(
    kind: Kind,
    items: Sequence[Mapping[str, Any]],
    *,
    project_id: str,
    plain: bool,
    contents: bool,
    light: bool = False,
) -> dict[str, list[Row]]:
    """The rows of each table, one for each object; without inputs and outputs if not `contents`.

    Where the server could not send the contents, though they were wanted (not `light`), `exact` says that they are
    absent; what was stored of them before stays.

    Raises:
        RowError: An object without a usable key.
    """
    shape = _chosen(SHAPES[kind], contents)
    if kind in _COPY_SHAPES:
        tables = _rows_of_v2(items, shape, _chosen(_COPY_SHAPES[kind], contents), project_id, plain)
        return tables if light else _marked(kind, tables)
    if kind is Kind.SCORE_V3:
        items, read_from = [flatten_score(item) for item in items], "observations"
    else:
        read_from = "traces"
    rows = [from_api(item, shape, project_id=project_id, read_from=read_from, plain=plain) for item in items]
    return {shape.table: rows} if light else _marked(kind, {shape.table: rows})


# Which stored rows a complete read of such pages would have brought: per table, their `read_from`.
BRINGS: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {
    Kind.TRACE: {"traces": ("traces",)},
    Kind.TRACE_ALONE: {"traces": ("traces",)},
    Kind.TRACE_WITHOUT_SCORES: {"traces": ("traces",)},
    Kind.TRACE_CORE: {"traces": ("traces",)},
    Kind.OBSERVATION: {"observations": ("traces",)},
    Kind.OBSERVATION_V2: {"observations": ("observations",), "traces": ("trace_copy",)},
    Kind.OBSERVATION_V2_CORE: {"observations": ("observations",), "traces": ("trace_copy",)},
    Kind.SCORE_LEGACY: {"scores": ("traces",)},
    Kind.SCORE_V3: {"scores": ("observations",)},
    Kind.SESSION: {"sessions": ("traces",)},
}


def selected_by_environment(kind: Kind, table: str) -> bool:
    """Whether a filter on environments leaves rows of this table out of such pages."""
    return table == "traces" or kind in OBSERVATIONS_V2


def _marked(kind: Kind, tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    if kind in (Kind.TRACE_CORE, Kind.OBSERVATION_V2_CORE):
        for row in (row for rows in tables.values() for row in rows):
            row["exact"] = merged_exact(exact_text({}, CONTENTS_MISSING), row["exact"], ())
    return tables


def key_of(kind: Kind, item: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells this object from others of its kind; parts may be None."""
    return (item.get("traceId"), item.get("id")) if SHAPES[kind].table == "observations" else (item.get("id"),)


def trace_ids(rows: Mapping[str, Sequence[Row]]) -> set[str]:
    """The traces that rows of `traces` or `observations` belong to."""
    found = {row["id"] for row in rows.get("traces", ())}
    return found | {row["trace_id"] for row in rows.get("observations", ()) if row["trace_id"]}


def session_ids(rows: Mapping[str, Sequence[Row]]) -> set[str]:
    """The sessions that rows of `traces` or `observations` of GET /v2/observations belong to."""
    return {row["session_id"] for table in rows.values() for row in table if row.get("session_id")}


def _rows_of_v2(
    items: Sequence[Mapping[str, Any]], shape: Shape, copy_shape: Shape, project_id: str, plain: bool
) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {"traces": [], "observations": []}
    for item in items:
        copy = observations_v2.is_trace_copy(item)
        flat = observations_v2.flatten_copy(item, plain) if copy else observations_v2.flatten(item, plain)
        row = from_api(
            flat.item,
            copy_shape if copy else shape,
            project_id=project_id,
            read_from="trace_copy" if copy else "observations",
            plain=flat.plain,
            verbatim=flat.verbatim,
        )
        rows["traces" if copy else "observations"].append(row)
    return rows


@cache
def _without_contents(shape: Shape) -> Shape:
    return shape.without(*_CONTENTS)


def _chosen(shape: Shape, contents: bool) -> Shape:
    return shape if contents else _without_contents(shape)
