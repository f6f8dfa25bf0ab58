"""The page for people, in a real browser: as it is served, without scripts, light and dark, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from instances import Instance, Setup
from playwright.sync_api import Browser, Page

from etl.intervals import Window
from etl.load.status import Range, Run, StreamProgress
from etl.service.backoff import Trouble
from etl.service.board import ProjectState, Role
from etl.service.health import readiness
from etl.service.page import POLICY, render
from etl.service.snapshot import ProjectSnapshot, Snapshot
from etl.service.web import Response, listening

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>&amp;\"'"
LONG = "a-very-long-project-name-without-any-place-to-break-it-" * 3


def ago(**length: float) -> datetime:
    return NOW - timedelta(**length)


def stream(
    name: str, *unproven: Range, gaps: int = 0, complete: bool = True, edge: datetime | None = None
) -> StreamProgress:
    edge = edge or ago(minutes=2)
    origin, day = ago(days=90), timedelta(days=1)
    cuts = [Window(origin + 9 * (n + 1) * day, origin + 9 * (n + 1) * day + timedelta(minutes=20)) for n in range(gaps)]
    starts, ends = [origin, *(cut.end for cut in cuts)], [*(cut.start for cut in cuts), edge]
    covered = [Window(start, end) for start, end in zip(starts, ends, strict=True)]
    return StreamProgress(name, origin, edge, covered, unproven, cuts)


def run(number: int, status: str = "ok", error: str | None = None) -> Run:
    began = ago(minutes=5 * number)
    return Run(100 - number, "service", status, began, began + timedelta(seconds=8), 1_240, 37, 14, error)


TOO_SLOW = "observations [2026-11-20T00:00:00.000 .. 2026-11-20T04:00:00.000): too slow for the server (524)"
SNAPSHOT = Snapshot(
    [
        ProjectSnapshot(
            "shop", "p1", "traces", "3.225.4",
            [
                stream("traces"), stream("observations", gaps=2),
                stream("scores", Range("scores", Window(ago(days=30), ago(days=28)), "doubtful")), stream("sessions"),
            ],
            [run(0), run(1, "failed", TOO_SLOW), run(2)],
            ago(minutes=2),
        ),
        ProjectSnapshot(
            "staging", "p2", "observations", "4.16.0", [stream("traces", edge=ago(hours=7))],
            [run(84)], ago(hours=7),
        ),
    ]
)  # fmt: skip
REVOKED = Trouble(
    failures=4,
    since=ago(hours=7),
    reason="cloud.langfuse.com does not know the key pair in STAGING_PUBLIC_KEY and STAGING_SECRET_KEY (401)",
    needs_person=True,
)
STATES = [
    ProjectState("shop", next_run_at=NOW + timedelta(minutes=3)),
    ProjectState("staging", next_run_at=NOW + timedelta(minutes=40), trouble=REVOKED),
]


def page_of(
    states: list[ProjectState], snapshot: Snapshot | None, role: Role = "leader", detail: str | None = None
) -> str:
    ready = readiness(role, detail, states, snapshot, now=NOW, ready_lag=timedelta(minutes=30))
    return render(
        role, detail, states, snapshot, ready,
        ready_lag=timedelta(minutes=30), database="postgresql+psycopg://***@db:5432/etl", now=NOW,
    )  # fmt: skip


class Shown:
    """Serves pages as the service does, and opens them."""

    def __init__(self, browser: Browser, body: str, url: str) -> None:
        self._browser, self.body, self.url = browser, body, url

    def open(self, *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
        context = self._browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=scripts  # type: ignore[arg-type]
        )  # fmt: skip
        page = context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.goto(self.url)
        return page


@pytest.fixture
def shown(browser: Browser) -> Iterator[Shown]:
    shown = Shown(browser, page_of(STATES, SNAPSHOT), "")
    routes = {"/": lambda: Response(200, "text/html; charset=utf-8", shown.body.encode(), POLICY)}
    with listening(("127.0.0.1", 0), routes) as (host, port):
        shown.url = f"http://{host}:{port}/"
        yield shown
    for context in browser.contexts:
        context.close()


def test_it_says_everything_without_scripts(shown: Shown) -> None:
    page = shown.open(scripts=False)
    text = page.inner_text("body")
    for part in (
        "not ready", "shop", "staging", "traces API, Langfuse 3.225.4", "2\N{NO-BREAK SPACE}min behind", "2 gaps",
        "doubtful: 2026-10-22 12:00:00 to 2026-10-24 12:00:00", "too slow for the server (524)",
        "4 runs in a row came to nothing since 2026-11-21 05:00:00", "does not know the key pair",
        "Next run in 3\N{NO-BREAK SPACE}min, at 2026-11-21 12:03:00", "7\N{NO-BREAK SPACE}h behind", "***@db:5432",
    ):  # fmt: skip
        assert part in text
    assert page.title() == "! langfuse-etl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read_in_both_schemes(shown: Shown, scheme: str, width: int) -> None:
    long = ProjectSnapshot(LONG, "p3", "traces", LONG, [stream("traces")], [run(1, "failed", LONG)], None)
    states = [*STATES, ProjectState(LONG, trouble=REVOKED._replace(reason=LONG))]
    shown.body = page_of(states, Snapshot([*SNAPSHOT.projects, long]))
    page = shown.open(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        "[...document.querySelectorAll('body, section, .quiet, .badge, .note, .doubt, time')].map(e => {"
        " let b = e; while (getComputedStyle(b).backgroundColor == 'rgba(0, 0, 0, 0)') b = b.parentElement;"
        " return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor] })"
    )
    for text, ground in colours:
        assert contrast(text, ground) >= 4.5, (text, ground)
    dark = luminance(colours[0][1]) < 0.2
    assert dark is (scheme == "dark")


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_gaps_and_doubts_are_seen_however_short_they_are(shown: Shown) -> None:
    page = shown.open()
    strip = page.locator("svg[aria-label^='Coverage of observations since']")
    gaps = strip.locator("rect.none").all()[1:]  # the first is the ground
    assert len(gaps) == 2
    for gap in gaps:
        box = gap.bounding_box()
        assert box
        assert box["width"] >= 2
    doubt = page.locator("svg[aria-label^='Coverage of scores since'] rect.doubtful")
    assert doubt.count() == 1
    box, whole = doubt.bounding_box(), page.locator("svg[aria-label^='Coverage of scores since']").bounding_box()
    assert box
    assert whole
    assert (box["x"] - whole["x"]) / whole["width"] == pytest.approx(60 / 90, abs=0.01)


def test_whatever_names_and_errors_hold_it_is_only_text(shown: Shown) -> None:
    trouble = REVOKED._replace(reason=HOSTILE)
    project = ProjectSnapshot(HOSTILE, "p", "traces", HOSTILE, [stream("traces")], [run(1, "failed", HOSTILE)], None)
    shown.body = page_of([ProjectState(HOSTILE, trouble=trouble)], Snapshot([project], error=HOSTILE), detail=HOSTILE)
    page = shown.open()
    assert page.title() == "! langfuse-etl"
    assert page.locator("h2").inner_text() == HOSTILE
    assert page.locator("script, img").count() == 0
    assert shown.asked == [shown.url], "nothing else was loaded"
    assert shown.said == [], "the browser had nothing to forbid"


def test_a_standby_and_an_empty_database_have_a_page_too(shown: Shown) -> None:
    shown.body = page_of([], SNAPSHOT, "standby", "process 7 on elsewhere writes to this database")
    assert "process 7 on elsewhere" in shown.open().inner_text("header")
    shown.body = page_of([], Snapshot([]))
    assert "No project was read yet" in shown.open().inner_text("main")
    shown.body = page_of([], None, "starting")
    assert "the database was not read yet" in shown.open().inner_text("header")


def test_the_service_serves_it(setup: Setup, browser: Browser) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop") >= 2)
        page = browser.new_page()
        page.goto(service.url + "/")
        text = page.inner_text("body")
        assert "up to date" in text
        assert text.count("no gaps") == 4
        page.get_by_text("Last runs").click()
        assert page.locator("tbody tr").count() >= 2
        for path in ("/metrics", "/readyz", "/healthz"):
            assert page.get_by_role("link", name=path).get_attribute("href") == path
        page.close()
        assert service.stop() == 0
