"""The mock server's behaviour beside what the recordings show."""

import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from etl.demo import ALL_FEATURES, PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, Project, Request

Row = dict[str, Any]


class Client:
    """Reads from a mock server."""

    def __init__(self, server: MockLangfuse) -> None:
        self.server = server
        self.http = requests.Session()
        self.http.auth = (PUBLIC_KEY, SECRET_KEY)

    def get(self, path: str, **query: Any) -> requests.Response:
        return self.http.get(f"{self.server.base_url}/api/public{path}", params=query, timeout=10)

    def page(self, path: str, **query: Any) -> Row:
        response = self.get(path, **query)
        assert response.status_code == 200, response.text
        body: Row = response.json()
        return body

    def ids(self, path: str, **query: Any) -> list[str]:
        return [row["id"] for row in self.page(path, **query)["data"]]

    def walk(self, path: str, **query: Any) -> list[str]:
        """All pages by number."""
        found: list[str] = []
        page = 1
        while True:
            body = self.page(path, page=page, **query)
            found += [row["id"] for row in body["data"]]
            if page >= body["meta"]["totalPages"]:
                return found
            page += 1

    def follow(self, path: str, **query: Any) -> list[Row]:
        """All pages by cursor."""
        body = self.page(path, **query)
        found: list[Row] = body["data"]
        while "cursor" in body["meta"]:
            body = self.page(path, cursor=body["meta"]["cursor"], **query)
            found += body["data"]
        return found


@pytest.fixture
def dataset() -> Dataset:
    """Thirty traces, three to a millisecond, each with an observation and a score."""
    made = Dataset()
    for number in range(30):
        moment = f"2026-11-10T10:00:00.{number // 3:03d}Z"
        trace_id = f"t{number:02d}"
        made.put_trace(
            {
                "id": trace_id,
                "timestamp": moment,
                "name": f"name-{number % 4}",
                "sessionId": f"s{number % 2}",
                "environment": ("default", "staging")[number % 2],
                "tags": ["all", f"tag-{number % 3}"],
                "userId": "u" if number % 5 else None,
                "metadata": {"n": number, "text": f"value {number}", "flag": number % 2 == 0},
                "updatedAt": f"2026-11-10T12:00:00.{number:03d}Z",
                "input": "in",
            }
        )
        made.put_observation(
            {
                "id": f"o{number:02d}",
                "traceId": trace_id,
                "startTime": moment,
                "endTime": "2026-11-10T10:00:02.000Z",
                "environment": "default",
                "level": "ERROR" if number == 7 else "DEFAULT",
                "metadata": {"long": "x" * 300},
            }
        )
        made.put_score(
            {
                "id": f"c{number:02d}",
                "traceId": trace_id,
                "name": "quality",
                "value": number,
                "timestamp": moment,
                "environment": "default",
            }
        )
    return made


@pytest.fixture
def client(dataset: Dataset) -> Iterator[Client]:
    with MockLangfuse(dataset, api="dual") as server:
        made = Client(server)
        yield made
        made.http.close()


def serve(dataset: Dataset, **options: Any) -> MockLangfuse:
    return MockLangfuse(dataset, **options)


def test_changing_ties_lose_rows_by_timestamp_and_none_by_id(dataset: Dataset) -> None:
    with serve(dataset, shuffle_ties=True) as server:
        client = Client(server)
        by_time = [client.walk("/traces", limit=4, orderBy="timestamp.asc", fields="core") for _ in range(10)]
        assert all(len(ids) == 30 for ids in by_time), "the number of rows looks right"
        assert any(len(set(ids)) < 30 for ids in by_time), "but rows are lost and repeated"
        assert set(client.walk("/traces", limit=4, orderBy="id.asc")) == {f"t{n:02d}" for n in range(30)}
        client.http.close()


def test_ties_change_the_same_way_in_every_run(dataset: Dataset) -> None:
    runs = []
    for _ in range(2):
        with serve(dataset, shuffle_ties=True) as server:
            client = Client(server)
            runs.append([client.ids("/observations", limit=30) for _ in range(3)])
            client.http.close()
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_the_api_is_switched_while_running(dataset: Dataset) -> None:
    with serve(dataset) as server:
        client = Client(server)
        assert client.get("/health").json()["version"] == "3.225.4"
        assert (client.get("/traces").status_code, client.get("/v2/observations").status_code) == (200, 404)
        server.api = "v4"
        assert client.get("/health").json()["version"] == "4.16.0"
        assert (client.get("/traces").status_code, client.get("/v2/observations").status_code) == (404, 200)
        assert "error" not in client.get("/traces").json()
        server.api = "dual"
        assert (client.get("/traces").status_code, client.get("/v2/observations").status_code) == (200, 200)
        client.http.close()


def test_data_changes_between_pages(client: Client, dataset: Dataset) -> None:
    def insert(request: Request) -> None:
        if request.params.get("page") == ["2"]:
            dataset.put_trace({"id": "new", "timestamp": "2026-11-10T11:00:00.000Z"})

    client.server.before_answer = insert
    first, second = client.ids("/traces", limit=5), client.ids("/traces", limit=5, page=2)
    assert second[0] == first[-1]
    assert client.page("/traces")["meta"]["totalItems"] == 31


def test_requests_are_written_down(client: Client) -> None:
    client.get("/traces", limit=1, tags=["a", "b"])
    client.get("/nothing")
    seen = client.server.requests
    assert seen[0] == ("GET", "/api/public/traces", {"limit": ["1"], "tags": ["a", "b"]}, 200)
    assert (seen[1].path, seen[1].status) == ("/api/public/nothing", 404)
    seen.clear()
    assert client.server.requests == []


def test_deletions_show_at_once(client: Client, dataset: Dataset) -> None:
    assert client.get("/traces/t03").status_code == 200
    dataset.delete_trace("t03")
    assert client.get("/traces/t03").status_code == 404
    assert "t03" not in client.ids("/traces", limit=100)
    assert "o03" not in client.ids("/observations", limit=100)
    assert "c03" not in client.ids("/v2/scores", limit=100)
    assert "t-t03" not in client.ids("/v2/observations", limit=100)


def test_a_cached_row_shows_every_change(client: Client, dataset: Dataset) -> None:
    start = "2026-11-10T10:00:00.000Z"
    assert client.page("/traces/t00")["latency"] == 2
    client.page("/traces", limit=100)
    dataset.put_observation({"id": "late", "traceId": "t00", "startTime": start, "endTime": "2026-11-10T10:00:09.000Z"})
    row = next(row for row in client.page("/traces", limit=100)["data"] if row["id"] == "t00")
    assert (row["latency"], row["observations"]) == (9, ["o00", "late"])
    dataset.put_trace({"id": "t00", "timestamp": start, "sessionId": "moved", "userId": "w"})
    assert {r["sessionId"] for r in client.page("/v2/observations", traceId="t00")["data"]} == {"moved"}
    (score,) = client.page("/v2/scores", traceId="t00")["data"]
    assert (score["trace"]["sessionId"], score["trace"]["userId"]) == ("moved", "w")


def test_parts_count_in_the_list_only_inside_the_window_and_the_environment(client: Client, dataset: Dataset) -> None:
    """Measured: observations from two days before fromTimestamp, scores from fromTimestamp on."""
    dataset.put_trace({"id": "x", "timestamp": "2026-11-14T10:00:00.000Z", "environment": "default"})
    for number, start in enumerate(("2026-11-12T10:00:00.000Z", "2026-11-12T09:59:59.999Z")):
        dataset.put_observation({"id": f"x{number}", "traceId": "x", "startTime": start, "environment": "default"})
    dataset.put_score({"id": "early", "traceId": "x", "timestamp": "2026-11-14T09:00:00.000Z"})
    dataset.put_score({"id": "late", "traceId": "x", "timestamp": "2026-11-14T10:00:00.000Z", "environment": "other"})
    dataset.put_score({"id": "fix", "traceId": "x", "timestamp": "2026-11-14T11:00:00.000Z", "dataType": "CORRECTION"})
    (tight,) = client.page("/traces", fromTimestamp="2026-11-14T10:00:00.000Z")["data"]
    assert (tight["observations"], tight["scores"]) == (["x0"], ["late"])
    (wide,) = client.page("/traces", fromTimestamp="2026-11-14T00:00:00.000Z", name="")["data"]
    assert (wide["observations"], wide["scores"]) == (["x0", "x1"], ["early", "late"])
    (here,) = client.page("/traces", fromTimestamp="2026-11-14T00:00:00.000Z", environment="default")["data"]
    assert here["scores"] == ["early"]
    assert [score["id"] for score in client.page("/traces/x")["scores"]] == ["late", "early"]


def test_every_placeholder_of_a_group_that_was_not_asked_for(client: Client) -> None:
    (row,) = client.page("/traces", limit=1, fields="core")["data"]
    placeholders: Row = {"input": None, "output": None, "metadata": {}, "observations": [], "scores": []}
    assert {name: row[name] for name in placeholders} == placeholders
    assert (row["totalCost"], row["latency"]) == (-1, -1)


FILTERS = [
    ({"type": "string", "column": "name", "operator": "=", "value": "name-1"}, lambda n: n % 4 == 1),
    ({"type": "string", "column": "name", "operator": "starts with", "value": "name"}, lambda n: True),
    ({"type": "string", "column": "name", "operator": "ends with", "value": "-2"}, lambda n: n % 4 == 2),
    ({"type": "string", "column": "name", "operator": "does not contain", "value": "2"}, lambda n: n % 4 != 2),
    ({"type": "stringOptions", "column": "sessionId", "operator": "none of", "value": ["s1"]}, lambda n: n % 2 == 0),
    ({"type": "arrayOptions", "column": "tags", "operator": "any of", "value": ["tag-1", "x"]}, lambda n: n % 3 == 1),
    ({"type": "arrayOptions", "column": "tags", "operator": "all of", "value": ["all", "tag-1"]}, lambda n: n % 3 == 1),
    ({"type": "arrayOptions", "column": "tags", "operator": "none of", "value": ["tag-1"]}, lambda n: n % 3 != 1),
    ({"type": "number", "column": "latency", "operator": "<=", "value": 1.995}, lambda n: n // 3 >= 5),
    ({"type": "boolean", "column": "bookmarked", "operator": "<>", "value": True}, lambda n: True),
    ({"type": "null", "column": "userId", "operator": "is null", "value": ""}, lambda n: n % 5 == 0),
    ({"type": "null", "column": "userId", "operator": "is not null", "value": ""}, lambda n: n % 5 != 0),
    ({"type": "string", "column": "userId", "operator": "does not contain", "value": "x"}, lambda n: n % 5 != 0),
    (
        {"type": "numberObject", "column": "metadata", "key": "n", "operator": ">", "value": 20},
        lambda n: n > 20,
    ),
    (
        {"type": "booleanObject", "column": "metadata", "key": "flag", "operator": "=", "value": True},
        lambda n: n % 2 == 0,
    ),
    (
        {"type": "stringObject", "column": "metadata", "key": "n", "operator": "=", "value": "17"},
        lambda n: n == 17,
    ),
    (
        {"type": "numberObject", "column": "scores_avg", "key": "quality", "operator": ">=", "value": 28},
        lambda n: n >= 28,
    ),
    ({"type": "stringOptions", "column": "level", "operator": "any of", "value": ["ERROR"]}, lambda n: n == 7),
    ({"type": "number", "column": "errorCount", "operator": "=", "value": 1}, lambda n: n == 7),
    (
        {"type": "datetime", "column": "timestamp", "operator": ">", "value": "2026-11-10T10:00:00.004Z"},
        lambda n: n // 3 > 4,
    ),
    (
        {"type": "datetime", "column": "timestamp", "operator": "<=", "value": "2026-11-10T10:00:00.004Z"},
        lambda n: n // 3 <= 4,
    ),
]


@pytest.mark.parametrize(("condition", "holds"), FILTERS)
def test_filter_conditions(client: Client, condition: Row, holds: Any) -> None:
    found = client.ids("/traces", limit=100, orderBy="id.asc", filter=json.dumps([condition]))
    assert found == [f"t{n:02d}" for n in range(30) if holds(n)]


def test_a_condition_replaces_the_simple_parameters_of_its_column(client: Client) -> None:
    condition = {"type": "datetime", "column": "timestamp", "operator": "<", "value": "2026-11-10T10:00:00.001Z"}
    found = client.ids(
        "/traces", fromTimestamp="2026-11-10T10:00:00.005Z", orderBy="id.asc", filter=json.dumps([condition])
    )
    assert found == ["t00", "t01", "t02"]


@pytest.mark.parametrize(
    ("path", "query", "issue_path"),
    [
        ("/observations", {"type": "NOPE"}, ["type"]),
        ("/observations", {"limit": 101}, ["limit"]),
        ("/sessions", {"fromTimestamp": "x"}, ["fromTimestamp"]),
        ("/scores", {"dataType": "x"}, ["dataType"]),
        ("/v2/scores", {"fields": "trace"}, ["fields"]),
        ("/v3/scores", {"nope": 1}, []),
        ("/v3/scores", {"observationId": "x"}, []),
        ("/v3/scores", {"traceId": "x", "sessionId": "y"}, []),
        ("/v3/scores", {"valueMin": 1}, []),
        ("/v2/observations", {"isRootObservation": "maybe"}, ["isRootObservation"]),
        ("/traces", {"filter": '[{"type":"magic"}]'}, ["filter", 0, "type"]),
        ("/traces", {"filter": '[{"type":"number","column":"latency","operator":"="}]'}, ["filter", 0, "value"]),
    ],
)
def test_bad_parameters_are_refused(client: Client, path: str, query: Row, issue_path: list[str]) -> None:
    response = client.get(path, **query)
    assert (response.status_code, response.json()["message"]) == (400, "Invalid request data")
    assert response.json()["error"][0]["path"] == issue_path


def test_a_fraction_as_page_reaches_the_database_of_v3(dataset: Dataset) -> None:
    with serve(dataset) as server:
        client = Client(server)
        assert client.get("/traces", page=1.5, limit=1).status_code == 500
        assert client.ids("/traces", page=1.5, limit=2) == client.ids("/traces", limit=3)[1:]
        client.http.close()


def test_a_cursor_walk_is_complete_across_ties(client: Client) -> None:
    expected = {f"t-t{n:02d}" for n in range(30)} | {f"o{n:02d}" for n in range(30)}
    for limit in (1, 7, 1000):
        found = client.follow("/v2/observations", limit=limit)
        assert len(found) == 60
        assert {row["id"] for row in found} == expected
    scores = client.follow("/v3/scores", limit=7)
    assert [row["id"] for row in scores] == [f"c{n:02d}" for n in reversed(range(30))]


def test_groups_of_events_that_were_not_asked_for_are_absent(client: Client) -> None:
    (row,) = client.page("/v2/observations", traceId="t00", type="SPAN", name="", limit=1, fields="core")["data"]
    core = {"id", "traceId", "startTime", "endTime", "projectId", "parentObservationId", "type"}
    placeholders = {"latency", "timeToFirstToken", "modelId", "inputPrice", "outputPrice", "totalPrice"}
    assert set(row) == core | placeholders
    rows = client.page("/v2/observations", traceId="t00", fields="metadata")["data"]
    cut = next(row for row in rows if row["id"] == "o00")["metadata"]["long"]
    assert cut == "x" * 200
    for more in ({"fields": "metadata,io"}, {"fields": "metadata", "expandMetadata": "any"}):
        rows = client.page("/v2/observations", traceId="t00", **more)["data"]
        assert next(row for row in rows if row["id"] == "o00")["metadata"]["long"] == "x" * 300


def test_events_of_a_session_and_roots(client: Client) -> None:
    found = client.follow("/v2/observations", sessionId="s1", isRootObservation="true")
    assert {row["id"] for row in found} == {f"t-t{n:02d}" for n in range(1, 30, 2)}
    assert {row["id"] for row in client.follow("/v2/observations", parentObservationId="")} == {
        f"t-t{n:02d}" for n in range(30)
    }


def test_text_of_events_is_searched(client: Client) -> None:
    matches = [{"type": "string", "column": "input", "operator": "matches", "value": "IN"}]
    assert len(client.page("/v2/observations", limit=100, filter=json.dumps(matches))["data"]) == 30
    assert client.get("/traces", filter=json.dumps(matches)).status_code == 400


@pytest.mark.parametrize("path", ["/v2/observations", "/v3/scores"])
def test_a_cursor_of_something_else_is_refused(client: Client, path: str) -> None:
    other = {"/v2/observations": "/v3/scores", "/v3/scores": "/v2/observations"}[path]
    foreign = client.page(other, limit=1)["meta"]["cursor"]
    for cursor in (foreign, "abc", "W10=", "e30=", "%"):
        answer = client.get(path, cursor=cursor)
        assert (answer.status_code, answer.json()["message"]) == (400, "Invalid cursor format")


def test_an_event_written_twice_comes_twice_until_the_merge(client: Client, dataset: Dataset) -> None:
    row = {"id": "e1", "traceId": "te", "startTime": "2026-11-10T10:00:00.000Z", "input": "1"}
    dataset.put_event(row)
    dataset.put_event(row | {"input": "2", "updatedAt": "2026-11-11T00:00:00.000Z"}, again=True)
    rows = client.page("/v2/observations", traceId="te", fields="io")["data"]
    assert sorted(row["input"] for row in rows) == ["1", "2"]
    dataset.merge()
    assert [row["input"] for row in client.page("/v2/observations", traceId="te", fields="io")["data"]] == ["2"]


def test_of_an_event_written_twice_a_page_border_may_hide_either(dataset: Dataset) -> None:
    """The next page begins below the key that both have."""
    row = {"id": "e1", "traceId": "te", "startTime": "2026-11-10T10:00:00.000Z", "input": "1"}
    dataset.put_event(row)
    dataset.put_event(row | {"input": "2", "updatedAt": "2026-11-11T00:00:00.000Z"}, again=True)
    dataset.put_event(row | {"id": "e0", "input": "0"})
    shown: set[tuple[str, ...]] = set()
    with serve(dataset, api="v4", shuffle_ties=True) as server:
        client = Client(server)
        for _ in range(20):
            first = client.page("/v2/observations", traceId="te", fields="io", limit=1)
            second = client.page("/v2/observations", traceId="te", fields="io", limit=1, cursor=first["meta"]["cursor"])
            shown.add(tuple(item["input"] for page in (first, second) for item in page["data"]))
    assert shown == {("1", "0"), ("2", "0")}


def test_the_minute_of_a_rate_limit_has_one_request_less_than_it_says(dataset: Dataset) -> None:
    now = datetime(2026, 11, 21, 19, 35, 36, 694000, tzinfo=UTC)
    limits = {"public-api-legacy": 15, "public-api": 30}
    with serve(dataset, clock=lambda: now, rate_limits=limits) as server:
        client = Client(server)
        statuses = [client.get("/traces" if n % 2 else "/sessions", limit=1).status_code for n in range(15)]
        assert statuses == [200] * 14 + [429]
        refused = client.get("/observations")
        assert refused.headers["Retry-After"] == "60"
        assert refused.headers["X-RateLimit-Reset"] == "Sat Nov 21 2026 19:36:36 GMT+0000 (Coordinated Universal Time)"
        assert refused.json()["details"]["resetAt"] == "2026-11-21T19:36:36.694Z"
        assert client.get("/v2/scores").status_code == 200, "another resource"
        assert client.get("/projects").status_code == 200, "without limit"
        now += timedelta(seconds=59.9)
        assert client.get("/traces").headers["Retry-After"] == "1"
        now += timedelta(seconds=0.1)
        answer = client.get("/traces", limit="bad")
        assert answer.status_code == 400
        assert "X-RateLimit-Limit" not in answer.headers
        assert [client.get("/traces", limit=1).status_code for _ in range(14)] == [200] * 13 + [429]
        client.http.close()


def test_date_comes_from_the_clock(dataset: Dataset) -> None:
    with serve(dataset, clock=lambda: datetime(2026, 11, 8, 7, 6, 5, tzinfo=UTC)) as server:
        response = requests.get(f"{server.base_url}/api/public/health", timeout=10)
        assert response.headers["Date"] == "Sun, 08 Nov 2026 07:06:05 GMT"
        assert response.headers["Connection"] == "keep-alive"


@pytest.mark.parametrize(
    ("version", "path", "status"),
    [
        ("3.178.0", "/v3/scores", 404),
        ("3.179.0", "/v3/scores", 200),
        ("3.52.0", "/v2/scores", 404),
        ("3.53.0", "/v2/scores", 200),
        ("3.52.0", "/scores", 200),
        ("3.132.0", "/v2/observations", 404),
    ],
)
def test_old_servers_lack_endpoints(dataset: Dataset, version: str, path: str, status: int) -> None:
    with serve(dataset, version=version) as server:
        client = Client(server)
        response = client.get(path)
        assert response.status_code == status
        assert response.headers["Content-Type"].startswith("text/html" if status == 404 else "application/json")
        client.http.close()


def test_old_servers_ignore_fields_and_know_no_environment(dataset: Dataset) -> None:
    features = ALL_FEATURES - {"fields", "environment", "filter"}
    with serve(dataset, features=features) as server:
        client = Client(server)
        body = client.page("/traces", fields="core", environment="staging", filter="{not json", limit=100)
        assert body["meta"]["totalItems"] == 30
        assert all(row["observations"] and "environment" not in row for row in body["data"])
        assert "environment" not in client.page("/traces/t00")
        client.http.close()


def test_projects_tell_of_the_organisation_and_the_retention(dataset: Dataset) -> None:
    project = Project(id="p", name="n", organization_id="o", organization_name="On", retention_days=30)
    with serve(dataset, project=project) as server:
        client = Client(server)
        assert client.page("/projects")["data"] == [
            {
                "id": "p",
                "name": "n",
                "organization": {"id": "o", "name": "On"},
                "metadata": {},
                "retentionDays": 30,
            }
        ]
        client.http.close()


def test_a_slash_at_the_end_redirects(client: Client) -> None:
    response = client.http.get(f"{client.server.base_url}/api/public/traces/", timeout=10, allow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (308, "/api/public/traces")


def test_answers_are_compressed_only_if_both_sides_want_it(dataset: Dataset) -> None:
    for gzip, accepted, coding in ((True, "gzip", "gzip"), (True, "identity", None), (False, "gzip", None)):
        with serve(dataset, gzip=gzip) as server:
            client = Client(server)
            client.http.headers["Accept-Encoding"] = accepted
            response = client.get("/traces", limit=100)
            assert response.headers.get("Content-Encoding") == coding
            assert len(response.json()["data"]) == 30
            assert "Content-Encoding" not in client.get("/health").headers
            client.http.close()


def test_idle_connections_are_closed(dataset: Dataset) -> None:
    with serve(dataset, keep_alive_s=0.1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/api/public/health")
        assert connection.getresponse().read()
        assert connection.sock is not None
        assert connection.sock.recv(1) == b"", "the server hangs up by itself"
        connection.close()


def test_json_of_every_kind_comes_through(client: Client, dataset: Dataset) -> None:
    odd = {"big": 2**70, "lone": "\ud800", "nul": "\x00", "empty": "", "float": 1e-7, "null": None}
    dataset.put_trace({"id": "odd id/1", "timestamp": "2026-11-12T00:00:00.000Z", "input": odd, "brandNew": odd})
    answer = client.http.get(f"{client.server.base_url}/api/public/traces/odd%20id%2F1", timeout=10).json()
    assert answer["input"] == answer["brandNew"] == odd
    (row,) = client.page("/traces", fromTimestamp="2026-11-12T00:00:00Z")["data"]
    assert row["input"] == row["brandNew"] == odd


def test_threads_read_while_rows_change(client: Client, dataset: Dataset) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            reader = Client(client.server)
            while not stop.is_set():
                for path in ("/traces", "/observations", "/v2/observations", "/v3/scores"):
                    reader.page(path, limit=100)
            reader.http.close()
        except BaseException as failure:  # noqa: BLE001 - handed to the test's own thread
            failures.append(failure)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    for number in range(300):
        moment = f"2026-11-10T10:00:01.{number % 1000:03d}Z"
        dataset.put_trace({"id": f"n{number}", "timestamp": moment})
        dataset.put_observation({"id": f"m{number}", "traceId": f"n{number}", "startTime": moment})
        if number % 3 == 0:
            dataset.delete_trace(f"n{number - 3}")
    stop.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert client.page("/traces")["meta"]["totalItems"] == len(dataset.traces())
