"""Scores of GET /v3/scores in the columns of the older score APIs, and back.

The v3 API gives `value` in the type of the score and names its target in `subject`
(langfuse web/src/features/public-api/server/endpoints v3, recorded in `scores_v3_cursor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SUBJECT_FIELDS = {
    "trace": {"id": "traceId"},
    "observation": {"id": "observationId", "traceId": "traceId"},
    "session": {"id": "sessionId"},
    "experiment": {"id": "datasetRunId"},
}


def flatten(item: Mapping[str, Any]) -> dict[str, Any]:
    """A v3 score with `stringValue`, `traceId`, `observationId`, `sessionId` and `datasetRunId` of its own.

    Parts that do not follow the known form are left as they are, and so end in `extra` or `exact`.
    """
    flat = dict(item)
    subject = item.get("subject")
    names = _SUBJECT_FIELDS.get(subject.get("kind", ""), {}) if isinstance(subject, dict) else {}
    if isinstance(subject, dict) and set(subject) == {"kind", *names}:
        del flat["subject"]
        flat |= dict.fromkeys(("traceId", "observationId", "sessionId", "datasetRunId"))
        flat |= {column: subject[part] for part, column in names.items()}
    data_type, value = item.get("dataType"), item.get("value")
    if data_type == "BOOLEAN" and isinstance(value, bool):
        flat |= {"value": int(value), "stringValue": str(value)}
    elif data_type in ("CATEGORICAL", "TEXT") and isinstance(value, str):
        del flat["value"]
        flat["stringValue"] = value
    elif data_type == "NUMERIC":
        flat["stringValue"] = None
    return flat


def unflatten(item: Mapping[str, Any]) -> dict[str, Any]:
    """The v3 score that `flatten` was given."""
    score = {name: value for name, value in item.items() if name not in _FLAT_FIELDS}
    if "subject" not in item:
        score["subject"] = _subject(item)
    if item.get("dataType") == "BOOLEAN" and item.get("stringValue") in ("True", "False"):
        score["value"] = item["stringValue"] == "True"
    elif item.get("dataType") in ("CATEGORICAL", "TEXT") and isinstance(item.get("stringValue"), str):
        score["value"] = item["stringValue"]
    return score


_FLAT_FIELDS = {"stringValue", "traceId", "observationId", "sessionId", "datasetRunId", "executionTraceId"}


def _subject(item: Mapping[str, Any]) -> dict[str, Any]:
    if item.get("observationId") is not None:
        return {"kind": "observation", "id": item["observationId"], "traceId": item.get("traceId")}
    if item.get("sessionId") is not None:
        return {"kind": "session", "id": item["sessionId"]}
    if item.get("datasetRunId") is not None:
        return {"kind": "experiment", "id": item["datasetRunId"]}
    return {"kind": "trace", "id": item.get("traceId")}
