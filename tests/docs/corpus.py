"""The recorded data, synced through the mock server at a fixed time, so that every figure is always the same."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from pydantic import SecretStr
from sqlalchemy import Engine

from etl.config import Config, Project
from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, load_corpus
from etl.load.engine import open_engine
from etl.load.migrate import upgrade
from etl.service.lease import write_lease
from etl.service.sync import sync_projects

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
# Model -> the prompt that its calls are given, and when its second version came.
PROMPTS = {"gpt-4o": ("support-answer", "2026-11-14"), "gpt-4o-mini": ("classify-intent", "2026-11-16")}


def corpus_with_prompts() -> Dataset:
    """The recorded data used no prompts of Langfuse; here its calls of two models did."""
    dataset = load_corpus()
    for row in dataset.observations():
        if row["model"] in PROMPTS:
            name, second = PROMPTS[row["model"]]
            version = 1 if row["startTime"] < second else 2
            prompt = {"promptId": f"{name}-{version}", "promptName": name, "promptVersion": version}
            dataset.put_observation(row | prompt)
    return dataset


def synced(url: str, schema: str) -> Engine:
    """A database with all of it."""
    engine = open_engine(url, schema)
    upgrade(engine)
    with MockLangfuse(corpus_with_prompts(), clock=lambda: NOW) as server, write_lease(engine) as owner:
        key = SecretStr(SECRET_KEY)
        project = Project(name="shop", base_url=server.base_url, public_key=PUBLIC_KEY, secret_key=key)
        config = Config(projects=(project,))
        (report,) = sync_projects(
            config, engine, owner, projects=config.projects, streams=(), trigger="sync", stop=threading.Event(),
            now=lambda: NOW,
        )  # fmt: skip
    assert report.status == "ok", report.error
    return engine
