"""The data set that was recorded from a real Langfuse 4.16.0 in `dual` mode, shipped with the package."""

import gzip
from collections.abc import Iterator
from importlib import resources

from etl.demo import json_text
from etl.demo.dataset import Dataset
from etl.demo.table import Row


def load_corpus() -> Dataset:
    """1,200 traces of 2026-11-08 to 2026-11-18 with their observations, scores, sessions and v4 rows."""
    dataset = Dataset()
    for row in _rows("sessions"):
        dataset.put_session(row)
    for row in _rows("traces"):
        dataset.put_trace(row)
    for row in _rows("observations_v1"):
        dataset.put_observation(row)
    for row in _rows("scores_v2"):
        dataset.put_score(row)
    for row in _rows("observations_v2"):
        dataset.put_event(row)
    return dataset


def _rows(name: str) -> Iterator[Row]:
    path = resources.files("etl.demo") / "data" / f"{name}.jsonl.gz"
    for line in gzip.decompress(path.read_bytes()).splitlines():
        yield json_text.loads(line)
