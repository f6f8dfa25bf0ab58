"""Pages put together for the writer, and what of them need not be written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from etl.errors import RetriableApiError
from etl.extract.readers import Page, Segment
from etl.intervals import Window
from etl.load.compare import differences
from etl.load.engine import reading, writing
from etl.load.tables import scores
from etl.pipeline.batch import Batch, batch_of, together
from etl.pipeline.store import store_rows
from etl.transform.fields import SCORE_LEGACY
from etl.transform.pages import Kind

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOTHING = {field.api: None for field in SCORE_LEGACY.fields if field.api not in SCORE_LEGACY.optional}


def score(number: int, **fields: object) -> dict[str, object]:
    at = f"2026-02-{1 + number % 28:02}T00:00:00.000Z"
    return {**NOTHING, "id": f"s{number}", "projectId": "p", "timestamp": at, "updatedAt": at, **fields}


def window(number: int) -> Segment:
    start = NOW + timedelta(hours=number)
    return Segment(Window(start, start + timedelta(hours=1)), "walked", None, 0, 1)


def batch(first: int, count: int, *, closes: int | None = None, comment: str = "", light: bool = False) -> Batch:
    page = Page(Kind.SCORE_LEGACY, [score(first + n, comment=comment) for n in range(count)], True, light=light)
    if closes is not None:
        page = page._replace(closes=[window(closes)])
    return batch_of(page, project_id="p", contents=True, known_in=None)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans()), max_size=12))
def test_nothing_is_lost_between_pages_and_batches(pages: list[tuple[int, bool, bool]]) -> None:
    """Rows and segments come out in their order, and a batch with more than one page has at most 500 objects."""
    firsts = [sum(count for count, _, _ in pages[:n]) for n in range(len(pages))]

    def read() -> Iterator[Batch]:
        for number, (first, (count, closes, light)) in enumerate(zip(firsts, pages, strict=True)):
            yield batch(first, count, closes=number if closes else None, light=light)

    parts, whole = list(read()), list(together(read()))

    for name in ("id", "timestamp"):
        assert [row[name] for one in whole for row in one.rows["scores"]] == [
            row[name] for one in parts for row in one.rows["scores"]
        ]
    assert [one for part in whole for one in part.closes] == [one for part in parts for one in part.closes]
    assert sum(one.objects for one in whole) == sum(one.objects for one in parts)
    assert {key for one in whole for key in one.seen["scores"]} == {key for one in parts for key in one.seen["scores"]}
    assert all(one.objects == len(one.rows["scores"]) <= 500 for one in whole)
    assert all(one.light == light for one, light in zip(parts, [page[2] for page in pages], strict=True))


def test_large_contents_are_not_piled_up() -> None:
    whole = together(batch(n, 1, comment="x", closes=None) for n in range(3))
    assert [one.objects for one in whole] == [3]

    def with_contents(n: int) -> Batch:
        page = Page(Kind.SCORE_LEGACY, [score(n, metadata={"text": "x" * 5_000_000})], True)
        return batch_of(page, project_id="p", contents=True, known_in=None)

    assert [one.objects for one in together(with_contents(n) for n in range(3))] == [1, 1, 1]


def test_what_was_read_before_an_error_is_handed_on() -> None:
    def read() -> Iterator[Batch]:
        yield batch(0, 3)
        raise RetriableApiError("the connection broke off", path="/v2/scores")

    batches = together(read())
    assert next(batches).objects == 3
    with pytest.raises(RetriableApiError):
        next(batches)


def test_only_what_is_not_stored_as_it_came_is_made_a_row(engine: Engine) -> None:
    items = [score(n) for n in range(6)]
    first = batch_of(Page(Kind.SCORE_LEGACY, items, True), project_id="p", contents=True, known_in=None)
    with writing(engine) as conn:
        store_rows(conn, first.kind, first.rows, project_id="p", light=False, now=NOW)
        conn.execute(update(scores).where(scores.c.id == "s1").values(deleted_at=NOW))
        conn.execute(update(scores).where(scores.c.id == "s2").values(read_from="observations"))

    items[3] = score(3, comment="edited")
    items.append(score(7))
    page = Page(Kind.SCORE_LEGACY, items, True, closes=[window(0)])
    with reading(engine) as conn:
        again = batch_of(page, project_id="p", contents=True, known_in=conn)
        other_project = batch_of(page, project_id="q", contents=True, known_in=conn)
        not_plain = batch_of(page._replace(plain=False), project_id="p", contents=True, known_in=conn)

    assert [row["id"] for row in again.rows["scores"]] == ["s1", "s2", "s3", "s7"]
    assert again.seen["scores"] == {(item["id"],): item["timestamp"] for item in items}
    assert (again.objects, again.closes) == (7, [window(0)])
    assert len(other_project.rows["scores"]) == len(not_plain.rows["scores"]) == 7


def test_of_two_versions_in_one_answer_the_newer_counts_in_either_order(engine: Engine) -> None:
    """v4 answers an edited row twice until it has merged the two; the old one may stand last."""
    old, edited = score(1, comment="old"), score(1, comment="edited", updatedAt="2026-02-20T00:00:00.000Z")
    first = batch_of(Page(Kind.SCORE_LEGACY, [old], True), project_id="p", contents=True, known_in=None)
    with writing(engine) as conn:
        store_rows(conn, first.kind, first.rows, project_id="p", light=False, now=NOW)
    with reading(engine) as conn:
        for items in ([edited, old], [old, edited]):
            again = batch_of(Page(Kind.SCORE_LEGACY, items, True), project_id="p", contents=True, known_in=conn)
            assert [row["comment"] for row in again.rows["scores"]] == [item["comment"] for item in items]
            assert differences(conn, "scores", again.rows["scores"]).changed == {("s1",)}
        twice = batch_of(Page(Kind.SCORE_LEGACY, [old, old], True), project_id="p", contents=True, known_in=conn)
        assert twice.rows["scores"] == []
