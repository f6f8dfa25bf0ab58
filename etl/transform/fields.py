"""Which field of the API goes to which column, for every kind of object that is stored.

Field names and order are those of the recorded answers of Langfuse 3.225 and 4.16 (`tests/cassettes`). A column has
the API's name in snake_case; where two generations call the same thing by two names, they share the older column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, lru_cache
from types import NoneType
from typing import NamedTuple


class Kind(Enum):
    """What a column can hold without loss; anything else goes to `exact`."""

    TEXT = "text"
    INSTANT = "instant"  # `YYYY-MM-DDTHH:MM:SS.sssZ`
    NUMBER = "number"  # a double
    INTEGER = "integer"  # 64 bits
    FLAG = "flag"
    JSON = "json"


# How many combinations of types, or of field names, are remembered for each shape.
_COMBINATIONS = 4_096
# Values of these types are what columns of a kind hold, where all is free of NUL, lone surrogates and numbers beyond 64
# bits.
_HELD_AS_THEY_ARE: Mapping[Kind, frozenset[type]] = {
    Kind.TEXT: frozenset({str, NoneType}),
    Kind.INSTANT: frozenset({NoneType}),
    Kind.NUMBER: frozenset({float, NoneType}),
    Kind.INTEGER: frozenset({int, NoneType}),
    Kind.FLAG: frozenset({bool, NoneType}),
    Kind.JSON: frozenset({NoneType}),
}


class Field(NamedTuple):
    """One field of the API: its name there, its column and its kind."""

    api: str
    column: str
    kind: Kind


class ToBeHeld(NamedTuple):
    """What has to be done for columns to hold the values of an object: columns that take JSON, columns of instants that
    are text already, and fields whose values may be of no use there.
    """

    json_columns: tuple[str, ...]
    instant_columns: tuple[str, ...]
    others: tuple[Field, ...]


@dataclass(frozen=True)
class Shape:
    """The fields that one endpoint answers, in its order.

    `optional` fields may be missing without that being worth a note; they are rendered only if they have a value.
    `ignored` fields are placeholders, or say what other tables say better; they are not stored at all.
    """

    table: str
    fields: tuple[Field, ...]
    optional: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The API's names of the fields."""
        return tuple(f.api for f in self.fields)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Their columns."""
        return tuple(f.column for f in self.fields)

    @cached_property
    def flag_names(self) -> tuple[str, ...]:
        """The API's names of the fields that are true or false."""
        return tuple(f.api for f in self.fields if f.kind is Kind.FLAG)

    @cached_property
    def json_names(self) -> tuple[str, ...]:
        """The API's names of the fields whose column holds JSON."""
        return tuple(f.api for f in self.fields if f.kind is Kind.JSON)

    @cached_property
    def number_names(self) -> tuple[str, ...]:
        """The API's names of the fields whose column holds a double."""
        return tuple(f.api for f in self.fields if f.kind is Kind.NUMBER)

    @cached_property
    def to_be_held(self) -> Callable[[tuple[type, ...]], ToBeHeld]:
        """Of the types of all values, in the order of `fields`: which of them may not fit their columns as they are.

        Few combinations occur, so each is worked out once.
        """

        @lru_cache(maxsize=_COMBINATIONS)
        def by_types(types: tuple[type, ...]) -> ToBeHeld:
            typed = zip(self.fields, types, strict=True)
            left = [(f, one) for f, one in typed if one not in _HELD_AS_THEY_ARE[f.kind]]
            return ToBeHeld(
                tuple(f.column for f, _ in left if f.kind is Kind.JSON),
                tuple(f.column for f, one in left if f.kind is Kind.INSTANT and one is str),
                tuple(
                    f for f, one in left if f.kind is not Kind.JSON and (f.kind is not Kind.INSTANT or one is not str)
                ),
            )

        return by_types

    @cached_property
    def absent_and_unknown(self) -> Callable[[tuple[str, ...]], tuple[tuple[str, ...], tuple[str, ...]]]:
        """Of the names of an object's fields: the required ones it lacks, and those that are not known here."""
        required = frozenset(self.names) - self.optional

        @lru_cache(maxsize=_COMBINATIONS)
        def of_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
            return tuple(required.difference(names)), tuple(name for name in names if name not in self.known)

        return of_names

    @cached_property
    def known(self) -> frozenset[str]:
        """Fields that are not unknown ones."""
        return frozenset(self.names) | self.ignored

    def without(self, *api_names: str) -> Shape:
        """The same shape for a request that leaves these fields out; what stands in their place is no value."""
        kept = tuple(f for f in self.fields if f.api not in api_names)
        return replace(self, fields=kept, ignored=self.ignored | set(api_names))


def snake_case(api_name: str) -> str:
    """`parentObservationId` -> `parent_observation_id`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", api_name).lower()


def _fields(kind: Kind, *names: str) -> list[Field]:
    return [Field(name, snake_case(name), kind) for name in names]


def _ordered(order: str, *groups: list[Field]) -> tuple[Field, ...]:
    by_name = {f.api: f for group in groups for f in group}
    return tuple(by_name[name] for name in order.split())


_TRACE = _ordered(
    "id projectId name timestamp environment tags bookmarked release version userId sessionId public"
    " input output metadata createdAt updatedAt totalCost latency htmlPath externalId",
    _fields(Kind.TEXT, "id", "projectId", "name", "environment", "release", "version", "userId", "sessionId"),
    _fields(Kind.TEXT, "htmlPath", "externalId"),
    _fields(Kind.INSTANT, "timestamp", "createdAt", "updatedAt"),
    _fields(Kind.FLAG, "bookmarked", "public"),
    _fields(Kind.JSON, "tags", "input", "output", "metadata"),
    _fields(Kind.NUMBER, "totalCost", "latency"),
)

# GET /traces/{id}. Its observations and scores are rows of their own.
TRACE_DOCUMENT = Shape("traces", _TRACE, ignored=frozenset({"observations", "scores"}))
# GET /traces with `fields=core,io`: metrics and id lists are placeholders, whatever they look like.
TRACE = TRACE_DOCUMENT.without("totalCost", "latency")

# Where observations are not copied, the API says what else they would have told: metrics, and the ids of children.
TRACE_ALONE = replace(TRACE_DOCUMENT, ignored=frozenset())
TRACE_WITHOUT_SCORES = replace(TRACE, ignored=TRACE.ignored - {"scores"})

OBSERVATION = Shape(
    "observations",
    _ordered(
        "id traceId startTime endTime projectId parentObservationId type environment name level statusMessage version"
        " createdAt updatedAt input output metadata model modelParameters completionStartTime promptId promptName"
        " promptVersion latency timeToFirstToken usageDetails costDetails usagePricingTierId usagePricingTierName"
        " modelId inputPrice outputPrice totalPrice calculatedInputCost calculatedOutputCost calculatedTotalCost"
        " unit promptTokens completionTokens totalTokens usage",
        _fields(Kind.TEXT, "id", "traceId", "projectId", "parentObservationId", "type", "environment", "name", "level"),
        _fields(Kind.TEXT, "statusMessage", "version", "model", "promptId", "promptName", "usagePricingTierId"),
        _fields(Kind.TEXT, "usagePricingTierName", "modelId", "unit"),
        _fields(Kind.INSTANT, "startTime", "endTime", "createdAt", "updatedAt", "completionStartTime"),
        _fields(Kind.JSON, "input", "output", "metadata", "modelParameters", "usageDetails", "costDetails", "usage"),
        _fields(Kind.INTEGER, "promptVersion", "promptTokens", "completionTokens", "totalTokens"),
        _fields(Kind.NUMBER, "latency", "timeToFirstToken", "inputPrice", "outputPrice", "totalPrice"),
        _fields(Kind.NUMBER, "calculatedInputCost", "calculatedOutputCost", "calculatedTotalCost"),
    ),
)

# Fields that only GET /v2/observations has; null on rows of the traces API.
OBSERVATION_V2_ONLY = (
    *_fields(Kind.TEXT, "userId", "sessionId", "traceName", "release"),
    *_fields(Kind.JSON, "tags"),
    *_fields(Kind.FLAG, "bookmarked", "public", "isRootObservation"),
)

# GET /v2/observations after `etl.transform.observations_v2.flatten`.
OBSERVATION_V2 = replace(
    OBSERVATION, fields=OBSERVATION.fields + OBSERVATION_V2_ONLY, optional=frozenset({"unit", "usage"})
)
# A trace as GET /v2/observations knows it: its copy among the observations, or what its observations say of it.
TRACE_V2 = TRACE.without("htmlPath", "externalId")

_SCORE_FIELDS = (
    _fields(Kind.TEXT, "id", "projectId", "environment", "name", "stringValue", "dataType", "source"),
    _fields(Kind.TEXT, "authorUserId", "comment", "configId", "queueId", "executionTraceId"),
    _fields(Kind.TEXT, "traceId", "observationId", "sessionId", "datasetRunId"),
    _fields(Kind.INSTANT, "timestamp", "createdAt", "updatedAt"),
    _fields(Kind.NUMBER, "value"),
    _fields(Kind.JSON, "metadata"),
)

# GET /v2/scores. TEXT scores have no `value`; the field `trace` repeats columns of the trace. GET /scores lacks
# `sessionId` and `datasetRunId`, and scores inside a trace lack all three.
SCORE_LEGACY = Shape(
    "scores",
    _ordered(
        "id projectId environment name value source authorUserId comment metadata configId queueId executionTraceId"
        " createdAt updatedAt timestamp traceId observationId sessionId datasetRunId stringValue dataType",
        *_SCORE_FIELDS,
    ),
    optional=frozenset({"value"}),
    ignored=frozenset({"trace"}),
)
# GET /v3/scores after `etl.transform.scores.flatten`; it does not tell which trace ran an evaluator.
SCORE_V3 = replace(SCORE_LEGACY, optional=SCORE_LEGACY.optional | {"executionTraceId"}, ignored=frozenset())

SESSION = Shape(
    "sessions",
    _ordered(
        "id createdAt projectId environment",
        _fields(Kind.TEXT, "id", "projectId", "environment"),
        _fields(Kind.INSTANT, "createdAt"),
    ),
)
