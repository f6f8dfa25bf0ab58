"""Every kind of object a reader meets, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

from etl.transform import fields, observations_v2
from etl.transform.fields import Shape
from etl.transform.items import Item, at_hand, parsed
from etl.transform.jsontext import dumps, loads
from etl.transform.rows import Row, content_hash, exact_text, exact_values, from_api, held_instant, merged_exact
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
_TIMES = {"traces": "timestamp", "observations": "startTime", "scores": "timestamp", "sessions": "createdAt"}
# Traces among the rows of GET /v2/observations.
_COPY_SHAPES = {
    Kind.OBSERVATION_V2: fields.TRACE_V2,
    Kind.OBSERVATION_V2_CORE: fields.TRACE_V2.without(*_NOT_IN_V2_CORE),
}

# Pages of these kinds tell of traces and sessions, too.
OBSERVATIONS_V2 = frozenset(_COPY_SHAPES)


def rows_of(
    kind: Kind, items: Sequence[Item], *, project_id: str, contents: bool, light: bool = False
) -> dict[str, list[Row]]:
    """The rows of each table, one for each object; without inputs and outputs if not `contents`.

    Raises:
        RowError: An object that cannot be read, or has no usable key.
    """
    objects = identified(kind, items, contents=contents, light=light)
    return rows_of_objects(kind, objects, project_id=project_id, contents=contents, light=light)


class Identified(NamedTuple):
    """An object of a page, before any work is done to make it a row.

    `key` is the primary key without the project. `at` is the time that its row is stored with. An object that was read
    lightly serves to be compared, not to be stored, and has an empty hash.
    """

    table: str
    key: tuple[Any, ...]
    at: str | None
    read_from: str
    content_hash: str
    item: Item

    @property
    def is_found_by_key(self) -> bool:
        """Whether the key is certainly stored just as it is."""
        return all(map(_is_printable_text, self.key))


def identified(kind: Kind, items: Sequence[Item], *, contents: bool, light: bool = False) -> list[Identified]:
    """What is needed to see which objects are stored as they are.

    Raises:
        RowError: An object that cannot be read.
    """
    shape = _chosen(SHAPES[kind], contents)
    read_from = "observations" if kind in OBSERVATIONS_V2 or kind is Kind.SCORE_V3 else "traces"
    if kind in _WITH_IDS:
        items = [
            item.with_fields({name: sorted(item[name]) for name in _CHILDREN if _are_ids(item.get(name))})
            for item in items
        ]
    hashes = [""] * len(items) if light else [content_hash(item, shape) for item in items]
    ids, times = at_hand(items, "id"), list(map(held_instant, at_hand(items, _TIMES[shape.table])))
    if shape.table != "observations":
        return [
            Identified(shape.table, (id_,), at, read_from, hashed, item)
            for id_, at, hashed, item in zip(ids, times, hashes, items, strict=True)
        ]
    found: list[Identified] = []
    for trace_id, id_, at, hashed, item in zip(at_hand(items, "traceId"), ids, times, hashes, items, strict=True):
        if kind in OBSERVATIONS_V2 and observations_v2.is_trace_copy(item):
            found.append(Identified("traces", (trace_id,), at, "trace_copy", hashed, item))
        else:
            key = ("" if trace_id is None else trace_id, id_)
            found.append(Identified("observations", key, at, read_from, hashed, item))
    return found


def rows_of_objects(
    kind: Kind, objects: Sequence[Identified], *, project_id: str, contents: bool, light: bool
) -> dict[str, list[Row]]:
    """The rows of each table that pages of this kind bring, one for each object.

    Where the server could not send the contents, though they were wanted (not `light`), `exact` says that they are
    absent; what was stored of them before stays.

    Raises:
        RowError: An object that cannot be read, or has no usable key.
    """
    rows: dict[str, list[Row]] = {table: [] for table in BRINGS[kind]}
    shapes = {SHAPES[kind].table: _chosen(SHAPES[kind], contents)}
    if kind in _COPY_SHAPES:
        shapes["traces"] = _chosen(_COPY_SHAPES[kind], contents)
    values = parsed([one.item for one in objects])
    for (table, _, _, read_from, hashed, _), (item, all_plain) in zip(objects, values, strict=True):
        verbatim: Mapping[str, Any] = {}
        if kind is Kind.SCORE_V3:
            item = flatten_score(item)
        elif kind in _COPY_SHAPES:
            flatten = observations_v2.flatten_copy if table == "traces" else observations_v2.flatten
            item, all_plain, verbatim = flatten(item, all_plain)
        row = from_api(
            item, shapes[table], project_id=project_id, read_from=read_from, plain=all_plain, hashed=hashed,
            verbatim=verbatim,
        )  # fmt: skip
        rows[table].append(row)
    return rows if light else _marked(kind, rows)


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
# Traces that list the ids of their children, in no order that stays.
_WITH_IDS = (Kind.TRACE_ALONE, Kind.TRACE_WITHOUT_SCORES)
_CHILDREN = ("observations", "scores")


def selected_by_environment(kind: Kind, table: str) -> bool:
    """Whether a filter on environments leaves rows of this table out of such pages."""
    return table == "traces" or kind in OBSERVATIONS_V2


def _marked(kind: Kind, tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    if kind in (Kind.TRACE_CORE, Kind.OBSERVATION_V2_CORE):
        for row in (row for rows in tables.values() for row in rows):
            row["exact"] = merged_exact(exact_text({}, CONTENTS_MISSING), row["exact"], ())
    return tables


def contents_missing(exact: str | None) -> bool:
    """Whether `exact` says of a row that the server could not send its contents."""
    return exact is not None and set(CONTENTS_MISSING) <= set(loads(exact).get("absent", ()))


def with_contents_known(exact: str | None) -> str | None:
    """`exact` of a row that the server could not send the contents of, where they are known from before."""
    absent = set(loads(exact).get("absent", ())).difference(CONTENTS_MISSING) if exact else ()
    return exact_text(exact_values({"exact": exact}), absent)


def keys_of(kind: Kind, items: Sequence[Item]) -> list[tuple[Any, ...]]:
    """What tells each object from others of its kind; parts may be None. What is no text stands there as its JSON."""
    names = ("traceId", "id") if SHAPES[kind].table == "observations" else ("id",)
    return list(zip(*([_key_part(value) for value in at_hand(items, name)] for name in names), strict=True))


def trace_ids(rows: Mapping[str, Sequence[Row]]) -> set[str]:
    """The traces that rows of `traces` or `observations` belong to."""
    found = {row["id"] for row in rows.get("traces", ())}
    return found | {row["trace_id"] for row in rows.get("observations", ()) if row["trace_id"]}


def session_ids(rows: Mapping[str, Sequence[Row]]) -> set[str]:
    """The sessions that rows of `traces` or `observations` of GET /v2/observations belong to."""
    return {row["session_id"] for table in rows.values() for row in table if row.get("session_id")}


def _key_part(value: Any) -> str | None:
    return value if type(value) is str or value is None else dumps(value)


def _is_printable_text(part: Any) -> bool:
    return type(part) is str and part.isprintable()


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


@cache
def _without_contents(shape: Shape) -> Shape:
    return shape.without(*_CONTENTS)


def _chosen(shape: Shape, contents: bool) -> Shape:
    return shape if contents else _without_contents(shape)
