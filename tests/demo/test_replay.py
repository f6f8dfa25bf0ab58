"""The mock server answers every recorded request as the real server did.

Each cassette in tests/cassettes is played against the mock with `requests`; status and JSON body are compared. What
is not compared is written down here with its reason: `OTHER_ORDER`, `OVERCOUNTED`, `OPEN_ENDED`,
`normalised`, and the tests of `SEQUENCES`.
"""

import base64
import functools
import json
import re
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import yaml

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, Faults, MockLangfuse, load_corpus
from etl.demo.times import iso, parse_ms

CASSETTES = Path(__file__).parents[1] / "cassettes"
CLOUD = "cloud_mode_deprecation_and_429"
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster
RECORDED_AT = "2026-11-21T19:35:40.000Z"  # nearly all of the 4.16.0 exchanges

# Played by tests of their own, since something happens between their requests.
SEQUENCES = {
    "cloud_mode_deprecation_and_429",
    "errors_auth",
    "errors_database_timeout",
    "errors_server_side",
    "sequence_row_inserted_between_pages",
    "sequence_trace_changes_over_time",
    "sequence_trace_deleted",
    "total_items_overcount",
}
# The v3 server got the scores at another time, so their order and the cursors differ: rows are compared by id.
OTHER_ORDER = {("v3.225.4/observations_scores_sessions", 4), ("v3.225.4/observations_scores_sessions", 5)}
# Counted with traces that had been sent twice and were not merged yet: 46 for 43.
OVERCOUNTED = {("v3.225.4/traces_parameters", 10)}
# Lists without an upper bound in time: the recorded server also held the traces of later experiments, of which the
# cassettes show only some. Their rows are compared, their totals are not.
OPEN_ENDED = ("toTimestamp", "toStartTime", "sessionId", "traceId")

# The recordings do not hold the Authorization header.
AUTH: dict[tuple[str, int], tuple[str, str] | None] = {
    ("v3.225.4/errors", 0): (PUBLIC_KEY, "wrong"),
    ("v3.225.4/errors", 1): None,
    ("v4_events_only_mode", 12): (PUBLIC_KEY, "wrong"),
}

Row = dict[str, Any]


class Exchange:
    """A recorded request with its answer."""

    def __init__(self, cassette: str, index: int, interaction: Row) -> None:
        self.name = (cassette, index)
        parts = urlsplit(interaction["request"]["uri"])
        self.method: str = interaction["request"]["method"]
        self.path = parts.path
        self.target = parts.path + (f"?{parts.query}" if parts.query else "")
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.status: int = interaction["response"]["status"]["code"]
        self.body = json.loads(interaction["response"]["body"]["string"])
        self.headers = {name.lower(): values[0] for name, values in interaction["response"]["headers"].items()}

    def send(self, server: MockLangfuse, **changes: Any) -> requests.Response:
        changes.setdefault("auth", (PUBLIC_KEY, SECRET_KEY))
        return requests.request(self.method, server.base_url + self.target, timeout=10, **changes)


@functools.cache
def exchanges(cassette: str) -> list[Exchange]:
    with (CASSETTES / f"{cassette}.yaml").open(encoding="utf-8") as file:
        found = yaml.load(file, Loader=SAFE_LOADER)  # noqa: S506 - it is a safe one
    return [Exchange(cassette, index, item) for index, item in enumerate(found["interactions"])]


def cassettes() -> list[str]:
    return sorted(str(path.relative_to(CASSETTES).with_suffix("")) for path in CASSETTES.rglob("*.yaml"))


PLACEHOLDERS: tuple[Any, ...] = (None, {}, [], -1)  # of groups that were not asked for
STATE_CHANGES = ("sequence", "total", "v3", "cloud")  # not from there: state changes, or the other server


def recorded_rows(path: str) -> dict[str, Row]:
    """Rows that the 4.16.0 cassettes show below a path, merged from all answers that show them."""
    rows: dict[str, Row] = {}
    for cassette in cassettes():
        for exchange in [] if cassette.startswith(STATE_CHANGES) else exchanges(cassette):
            found = exchange.body.get("data", [exchange.body])
            if exchange.status == 200 and exchange.path.startswith(path) and "/scores" not in exchange.path:
                for row in found:
                    known = rows.setdefault(row["id"], {})
                    known |= {n: value for n, value in row.items() if n not in known or value not in PLACEHOLDERS}
    return rows


@functools.cache
def recorded_dataset() -> Dataset:
    """The corpus as it stood when 4.16.0 was recorded, with the rows of other days that the cassettes show."""
    dataset = load_corpus()
    traces, events = ({row["id"] for row in rows} for rows in (dataset.traces(), dataset.events()))
    for trace_id, row in recorded_rows("/api/public/traces").items():
        if trace_id not in traces:
            dataset.put_trace(row, pseudo_span=row["environment"] != "sdk-env")
    observations = {row["id"] for row in dataset.observations()}
    for observation_id, row in recorded_rows("/api/public/observations").items():
        if observation_id not in observations:
            dataset.put_observation(row)
            observations.add(observation_id)
    for trace in recorded_rows("/api/public/traces").values():
        if trace["environment"] == "sdk-env":
            put_missing_parts(dataset, trace)
    for event_id, row in recorded_rows("/api/public/v2/observations").items():
        if event_id not in events:
            dataset.put_event(row)
    for row in dataset.scores():
        if row["createdAt"] > RECORDED_AT:
            dataset.delete_score(row["id"])
    for row in dataset.sessions():
        if row["createdAt"] > RECORDED_AT:
            dataset.delete_session(row["id"])
    return dataset


def put_missing_parts(dataset: Dataset, trace: Row) -> None:
    """Observations of which only the ids are recorded; the first carries the latency and the cost that is missing."""
    known = [row for row in dataset.observations() if row["traceId"] == trace["id"]]
    cost = trace["totalCost"] - sum(row["calculatedTotalCost"] for row in known)
    start = parse_ms(trace["timestamp"])
    missing = [name for name in trace["observations"] if name not in {row["id"] for row in known}]
    for number, observation_id in enumerate(missing):
        dataset.put_observation(
            {
                "id": observation_id,
                "traceId": trace["id"],
                "startTime": trace["timestamp"],
                "endTime": iso(start if number else start + round(trace["latency"] * 1000)),
                "environment": trace["environment"],
                "costDetails": {} if number else {"total": cost},
            }
        )


def mode(cassette: str) -> dict[str, Any]:
    if cassette.startswith("v3.225.4/"):
        return {"api": "v3", "version": "3.225.4"}
    if cassette == "v4_events_only_mode":
        return {"api": "v4", "version": "4.16.0"}
    return {"api": "dual", "version": "4.16.0"}


def normalised(value: Any, *, v3: bool) -> Any:
    """Without what has no order on a real server, and without what the two recorded servers do not share.

    The ids inside a listed trace come in any order. The v3 server got the same data at another time, so server times
    differ, and with them the order of embedded rows and the timestamps of scores.
    """
    if isinstance(value, list):
        return [normalised(item, v3=v3) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: normalised(item, v3=v3) for name, item in value.items() if not (v3 and name in _server_times(value))}
    for name in ("observations", "scores"):
        items = kept.get(name)
        if isinstance(items, list) and (v3 or all(isinstance(item, str) for item in items)):
            kept[name] = sorted(items, key=lambda item: item if isinstance(item, str) else item["id"])
    return kept


def _server_times(row: Row) -> tuple[str, ...]:
    return ("createdAt", "updatedAt", "timestamp") if "dataType" in row else ("createdAt", "updatedAt")


def order_of(exchange: Exchange) -> str | None:
    """The field by which a list is ordered with ties in any order; None where the order is total."""
    if exchange.path.endswith("/traces"):
        return (exchange.query.get("orderBy") or ["timestamp"])[0].partition(".")[0] or "timestamp"
    if exchange.path.endswith("/public/observations"):
        return "startTime"
    if exchange.path.endswith(("/public/scores", "/v2/scores")):
        return "timestamp"
    return "createdAt" if exchange.path.endswith("/sessions") else None


def assert_same_page(exchange: Exchange, answer: Row, server: MockLangfuse, *, v3: bool) -> None:
    """Same keys in the same places, and each recorded row is the mock's row of that id; ties may change places."""
    body = exchange.body
    order = order_of(exchange)
    open_ended = not any(name in exchange.query for name in OPEN_ENDED)
    recorded, mocked = normalised(body["data"], v3=v3), normalised(answer["data"], v3=v3)
    if exchange.name in OTHER_ORDER:
        recorded, mocked = (sorted(rows, key=lambda row: str(row["id"])) for rows in (recorded, mocked))
    elif (not open_ended or "totalItems" not in body["meta"]) and exchange.name not in OVERCOUNTED:
        assert answer["meta"] == body["meta"]
    if order is None or recorded == mocked:
        assert mocked == recorded
        return
    if not v3 or order not in ("createdAt", "updatedAt"):
        assert [row.get(order) for row in mocked] == [row.get(order) for row in recorded]
    rows = {row["id"]: row for row in mocked}
    if set(rows) != {row["id"] for row in recorded}:
        rows = every_row(server, exchange.path, _unpaged(exchange), v3=v3)
    assert [rows[row["id"]] for row in recorded] == recorded


def _unpaged(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    return tuple((n, v) for n, values in exchange.query.items() if n not in ("page", "limit") for v in values)


def every_row(server: MockLangfuse, path: str, query: tuple[tuple[str, str], ...], *, v3: bool) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    page = 1
    while True:
        answer = requests.get(
            server.base_url + path,
            params=[*query, ("limit", "100"), ("page", str(page))],
            auth=(PUBLIC_KEY, SECRET_KEY),
            timeout=10,
        ).json()
        rows |= {row["id"]: row for row in normalised(answer["data"], v3=v3)}
        if page >= answer["meta"]["totalPages"]:
            return rows
        page += 1


def assert_same(exchange: Exchange, response: requests.Response, server: MockLangfuse, *, v3: bool = False) -> None:
    answer = response.json()
    assert response.status_code == exchange.status, answer
    if exchange.status == 200 and isinstance(answer.get("data"), list) and "meta" in answer:
        assert_same_page(exchange, answer, server, v3=v3)
        assert answer.get("_deprecation") == exchange.body.get("_deprecation")
    else:
        assert normalised(answer, v3=v3) == normalised(exchange.body, v3=v3)


@pytest.mark.parametrize("cassette", [name for name in cassettes() if name not in SEQUENCES])
def test_answers_as_recorded(cassette: str) -> None:
    dataset = recorded_dataset()
    with MockLangfuse(dataset, **mode(cassette)) as server:
        for exchange in exchanges(cassette):
            if exchange.name in OTHER_ORDER:
                exchange.target = f"{exchange.path}?id={','.join(row['id'] for row in exchange.body['data'])}"
            response = exchange.send(server, auth=AUTH.get(exchange.name, (PUBLIC_KEY, SECRET_KEY)))
            try:
                assert_same(exchange, response, server, v3=cassette.startswith("v3"))
            except AssertionError as error:
                raise AssertionError(f"{exchange.name} {exchange.target}") from error


def test_answers_as_recorded_from_a_cloud_server() -> None:
    """The recorder waited for the end of the rate limit's minute after its 15th request; so does the clock here."""
    moments = [parsedate_to_datetime(exchange.headers["date"]) for exchange in exchanges(CLOUD)]
    now = moments[0]
    with MockLangfuse(
        recorded_dataset(), **mode(CLOUD), cloud=True, clock=lambda: now, rate_limits={"public-api-legacy": 15}
    ) as server:
        for exchange, moment in zip(exchanges(CLOUD), moments, strict=True):
            now = moment
            response = exchange.send(server)
            if exchange.status == 429:
                assert response.status_code == 429
                limit = {name: value for name, value in response.headers.items() if name.startswith("X-RateLimit")}
                recorded = {name: exchange.headers[name.lower()] for name in limit}
                assert_same_limit(recorded, limit, exchange.body, response.json())
            else:
                assert_same(exchange, response, server)


def assert_same_limit(recorded_head: Row, head: Row, recorded: Row, body: Row) -> None:
    """All but the seconds, which the recording server took from its own clock."""
    assert set(head) == {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    assert head["X-RateLimit-Limit"] == recorded_head["X-RateLimit-Limit"]
    assert head["X-RateLimit-Remaining"] == recorded_head["X-RateLimit-Remaining"]
    pattern = re.sub(r"\d\d:\d\d:\d\d", "TIME", recorded_head["X-RateLimit-Reset"])
    assert re.sub(r"\d\d:\d\d:\d\d", "TIME", head["X-RateLimit-Reset"]) == pattern
    assert {**body, "details": None} == {**recorded, "details": None}
    assert set(body["details"]) == set(recorded["details"])
    assert body["details"]["limit"] == recorded["details"]["limit"]


def test_answers_as_recorded_to_bad_keys() -> None:
    headers = [
        {"Authorization": basic("wrong")},
        {"Authorization": basic(SECRET_KEY, public="pk-lf-unknown")},
        {},
        {"Authorization": "Bearer nobody"},
        {"Authorization": f"Bearer {PUBLIC_KEY}"},
        {"Authorization": "Basic %%%"},
    ]
    with MockLangfuse(recorded_dataset(), **mode("errors_auth")) as server:
        for exchange, given in zip(exchanges("errors_auth"), headers, strict=True):
            assert_same(exchange, exchange.send(server, auth=None, headers=given), server)


def basic(secret: str, public: str = PUBLIC_KEY) -> str:
    return "Basic " + base64.b64encode(f"{public}:{secret}".encode()).decode()


def test_answers_as_recorded_when_the_database_is_slow() -> None:
    faults = Faults(timeout_above_rows=0)
    with MockLangfuse(recorded_dataset(), **mode("errors_database_timeout"), faults=faults) as server:
        for exchange in exchanges("errors_database_timeout"):
            assert_same(exchange, exchange.send(server), server)


def test_answers_as_recorded_when_the_database_is_down() -> None:
    """The detail of the 500 names the port of the recorded database."""
    faults = Faults()
    with MockLangfuse(recorded_dataset(), **mode("errors_server_side"), faults=faults) as server:
        for exchange in exchanges("errors_server_side"):
            if exchange.status == 500:
                faults.add("status", status=500)
                answer = exchange.send(server)
                assert answer.status_code == 500
                assert answer.json()["message"] == exchange.body["message"]
                assert answer.json()["error"].startswith("connect ECONNREFUSED")
            elif exchange.path.endswith("/sessions"):
                # Taken later than the rest: a newer session comes first.
                assert list(exchange.send(server).json()["data"][0]) == list(exchange.body["data"][0])
            else:
                assert_same(exchange, exchange.send(server), server)


def test_pages_shift_as_recorded_when_rows_are_inserted_between_them() -> None:
    steps = exchanges("sequence_row_inserted_between_pages")
    dataset = Dataset()
    seen: dict[str, Row] = {row["id"]: row for step in steps for row in step.body["data"]}
    late = {row_id for row_id in seen if not row_id.removeprefix("seq-3-page-").isdigit()}
    # Of the two rows that came in between, only the newer one shows up on a page; the older one shifts the last.
    for row_id, row in seen.items():
        if row_id not in late:
            dataset.put_trace(row)
    with MockLangfuse(dataset, **mode("sequence")) as server:
        for index, step in enumerate(steps):
            if index == 1:
                dataset.put_trace(newer_trace(seen["seq-3-page-14"], "seq-3-page-new", "2026-11-20T13:00:00.000Z"))
            if index == 5:
                dataset.put_trace(newer_trace(seen["seq-3-page-00"], "seq-3-page-old", "2026-11-20T11:00:00.000Z"))
            assert_same(step, step.send(server), server)


def newer_trace(like: Row, trace_id: str, timestamp: str) -> Row:
    return like | {"id": trace_id, "timestamp": timestamp, "htmlPath": None}


def test_a_trace_changes_over_time_as_recorded() -> None:
    """Put what was sent between the requests; after the re-sending the count is over unmerged versions once."""
    steps = exchanges("sequence_trace_changes_over_time")
    dataset = Dataset()
    with MockLangfuse(dataset, **mode("sequence"), overcount=True) as server:
        for index, step in enumerate(steps):
            if index in (2, 8, 10):
                if index == 10:
                    dataset.merge()
                    dataset.delete_trace("seq-3-trace")
                    put_parts(dataset, step.body)
                dataset.put_trace({n: v for n, v in step.body.items() if n not in ("observations", "scores")})
            if index in (4, 6):
                put_parts(dataset, step.body)
            assert_same(step, step.send(server), server)


def put_parts(dataset: Dataset, trace: Row) -> None:
    for row in trace["observations"]:
        dataset.put_observation(row)
    for row in trace["scores"]:
        dataset.put_score(row)


def test_a_trace_is_deleted_as_recorded() -> None:
    """Here it is gone at once; the recorded server still showed it for some seconds (exchange 1)."""
    steps = exchanges("sequence_trace_deleted")
    dataset = Dataset()
    dataset.put_trace(steps[1].body)
    for row in steps[3].body["data"]:
        dataset.put_trace(row)
    with MockLangfuse(dataset, **mode("sequence")) as server:
        assert_same(steps[1], steps[1].send(server), server)
        for step in (steps[0], *steps[2:]):
            assert_same(step, step.send(server), server)


def test_totals_count_unmerged_versions_as_recorded() -> None:
    steps = exchanges("total_items_overcount")
    dataset = Dataset()
    for number, row in enumerate(sorted(steps[0].body["data"], key=lambda row: str(row["id"]))):
        for _ in range(2 if number < 6 else 1):
            dataset.put_trace(row)
    with MockLangfuse(dataset, **mode("total_items_overcount"), overcount=True) as server:
        for step in steps:
            assert_same(step, step.send(server), server)
