"""Stored rows to the documents people get in files: the shape of GET /traces/{id}, or of a row of GET /traces.

Equal rows give equal documents on every database: JSON columns come back from Postgres with other key orders and
number spellings, so values are brought to one form. Field order is the API's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from etl.transform.fields import OBSERVATION, OBSERVATION_V2, SCORE_LEGACY, SCORE_V3, TRACE_DOCUMENT, Shape
from etl.transform.jsontext import loads_sorted, loads_texts
from etl.transform.rows import to_api

Row = Mapping[str, Any]

# What one generation has no field for is left out; see design section 7. Metrics are null until they are derived.
_METRICS = frozenset({"totalCost", "latency"})
_TRACE = replace(TRACE_DOCUMENT, optional=_METRICS)
_TRACE_WITHOUT_TRACES_API = replace(TRACE_DOCUMENT, optional=_METRICS | {"htmlPath", "externalId"})

# Inside a trace, prices that are not known are 0, and the pricing tier of a known model is named; lists of observations
# say null for both (`tests/cassettes/trace_by_id.yaml` and `observations_v1_pages.yaml`). The tier cannot be guessed.
_PRICES = ("inputPrice", "outputPrice", "totalPrice")
_UNSAID = object()

# What a score inside a trace is known to belong to already; there only if it says something.
_SCORE_OWNERS = ("sessionId", "datasetRunId")
_CORRECTION = "CORRECTION"

# What the rows of a document need to hold, by table.
DOCUMENT_COLUMNS = {
    shape.table: (*shape.columns, "extra", "exact", "read_from")
    for shape in (TRACE_DOCUMENT, OBSERVATION_V2, SCORE_LEGACY)
}

# Python writes no integer of more than 4,300 digits (sys.set_int_max_str_digits).
_INTEGER_DIGITS = 4_000
_EXACT_IN_DOUBLE = 2**53
# ECMAScript, Number::toString.
_JS_EXPONENT_FROM = 10**21
# Numbers that orjson writes otherwise than JavaScript are whole ones that came as a double: 1.0, -0.0 and 1e+20.
_WHOLE_DOUBLE = re.compile(rb"\.0(?!\d)")
_LARGE_DOUBLE = b"e+"


class Document(NamedTuple):
    """A trace with what belongs to it.

    `observations` and `scores` count what is in it; `complete` is false if it names parts that are not stored.
    """

    item: dict[str, Any]
    observations: int
    scores: int
    complete: bool


def trace_item(row: Row) -> dict[str, Any]:
    """The trace's own fields. Lists of ids that the API gave are left out."""
    item = _item(row, _TRACE if row["read_from"] == "traces" else _TRACE_WITHOUT_TRACES_API)
    item.pop("observations", None)
    item.pop("scores", None)
    return item


def full_document(trace: Row, observations: Iterable[Row], scores: Iterable[Row]) -> Document:
    """The shape of GET /traces/{id}, whatever API the rows were read from.

    Observations are in the order (startTime, id), scores in the order (timestamp, id). CORRECTION scores are left out,
    as the API does.
    """
    item = trace_item(trace)
    observation_items = _sorted_items(observations, "start_time", _observation_item)
    score_items = _sorted_items((row for row in scores if row["data_type"] != _CORRECTION), "timestamp", _score_item)
    missing = _listed(trace, "observations") - {part["id"] for part in observation_items}
    missing |= _listed(trace, "scores") - {part["id"] for part in score_items}
    item |= {"observations": observation_items, "scores": score_items}
    return Document(item, len(observation_items), len(score_items), complete=not missing)


def row_document(trace: Row) -> Document:
    """The shape of a row of GET /traces; its lists of observation and score ids are sorted.

    Ids that the API listed are kept where observations or scores themselves are not stored.

    Args:
        trace: The trace's row, and the ids of its parts as JSON texts in `observation_ids` and `score_ids`: each an id,
            or a list of it and the text of the part's column `exact`.
    """
    item = trace_item(trace)
    observation_ids = _listed(trace, "observations") | _ids(trace["observation_ids"])
    score_ids = _listed(trace, "scores") | _ids(trace["score_ids"])
    item |= {"observations": sorted(observation_ids), "scores": sorted(score_ids)}
    return Document(item, len(observation_ids), len(score_ids), complete=True)


def canonical(value: Any) -> Any:
    """`value` with sorted keys, and numbers as JavaScript writes them: 1 for 1.0, 1e22 for its 23 digits.

    Postgres gives `1e22` back as an integer and `-0.0` as `0.0`; equal numbers must give equal bytes.
    """
    # A loop, because values may be nested as deeply as the parser allows.
    root = [value]
    open_containers: list[Any] = [root]
    while open_containers:
        container = open_containers.pop()
        for key, member in enumerate(container) if type(container) is list else container.items():
            kind = type(member)
            if kind is dict:
                container[key] = {name: member[name] for name in sorted(member)}
                open_containers.append(container[key])
            elif kind is list:
                container[key] = member.copy()
                open_containers.append(container[key])
            elif kind is float or kind is int or kind is Decimal:
                container[key] = _canonical_number(member)
    return root[0]


def canonical_json(text: str) -> Any:
    """`canonical` of what a JSON text says, without a look at each value where no number needs one."""
    value, body, plain = loads_sorted(text)
    if plain and not _WHOLE_DOUBLE.search(body) and (b"+" not in body or _LARGE_DOUBLE not in body):
        return value
    return canonical(value)


def whole_number(number: float | Decimal) -> int | None:
    """The integer that `number` is, digit for digit as it was written; None if it has a fraction or is too long."""
    if isinstance(number, int):
        return number
    if isinstance(number, float):
        if not number.is_integer():
            return None
        # Above that, the digits that were meant are those of the text, not those of the nearest double.
        return int(number) if abs(number) < _EXACT_IN_DOUBLE else int(Decimal(repr(number)))
    too_long = number.adjusted() >= _INTEGER_DIGITS
    return None if too_long or number != number.to_integral_value() else int(number)


def _canonical_number(number: float | Decimal) -> float | Decimal:
    if type(number) is int and -_JS_EXPONENT_FROM < number < _JS_EXPONENT_FROM:
        return number
    integer = whole_number(number)
    if integer is None:
        return _without_zeros(number) if isinstance(number, Decimal) else number
    if -_JS_EXPONENT_FROM < integer < _JS_EXPONENT_FROM:
        return integer
    try:
        nearest = float(integer)
    except OverflowError:
        return integer
    return nearest if Decimal(repr(nearest)) == integer else integer


def _without_zeros(number: Decimal) -> Decimal:
    """1E+5000 for all of its digits; `Decimal.normalize` would round."""
    sign, digits, exponent = number.as_tuple()
    kept = len("".join(map(str, digits)).rstrip("0")) or 1
    return Decimal((sign, digits[:kept], exponent + len(digits) - kept)) if isinstance(exponent, int) else number


def _item(row: Row, shape: Shape) -> dict[str, Any]:
    """The API's object with its fields in the order of `shape`, unknown ones after them by name."""
    item = to_api(row, shape, read_json=canonical_json)
    if row.get("extra") or row.get("exact"):
        order = {name: position for position, name in enumerate(shape.names)}
        return {name: canonical(item[name]) for name in sorted(item, key=lambda n: (order.get(n, len(order)), n))}
    for name in shape.number_names:
        if item.get(name) is not None:
            item[name] = _canonical_number(item[name])
    return item


def _observation_item(row: Row) -> dict[str, Any]:
    item = _item(row, OBSERVATION if row["read_from"] == "traces" else OBSERVATION_V2)
    for name in _PRICES:
        if item.get(name, _UNSAID) is None:
            item[name] = 0
    if item.get("modelId") is not None and item.get("usagePricingTierId") is None:
        item.pop("usagePricingTierId", None)
        item.pop("usagePricingTierName", None)
    return item


def _score_item(row: Row) -> dict[str, Any]:
    item = _item(row, SCORE_LEGACY if row["read_from"] == "traces" else SCORE_V3)
    return {name: value for name, value in item.items() if value is not None or name not in _SCORE_OWNERS}


def _sorted_items(
    rows: Iterable[Row], time_column: str, render: Callable[[Row], dict[str, Any]]
) -> list[dict[str, Any]]:
    in_order = sorted(rows, key=lambda row: (row[time_column] or "", row["id"]))
    return [render(row) for row in in_order]


def _listed(trace: Row, part: str) -> set[str]:
    """Ids that the API listed where that kind of part was not asked for itself; it is in `extra` then."""
    if not trace.get("extra"):
        return set()
    ids = to_api(trace, _NO_FIELDS).get(part)
    return {entry for entry in ids if isinstance(entry, str)} if isinstance(ids, list) else set()


def _ids(text: str | None) -> set[str]:
    return {one if type(one) is str else _exact_id(*one) for one in loads_texts(text)} if text else set()


def _exact_id(row_id: str, exact: str) -> str:
    return str(to_api({"id": row_id, "exact": exact}, _ID_ONLY)["id"])


_NO_FIELDS = replace(TRACE_DOCUMENT, fields=())
_ID_ONLY = replace(TRACE_DOCUMENT, fields=TRACE_DOCUMENT.fields[:1])
