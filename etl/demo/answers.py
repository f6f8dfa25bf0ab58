"""Answers, and the error bodies of a real server word for word (recorded from 3.225.4 and 4.16.0)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl.demo import json_text

Issue = Mapping[str, Any]

JSON_TYPE = "application/json; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"

HTML_404 = (
    b'<!DOCTYPE html><html lang="en"><head><meta charSet="utf-8"/><title>404: This page could not be found</title>'
    b"</head><body><h1>404</h1><h2>This page could not be found.</h2></body></html>"
)
HTML_BAD_GATEWAY = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body>\r\n</html>\r\n"

EVENTS_ONLY = (
    "This endpoint is not available on deployments running in Langfuse v4 events_only mode. "
    "Learn more about Langfuse v4 at: https://langfuse.com/docs/v4"
)
V2_OBSERVATIONS_OFF = (
    "The observations v2 API is only available in a Langfuse v4 write mode. Learn more at: https://langfuse.com/docs/v4"
)

_NARROW = (
    "Your query could not be completed. Please narrow your request by adding more specific filters "
    "(e.g., a shorter date range).\n"
)
TIMED_OUT_LEGACY = (
    _NARROW + "This legacy endpoint can be slow. Please migrate to the high-performance Observations API v2 at "
    "/api/public/v2/observations.\nThis applies to Langfuse Cloud only until v4 is released in OSS.\n"
    "Docs: https://langfuse.com/docs/api-and-data-platform/features/observations-api"
)
TIMED_OUT = _NARROW + "See https://langfuse.com/docs/api-and-data-platform/features/public-api for more details."


@dataclass(slots=True)
class Answer:
    """One HTTP answer; `rows` is how many rows matched, for faults that look at the size of a window."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)


class ApiError(Exception):
    """A request that the server refuses; `body` is the JSON object it answers."""

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})

    def answer(self) -> Answer:
        return Answer(self.status, json_text.dumps(self.body), headers=self.headers)


def error(status: int, message: str, name: str | None = None) -> ApiError:
    """`name` goes into the key `error`, which some answers lack."""
    return ApiError(status, {"message": message} if name is None else {"message": message, "error": name})


def invalid_data(issues: Sequence[Issue]) -> ApiError:
    """A query that fails its zod schema."""
    return ApiError(400, {"message": "Invalid request data", "error": list(issues)})


def invalid_request(message: str) -> ApiError:
    return error(400, message, "InvalidRequestError")


def not_found(message: str) -> ApiError:
    return error(404, message, "LangfuseNotFoundError")


def timed_out(*, legacy: bool) -> ApiError:
    """The database gave up on the query; a narrower one may pass."""
    return error(422, TIMED_OUT_LEGACY if legacy else TIMED_OUT, "Request timed out")


def too_large() -> ApiError:
    return error(422, "Observations in trace are too large: 81.25MB exceeds limit of 80.00MB", "PayloadTooLargeError")


def internal_error(detail: str) -> ApiError:
    return error(500, "Internal Server Error", detail)


def json_answer(value: Any) -> Answer:
    return Answer(200, json_text.dumps(value))


def html_404() -> Answer:
    return Answer(404, HTML_404, HTML_TYPE)
