"""GET /v3/scores: the scores of every server that has it, read by both readers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from etl.extract.answers import instant
from etl.extract.client import Client, ListAnswer, Params
from etl.extract.cursor import TimeOuts, newest_by_cursor, read_by_cursor
from etl.extract.readers import Page
from etl.extract.walks import MAX_LIMIT
from etl.intervals import Window
from etl.transform.pages import Kind

PATH = "/v3/scores"
TIME_FIELD = "timestamp"
_FIELDS = "details,subject,annotation"


def read_scores_v3(
    client: Client, window: Window, chosen: Params | None = None, *, time_outs: TimeOuts | None = None
) -> Iterator[Page]:
    """All scores of `window`, newest first.

    Args:
        chosen: Parameters that choose some of them, such as `sessionId`.
        time_outs: Shared by all reads of a run.
    """
    return read_by_cursor(
        lambda part, limit, cursor: get_scores_v3(client, chosen or {}, part, limit, cursor),
        window,
        Kind.SCORE_V3,
        time_field=TIME_FIELD,
        path=PATH,
        limit=MAX_LIMIT,
        time_outs=time_outs,
    )


def newest_score_v3(client: Client, window: Window) -> datetime | None:
    """See `newest_by_cursor`."""
    return newest_by_cursor(
        lambda part, limit, cursor: get_scores_v3(client, {}, part, limit, cursor),
        window,
        time_field=TIME_FIELD,
        path=PATH,
    )


def get_scores_v3(client: Client, chosen: Params, window: Window, limit: int, cursor: str | None) -> ListAnswer:
    """One page, from the newest score of `window` or from behind a cursor."""
    params: Params = {
        **chosen,
        "fields": _FIELDS,
        "fromTimestamp": instant(window.start),
        "toTimestamp": instant(window.end),
        "limit": str(limit),
        **({"cursor": cursor} if cursor else {}),
    }
    return client.get_list(PATH, params, any_size=limit == 1)
