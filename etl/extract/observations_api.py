"""The reader for servers without the traces API: Langfuse v4 and Langfuse Cloud.

Everything but the scores is in GET /v2/observations: a total order (start time, hash of the trace id, id) with a
cursor, no totals, and rows that were written twice standing there twice until the server merges them; the upsert
keeps the newer one (langfuse packages/shared/src/server/repositories/events.ts; recorded in
`observations_v2_cursor`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from etl.errors import TooMuchError
from etl.extract import scores_v3
from etl.extract.answers import instant
from etl.extract.client import Client, ListAnswer, Params
from etl.extract.cursor import TimeOuts, newest_by_cursor, read_by_cursor
from etl.extract.oldest import EPOCH, oldest_by_bisection
from etl.extract.readers import Api, Expected, Page
from etl.extract.selection import Selector, observation_selectors, of_traces
from etl.extract.walks import MAX_LIMIT as SCORES_LIMIT
from etl.intervals import Window
from etl.transform.pages import Kind

log = logging.getLogger(__name__)

PATH = "/v2/observations"
TIME_FIELD = "startTime"
MAX_LIMIT = 1_000
# All groups. `metadata` comes whole only together with `io`; alone, its values are cut to 200 characters.
FIELDS = "core,basic,time,io,metadata,model,usage,prompt,metrics,trace_context"
LIGHT_FIELDS = "core,basic,time"
_TRACE_CONTEXT = ("traceName", "release", "tags")
_TRACE_IDS_PER_REQUEST = 20


class ObservationsReader:
    """Reads observations and scores; traces and sessions are made of the observations.

    Args:
        filters: What selects traces, as `settings.Project` holds it. `read` gives the rows that fit; whose traces were
            not stored before is for the caller to complete.
    Raises:
        ConfigError: A filter that this API cannot answer.
    """

    api: Api = "observations"

    def __init__(self, client: Client, filters: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._selectors = observation_selectors(filters or {})
        self._time_outs = TimeOuts()

    def sources(self, streams: Sequence[str]) -> Sequence[str]:
        return [source for source in ("observations", "scores") if not set(streams).isdisjoint(self.covers(source))]

    def covers(self, source: str) -> Sequence[str]:
        return ("scores",) if source == "scores" else ("observations", "traces", "sessions")

    def midnight_bound(self, source: str) -> bool:
        return False

    def oldest(self, source: str, before: datetime) -> datetime | None:
        return oldest_by_bisection(lambda window: self._newest(source, window), before)

    def read(self, source: str, window: Window, *, light: bool = False) -> Iterator[Page]:
        if source == "scores":
            return self._read_scores(window)
        return self._read_selected(window, light=light)

    def expect(self, source: str, window: Window) -> Expected:
        if source == "scores" or self._selectors == [Selector({})]:
            return Expected(None)  # no list of this generation has a total
        rows, selected = 0, set[str]()
        for page in self._read_selected(window, light=True):
            rows += len(page.items)
            selected.update(_trace_ids(page))
        return Expected(rows, len(selected), 2 * -(-len(selected) // _TRACE_IDS_PER_REQUEST))

    def page_limit(self, source: str) -> int:
        return SCORES_LIMIT if source == "scores" else MAX_LIMIT

    def of_traces(self, trace_ids: Sequence[str], before: datetime) -> Iterator[Page]:
        window = Window(EPOCH, before)
        for ids in _batches(trace_ids):
            for page in self._read_observations(window, of_traces(ids)):
                yield page._replace(closes=())
        # The server cuts lists at commas: scores of a trace whose id holds one come with the next run.
        for ids in _batches([trace_id for trace_id in trace_ids if "," not in trace_id]):
            for page in self._read_scores(window, {"traceId": ",".join(ids)}):
                yield page._replace(closes=())

    def session(self, session_id: str, before: datetime) -> Iterator[Page]:
        # Rows of one trace may lack its session id, so the id finds traces, and the traces give the rows.
        window = Window(EPOCH, before)
        trace_ids: dict[str, None] = {}
        for page in self._read_observations(window, {"sessionId": session_id}, light=True):
            trace_ids.update(dict.fromkeys(_trace_ids(page)))
        yield from self.of_traces(list(trace_ids), before)
        for page in self._read_scores(window, {"sessionId": session_id}):
            yield page._replace(closes=())

    def _read_scores(self, window: Window, chosen: Params | None = None) -> Iterator[Page]:
        return scores_v3.read_scores_v3(self._client, window, chosen, time_outs=self._time_outs)

    def _newest(self, source: str, window: Window) -> datetime | None:
        if source == "scores":
            return scores_v3.newest_score_v3(self._client, window)
        return newest_by_cursor(
            lambda part, limit, cursor: self._get({}, LIGHT_FIELDS, part, limit, cursor),
            window,
            time_field=TIME_FIELD,
            path=PATH,
        )

    def _read_selected(self, window: Window, *, light: bool) -> Iterator[Page]:
        """The rows that the filters select; one that fits several of the selectors comes several times."""
        *others, last = self._selectors
        for selector in others:
            for page in self._read_by(selector, window, light=light):
                yield page._replace(closes=())
        yield from self._read_by(last, window, light=light)

    def _read_by(self, selector: Selector, window: Window, *, light: bool) -> Iterator[Page]:
        if not selector.unnamed:
            yield from self._read_observations(window, selector.params, light=light)
            return
        light_fields = f"{LIGHT_FIELDS},trace_context"
        for page in self._read_observations(window, selector.params, light=light, light_fields=light_fields):
            items = [item for item in page.items if not item.get("traceName")]
            if page.kind is Kind.OBSERVATION_V2_CORE:
                items = [item.without(*_TRACE_CONTEXT) for item in items]
            yield page._replace(items=items)

    def _read_observations(
        self, window: Window, chosen: Params | None = None, *, light: bool = False, light_fields: str = LIGHT_FIELDS
    ) -> Iterator[Page]:
        """A row that the server cannot send even by itself comes without its contents; its segment is partial then."""
        alone = partial = False

        def fetch(part: Window, limit: int, cursor: str | None) -> ListAnswer:
            nonlocal alone, partial
            alone = False
            try:
                return self._get(chosen or {}, light_fields if light else FIELDS, part, limit, cursor)
            except TooMuchError as error:
                if limit > 1 or light:
                    raise
                self._time_outs.note(error)
            answer = self._get(chosen or {}, light_fields, part, limit, cursor)
            alone = partial = True
            ids = ", ".join(f"{item.get('id')} of trace {item.get('traceId')}" for item in answer.items)
            log.warning("observation %s cannot be sent by the server; stored without contents", ids)
            return answer

        pages = read_by_cursor(
            fetch, window, Kind.OBSERVATION_V2, time_field=TIME_FIELD, path=PATH, limit=MAX_LIMIT,
            time_outs=self._time_outs,
        )  # fmt: skip
        for page in pages:
            kind, closes = Kind.OBSERVATION_V2_CORE if light or alone else page.kind, page.closes
            if closes and partial:
                closes, partial = [segment._replace(proof="partial") for segment in closes], alone
            yield page._replace(kind=kind, closes=closes, light=light)

    def _get(self, chosen: Params, fields: str, window: Window, limit: int, cursor: str | None) -> ListAnswer:
        """One page, from the newest row of `window` or from behind a cursor."""
        params: Params = {
            **chosen,
            "fields": fields,
            "fromStartTime": instant(window.start),
            "toStartTime": instant(window.end),
            "limit": str(limit),
            **({"cursor": cursor} if cursor else {}),
        }
        return self._client.get_list(PATH, params, any_size=limit == 1)


def _trace_ids(page: Page) -> list[str]:
    return [str(item["traceId"]) for item in page.items if item.get("traceId")]


def _batches(trace_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(trace_ids), _TRACE_IDS_PER_REQUEST):
        yield trace_ids[first : first + _TRACE_IDS_PER_REQUEST]
