"""Rows of the second process are the rows of the first, and nothing is lost with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from as_read import as_read
from sqlalchemy import Engine
from syncing import NOW, make_small, recorded, recorded_scores_v3, same_tables, sync

from etl.demo import MockLangfuse
from etl.errors import RowError
from etl.pipeline import rowmaker
from etl.pipeline.rowmaker import RowMaker
from etl.transform import pages
from etl.transform.items import Item
from etl.transform.pages import Kind
from etl.transform.rows import exact_values

Process = subprocess.Popen[bytes]

KINDS = {
    Kind.TRACE: "traces",
    Kind.TRACE_ALONE: "traces",
    Kind.OBSERVATION: "observations_v1",
    Kind.OBSERVATION_V2: "observations_v2",
    Kind.SCORE_LEGACY: "scores_v2",
    Kind.SCORE_V3: None,
    Kind.SESSION: "sessions",
}


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The second processes of a test, which begin with the first object."""
    processes: list[Process] = []
    start = rowmaker._started

    def noting() -> Process:
        processes.append(start())
        return processes[-1]

    monkeypatch.setattr(rowmaker, "AFTER_OBJECTS", 0)
    monkeypatch.setattr(rowmaker, "_processors", lambda: 2)
    monkeypatch.setattr(rowmaker, "_started", noting)
    return processes


@pytest.fixture
def maker() -> Iterator[RowMaker]:
    maker = RowMaker()
    yield maker
    maker.close()


def items_of(kind: Kind) -> list[Item]:
    name = KINDS[kind]
    items = recorded_scores_v3() if name is None else recorded(name)
    return as_read(items)


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_make_the_same_rows(kind: Kind, maker: RowMaker, started: list[Process]) -> None:
    items = items_of(kind)
    assert len(items) > 20

    for contents in (True, False):
        made = maker.rows_of(kind, items, project_id="p", contents=contents)

        assert made == pages.rows_of(kind, items, project_id="p", contents=contents)
    (process,) = started
    assert process.poll() is None


def test_a_few_objects_do_not_start_a_process(
    maker: RowMaker, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of(Kind.SCORE_LEGACY)[:10]
    monkeypatch.setattr(rowmaker, "AFTER_OBJECTS", 25)
    for expected in (0, 0, 1, 1):
        maker.rows_of(Kind.SCORE_LEGACY, items, project_id="p", contents=True)
        assert len(started) == expected


def test_one_processor_has_one_process(monkeypatch: pytest.MonkeyPatch, started: list[Process]) -> None:
    monkeypatch.setattr(rowmaker, "_processors", lambda: 1)
    items = items_of(Kind.SESSION)
    made = RowMaker().rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert started == []


def test_what_is_large_is_made_here(maker: RowMaker, started: list[Process]) -> None:
    items = [item.with_fields({"input": "x" * 9_000_000}) for item in items_of(Kind.TRACE)[:1]]
    made = maker.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    assert started == []


def test_what_fails_there_fails_here(maker: RowMaker, started: list[Process]) -> None:
    for _ in range(2):
        with pytest.raises(RowError, match="an object of scores has no id"):
            maker.rows_of(Kind.SCORE_LEGACY, as_read([{"name": "odd"}]), project_id="p", contents=True)
    assert len(started) == 1


def test_what_a_column_cannot_hold_is_the_same_in_both(maker: RowMaker, started: list[Process]) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    odd = [deep, {"a\x00": "\ud800"}, 10**30, Decimal("0.1234567890123456789")]
    items = [item.with_fields({"metadata": value}) for item, value in zip(items_of(Kind.TRACE)[:4], odd, strict=True)]
    made = maker.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    assert ["metadata" in exact_values(row) for row in made["traces"]] == [False, True, False, False]
    assert started[0].poll() is None


def test_a_stop_of_all_processes_leaves_it_to_the_first_one(maker: RowMaker, started: list[Process]) -> None:
    items = items_of(Kind.SESSION)
    maker.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    started[0].terminate()
    maker.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert started[0].poll() is None


def test_the_work_goes_on_when_the_other_process_is_killed(
    maker: RowMaker, started: list[Process], caplog: pytest.LogCaptureFixture
) -> None:
    items = items_of(Kind.SCORE_LEGACY)
    expected = pages.rows_of(Kind.SCORE_LEGACY, items, project_id="p", contents=True)
    for _ in range(3):
        assert maker.rows_of(Kind.SCORE_LEGACY, items, project_id="p", contents=True) == expected
        started[0].kill()
        started[0].wait()
    assert len(started) == 1
    assert [record.message for record in caplog.records] == [
        "no second process (BrokenPipeError): the run goes on with one"
    ]


def test_one_that_cannot_be_started_is_done_without(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    items = items_of(Kind.SESSION)
    made = maker.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert "FileNotFoundError" in caplog.text


@pytest.mark.parametrize("printed", ["a line", ""])
def test_one_that_prints_while_it_starts_is_done_without(
    printed: str, maker: RowMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rowmaker, "_PROGRAM", f"print({printed!r}, flush=True); {rowmaker._PROGRAM}")
    items = items_of(Kind.SESSION)
    made = maker.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert "no second process (EOFError)" in caplog.text


def test_one_of_another_version_is_done_without(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rowmaker, "__version__", "0.0.9")
    items = items_of(Kind.SESSION)
    made = maker.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert made == pages.rows_of(Kind.SESSION, items, project_id="p", contents=True)
    assert "no second process (EOFError)" in caplog.text


def test_a_pause_in_the_middle_of_an_answer_loses_nothing(
    maker: RowMaker, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # as in the image
    items = [item.with_fields({"input": "x" * 60_000}) for item in items_of(Kind.TRACE)[:100]]
    expected = pages.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    assert maker.rows_of(Kind.TRACE, items[:1], project_id="p", contents=True)
    read = rowmaker._read

    def pausing(pipe: Any) -> bytes:
        time.sleep(0.5)  # the answer is larger than the pipe
        os.kill(started[0].pid, signal.SIGSTOP)
        os.kill(started[0].pid, signal.SIGCONT)
        return read(pipe)

    monkeypatch.setattr(rowmaker, "_read", pausing)
    assert maker.rows_of(Kind.TRACE, items, project_id="p", contents=True) == expected
    assert started[0].poll() is None


def test_threads_that_wait_for_it_go_on_when_it_is_closed(maker: RowMaker, started: list[Process]) -> None:
    items = items_of(Kind.TRACE)
    expected = pages.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    maker.rows_of(Kind.TRACE, items, project_id="p", contents=True)
    os.kill(started[0].pid, signal.SIGSTOP)  # it takes for ever
    made: list[Any] = []

    def make() -> None:
        made.append(maker.rows_of(Kind.TRACE, items, project_id="p", contents=True))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert made == []
    maker.close()
    for thread in threads:
        thread.join(timeout=30)
    assert made == [expected] * 3
    assert started[0].returncode == -signal.SIGKILL


def test_it_ends_with_the_process_that_started_it() -> None:
    program = (
        "import sys, time\n"
        "from etl.pipeline import rowmaker\n"
        "from etl.transform.items import Item\n"
        "from etl.transform.pages import Kind\n"
        "rowmaker.AFTER_OBJECTS, rowmaker._processors = 0, lambda: 2\n"
        "maker = rowmaker.RowMaker()\n"
        "maker.rows_of(Kind.SCORE_LEGACY, [Item.of({'id': 'a'})], project_id='p', contents=True)\n"
        "print(maker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether there is such a process that is more than an entry nobody has asked for yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("kind", "api", "killed"),
    [("sqlite", "v3", False), ("sqlite", "v3", True), ("sqlite", "v4", True), ("postgres", "v4", False)],
)
def test_a_sync_leaves_the_same_tables(
    api: Any, killed: bool, new_database: Callable[[], Engine], started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    with MockLangfuse(make_small(), api=api) as server:
        with_two = new_database()
        if killed:
            kill_at_work(monkeypatch, started)
        for now in (NOW, NOW + timedelta(hours=30)):
            report = sync(with_two, server, now=now)
            assert (report.status, report.error) == ("ok", None)
        used = len(started)
        assert used > 0
        assert [process.returncode for process in started] == [-signal.SIGKILL] * used
        monkeypatch.setattr(rowmaker, "AFTER_OBJECTS", 10**9)
        with_one = new_database()
        for now in (NOW, NOW + timedelta(hours=30)):
            sync(with_one, server, now=now)
    assert len(started) == used
    assert same_tables(with_two) == same_tables(with_one)


def kill_at_work(monkeypatch: pytest.MonkeyPatch, started: list[Process]) -> None:
    """Each second process is killed from outside while it works on its first question."""
    write = rowmaker._write
    works: list[int] = []

    def writing(pipe: Any, message: bytes) -> None:
        works.append(started[-1].pid)
        write(pipe, message)
        if works.count(started[-1].pid) == 2:
            os.kill(started[-1].pid, signal.SIGKILL)

    monkeypatch.setattr(rowmaker, "_write", writing)
