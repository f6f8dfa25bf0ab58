"""Paths below /api/public: which endpoint answers, under which rate limit, in which generation of the API."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from etl.demo.answers import Answer
from etl.demo.endpoints import events, observations, scores, scores_v3, sessions, system, traces
from etl.demo.endpoints.context import Context

_SUNSET = "2026-11-16"
_NOTICE = "On Langfuse Cloud, Langfuse v3 is deprecated and this endpoint will be removed on November 16, 2026."
_OBSERVATIONS = "GET /api/public/v2/observations?fromStartTime=<from>&toStartTime=<to>"
_BY_SESSION = (
    "GET /api/public/v2/observations?filter=<urlencoded sessionId filter>&fromStartTime=<from>&toStartTime=<to>"
)
_SCORES = "GET /api/public/v3/scores"
_METRICS = "GET /api/public/v2/metrics?query=<urlencoded json query>"
_DOCS = "https://langfuse.com/docs/api-and-data-platform/features/observations-api"
_SCORES_DOCS = "https://langfuse.com/docs/api-and-data-platform/features/scores-api"
_METRICS_DOCS = "https://langfuse.com/docs/metrics/features/metrics-api"


def _deprecation(advice: str, replacement: str, docs: str) -> dict[str, Any]:
    return {"message": f"{_NOTICE} {advice}", "replacement": replacement, "docsUrl": docs, "sunsetAt": _SUNSET}


# Recorded for traces; the others follow the source, their wording may differ.
_TRACES_END = _deprecation(f"In Langfuse v4, read span and trace data via {_OBSERVATIONS}.", _OBSERVATIONS, _DOCS)
_OBSERVATIONS_END = _deprecation(f"Use {_OBSERVATIONS} instead.", _OBSERVATIONS, _DOCS)
_SESSIONS_END = _deprecation(f"In Langfuse v4, read session data via {_BY_SESSION}.", _BY_SESSION, _DOCS)
_SCORES_END = _deprecation(f"Use {_SCORES} instead.", _SCORES, _SCORES_DOCS)
_METRICS_END = _deprecation(f"Use {_METRICS} instead.", _METRICS, _METRICS_DOCS)


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint.

    Attributes:
        answer: None where the mock server knows the path but has no such data.
        legacy: Whether v4's events-only mode takes it away.
        resource: The rate limit it counts under; None for those that have none.
        feature: What an old server must have for it.
        deprecation: What Langfuse Cloud adds to its answers.
    """

    answer: Callable[..., Answer] | None
    legacy: bool = False
    resource: str | None = "public-api"
    feature: str | None = None
    deprecation: dict[str, Any] | None = None
    methods: tuple[str, ...] = ("GET",)


def _legacy(
    answer: Callable[..., Answer],
    end: dict[str, Any],
    resource: str = "public-api-legacy",
    feature: str | None = None,
    methods: tuple[str, ...] = ("GET",),
) -> Route:
    return Route(answer, True, resource, feature, end, methods)


def _trace(ctx: Context, trace_id: str) -> Answer:
    return (traces.delete_trace if ctx.request.method == "DELETE" else traces.get_trace)(ctx, trace_id)


OPEN_PATHS = frozenset({"health", "ready"})
V2_OBSERVATIONS = "v2/observations"

_LISTS = {
    "health": Route(system.health, resource=None),
    "ready": Route(system.health, resource=None),
    "projects": Route(system.projects, resource=None),
    "traces": _legacy(traces.list_traces, _TRACES_END),
    "observations": _legacy(observations.list_observations, _OBSERVATIONS_END),
    "sessions": _legacy(sessions.list_sessions, _SESSIONS_END),
    "scores": _legacy(scores.list_scores_v1, _SCORES_END, "public-api"),
    "v2/scores": _legacy(scores.list_scores_v2, _SCORES_END, "public-api", "scores_v2"),
    "metrics/daily": Route(None, True, "public-api-daily-metrics-legacy", None, _METRICS_END),
    "v3/scores": Route(scores_v3.list_scores_v3, feature="scores_v3"),
    V2_OBSERVATIONS: Route(events.list_events, feature="observations_v2"),
}
_BY_ID = {
    "traces": _legacy(_trace, _TRACES_END, methods=("GET", "DELETE")),
    "observations": _legacy(observations.get_observation, _OBSERVATIONS_END),
    "sessions": _legacy(sessions.get_session, _SESSIONS_END),
    "scores": _legacy(scores.get_score_v1, _SCORES_END, "public-api"),
    "v2/scores": _legacy(scores.get_score_v2, _SCORES_END, "public-api", "scores_v2"),
}


def find_route(path: str) -> tuple[str, Route, tuple[str, ...]] | None:
    """(name, route, arguments) for a path below /api/public/, still percent-encoded; None if there is none."""
    if path in _LISTS:
        return path, _LISTS[path], ()
    name, _, row_id = path.rpartition("/")
    if name in _BY_ID and row_id:
        return name, _BY_ID[name], (unquote(row_id),)
    return None
