"""Pages put together for the writer, and what of them need not be written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from as_read import as_read
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from etl.errors import RetriableApiError, RowError
from etl.extract.readers import Page, Segment
from etl.intervals import Window
from etl.load.compare import differences
from etl.load.engine import reading, writing
from etl.load.tables import scores
from etl.pipeline.batch import batch_of, resized
from etl.pipeline.rowmaker import RowMaker
from etl.pipeline.store import store_rows
from etl.transform.fields import SCORE_LEGACY
from etl.transform.items import Item
from etl.transform.pages import Kind, rows_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOTHING = {field.api: None for field in SCORE_LEGACY.fields if field.api not in SCORE_LEGACY.optional}


def score(number: int, **fields: object) -> dict[str, object]:
    at = f"2026-02-{1 + number % 28:02}T00:00:00.000Z"
    return {**NOTHING, "id": f"s{number}", "projectId": "p", "timestamp": at, "updatedAt": at, **fields}


def window(number: int) -> Segment:
    start = NOW + timedelta(hours=number)
    return Segment(Window(start, start + timedelta(hours=1)), "walked", None, 0, 1)


def page(first: int, count: int, *, closes: int | None = None, light: bool = False, body_bytes: int = 0) -> Page:
    return Page(
        Kind.SCORE_LEGACY,
        [Item.of(score(first + n)) for n in range(count)],
        closes=() if closes is None else [window(closes)],
        light=light,
        body_bytes=body_bytes,
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1200), st.booleans(), st.booleans()), max_size=12))
def test_nothing_is_lost_when_pages_are_resized(sizes: list[tuple[int, bool, bool]]) -> None:
    """Rows and segments come out in their order, at most 500 rows in a page, and none with what closes later."""
    firsts = [sum(count for count, _, _ in sizes[:n]) for n in range(len(sizes))]

    def read() -> list[Page]:
        return [
            page(first, count, closes=number if closes else None, light=light)
            for number, (first, (count, closes, light)) in enumerate(zip(firsts, sizes, strict=True))
        ]

    parts, given = read(), read()
    whole = list(resized(iter(given)))

    assert [item for one in whole for item in one.items] == [item for one in parts for item in one.items]
    assert [one for part in whole for one in part.closes] == [one for part in parts for one in part.closes]
    assert [one.light for one in whole for _ in one.items] == [one.light for one in parts for _ in one.items]
    assert all(len(one.items) <= 500 for one in whole)
    assert all(one.items == [] for one in given), "who read them would hold them"
    read_before = 0
    for one in whole:
        read_before += len(one.items)
        closed = [n for n, (_, closes, _) in enumerate(sizes) if closes and window(n) in one.closes]
        assert all(read_before >= firsts[n] + sizes[n][0] for n in closed)


def test_small_pages_are_put_together() -> None:
    assert [len(one.items) for one in resized(page(n, 100) for n in range(7))] == [500, 200]
    assert [len(one.items) for one in resized(page(n, 100, closes=n if n == 1 else None) for n in range(4))] == [
        200,
        200,
    ]


def test_large_contents_are_not_piled_up() -> None:
    assert [len(one.items) for one in resized(page(n, 1, body_bytes=5_000_000) for n in range(3))] == [1, 1, 1]


def test_a_page_that_cannot_become_rows_takes_no_other_along() -> None:
    bad = page(3, 2)
    bad.items[1] = bad.items[1].with_fields({"id": None})

    assert [len(one.items) for one in resized([page(0, 3), bad, page(5, 1)])] == [3, 2, 1]


def test_what_was_read_before_an_error_is_handed_on() -> None:
    def read() -> Iterator[Page]:
        yield page(0, 3)
        raise RetriableApiError("the connection broke off", path="/v2/scores")

    pages = resized(read())
    assert len(next(pages).items) == 3
    with pytest.raises(RetriableApiError):
        next(pages)


def test_what_was_read_lightly_needs_no_rows() -> None:
    light = batch_of(page(0, 3, closes=1, light=True), project_id="p", contents=True, known_in=None, maker=RowMaker())

    assert light.rows == {"scores": []}
    assert light.seen == {"scores": {(item["id"],): item["timestamp"] for item in page(0, 3).items}}
    assert (light.objects, light.closes) == (3, [window(1)])


def test_an_id_that_is_no_text_is_refused_where_others_are_known(engine: Engine) -> None:
    page = Page(Kind.SCORE_LEGACY, as_read([score(1), score(2, id=["s2"])]))
    good = rows_of(page.kind, page.items[:1], project_id="p", contents=True)
    with writing(engine) as conn:
        store_rows(conn, page.kind, good, project_id="p", now=NOW)
    with reading(engine) as conn, pytest.raises(RowError, match="no id"):
        batch_of(page, project_id="p", contents=True, known_in=conn, maker=RowMaker())


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b"], ids=["NUL", "lone surrogate"])
def test_keys_of_what_was_read_lightly_are_those_that_are_stored(bad: str) -> None:
    light = page(0, 3, light=True)
    light.items[1] = light.items[1].with_fields({"id": bad})
    whole = batch_of(light._replace(light=False), project_id="p", contents=True, known_in=None, maker=RowMaker())

    assert batch_of(light, project_id="p", contents=True, known_in=None, maker=RowMaker()).seen == whole.seen
    assert (bad,) not in whole.seen["scores"]


def test_only_what_is_not_stored_as_it_came_is_made_a_row(engine: Engine) -> None:
    items = [score(n) for n in range(6)]
    first = batch_of(
        Page(Kind.SCORE_LEGACY, as_read(items)),
        project_id="p",
        contents=True,
        known_in=None,
        maker=RowMaker(),
    )
    with writing(engine) as conn:
        store_rows(conn, first.kind, first.rows, project_id="p", now=NOW)
        conn.execute(update(scores).where(scores.c.id == "s1").values(deleted_at=NOW))
        conn.execute(update(scores).where(scores.c.id == "s2").values(read_from="observations"))

    items[3] = score(3, comment="edited")
    items.append(score(7))
    full = Page(Kind.SCORE_LEGACY, as_read(items), closes=[window(0)])
    with reading(engine) as conn:
        again = batch_of(full, project_id="p", contents=True, known_in=conn, maker=RowMaker())
        other_project = batch_of(full, project_id="q", contents=True, known_in=conn, maker=RowMaker())

    assert [row["id"] for row in again.rows["scores"]] == ["s1", "s2", "s3", "s7"]
    assert again.seen["scores"] == {(item["id"],): item["timestamp"] for item in items}
    assert (again.objects, again.closes) == (7, [window(0)])
    assert len(other_project.rows["scores"]) == 7


def test_of_two_versions_in_one_answer_the_newer_counts_in_either_order(engine: Engine) -> None:
    """v4 answers an edited row twice until it has merged the two; the old one may stand last."""
    old, edited = score(1, comment="old"), score(1, comment="edited", updatedAt="2026-02-20T00:00:00.000Z")
    first = batch_of(
        Page(Kind.SCORE_LEGACY, as_read([old])), project_id="p", contents=True, known_in=None, maker=RowMaker()
    )
    with writing(engine) as conn:
        store_rows(conn, first.kind, first.rows, project_id="p", now=NOW)
    with reading(engine) as conn:
        for items in ([edited, old], [old, edited]):
            again = batch_of(
                Page(Kind.SCORE_LEGACY, as_read(items)),
                project_id="p",
                contents=True,
                known_in=conn,
                maker=RowMaker(),
            )
            assert [row["comment"] for row in again.rows["scores"]] == [item["comment"] for item in items]
            assert differences(conn, "scores", again.rows["scores"]).changed == {("s1",)}
        twice = batch_of(
            Page(Kind.SCORE_LEGACY, as_read([old, old])),
            project_id="p",
            contents=True,
            known_in=conn,
            maker=RowMaker(),
        )
        assert twice.rows["scores"] == []
