"""The report: the same figures from both databases, and a page that a real browser draws without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from database_looks import instant, write
from playwright.sync_api import Browser, Page, expect
from recorded_rows import STREAMS, recorded, to_row
from sqlalchemy import Engine

from etl.load.analytics import Coverage
from etl.load.engine import open_engine, reading
from etl.load.migrate import upgrade
from etl.report import ProjectReport, charts, collect, render
from etl.report.charts import label
from etl.transform.fields import TRACE_DOCUMENT

PROJECT = "proj-shop"
NOW = datetime(2026, 11, 22, 1, 2, tzinfo=UTC)
HOSTILE = (
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    '<a href="https://example.com/">click</a>',
    "$x^2$ %{y} &lt;b&gt; \u2028 'quoted' \"twice\"",
    "a\n" + "long " * 60,
)
TITLES = [
    "Cost per day and model", "Latency of traces", "Latency of model calls", "Time to first token", "Error rate",
    "Sessions that cost most", "Users who cost most", "Sync coverage",
]  # fmt: skip


def filled(url: str, schema: str, **changed: Any) -> Engine:
    engine = open_engine(url, schema)
    upgrade(engine)
    for name in ("traces", "observations", "scores of v2", "sessions"):
        stream = STREAMS[name]
        stream = stream._replace(shape=TRACE_DOCUMENT) if name == "traces" else stream
        rows = [to_row(item | changed.get(name, {}), stream) for item in recorded(stream.file)]
        write(engine, stream.shape.table, rows, instant(0))
    return engine


@pytest.fixture(scope="module")
def filled_pair(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[list[Engine]]:
    file = tmp_path_factory.mktemp("report") / "langfuse.db"
    engines = [filled(f"sqlite:///{file}", "public"), filled(postgres_url, "report")]
    yield engines
    for engine in engines:
        engine.dispose()


def collected(engine: Engine, start: datetime | None = None, end: datetime | None = None) -> ProjectReport:
    with reading(engine) as conn:
        return collect(conn, PROJECT, "shop <assistant>", start=start, end=end)


def with_coverage(report: ProjectReport) -> ProjectReport:
    first, last = "2026-11-08T00:00:00.000Z", "2026-11-18T00:00:00.000Z"
    return replace(report, coverage=[Coverage("traces", first, last, state) for state in ("covered", "failed")])


def test_both_databases_tell_the_same_and_it_adds_up(filled_pair: list[Engine]) -> None:
    one, other = (collected(engine) for engine in filled_pair)
    observations = recorded("observations_v1")

    assert one == other
    assert one.days == ("2026-11-08", "2026-11-19")
    assert sum(day.number for day in one.traces) == len(recorded("traces"))
    assert sum(use.calls for use in one.usage) == sum(item["model"] is not None for item in observations)
    costs = sum(item["calculatedTotalCost"] or 0 for item in observations)
    assert sum(use.total_cost for use in one.usage) == pytest.approx(costs)
    assert len(one.sessions) == len(one.users) == 10
    assert [spender.total_cost for spender in one.users] == sorted((s.total_cost for s in one.users), reverse=True)


def test_a_range_takes_whole_days_and_only_those(filled_pair: list[Engine]) -> None:
    whole = collected(filled_pair[0])
    for end in (datetime(2026, 11, 12, tzinfo=UTC), datetime(2026, 11, 11, 0, 0, 1, tzinfo=UTC)):
        part = collected(filled_pair[0], datetime(2026, 11, 10, 23, tzinfo=UTC), end)
        assert part.days == ("2026-11-10", "2026-11-12")
        assert part.traces == [day for day in whole.traces if day.day in ("2026-11-10", "2026-11-11")]
        assert part.usage == [use for use in whole.usage if use.day in ("2026-11-10", "2026-11-11")]


def opened(browser: Browser, path: Path, **options: Any) -> tuple[Page, list[str]]:
    context = browser.new_context(**options)
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page, heard


def test_a_browser_draws_every_chart_from_the_file_alone(
    filled_pair: list[Engine], browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render([with_coverage(collected(filled_pair[0]))], now=NOW), encoding="utf-8")
    looks = []
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 390)):
        page, heard = opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
        assert page.locator("section h3").all_inner_texts() == TITLES
        for number in range(len(TITLES)):
            marks = page.locator(f"#chart-0-{number} .cartesianlayer .trace path:visible")
            marks.nth(1).wait_for()
        assert page.locator("#chart-0-0 .points path").count() > 20, "a bar for each day and model"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        assert page.locator("h2").inner_text() == "shop <assistant>"
        colour = "document.querySelector('#chart-0-0 .xtick text').style.fill"
        looks.append((page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(colour)))
        assert heard == []
        page.emulate_media(color_scheme="dark")
        expect(page.locator("#chart-0-0 .xtick text").first).to_have_css("fill", "rgb(230, 233, 237)")
        page.context.close()
    light, dark, phone = looks
    assert light == phone
    assert light[0] != dark[0]
    assert light[1] != dark[1], "the charts follow the page"


def test_whatever_the_data_says_it_is_shown_and_does_nothing(
    postgres_url: str, browser: Browser, tmp_path: Path
) -> None:
    engine = filled(f"sqlite:///{tmp_path / 'langfuse.db'}", "public")
    with engine.begin() as conn:
        for number, text in enumerate(HOSTILE):
            conn.exec_driver_sql(
                "UPDATE traces SET user_id = ?, session_id = ? WHERE user_id = (SELECT min(user_id) FROM traces"
                " WHERE user_id LIKE 'cust-%')",
                (text, text),
            )
            conn.exec_driver_sql(
                "UPDATE observations SET model = ? WHERE rowid % 10 = ? AND model IS NOT NULL", (text, number)
            )
    path = tmp_path / "report.html"
    path.write_text(render([collected(engine)], now=NOW), encoding="utf-8")
    engine.dispose()
    page, heard = opened(browser, path, offline=True)

    page.locator("summary").first.click()
    page.locator("summary").last.click()
    shown = page.locator("td:first-child").all_text_contents()
    assert set(HOSTILE) <= set(shown)
    assert page.evaluate("window.hurt") is None
    assert page.locator("a, img").count() == 0, "no text became an element"
    page.locator(".legendtext").first.wait_for(state="attached")
    labels = page.locator(".legendtext, .ytick text").all_text_contents()
    for text in HOSTILE[:3]:
        assert any(text[:20] in one for one in labels), text
    assert heard == []
    page.context.close()


def test_labels_mean_nothing_to_plotly() -> None:
    assert label("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert label("$x$") == "&#36;x&#36;"
    assert label("") == "(empty)"
    assert len(label("x" * 200)) == 28


def test_a_project_without_data_has_a_page_without_charts(tmp_path: Path, browser: Browser) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'empty.db'}", "public")
    upgrade(engine)
    report = collected(engine)
    engine.dispose()
    assert charts(report) == []
    path = tmp_path / "report.html"
    path.write_text(render([report], now=NOW), encoding="utf-8")
    page, heard = opened(browser, path, offline=True)

    assert "Nothing is stored of this project yet" in page.locator("main").inner_text()
    assert heard == []
    page.context.close()
