"""GET /health, /ready and /projects."""

from typing import Any

from etl.demo.answers import Answer, json_answer
from etl.demo.endpoints.context import Context


def health(ctx: Context) -> Answer:
    """No key needed; says nothing about the database."""
    return json_answer({"status": "OK", "version": ctx.version})


def projects(ctx: Context) -> Answer:
    """The one project of the keys."""
    project = ctx.project
    row: dict[str, Any] = {
        "id": project.id,
        "name": project.name,
        "organization": {"id": project.organization_id, "name": project.organization_name},
        "metadata": {},
    }
    if project.retention_days is not None:
        row["retentionDays"] = project.retention_days
    return json_answer({"data": [row]})
