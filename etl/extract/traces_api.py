"""The reader for servers with the traces API: Langfuse v2, v3, and v4 in `legacy` or `dual` mode."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import quote

from etl.errors import ApiGoneError, NotFoundError, RequestRejectedError, TooMuchError, UnexpectedAnswerError
from etl.extract.answers import instant, row_times, total_items
from etl.extract.client import Client, FieldsAnswer, ListAnswer, Params
from etl.extract.cursor import TimeOuts
from etl.extract.oldest import EPOCH, oldest_by_bisection
from etl.extract.readers import Api, Expected, Page, Segment
from etl.extract.scores_v3 import newest_score_v3, read_scores_v3
from etl.extract.selection import FixedParams, selecting_params, totals_stay_exact
from etl.extract.walks import MAX_LIMIT, Ask, Entry, SeekWalk, Span, WalkError
from etl.extract.walks import Segment as WalkSegment
from etl.intervals import MILLISECOND, Window, whole_ms
from etl.transform.items import Item, items_of
from etl.transform.jsontext import JsonTextError
from etl.transform.pages import Kind, keys_of

log = logging.getLogger(__name__)

_TRIES_PER_PAGE = 4
# Of ids in a `filter`, in characters: percent-encoded they must fit the 16 KB that Node takes as a request's head.
_LONGEST_FILTER = 8_000


@dataclass(frozen=True)
class ListEndpoint:
    """A list that is walked by seeking; facts from langfuse web/src/pages/api/public.

    `parts` are parameters that cut one millisecond into disjoint parts, for lists without a choice of order.
    """

    path: str
    kind: Kind
    time_field: str
    bounds: tuple[str, str] = ("fromTimestamp", "toTimestamp")
    descending: bool = True
    totals_trusted: bool = False
    orders_by_id: bool = False
    fixed: FixedParams = ()
    parts: tuple[Mapping[str, str], ...] = ()


def _parts(**values: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    return tuple(dict(zip(values, choice, strict=True)) for choice in product(*values.values()))


TRACES = ListEndpoint(
    "/traces", Kind.TRACE, "timestamp", descending=False, totals_trusted=True, orders_by_id=True,
    fixed=(("fields", "core,io"), ("orderBy", "timestamp.asc")),
)  # fmt: skip
TRACES_CORE = replace(TRACES, kind=Kind.TRACE_CORE, fixed=(("fields", "core"), ("orderBy", "timestamp.asc")))
OBSERVATIONS = ListEndpoint(
    "/observations", Kind.OBSERVATION, "startTime", bounds=("fromStartTime", "toStartTime"),
    parts=_parts(
        type=(
            "GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL",
        ),
        level=("DEBUG", "DEFAULT", "WARNING", "ERROR"),
    ),
)  # fmt: skip
_SCORE_PARTS = _parts(
    dataType=("NUMERIC", "CATEGORICAL", "BOOLEAN", "TEXT", "CORRECTION"), source=("API", "EVAL", "ANNOTATION")
)
SCORES_V2 = ListEndpoint("/v2/scores", Kind.SCORE_LEGACY, "timestamp", parts=_SCORE_PARTS)
SCORES_V1 = ListEndpoint("/scores", Kind.SCORE_LEGACY, "timestamp", parts=_SCORE_PARTS)
SESSIONS = ListEndpoint("/sessions", Kind.SESSION, "createdAt", totals_trusted=True)


class _Part(NamedTuple):
    """Rows of one millisecond: their keys, the server's first count of them, and whether these are certainly all."""

    keys: set[Any]
    total: int
    whole: bool
    requests: int


# Pages of one millisecond; at the end what it closed, and how many requests it took.
_Millisecond = Generator[Page, None, tuple[list[WalkSegment], int]]


_ALL_STREAMS = ("traces", "observations", "scores", "sessions")


class TracesReader:
    """Reads traces, observations, scores and sessions by the walk that fits each list.

    Args:
        streams: What is copied; of children that are not, traces are asked to tell what they can.
        filters: Parameters that select traces, as `settings.Project` holds them.
    """

    api: Api = "traces"

    def __init__(
        self, client: Client, streams: Sequence[str] = _ALL_STREAMS, filters: Mapping[str, Any] | None = None
    ) -> None:
        self._client = client
        self._unfiltered = _telling_of_children(streams)
        self._traces = _selected(self._unfiltered, filters or {})
        self._traces_core = _selected(TRACES_CORE, filters or {})
        self._lists = {"traces": self._traces, "observations": OBSERVATIONS, "sessions": SESSIONS}
        self._scores: list[ListEndpoint | None] = [None, SCORES_V2, SCORES_V1]  # None: v3, by cursor
        self._lock = threading.Lock()
        self._time_outs = TimeOuts()

    def sources(self, streams: Sequence[str]) -> Sequence[str]:
        return [stream for stream in ("traces", "observations", "scores", "sessions") if stream in streams]

    def covers(self, source: str) -> Sequence[str]:
        return (source,)

    def midnight_bound(self, source: str) -> bool:
        # Langfuse keeps one row per (date, id): a window inside one date holds an id once.
        return source == "traces"

    def oldest(self, source: str, before: datetime) -> datetime | None:
        if source == "traces":
            try:
                return self._first(self._traces_core, Window(EPOCH, before))
            except TooMuchError as error:
                log.info("%s", error)  # such a long stretch is too slow for this server: look in shorter ones
        return oldest_by_bisection(lambda window: self._newest(source, window), before)

    def read(self, source: str, window: Window, *, light: bool = False) -> Iterator[Page]:
        if source == "traces" and light:
            for page in self._read_list(self._traces_core, window):
                yield page._replace(light=True)
            return
        if source != "scores":
            yield from self._read_list(self._lists[source], window)
            return
        while True:
            endpoint, begun = self._scores[0], False
            try:
                for page in self._read_list(endpoint, window) if endpoint else self._read_scores_v3(window):
                    begun = True
                    yield page
            except (ApiGoneError, NotFoundError):
                # What has answered is there; and segments that are closed must not be closed once more.
                if begun or not self._do_without(endpoint):
                    raise
            else:
                return

    def expect(self, source: str, window: Window) -> Expected:
        # The cursor of the newest scores API has no total, but the older ones count about the same rows.
        lists = [SCORES_V2, SCORES_V1] if source == "scores" else [self._lists[source]]
        for endpoint in lists:
            try:
                return Expected(total_items(self._list(endpoint, window, 1).meta, endpoint.path))
            except (ApiGoneError, NotFoundError):
                continue
        return Expected(None)

    def page_limit(self, source: str) -> int:
        return MAX_LIMIT

    def session(self, session_id: str, before: datetime) -> Iterator[Page]:
        # With a session filter, totals count superseded versions, too (recorded in `total_items_overcount`).
        fixed = (*self._unfiltered.fixed, ("sessionId", session_id))
        listed = replace(self._unfiltered, fixed=fixed, totals_trusted=False)
        window = Window(EPOCH, before)
        for page in self._read_list(listed, window):
            ids = [str(item["id"]) for item in page.items]
            yield page._replace(closes=())
            yield from self.of_traces(ids, before)

    def of_traces(self, trace_ids: Sequence[str], before: datetime) -> Iterator[Page]:
        for trace_id in trace_ids:
            yield from self._of_trace(trace_id, before)

    def _of_trace(self, trace_id: str, before: datetime) -> Iterator[Page]:
        # From the lists that a sync reads: inside the trace's own document the server shows prices and tiers of
        # observations that its lists leave out.
        window = Window(EPOCH, before)
        listed = replace(OBSERVATIONS, fixed=(("traceId", trace_id),), parts=())
        for page in self._read_list(listed, window):
            yield page._replace(closes=())
        # Lists are cut at commas by the server, so an id with one cannot be asked for there.
        if self._scores[0] is None and "," not in trace_id:
            try:
                for page in self._read_scores_v3(window, {"traceId": trace_id}):
                    yield page._replace(closes=())
                return
            except (ApiGoneError, NotFoundError):
                self._do_without(None)
        answer = self._client.get_fields(f"/traces/{quote(trace_id, safe='')}")
        # The document leaves out two fields that are null for every score of a trace.
        left_out = {"sessionId": None, "datasetRunId": None}
        scores = [score.with_defaults(left_out) for score in _objects(answer, "scores")]
        yield Page(Kind.SCORE_LEGACY, scores, body_bytes=answer.body_bytes)

    def _read_scores_v3(self, window: Window, chosen: Params | None = None) -> Iterator[Page]:
        return read_scores_v3(self._client, window, chosen, time_outs=self._time_outs)

    def _newest(self, source: str, window: Window) -> datetime | None:
        """The newest row of `window`, by any list that is ordered from newest to oldest."""
        if source == "traces":
            newest_first = replace(TRACES_CORE, fixed=(("fields", "core"), ("orderBy", "timestamp.desc")))
            return self._first(newest_first, window)
        if source != "scores":
            return self._first(self._lists[source], window)
        endpoint = self._scores[0]
        try:
            if endpoint is not None:
                return self._first(endpoint, window)
            return newest_score_v3(self._client, window)
        except (ApiGoneError, NotFoundError):
            if not self._do_without(endpoint):
                raise
            return self._newest(source, window)

    def _first(self, endpoint: ListEndpoint, window: Window) -> datetime | None:
        """The time of the first row that a list gives.

        An empty page is believed only with a total of 0: a cut answer here would cost all the history before.
        """
        for limit in (1, MAX_LIMIT, MAX_LIMIT):
            answer = self._list(endpoint, window, limit)
            if answer.items:
                return whole_ms(*row_times(answer.items[:1], endpoint.time_field, endpoint.path))
            if total_items(answer.meta, endpoint.path) == 0:
                return None
        if endpoint.descending:
            return window.end  # rows that the server counts and cannot show: as good as a row
        raise UnexpectedAnswerError(f"GET {endpoint.path}: none of the rows that it counts", path=endpoint.path)

    def _do_without(self, scores: ListEndpoint | None) -> bool:
        """Goes on to the next older list of scores; False if this was the last one."""
        with self._lock:  # several threads may find out at the same time
            if self._scores[0] is scores:
                self._scores = self._scores[1:] or self._scores
                return self._scores[0] is not scores
            return True

    # Lists without a cursor

    def _read_list(self, endpoint: ListEndpoint, window: Window, *, again: bool = True) -> Iterator[Page]:
        """Pages of `window`; a segment whose count does not agree is read once more before it is called doubtful."""
        walk = SeekWalk(_span(window), endpoint.descending, endpoint.totals_trusted)
        requests = 0
        tries = 0
        while not walk.done:
            ask = walk.ask()
            if ask.one_ms:
                closed, sent = yield from self._read_millisecond(endpoint, walk, ask)
                requests += sent
                page = Page(endpoint.kind, [])
            else:
                requests += 1
                try:
                    answer = self._list(endpoint, _window(ask.span), ask.limit)
                except TooMuchError as error:
                    requests += self._ask_for_less(walk, error, endpoint, ask)
                    continue
                items = answer.items
                entries = _entries(endpoint, items)
                try:
                    closed = walk.receive(entries, total_items(answer.meta, endpoint.path))
                except WalkError as error:
                    tries += 1
                    if tries == _TRIES_PER_PAGE:
                        raise UnexpectedAnswerError(f"GET {endpoint.path}: {error}", path=endpoint.path) from None
                    continue
                tries = 0
                page = Page(endpoint.kind, items, body_bytes=answer.body_bytes)
            doubtful = [segment for segment in closed if again and segment.proof == "doubtful"]
            yield page._replace(closes=_closes([s for s in closed if s not in doubtful], requests))
            if closed:
                requests = 0
            for segment in doubtful:
                log.info("%s: count of %s does not agree, reading it again", endpoint.path, _window(segment.span))
                yield from self._read_list(endpoint, _window(segment.span), again=False)

    def _ask_for_less(self, walk: SeekWalk, error: TooMuchError, endpoint: ListEndpoint, ask: Ask) -> int:
        """Makes the next question smaller; returns how many requests that took."""
        self._time_outs.note(error)
        if ask.limit > 1 or not endpoint.orders_by_id:
            if (walk.shrink() if error.timed_out else walk.shrink_limit()) or walk.shrink():
                return 0
            # One row of one millisecond: it is passed, so that it does not hide those behind it.
            walk.split_millisecond()
            return 0
        # One row is too much: without its contents it tells at least its time, so that it can be read alone.
        try:
            first = self._first(replace(endpoint, fixed=_without_contents(endpoint)), _window(ask.span))
        except TooMuchError as without_contents:
            self._time_outs.note(without_contents)
            if not walk.shrink():
                raise
            return 1
        if first is not None and _ms(first) > ask.span.start:
            walk.stop_before(_ms(first))
        else:
            walk.split_millisecond()
        return 1

    def _read_millisecond(self, endpoint: ListEndpoint, walk: SeekWalk, ask: Ask) -> _Millisecond:
        """All rows of one millisecond that has more of them than fit a page, or a row that cannot be sent."""
        if endpoint.orders_by_id:
            return (yield from self._read_by_id(endpoint, walk, ask))
        keys: set[Any] = set()
        parts: tuple[Mapping[str, str], ...] = ({}, *endpoint.parts)
        total, whole, requests = 0, False, 0
        for number, part in enumerate(parts):
            try:
                found = yield from self._read_part(endpoint, ask.span, part)
            except TooMuchError as error:
                if self._time_outs.spent:
                    raise
                log.warning("%s of %s: %s; the window stays doubtful", endpoint.path, _window(ask.span), error)
                found = _Part(set(), 0, False, 1)
            keys |= found.keys
            requests += found.requests
            total = found.total if number == 0 else total
            if number == 0 and found.whole:
                whole = True
                break
            # Parts are whole together only as far as we know all of them; the total tells.
            whole = found.whole and (number == 1 or whole)
        else:
            whole = whole and len(keys) >= total
        return walk.receive_millisecond(keys, whole=whole), requests

    def _read_part(self, endpoint: ListEndpoint, span: Span, part: Mapping[str, str]) -> Generator[Page, None, _Part]:
        """Rows of one millisecond with the parameters `part`, page 1 again and again without those that came.

        Servers before 3.117 do not know `filter`, and a request line may have about 16 KB: then the part is whole only
        if it fits one page.
        """
        ids: list[str] = []
        keys: set[Any] = set()
        first_total, limit, requests = 0, MAX_LIMIT, 0
        while True:
            requests += 1
            try:
                answer = self._list(endpoint, _window(span), limit, {**part, **_none_of(ids)})
            except RequestRejectedError:
                # Refused without a filter, it is a value that this version does not have, and neither have its rows.
                return _Part(keys, first_total, bool(part) and not ids, requests)
            except TooMuchError as error:
                self._time_outs.note(error)
                if limit == 1:
                    raise
                limit //= 2
                continue
            items, total = answer.items, total_items(answer.meta, endpoint.path)
            first_total = first_total or total
            known = set(ids)
            fresh = [id_ for item in items if (id_ := str(item.get("id"))) not in known]
            keys.update(entry.key for entry in _entries(endpoint, items))
            short, all_here = len(items) < limit, total <= len(items)
            # Whoever takes it may empty it.
            yield Page(endpoint.kind, items, body_bytes=answer.body_bytes)
            if (short and all_here) or not fresh:
                return _Part(keys, first_total, short, requests)
            ids += fresh
            if len(json.dumps(ids)) > _LONGEST_FILTER:
                return _Part(keys, first_total, False, requests)

    def _read_by_id(self, endpoint: ListEndpoint, walk: SeekWalk, ask: Ask) -> _Millisecond:
        """`orderBy=id.asc` is a total order, so pages inside one millisecond lose nothing."""
        keys: set[Any] = set()
        limit, page, requests, partial = ask.limit, 1, 0, False
        while True:
            params: dict[str, str] = {"orderBy": "id.asc", "page": str(page)}
            kind = endpoint.kind
            requests += 1
            try:
                answer = self._list(endpoint, _window(ask.span), limit, params)
            except TooMuchError as error:
                self._time_outs.note(error)
                if limit > 1:
                    limit, page = max(1, limit // 2), 1
                    continue
                answer = self._list(endpoint, _window(ask.span), limit, params | {"fields": "core"})
                kind, partial = Kind.TRACE_CORE, True
                log.warning("trace %s cannot be sent by the server; stored without contents", _ids(answer))
            items = answer.items
            keys.update(entry.key for entry in _entries(endpoint, items))
            empty = not items
            # Whoever takes it may empty it.
            yield Page(kind, items, body_bytes=answer.body_bytes)
            total = total_items(answer.meta, endpoint.path)
            if page * limit >= total or empty:
                trusted = endpoint.totals_trusted
                whole = len(keys) == total or not trusted
                return walk.receive_millisecond(
                    keys, total if trusted else None, whole=whole, partial=partial
                ), requests
            page += 1

    def _list(
        self, endpoint: ListEndpoint, window: Window, limit: int, extra: Mapping[str, str] | None = None
    ) -> ListAnswer:
        since, until = endpoint.bounds
        params: Params = {
            **dict(endpoint.fixed),
            since: instant(window.start),
            until: instant(window.end),
            "page": "1",
            "limit": str(limit),
            **(extra or {}),
        }
        return self._client.get_list(endpoint.path, params, any_size=limit == 1)


def _telling_of_children(streams: Sequence[str]) -> ListEndpoint:
    if "observations" not in streams:
        fields, kind = "core,io,scores,observations,metrics", Kind.TRACE_ALONE
    elif "scores" not in streams:
        fields, kind = "core,io,scores", Kind.TRACE_WITHOUT_SCORES
    else:
        return TRACES
    return replace(TRACES, kind=kind, fixed=(("fields", fields), ("orderBy", "timestamp.asc")))


def _selected(endpoint: ListEndpoint, filters: Mapping[str, Any]) -> ListEndpoint:
    return replace(
        endpoint,
        fixed=(*endpoint.fixed, *selecting_params(filters)),
        totals_trusted=endpoint.totals_trusted and totals_stay_exact(filters),
    )


def _none_of(ids: Sequence[str]) -> dict[str, str]:
    """A `filter` without these rows; `id` is a column of both (langfuse packages/shared/src/server/tableMappings)."""
    condition = {"type": "stringOptions", "column": "id", "operator": "none of", "value": list(ids)}
    return {"filter": json.dumps([condition])} if ids else {}


def _without_contents(endpoint: ListEndpoint) -> FixedParams:
    return tuple((name, "core" if name == "fields" else value) for name, value in endpoint.fixed)


def _span(window: Window) -> Span:
    return Span(_ms(window.start), _ms(window.end))


def _window(span: Span) -> Window:
    return Window(EPOCH + span.start * MILLISECOND, EPOCH + span.end * MILLISECOND)


def _ms(moment: datetime) -> int:
    since = moment - EPOCH  # dividing it by a millisecond takes longer, for each row
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000


def _entries(endpoint: ListEndpoint, items: Sequence[Item]) -> list[Entry]:
    times_ms = map(_ms, row_times(items, endpoint.time_field, endpoint.path))
    return list(map(Entry, keys_of(endpoint.kind, items), times_ms))


def _closes(segments: Sequence[WalkSegment], requests: int) -> list[Segment]:
    """The requests are noted once, with the first of the segments that they closed together."""
    return [
        Segment(_window(s.span), s.proof, s.promised, s.read, requests if index == 0 else 0)
        for index, s in enumerate(segments)
    ]


def _objects(answer: FieldsAnswer, name: str) -> list[Item]:
    try:
        return items_of(answer.fields[name])
    except (KeyError, JsonTextError):
        raise UnexpectedAnswerError(
            f"GET /traces/…: a trace without its {name}", path="/traces/{id}", status=200
        ) from None


def _ids(answer: ListAnswer) -> str:
    return ", ".join(str(item.get("id")) for item in answer.items)
