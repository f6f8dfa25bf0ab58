"""The shapes of rows: what a put row is completed with, and how one API's row becomes another's.

Every rule was read off the recordings of 4.16.0, whose corpus holds the same data in all shapes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etl.demo import json_text
from etl.demo.table import Row
from etl.demo.times import parse_ms

_TRACE: Row = {
    "id": None,
    "projectId": "proj-shop",
    "name": "",
    "timestamp": None,
    "environment": "default",
    "tags": [],
    "bookmarked": False,
    "release": None,
    "version": None,
    "userId": None,
    "sessionId": None,
    "public": False,
    "input": None,
    "output": None,
    "metadata": {},
    "createdAt": None,
    "updatedAt": None,
    "observations": [],
    "scores": [],
    "totalCost": 0,
    "latency": 0,
    "htmlPath": None,
    "externalId": None,
}
_OBSERVATION: Row = {
    "id": None,
    "traceId": None,
    "startTime": None,
    "endTime": None,
    "projectId": "proj-shop",
    "parentObservationId": None,
    "type": "SPAN",
    "environment": "default",
    "name": "",
    "level": "DEFAULT",
    "statusMessage": None,
    "version": None,
    "createdAt": None,
    "updatedAt": None,
    "input": None,
    "output": None,
    "metadata": {},
    "model": None,
    "modelParameters": None,
    "completionStartTime": None,
    "promptId": None,
    "promptName": None,
    "promptVersion": None,
    "latency": None,
    "timeToFirstToken": None,
    "usageDetails": {},
    "costDetails": {},
    "usagePricingTierId": None,
    "usagePricingTierName": None,
    "modelId": None,
    "inputPrice": None,
    "outputPrice": None,
    "totalPrice": None,
    "calculatedInputCost": None,
    "calculatedOutputCost": None,
    "calculatedTotalCost": 0,
    "unit": "TOKENS",
    "promptTokens": 0,
    "completionTokens": 0,
    "totalTokens": 0,
    "usage": {"unit": "TOKENS", "input": 0, "output": 0, "total": 0},
}
_SCORE: Row = {
    "id": None,
    "projectId": "proj-shop",
    "environment": "default",
    "name": "score",
    "value": 0,
    "source": "API",
    "authorUserId": None,
    "comment": None,
    "metadata": {},
    "configId": None,
    "queueId": None,
    "executionTraceId": None,
    "createdAt": None,
    "updatedAt": None,
    "timestamp": None,
    "traceId": None,
    "observationId": None,
    "sessionId": None,
    "datasetRunId": None,
    "stringValue": None,
    "dataType": "NUMERIC",
    "trace": None,
}

# GET /traces/{id} leaves the key order of the list; so it is written down.
_TRACE_BY_ID = (
    *(name for name in _TRACE if name not in ("observations", "scores", "totalCost", "latency", "htmlPath")),
    "scores",
    "latency",
    "observations",
    "htmlPath",
    "totalCost",
)
SESSION_TRACE = tuple(
    name for name in _TRACE if name not in ("observations", "scores", "totalCost", "latency", "htmlPath")
)


def complete_trace(row: Mapping[str, Any]) -> Row:
    """A list row of GET /traces with every field; unknown fields are kept. `timestamp` and `id` are required."""
    full = _TRACE | dict(row)
    full["createdAt"] = full["createdAt"] or full["timestamp"]
    full["updatedAt"] = full["updatedAt"] or full["createdAt"]
    full["htmlPath"] = full["htmlPath"] or f"/project/{full['projectId']}/traces/{full['id']}"
    return full


def complete_observation(row: Mapping[str, Any]) -> Row:
    """A row of GET /observations with every field; what follows from other fields is computed unless given."""
    full = _OBSERVATION | dict(row)
    full["createdAt"] = full["createdAt"] or full["startTime"]
    full["updatedAt"] = full["updatedAt"] or full["createdAt"]
    if "latency" not in row:
        full["latency"] = _seconds(full["startTime"], full["endTime"])
    if "timeToFirstToken" not in row:
        full["timeToFirstToken"] = _seconds(full["startTime"], full["completionStartTime"])
    if "usage" not in row and full["usageDetails"]:
        usage = full["usageDetails"]
        full["promptTokens"] = sum(count for name, count in usage.items() if "input" in name)
        full["completionTokens"] = sum(count for name, count in usage.items() if "output" in name)
        full["totalTokens"] = usage.get("total", full["promptTokens"] + full["completionTokens"])
        full["usage"] = {
            "unit": "TOKENS",
            "input": full["promptTokens"],
            "output": full["completionTokens"],
            "total": full["totalTokens"],
        }
    if "calculatedTotalCost" not in row and full["costDetails"]:
        cost = full["costDetails"]
        full["calculatedInputCost"] = cost.get("input")
        full["calculatedOutputCost"] = cost.get("output")
        full["calculatedTotalCost"] = cost.get("total", 0)
    return full


def complete_score(row: Mapping[str, Any]) -> Row:
    """A row of GET /v2/scores with every field; TEXT has no `value`."""
    full = _SCORE | dict(row)
    full["createdAt"] = full["createdAt"] or full["timestamp"]
    full["updatedAt"] = full["updatedAt"] or full["createdAt"]
    if full["dataType"] == "TEXT" and "value" not in row:
        del full["value"]
    return full


def _seconds(start: str, end: str | None) -> float | None:
    return None if end is None else (parse_ms(end) - parse_ms(start)) / 1000


def total_cost(observations: Iterable[Row]) -> float:
    """USD; the server adds decimals with 12 places, so the sum carries no binary error."""
    total = round(math.fsum(row["calculatedTotalCost"] or 0 for row in observations), 12)
    return 0 if total == 0 else total


def list_latency(observations: Sequence[Row]) -> float:
    """Seconds from the first to the last instant of any kind; the list's formula. 0 without observations."""
    if not observations:
        return 0
    moments = [parse_ms(row["startTime"]) for row in observations]
    moments += [parse_ms(row["endTime"]) for row in observations if row["endTime"]]
    return _whole((max(moments) - min(moments)) / 1000)


def trace_latency(observations: Sequence[Row]) -> float:
    """Seconds from the first start to the last end, or to the last start if none ended; GET /traces/{id}'s formula."""
    if not observations:
        return 0
    starts = [parse_ms(row["startTime"]) for row in observations]
    ends = [parse_ms(row["endTime"]) for row in observations if row["endTime"]]
    return _whole(((max(ends) if ends else max(starts)) - min(starts)) / 1000)


def _whole(number: float) -> float:
    """JavaScript writes 2, not 2.0."""
    return int(number) if number == int(number) else number


def listed_observation(row: Row) -> Row:
    """As GET /observations and /observations/{id} answer: the pricing tier is never filled there."""
    return row | {"usagePricingTierId": None, "usagePricingTierName": None}


_PRICES = ("inputPrice", "outputPrice", "totalPrice")


def embedded_observation(row: Row) -> Row:
    """As inside GET /traces/{id}: missing prices are 0, and the pricing tier of a known model is named."""
    full = row | {name: row[name] or 0 for name in _PRICES} | pricing_tier(row)
    # There modelId stands behind totalTokens.
    model_id = full.pop("modelId")
    usage = full.pop("usage")
    return full | {"modelId": model_id, "usage": usage}


def pricing_tier(row: Row) -> Row:
    model_id = row["modelId"]
    return {
        "usagePricingTierId": row["usagePricingTierId"] or (f"{model_id}_tier_default" if model_id else None),
        "usagePricingTierName": row["usagePricingTierName"] or ("Standard" if model_id else None),
    }


def trace_by_id(row: Row, groups: frozenset[str], observations: Sequence[Row], scores: Sequence[Row]) -> Row:
    """The answer of GET /traces/{id}; groups that were not asked for hold placeholders."""
    io, metrics = "io" in groups, "metrics" in groups
    values = row | {
        "input": row["input"] if io else None,
        "output": row["output"] if io else None,
        "metadata": row["metadata"] if io else {},
        "scores": [score_in_trace(score) for score in scores] if "scores" in groups else [],
        "observations": [embedded_observation(o) for o in observations] if "observations" in groups else [],
        "latency": trace_latency(observations) if metrics else -1,
        "totalCost": total_cost(observations) if metrics else -1,
    }
    extra = (name for name in row if name not in _TRACE)
    return {name: values[name] for name in (*_TRACE_BY_ID, *extra) if name in values}


def score_in_trace(row: Row) -> Row:
    """The v1 shape without its `trace`."""
    return {name: value for name, value in row.items() if name not in ("sessionId", "datasetRunId", "trace")}


def score_v2(row: Row, trace: Row | None) -> Row:
    """As GET /v2/scores: with four fields of its trace, or null."""
    if trace is None:
        return row
    return row | {"trace": {name: trace[name] for name in ("userId", "tags", "environment", "sessionId")}}


def score_v1(row: Row, trace: Row | None) -> Row:
    """As GET /scores: no session, no dataset run, three fields of its trace."""
    subject = score_v2(row, trace)["trace"]
    if subject is not None:
        subject = {name: value for name, value in subject.items() if name != "sessionId"}
    return score_in_trace(row) | {"trace": subject}


SCORE_V3_GROUPS = {
    "details": ("comment", "configId", "metadata"),
    "annotation": ("authorUserId", "queueId"),
}


def score_v3(row: Row, groups: frozenset[str]) -> Row:
    """As GET /v3/scores."""
    core = ("id", "projectId", "name", "source", "timestamp", "environment", "createdAt", "updatedAt")
    names = [*core, *(name for group, names in SCORE_V3_GROUPS.items() if group in groups for name in names)]
    shaped = {name: row[name] for name in names}
    if "subject" in groups:
        shaped["subject"] = _subject(row)
    shaped["dataType"] = row["dataType"]
    shaped["value"] = _value_v3(row)
    return shaped


def _subject(row: Row) -> Row:
    if row["observationId"]:
        return {"kind": "observation", "id": row["observationId"], "traceId": row["traceId"]}
    if row["traceId"]:
        return {"kind": "trace", "id": row["traceId"]}
    if row["sessionId"]:
        return {"kind": "session", "id": row["sessionId"]}
    return {"kind": "experiment", "id": row["datasetRunId"]}


def _value_v3(row: Row) -> Any:
    if row["dataType"] == "BOOLEAN":
        return bool(row["value"])
    return row["value"] if row["dataType"] == "NUMERIC" else row["stringValue"]


def event_of_trace(trace: Row) -> Row:
    """The pseudo span `t-<traceId>` that stands for a legacy trace in GET /v2/observations."""
    span = _OBSERVATION | {
        "id": f"t-{trace['id']}",
        "traceId": trace["id"],
        "startTime": trace["timestamp"],
        "projectId": trace["projectId"],
        "environment": trace["environment"],
        "name": trace["name"],
        "createdAt": trace["createdAt"],
        "updatedAt": trace["updatedAt"],
        "input": trace["input"],
        "output": trace["output"],
    }
    return _event(span, trace, root=True)


def event_of_observation(observation: Row, trace: Row | None) -> Row:
    """A legacy observation as GET /v2/observations answers it, with its trace's fields copied in."""
    return _event(observation, trace, root=False)


_NO_TRACE: Row = _TRACE | {"name": None}


def _event(row: Row, trace: Row | None, *, root: bool) -> Row:
    of = trace or _NO_TRACE
    parent = row["parentObservationId"]
    if not root and parent is None and row["traceId"]:
        parent = f"t-{row['traceId']}"
    return {
        "id": row["id"],
        "traceId": row["traceId"] or "",
        "startTime": row["startTime"],
        "endTime": row["endTime"],
        "projectId": row["projectId"],
        "parentObservationId": parent,
        "type": row["type"],
        "name": row["name"] or "",
        "level": row["level"],
        "statusMessage": row["statusMessage"] or "",
        "version": row["version"] or of["version"] or "",
        "environment": row["environment"],
        "completionStartTime": row["completionStartTime"],
        "createdAt": row["createdAt"],
        "updatedAt": row["updatedAt"],
        "input": raw_text(row["input"]),
        "output": raw_text(row["output"]),
        "metadata": of["metadata"] if root else of["metadata"] | row["metadata"],
        "model": row["model"] or "",
        "internalModelId": row["modelId"] or "",
        "modelParameters": row["modelParameters"] or {},
        "usageDetails": row["usageDetails"],
        "inputUsage": row["promptTokens"],
        "outputUsage": row["completionTokens"],
        "totalUsage": row["totalTokens"],
        "costDetails": row["costDetails"],
        "inputCost": row["calculatedInputCost"],
        "outputCost": row["calculatedOutputCost"],
        "totalCost": row["calculatedTotalCost"],
        "promptId": row["promptId"] or "",
        "promptName": row["promptName"] or "",
        "promptVersion": row["promptVersion"],
        **pricing_tier(row),
        "latency": row["latency"] or None,  # 0 comes as null
        "timeToFirstToken": row["timeToFirstToken"],
        "userId": of["userId"] or "",
        "sessionId": of["sessionId"] or "",
        "isRootObservation": root,
        "traceName": of["name"] or None,
        "release": of["release"] or "",
        "tags": of["tags"],
        "bookmarked": of["bookmarked"] and row["parentObservationId"] is None,
        "public": of["public"],
        "modelId": row["modelId"],
        "inputPrice": _price_text(row["inputPrice"]),
        "outputPrice": _price_text(row["outputPrice"]),
        "totalPrice": _price_text(row["totalPrice"]),
    }


def complete_event(row: Mapping[str, Any]) -> Row:
    """A row of GET /v2/observations with every field; `id`, `traceId`, `startTime` are required."""
    full = _event(_OBSERVATION, None, root=False) | dict(row)
    full["createdAt"] = full["createdAt"] or full["startTime"]
    full["updatedAt"] = full["updatedAt"] or full["createdAt"]
    for name in ("input", "output"):
        full[name] = raw_text(full[name])
    if "isRootObservation" not in row:
        full["isRootObservation"] = full["parentObservationId"] is None
    if "latency" not in row:
        full["latency"] = _seconds(full["startTime"], full["endTime"]) or None
    return full


def raw_text(value: Any) -> str | None:
    """Input or output as stored: text as it is, everything else as JSON text."""
    if value is None or isinstance(value, str):
        return value
    return json_text.dumps(value).decode()


def _price_text(price: float | None) -> str | None:
    """JavaScript's spelling: 1.5e-7, but 0.0000025."""
    if price is None:
        return None
    text = repr(price)
    if "e" not in text:
        return text
    digits, exponent = text.split("e")
    if int(exponent) < -6:
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{price:.{-int(exponent) + len(digits.partition('.')[2].rstrip('0'))}f}"
