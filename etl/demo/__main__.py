"""Run the mock server as a process of its own: `python -m etl.demo --port 8765 --traces 20000`."""

import argparse
import gc
import sys
from collections.abc import Sequence
from datetime import datetime

from etl.demo.auth import PUBLIC_KEY, SECRET_KEY
from etl.demo.corpus import load_corpus
from etl.demo.generator import DEFAULT_END, generate
from etl.demo.server import MockLangfuse


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted; prints base URL, public key and secret key in one line when ready."""
    given = _parser().parse_args(arguments)
    if given.traces is None:
        dataset = load_corpus()
    else:
        dataset = generate(
            traces=given.traces,
            seed=given.seed,
            days=given.days,
            observations_per_trace=given.observations_per_trace,
            scores_per_trace=given.scores_per_trace,
            io_bytes=given.io_bytes,
            end=given.end,
            traces_per_session=given.traces_per_session,
        )
    # The data stays for good: the collector need not walk it again and again.
    gc.freeze()
    server = MockLangfuse(
        dataset,
        api=given.api,
        host=given.host,
        port=given.port,
        gzip=given.gzip,
        shuffle_ties=given.shuffle_ties,
        rate_limits={"public-api-legacy": 15, "public-api": 30} if given.rate_limits else None,
    )
    sys.stdout.write(f"{server.base_url} {PUBLIC_KEY} {SECRET_KEY}\n")
    sys.stdout.flush()
    server.serve_forever()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m etl.demo", description="Serve a mock Langfuse.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--api", choices=("v3", "v4", "dual"), default="v3")
    parser.add_argument("--traces", type=int, help="generate so many; default: the recorded corpus")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument(
        "--end", type=datetime.fromisoformat, default=DEFAULT_END, help="end of the generated data, ISO 8601 with zone"
    )
    parser.add_argument("--observations-per-trace", type=int, default=5)
    parser.add_argument("--scores-per-trace", type=int, default=1)
    parser.add_argument("--traces-per-session", type=int, default=20)
    parser.add_argument("--io-bytes", type=int, default=1500, help="input and output of a row, together")
    parser.add_argument("--gzip", action="store_true", help="compress answers above 1 KB")
    parser.add_argument("--shuffle-ties", action="store_true", help="rows with equal sort keys change places")
    parser.add_argument("--rate-limits", action="store_true", help="the limits of Langfuse Cloud's free plan")
    return parser


if __name__ == "__main__":
    main()
