"""`docs/datasette/metadata.yml`: titles, descriptions and ready questions, from the meanings and from `docs/sql.md`."""

from __future__ import annotations

import re
from typing import Any

import yaml
from sqlalchemy import Engine, inspect

from etl.load.meanings import TABLES, VIEWS, meaning_of
from etl.load.tables import VERSION_TABLE
from tests.docs.questions import PAGE, questions

_INTRODUCTION = """\
# Datasette, a browser for SQLite files: datasette langfuse.db -m metadata.yml --setting sql_time_limit_ms 5000
# Made by `make docs`; the name of the database is that of the file, langfuse.db.
"""
# Of docs/sql.md: address of the query -> number of the question.
_READY = {
    "cost_per_model": 2, "cost_per_kind_of_request": 4, "errors_lately": 9, "long_sessions": 10,
    "users": 13, "score_trend": 14, "is_everything_there": 23,
}  # fmt: skip
_OWN = {
    "cost_per_day": (
        "What did each day cost?",
        "The last 100 days with calls of models, UTC.",
        "SELECT day, sum(total_cost) AS cost_usd, sum(total_tokens) AS tokens, sum(calls) AS calls\n"
        "FROM daily_usage GROUP BY day ORDER BY day DESC LIMIT 100",
    ),
    "session": (
        "One session",
        "Its traces in their order. Fill in a session id.",
        "SELECT timestamp, name, user_id, latency, total_cost, observations, errors, scores, trace_id\n"
        "FROM trace_summary WHERE session_id = :session_id ORDER BY timestamp, trace_id",
    ),
    "cost_between": (
        "Cost per user between two days",
        "Days are UTC, like 2026-11-12; the second one is not included.",
        "SELECT user_id, count(DISTINCT trace_id) AS traces, sum(total_tokens) AS tokens,\n"
        "    round(sum(total_cost), 6) AS cost_usd\n"
        "FROM daily_cost WHERE day >= :first_day AND day < :end_day AND user_id IS NOT NULL\n"
        "GROUP BY user_id ORDER BY cost_usd DESC",
    ),
}
_HIDDEN = ("sync_state", "sync_absences", "sync_lease", "sync_schedule")


def datasette_metadata(sqlite: Engine) -> str:
    """The whole file.

    Args:
        sqlite: An upgraded database.
    """
    columns = inspect(sqlite)
    asked = questions(PAGE.read_text(encoding="utf-8"))
    ready = {name: asked[number - 1] for name, number in _READY.items()}
    tables: dict[str, Any] = {}
    for name, meaning in {**VIEWS, **TABLES}.items():
        described = {c["name"]: meaning_of(name, c["name"]) for c in columns.get_columns(name)}
        tables[name] = {"description": meaning, "columns": described}
        if name in _HIDDEN:
            tables[name]["hidden"] = True
    for name in ("traces", "observations", "scores"):
        tables[name]["sort_desc"] = "start_time" if name == "observations" else "timestamp"
    tables["trace_summary"]["sort_desc"] = "timestamp"
    for name in (VERSION_TABLE, "vx_trace_totals"):
        tables[name] = {"hidden": True}
    queries = {
        name: {
            "title": question.title.partition(". ")[2],
            "sql": re.sub(r"LIMIT \d+", "LIMIT 100", question.sqlite.strip()),
        }
        for name, question in ready.items()
    } | {
        name: {"title": title, "description": description, "sql": sql}
        for name, (title, description, sql) in _OWN.items()
    }
    document = {
        "title": "Langfuse, copied",
        "description": "Traces, observations, scores and sessions; the views answer most questions.",
        "databases": {"langfuse": {"queries": queries, "tables": tables}},
    }
    return _INTRODUCTION + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
