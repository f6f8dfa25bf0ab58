"""The reader for servers without the traces API: Langfuse v4 and Langfuse Cloud.

Everything but the scores is in GET /v2/observations: a total order (start time, hash of the trace id, id) with a
cursor, no totals, and rows that were written twice standing there twice until the server merges them; the upsert
keeps the newer one (langfuse packages/shared/src/server/repositories/events.ts; recorded in
`observations_v2_cursor`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime

from etl.errors import TooMuchError
from etl.extract import scores_v3
from etl.extract.answers import instant, row_time
from etl.extract.client import Answer, Client, Params
from etl.extract.cursor import TimeOuts, read_by_cursor
from etl.extract.oldest import EPOCH, oldest_by_bisection
from etl.extract.readers import Api, Page
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
_TRACE_IDS_PER_REQUEST = 20


class ObservationsReader:
    """Reads observations and scores; traces and sessions are made of the observations."""

    api: Api = "observations"

    def __init__(self, client: Client) -> None:
        self._client = client
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
            return scores_v3.read_scores_v3(self._client, window, time_outs=self._time_outs)
        return self._read_observations(window, light=light)

    def count(self, source: str, window: Window) -> int | None:
        return None  # no list of this generation has a total

    def page_limit(self, source: str) -> int:
        return SCORES_LIMIT if source == "scores" else MAX_LIMIT

    def of_trace(self, trace_id: str, before: datetime) -> Iterator[Page]:
        window = Window(EPOCH, before)
        for page in self._read_observations(window, {"traceId": trace_id}):
            yield page._replace(closes=())
        for page in scores_v3.read_scores_v3(self._client, window, {"traceId": trace_id}):
            yield page._replace(closes=())

    def session(self, session_id: str, before: datetime) -> Iterator[Page]:
        # Rows of one trace may lack its session id, so the id finds traces, and the traces give the rows.
        window = Window(EPOCH, before)
        trace_ids: dict[str, None] = {}
        for page in self._read_observations(window, {"sessionId": session_id}, light=True):
            trace_ids.update(dict.fromkeys(str(item["traceId"]) for item in page.items if item.get("traceId")))
        for trace_id in trace_ids:
            for page in self._read_observations(window, {"traceId": trace_id}):
                yield page._replace(closes=())
        # The server cuts lists at commas: scores of a trace whose id holds one come with the next run.
        wanted = [trace_id for trace_id in trace_ids if "," not in trace_id]
        for first in range(0, len(wanted), _TRACE_IDS_PER_REQUEST):
            chosen = {"traceId": ",".join(wanted[first : first + _TRACE_IDS_PER_REQUEST])}
            for page in scores_v3.read_scores_v3(self._client, window, chosen):
                yield page._replace(closes=())
        for page in scores_v3.read_scores_v3(self._client, window, {"sessionId": session_id}):
            yield page._replace(closes=())

    def _newest(self, source: str, window: Window) -> datetime | None:
        if source == "scores":
            answer = scores_v3.get_scores_v3(self._client, {}, window, 1, None)
            field, path = scores_v3.TIME_FIELD, scores_v3.PATH
        else:
            answer = self._get({}, LIGHT_FIELDS, window, 1, None)
            field, path = TIME_FIELD, PATH
        data = answer.value["data"]
        return row_time(data[0], field, path) if data else None

    def _read_observations(
        self, window: Window, chosen: Params | None = None, *, light: bool = False
    ) -> Iterator[Page]:
        """A row that the server cannot send even by itself comes without its contents; its segment is partial then."""
        alone = partial = False

        def fetch(part: Window, limit: int, cursor: str | None) -> Answer:
            nonlocal alone, partial
            alone = False
            try:
                return self._get(chosen or {}, LIGHT_FIELDS if light else FIELDS, part, limit, cursor)
            except TooMuchError as error:
                if limit > 1 or light:
                    raise
                self._time_outs.note(error)
            answer = self._get(chosen or {}, LIGHT_FIELDS, part, limit, cursor)
            alone = partial = True
            ids = ", ".join(f"{item.get('id')} of trace {item.get('traceId')}" for item in answer.value["data"])
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

    def _get(self, chosen: Params, fields: str, window: Window, limit: int, cursor: str | None) -> Answer:
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
