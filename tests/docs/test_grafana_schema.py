"""The dashboard against the types that Grafana publishes; Grafana itself is not started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FILE = Path(__file__).resolve().parents[2] / "grafana" / "dashboards" / "langfuse.json"


@pytest.fixture
def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text())
    return document


def as_grafana_reads_it(document: dict[str, Any]) -> dict[str, Any]:
    """Once through the published types, which drop what they do not know."""
    register_default_plugins()
    read: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    return read


def unknown(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Where something that was written is not read, or is read otherwise."""
    if isinstance(written, dict) and isinstance(read, dict):
        for name, value in written.items():
            yield from unknown(value, read.get(name), f"{path}/{name}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for place, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from unknown(one, other, f"{path}/{place}")
    elif written != read:
        yield path


def test_grafana_knows_every_field_of_the_dashboard(dashboard: dict[str, Any]) -> None:
    assert list(unknown(dashboard, as_grafana_reads_it(dashboard))) == []


def test_a_field_that_grafana_does_not_know_would_be_found(dashboard: dict[str, Any]) -> None:
    stat, series = dashboard["panels"][0], next(p for p in dashboard["panels"] if p["type"] == "timeseries")
    place = dashboard["panels"].index(series)
    stat["options"]["colour"] = series["fieldConfig"]["defaults"]["custom"]["drawStile"] = "none"

    assert list(unknown(dashboard, as_grafana_reads_it(dashboard))) == [
        "/panels/0/options/colour",
        f"/panels/{place}/fieldConfig/defaults/custom/drawStile",
    ]
