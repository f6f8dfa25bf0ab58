"""Every kind of object a reader meets, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from etl.transform import fields
from etl.transform.rows import Row, from_api
from etl.transform.scores import flatten


class Kind(Enum):
    """The endpoint an object came from, where that decides how it is stored."""

    TRACE = "trace"
    TRACE_CORE = "trace without contents"
    OBSERVATION = "observation"
    SCORE_LEGACY = "score of v1 or v2"
    SCORE_V3 = "score of v3"
    SESSION = "session"


SHAPES = {
    Kind.TRACE: fields.TRACE,
    Kind.TRACE_CORE: fields.TRACE.without("input", "output", "metadata"),
    Kind.OBSERVATION: fields.OBSERVATION,
    Kind.SCORE_LEGACY: fields.SCORE_LEGACY,
    Kind.SCORE_V3: fields.SCORE_V3,
    Kind.SESSION: fields.SESSION,
}
_WITHOUT_CONTENTS = {kind: shape.without("input", "output") for kind, shape in SHAPES.items()}
_READ_FROM = {Kind.SCORE_V3: "observations"}


def rows_of(
    kind: Kind, items: Sequence[Mapping[str, Any]], *, project_id: str, plain: bool, contents: bool
) -> list[Row]:
    """One row for each object, for the table `SHAPES[kind].table`; without inputs and outputs if not `contents`.

    Raises:
        RowError: An object without a usable key.
    """
    shape, read_from = SHAPES[kind] if contents else _WITHOUT_CONTENTS[kind], _READ_FROM.get(kind, "traces")
    if kind is Kind.SCORE_V3:
        items = [flatten(item) for item in items]
    return [from_api(item, shape, project_id=project_id, read_from=read_from, plain=plain) for item in items]


def key_of(kind: Kind, item: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells this object from others of its kind; parts may be None."""
    return (item.get("traceId"), item.get("id")) if kind is Kind.OBSERVATION else (item.get("id"),)


def trace_ids(rows: Sequence[Row], table: str) -> set[str]:
    """The traces that rows of `traces` or `observations` belong to."""
    if table == "traces":
        return {row["id"] for row in rows}
    return {row["trace_id"] for row in rows if row["trace_id"]} if table == "observations" else set()
