"""Rows of GET /v2/observations in the columns of the older observations API, and back.

The v4 API renames the usage fields, answers inputs and outputs as text, prices as text, and `""` where the older one
answers null; a trace that came in through the older ingestion appears as a span `t-<traceId>` above its observations.
Checked field by field against a server that answered the same 3,275 observations and 1,200 traces through both APIs
(`etl/demo/data`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from etl.transform.fields import OBSERVATION_V2, TRACE_V2
from etl.transform.jsontext import JsonTextError, Parsed, dumps, parse
from etl.transform.rows import exact_values, to_api

# New name -> the name that the column has.
_RENAMED = {
    "inputUsage": "promptTokens",
    "outputUsage": "completionTokens",
    "totalUsage": "totalTokens",
    "inputCost": "calculatedInputCost",
    "outputCost": "calculatedOutputCost",
    "totalCost": "calculatedTotalCost",
}
# What stands for "none" where the older API says null.
_EMPTY: dict[str, Any] = {
    "traceId": "",
    "statusMessage": "",
    "version": "",
    "model": "",
    "promptId": "",
    "promptName": "",
    "userId": "",
    "sessionId": "",
    "release": "",
    "modelParameters": {},
}
_PRICES = ("inputPrice", "outputPrice", "totalPrice")
# The older API's own rendering of the three counts; it knows no other unit.
_UNIT = "TOKENS"

# What the span of a trace says besides the trace; the same in every one that was recorded.
_COPY_SAYS: dict[str, Any] = {
    "endTime": None,
    "parentObservationId": None,
    "type": "SPAN",
    "level": "DEFAULT",
    "statusMessage": "",
    "completionStartTime": None,
    "model": "",
    "internalModelId": "",
    "modelParameters": {},
    "usageDetails": {},
    "inputUsage": 0,
    "outputUsage": 0,
    "totalUsage": 0,
    "costDetails": {},
    "inputCost": None,
    "outputCost": None,
    "totalCost": 0,
    "promptId": "",
    "promptName": "",
    "promptVersion": None,
    "usagePricingTierId": None,
    "usagePricingTierName": None,
    "latency": None,
    "timeToFirstToken": None,
    "isRootObservation": True,
    "modelId": None,
    "inputPrice": None,
    "outputPrice": None,
    "totalPrice": None,
}
_COPY_EMPTY = ("version", "userId", "sessionId", "release")

_ABSENT = object()
# How a JSON text may end that begins so (RFC 8259).
_JSON_ENDS = {"{": "}", "[": "]", '"': '"', **dict.fromkeys("-0123456789", "0123456789")}
_JSON_WORDS = ("true", "false", "null")
_JSON_SPACE = " \t\n\r"
# JavaScript writes a number with an exponent from 1e21 on and below 1e-6 (ECMAScript, Number::toString).
_JS_EXPONENT_FROM, _JS_EXPONENT_BELOW = 21, -6


class Flat(NamedTuple):
    """An object in the older API's words, with what `rows.from_api` has to know of it.

    `plain` as in `jsontext.Parsed`; `verbatim` holds fields that `unflatten` could not tell from the usual.
    """

    item: dict[str, Any]
    plain: bool
    verbatim: dict[str, Any]


def is_trace_copy(item: Mapping[str, Any]) -> bool:
    """Whether this row is not an observation but its trace itself."""
    trace_id = item.get("traceId")
    return isinstance(trace_id, str) and trace_id != "" and item.get("id") == f"t-{trace_id}"


def flatten(item: Mapping[str, Any], plain: bool) -> Flat:
    """An observation as the older API answers it, with the fields that only the new one has.

    Parts that do not follow the known form are left as they are, and so end in `extra` or `exact`.
    """
    flat = dict(item)
    for name, older in _RENAMED.items():
        if name in flat:
            flat[older] = flat.pop(name)
    verbatim: dict[str, Any] = {}
    if "providedModelName" in flat and "model" not in flat:
        flat["model"] = flat.pop("providedModelName")
    for name, empty in _EMPTY.items():
        value = flat.get(name, _ABSENT)
        if value == empty:
            flat[name] = None
        elif value is None:
            verbatim[name] = None
    if "internalModelId" in flat and flat["internalModelId"] == (flat.get("modelId") or ""):
        del flat["internalModelId"]
    if flat.get("parentObservationId") == f"t-{item.get('traceId')}":
        flat["parentObservationId"] = None
    for name in _PRICES:
        price = flat.get(name)
        if isinstance(price, str):
            flat[name] = _number(price)
        elif price is not None:
            verbatim[name] = price
    if flat.get("latency", _ABSENT) is None and flat.get("endTime") == flat.get("startTime"):
        flat["latency"] = 0  # the server's own null for 0 ms, where it was asked for metrics
    counts = [flat.get(name) for name in ("promptTokens", "completionTokens", "totalTokens")]
    if all(type(count) is int for count in counts):
        flat["unit"] = _UNIT
        flat["usage"] = dict(zip(("unit", "input", "output", "total"), (_UNIT, *counts), strict=True))
    return Flat(flat, _render_contents(flat) and plain, verbatim)


def flatten_copy(item: Mapping[str, Any], plain: bool) -> Flat:
    """A trace as the older API answers it, from its span `t-<traceId>`."""
    flat = {name: value for name, value in item.items() if _COPY_SAYS.get(name, _ABSENT) != value}
    verbatim: dict[str, Any] = {}
    flat["id"] = flat.pop("traceId")
    flat["timestamp"] = flat.pop("startTime", None)
    if flat.get("traceName", _ABSENT) == (flat.get("name") or None):
        del flat["traceName"]
    for name in _COPY_EMPTY:
        if flat.get(name) == "":
            flat[name] = None
        elif flat.get(name, _ABSENT) is None:
            verbatim[name] = None
    return Flat(flat, _render_contents(flat) and plain, verbatim)


def unflatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The observation that `flatten` was given; inputs and outputs as text of the same JSON value."""
    item = to_api(row, OBSERVATION_V2)
    said = exact_values(row)
    item.pop("unit", None)
    item.pop("usage", None)
    for name, empty in _EMPTY.items():
        if item.get(name, _ABSENT) is None and name not in said:
            item[name] = empty
    if "internalModelId" not in item and "modelId" in item:
        item["internalModelId"] = item["modelId"] or ""
    # Only what has no parent is a root, says the server; a root below its trace's span is none.
    if item.get("parentObservationId", _ABSENT) is None and item.get("isRootObservation") is False:
        item["parentObservationId"] = f"t-{item['traceId']}"
    for name in _PRICES:
        if isinstance(item.get(name), Decimal) or (item.get(name) is not None and name not in said):
            item[name] = _js_number(item[name])
    if item.get("latency") == 0:
        item["latency"] = None
    _unrender_contents(item)
    older = {v1: v2 for v2, v1 in _RENAMED.items()}
    return {older.get(name, name): value for name, value in item.items()}


def unflatten_copy(row: Mapping[str, Any]) -> dict[str, Any]:
    """The span `t-<traceId>` that `flatten_copy` was given."""
    item = to_api(row, TRACE_V2)
    said = exact_values(row)
    for name in _COPY_EMPTY:
        if item.get(name, _ABSENT) is None and name not in said:
            item[name] = ""
    _unrender_contents(item)
    trace_id = item.pop("id")
    named = {"id": f"t-{trace_id}", "traceId": trace_id, "startTime": item.pop("timestamp")}
    return {"traceName": item.get("name") or None, **_COPY_SAYS, **named, **item}


def _render_contents(flat: dict[str, Any]) -> bool:
    """Inputs and outputs as the older API renders them: text that is JSON is parsed, `""` is none.

    Returns:
        Whether what came of it is plain.
    """
    all_plain = True
    for name in ("input", "output"):
        text = flat.get(name)
        if text == "":
            flat[name] = None
        elif isinstance(text, str) and (parsed := _json(text)) is not None:
            flat[name] = parsed.value
            all_plain = all_plain and parsed.plain
    return all_plain


def _unrender_contents(item: dict[str, Any]) -> None:
    for name in ("input", "output"):
        value = item.get(name)
        # An empty text would be no value at all, so one that is a value must have come as JSON.
        if value == "" or (value is not None and not (isinstance(value, str) and _json(value) is None)):
            item[name] = dumps(value)


def _json(text: str) -> Parsed | None:
    """What `text` says if it is JSON."""
    bare = text.strip(_JSON_SPACE)
    # Most text is none, and to have it refused by the parser takes longer than to read it.
    if bare not in _JSON_WORDS and (not bare or bare[-1] not in _JSON_ENDS.get(bare[0], "")):
        return None
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except JsonTextError:
        return None


@lru_cache(maxsize=256)  # there are few prices
def _number(text: str) -> float | Decimal | str:
    """The number that `text` writes; the text itself if it writes none."""
    parsed = _json(text)
    value = parsed.value if parsed else None
    return value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else text


def _js_number(number: float | Decimal) -> str:
    """`number` as JavaScript writes it: 1.5e-7, but 0.0000025 and 3."""
    exact = Decimal(repr(number)) if isinstance(number, float) else number
    sign, digits, exponent = exact.normalize().as_tuple()
    if not isinstance(exponent, int) or exact == 0:
        return "0"
    text, scale = "".join(map(str, digits)), exact.adjusted()
    if _JS_EXPONENT_BELOW <= scale < _JS_EXPONENT_FROM:
        return f"{exact.normalize():f}"
    mantissa = text[0] + (f".{text[1:]}" if text[1:] else "")
    return f"{'-' if sign else ''}{mantissa}e{scale:+d}"
