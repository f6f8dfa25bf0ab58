"""From a request to an answer, in the order of a real server, without any network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from etl.demo import json_text
from etl.demo.answers import EVENTS_ONLY, V2_OBSERVATIONS_OFF, Answer, ApiError, error, html_404, not_found, too_large
from etl.demo.auth import PUBLIC_KEY, SECRET_KEY, check_keys
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import Context, Project, Request, features_of
from etl.demo.faults import Fault, Faults, changed, instead
from etl.demo.limits import RateLimits
from etl.demo.pages import Selections
from etl.demo.routes import OPEN_PATHS, V2_OBSERVATIONS, Route, find_route
from etl.demo.times import to_ms

Api = Literal["v3", "v4", "dual"]
ROOT = "/api/public/"


def real_time() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Settings:
    """What kind of server this is; see `MockLangfuse`."""

    api: Api = "v3"
    version: str | None = None
    clock: Callable[[], datetime] = real_time
    keys: tuple[str, str] = (PUBLIC_KEY, SECRET_KEY)
    project: Project = field(default_factory=Project)
    rate_limits: Mapping[str, int] = field(default_factory=dict)
    shuffle_ties: bool = False
    overcount: bool = False
    features: frozenset[str] | None = None
    cloud: bool = False

    def shown_version(self) -> str:
        return self.version or ("3.225.4" if self.api == "v3" else "4.16.0")


class Service:
    """Answers requests from a data set; faults that need the network are left to the server."""

    def __init__(self, dataset: Dataset, settings: Settings, faults: Faults) -> None:
        self.dataset = dataset
        self.settings = settings
        self.faults = faults
        self._limits = RateLimits(settings.rate_limits)
        self._selections = Selections()

    def answer(self, request: Request) -> tuple[Answer, Fault | None]:
        """The answer, and the fault that hit the request, if any."""
        path = request.path.removeprefix(ROOT) if request.path.startswith(ROOT) else ""
        fault = self.faults.take(f"/{path}")
        found = find_route(path)
        if fault is not None:
            now_ms = to_ms(self.settings.clock())
            replaced = instead(fault, now_ms, legacy=found is not None and found[1].legacy)
            if replaced is not None:
                return replaced, fault
        answer = self._real_answer(request, path)
        return (answer if fault is None else changed(fault, answer)), fault

    def _real_answer(self, request: Request, path: str) -> Answer:
        if path.endswith("/") or not path:
            return html_404() if not path else Answer(308, b"", headers={"Location": request.path.rstrip("/")})
        found = find_route(path)
        version = self.settings.shown_version()
        features = features_of(version) if self.settings.features is None else self.settings.features
        if found is None or (found[1].feature is not None and found[1].feature not in features):
            return html_404()
        name, route, arguments = found
        context = Context(
            self.dataset,
            request,
            self.settings.project,
            version,
            features,
            self._selections,
            self.faults.guard,
            overcount=self.settings.overcount,
            ties=self.settings.shuffle_ties,
        )
        try:
            answer = self._checked_answer(context, name, route, arguments)
        except ApiError as refusal:
            return refusal.answer()
        if self.faults.oversize is not None and len(answer.body) > self.faults.oversize:
            return too_large().answer()
        return self._with_deprecation(answer, route)

    def _checked_answer(self, context: Context, name: str, route: Route, arguments: tuple[str, ...]) -> Answer:
        if context.request.method not in route.methods:
            raise error(405, "Method not allowed", "MethodNotAllowedError")
        if route.legacy and self.settings.api == "v4":
            # Before the key is looked at.
            return error(404, EVENTS_ONLY).answer()
        if name not in OPEN_PATHS:
            check_keys(context.request.headers.get("authorization"), self.settings.keys)
        if route.resource is not None:
            self._limits.spend(route.resource, to_ms(self.settings.clock()), context.request.path)
        if name == V2_OBSERVATIONS and self.settings.api == "v3":
            raise not_found(V2_OBSERVATIONS_OFF)
        if route.answer is None:
            return html_404()
        with self.dataset.lock:
            return route.answer(context, *arguments)

    def _with_deprecation(self, answer: Answer, route: Route) -> Answer:
        """Langfuse Cloud tells of the end of an endpoint in its 200 answers and in the events-only 404."""
        if self.settings.cloud and route.deprecation is not None:
            answer.body = answer.body[:-1] + b',"_deprecation":' + json_text.dumps(route.deprecation) + b"}"
        return answer
