"""Scores of GET /v3/scores in the columns of the older score APIs, and back.

The v3 API gives `value` in the type of the score and names its target in `subject`
(langfuse web/src/features/public-api/server/endpoints v3, recorded in `scores_v3_cursor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

_SUBJECT_FIELDS = {
    "trace": {"id": "traceId"},
    "observation": {"id": "observationId", "traceId": "traceId"},
    "session": {"id": "sessionId"},
    "experiment": {"id": "datasetRunId"},
}
_TARGETS = ("traceId", "observationId", "sessionId", "datasetRunId")


def flatten(item: Mapping[str, Any]) -> dict[str, Any]:
    """A v3 score with `stringValue`, `traceId`, `observationId`, `sessionId` and `datasetRunId` of its own.

    Parts that do not follow the known form are left as they are, and so end in `extra` or `exact`.
    """
    flat = dict(item)
    subject = item.get("subject")
    if _is_known(subject) and not any(name in item for name in _TARGETS):
        del flat["subject"]
        flat |= dict.fromkeys(_TARGETS)
        flat |= {column: subject[part] for part, column in _SUBJECT_FIELDS[subject["kind"]].items()}
    if "stringValue" in item:
        return flat
    data_type, value = item.get("dataType"), item.get("value")
    if data_type == "BOOLEAN" and isinstance(value, bool):
        flat |= {"value": int(value), "stringValue": str(value)}
    elif data_type in _WORDS and isinstance(value, str):
        del flat["value"]
        flat["stringValue"] = value
    elif data_type == "NUMERIC":
        flat["stringValue"] = None
    return flat


def unflatten(item: Mapping[str, Any]) -> dict[str, Any]:
    """The v3 score that `flatten` was given."""
    score = dict(item)
    if "subject" not in item and all(name in item for name in _TARGETS):
        score = {name: value for name, value in score.items() if name not in _TARGETS}
        score["subject"] = _subject(item)
    data_type, text = item.get("dataType"), item.get("stringValue")
    if data_type == "BOOLEAN" and type(item.get("value")) in (int, float) and text == str(item["value"] == 1):
        score["value"] = text == "True"
        del score["stringValue"]
    elif data_type in _WORDS and "value" not in item and isinstance(text, str):
        score["value"] = text
        del score["stringValue"]
    elif data_type == "NUMERIC" and text is None:
        score.pop("stringValue", None)
    return score


_WORDS = ("CATEGORICAL", "TEXT")


def _is_known(subject: Any) -> TypeGuard[dict[str, Any]]:
    """Whether `_subject` can make it again from the columns."""
    if not isinstance(subject, dict) or not isinstance(kind := subject.get("kind"), str):
        return False
    parts = _SUBJECT_FIELDS.get(kind)
    if parts is None or set(subject) != {"kind", *parts}:
        return False
    return isinstance(subject["id"], str) and isinstance(subject.get("traceId"), str | None)


def _subject(item: Mapping[str, Any]) -> dict[str, Any]:
    if item.get("observationId") is not None:
        return {"kind": "observation", "id": item["observationId"], "traceId": item.get("traceId")}
    if item.get("sessionId") is not None:
        return {"kind": "session", "id": item["sessionId"]}
    if item.get("datasetRunId") is not None:
        return {"kind": "experiment", "id": item["datasetRunId"]}
    return {"kind": "trace", "id": item.get("traceId")}
