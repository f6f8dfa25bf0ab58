"""A mock Langfuse server: the v3 and the v4 API over HTTP, with deterministic data and faults on demand."""

from etl.demo.auth import PUBLIC_KEY, SECRET_KEY
from etl.demo.corpus import load_corpus
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import ALL_FEATURES, Project, Request
from etl.demo.faults import Faults
from etl.demo.generator import generate
from etl.demo.server import LoggedRequest, MockLangfuse

__all__ = [
    "ALL_FEATURES",
    "PUBLIC_KEY",
    "SECRET_KEY",
    "Dataset",
    "Faults",
    "LoggedRequest",
    "MockLangfuse",
    "Project",
    "Request",
    "generate",
    "load_corpus",
]
