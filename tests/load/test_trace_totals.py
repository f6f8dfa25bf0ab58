"""SQLite: whatever is done to observations, the totals of their traces follow."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from database_looks import Pair, scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

NUMBERS = {"input": "prompt_tokens", "output": "completion_tokens", "total": "total_tokens"}
COLUMNS = ("project_id", "trace_id", "id", "type", "level", *NUMBERS.values(), "deleted_at")
UPSERT = (
    f"INSERT INTO observations ({', '.join(COLUMNS)}, content_hash, read_from, first_seen_at, changed_at)"
    f" VALUES ({', '.join(f':{name}' for name in COLUMNS)}, 'hash', 'traces', 'then', 'then')"
    " ON CONFLICT (project_id, trace_id, id)"
    f" DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[3:])}"
)

keys = st.sampled_from(["a", "b", ""])
tokens = st.none() | st.integers(0, 2000) | st.sampled_from([2**32 - 1, 2**32, 2**62, 2**63 - 1, -1, -(2**63)])
values: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("project_id", "trace_id", "id"), keys),
    "type": st.sampled_from([None, "GENERATION", "SPAN"]),
    "level": st.sampled_from([None, "ERROR", "DEFAULT"]),
    **dict.fromkeys(NUMBERS.values(), tokens),
    "deleted_at": st.sampled_from([None, None, "then"]),
}
changes = st.sampled_from(COLUMNS).flatmap(lambda name: st.tuples(st.just(name), values[name], keys))
steps = st.lists(
    st.tuples(st.just("upsert"), st.fixed_dictionaries(values))
    | st.tuples(st.just("change"), changes)
    | st.tuples(st.just("delete"), keys),
    max_size=12,
)


@settings(max_examples=100)
@given(steps)
def test_totals_are_those_of_the_rows(shared_pair: Pair, steps: list[tuple[str, Any]]) -> None:
    with scratch(shared_pair.sqlite) as conn:
        for what, how in steps:
            if what == "upsert":
                conn.execute(text(UPSERT), how)
            elif what == "change":
                name, value, id_ = how
                # A row that would take the key of another one stays.
                change = f"UPDATE OR IGNORE observations SET {name} = :value WHERE id = :id"
                conn.execute(text(change), {"value": value, "id": id_})
            else:
                conn.execute(text("DELETE FROM observations WHERE trace_id = :id"), {"id": how})
            assert totals(conn) == expected(conn)


def totals(conn: Connection) -> dict[tuple[str, str], Counter[str]]:
    found: dict[tuple[str, str], Counter[str]] = {}
    for row in conn.execute(text("SELECT * FROM vx_trace_totals")).mappings():
        counts = Counter({name: row[name] for name in ("observations", "generations", "errors")})
        counts.update({name: (row[f"{name}_high"] << 32) + row[f"{name}_low"] for name in NUMBERS})
        if any(counts.values()):
            found[row["project_id"], row["trace_id"]] = counts
    return found


def expected(conn: Connection) -> dict[tuple[str, str], Counter[str]]:
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    rows = conn.execute(text("SELECT * FROM observations WHERE deleted_at IS NULL")).mappings()
    for row in rows:
        counts = found[row["project_id"], row["trace_id"]]
        counts["observations"] += 1
        counts["generations"] += row["type"] == "GENERATION"
        counts["errors"] += row["level"] == "ERROR"
        for name, column in NUMBERS.items():
            counts[name] += row[column] or 0
    return found
