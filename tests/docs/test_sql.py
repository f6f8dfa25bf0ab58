"""Every question of `docs/sql.md` is asked of both databases, and answers as printed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from etl.load.search import switch_search_on
from tests.docs.corpus import synced
from tests.docs.questions import PAGE, Question, answer, questions

QUESTIONS = questions(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[dict[str, Engine]]:
    file = tmp_path_factory.mktemp("sql") / "langfuse.db"
    engines = {"sqlite": synced(f"sqlite:///{file}", "public"), "postgres": synced(postgres_url, "questions")}
    for engine in engines.values():
        switch_search_on(engine)
    yield engines
    for engine in engines.values():
        engine.dispose()


def test_there_are_at_least_twenty() -> None:
    assert len(QUESTIONS) >= 20
    assert [int(question.title.split(".")[0]) for question in QUESTIONS] == list(range(1, len(QUESTIONS) + 1))


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.title for question in QUESTIONS])
def test_a_question_has_the_printed_answer_on_both_databases(asked: dict[str, Engine], question: Question) -> None:
    lines = question.result.count("\n") - 2
    assert lines > 0 or "prompt" in question.title
    for engine in asked.values():
        assert question.result == answer(engine, question)
