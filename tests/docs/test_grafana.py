"""The Grafana dashboard: its files fit together, and every panel's SQL answers on Postgres."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from etl.load.engine import reading
from tests.docs.corpus import synced

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "grafana" / "dashboards" / "langfuse.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PANELS = [(panel["title"], panel["targets"][0]) for panel in DASHBOARD["panels"]]
FROM, TO = "'2026-11-10T00:00:00Z'", "'2026-11-19T12:00:00Z'"
SCORES = "Scores"  # came after these days
# What Grafana reads of its provisioning files (pkg/services/provisioning, version 1 of both), and of the settings of
# its Postgres source (https://grafana.com/docs/grafana/latest/datasources/postgres/configure/).
SOURCE_KEYS = {
    "orgId", "orgName", "version", "name", "type", "access", "url", "user", "database", "basicAuth", "basicAuthUser",
    "withCredentials", "isDefault", "correlations", "jsonData", "secureJsonData", "editable", "uid",
}  # fmt: skip
POSTGRES_KEYS = {
    "database", "sslmode", "maxOpenConns", "maxIdleConns", "maxIdleConnsAuto", "connMaxLifetime", "postgresVersion",
    "timescaledb",
}  # fmt: skip
PROVIDER_KEYS = {
    "name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds", "allowUiUpdates",
    "editable", "options",
}  # fmt: skip


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[Engine]:
    engine = synced(postgres_url, "grafana")
    yield engine
    engine.dispose()


def ask(engine: Engine, sql: str, start: str = FROM, end: str = TO) -> tuple[list[str], list[Any]]:
    """As Grafana would: its macros and the variable are replaced by text."""
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {start} AND {end}", sql)
    sql = sql.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    sql = sql.replace("${project:sqlstring}", "'proj-shop'")
    assert "$" not in sql
    with reading(engine) as conn:
        conn.exec_driver_sql("SET LOCAL search_path TO grafana")
        conn.exec_driver_sql("SET LOCAL timezone TO 'America/New_York'")  # whatever the server's is
        result = conn.exec_driver_sql(sql.replace("%", "%%"))
        return list(result.keys()), [tuple(row) for row in result]


@pytest.mark.parametrize(("title", "target"), PANELS, ids=[title for title, _ in PANELS])
def test_every_panel_answers(postgres: Engine, title: str, target: dict[str, Any]) -> None:
    columns, rows = ask(postgres, target["rawSql"])

    assert rows or title == SCORES
    if target["format"] == "time_series":
        assert columns[0] == "time"
        if "metric" not in columns:
            assert len(columns) > 1
        for row in rows:
            assert isinstance(row[0], datetime)
            assert (row[0].hour, row[0].tzinfo) == (0, None), "the start of a UTC day; Grafana takes it for UTC"
            assert "2026-11-10" <= row[0].date().isoformat() <= "2026-11-19"
            values = row[2:] if "metric" in columns else row[1:]
            assert all(value is None or isinstance(value, float | int) for value in values)
    else:
        assert not any(isinstance(value, date) and not isinstance(value, datetime) for row in rows for value in row)


def test_scores_are_drawn_on_the_days_they_were_given(postgres: Engine) -> None:
    (sql,) = (target["rawSql"] for title, target in PANELS if title == SCORES)
    _, rows = ask(postgres, sql, "'2026-11-18T00:00:00Z'", "'2026-11-22T00:00:00Z'")
    assert {row[1] for row in rows} >= {"quality (API)", "helpful (API)"}


def test_the_list_of_projects_is_read_from_the_database(postgres: Engine) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert ask(postgres, variable["query"]) == (["__value", "__text"], [("proj-shop", "shop-assistant")])


def test_panels_do_not_overlap_and_ids_are_their_own() -> None:
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) == 23
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_dashboard_data_source_and_compose_file_name_each_other() -> None:
    folder = ROOT / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "langfuse-etl.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "langfuse-etl.yml").read_text())["providers"]
    service, postgres = COMPOSE["services"]["grafana"], COMPOSE["services"]["postgres"]["environment"]
    used = [panel["datasource"] for panel in DASHBOARD["panels"]]
    used += [target["datasource"] for _, target in PANELS] + [v["datasource"] for v in DASHBOARD["templating"]["list"]]

    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in used)
    assert source["url"] == "postgres:5432"
    assert (source["user"], source["jsonData"]["database"]) == (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"])
    assert source["secureJsonData"]["password"] == "$__file{/run/secrets/postgres_password}"
    assert "postgres_password" in service["secrets"]
    mounted = {one["target"]: ROOT / COMPOSE["configs"][one["source"]]["file"] for one in service["configs"]}
    assert all(file.is_file() for file in mounted.values())
    shown = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted[shown] == ROOT / "grafana" / "dashboards" / "langfuse.json"
    assert Path(shown).parent == Path(provider["options"]["path"])


def test_grafana_knows_every_key_of_the_provisioning_files() -> None:
    """One that it does not know it passes over in silence."""
    folder = ROOT / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "langfuse-etl.yml").read_text())
    dashboards = yaml.safe_load((folder / "dashboards" / "langfuse-etl.yml").read_text())

    assert sources.keys() == {"apiVersion", "datasources"}
    assert dashboards.keys() == {"apiVersion", "providers"}
    assert sources["apiVersion"] == dashboards["apiVersion"] == 1
    for source in sources["datasources"]:
        assert source.keys() <= SOURCE_KEYS
        assert source["jsonData"].keys() <= POSTGRES_KEYS
        assert source["secureJsonData"].keys() == {"password"}
    for provider in dashboards["providers"]:
        assert provider.keys() <= PROVIDER_KEYS
        assert provider["type"] == "file"
        assert provider["options"].keys() <= {"path", "foldersFromFilesStructure"}
