"""Made-up data of any size, the same for the same arguments, shaped like what people trace."""

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from etl.demo.dataset import Dataset
from etl.demo.table import Row
from etl.demo.times import iso, to_ms

_DAY_MS = 24 * 3600 * 1000
DEFAULT_END = datetime(2026, 11, 19, tzinfo=UTC)

_NAMES = (
    "chat-turn",
    "rag-answer",
    "refund check",
    "classify/intent",
    "意图识别",
    "🤖 assistant",
    "summarise-ticket",
    "",
)
_USERS = ("alice@example.com", "user with space", "王小明", "محمد", "üser-ß", "u/slash")
_ENVIRONMENTS = ("default", "default", "production", "production", "staging")
_TAGS = ("prod", "vip", "retry", "多语言", "🔥hot", "beta test")
_RELEASES = ("2026.11.1", "v1.2.3+build.7", None)
_VERSIONS = ("1", "2", "exp-\u03b1", None)
_CHANNELS = ("web", "app", "email")
_STEPS = ("SPAN", "GENERATION", "RETRIEVER", "TOOL", "EVENT", "CHAIN", "EMBEDDING", "EVALUATOR", "GUARDRAIL", "AGENT")
_LEVELS = ("DEFAULT",) * 12 + ("DEBUG", "DEBUG", "WARNING", "ERROR")
_MODELS = (
    # name, id at the server (None: a model that it has no price for), USD per input and output token
    ("gpt-4o-mini", "clyrjp56f0000t0mzapoocd7u", 1.5e-07, 6e-07),
    ("gpt-4o", "b9854a5c92dc496b997d99d20", 2.5e-06, 1e-05),
    ("my-own-model", None, None, None),
)
_PROMPTS = (None, ("support-answer", 1), ("support-answer", 2), ("分类/intent", 3))
_SENTENCES = (
    "Where is my order #48213? It was promised for Monday. ",
    "Can I return a product after 30 days?\nIt was a gift.\tThanks. ",
    "请帮我查询一下退款进度,谢谢! ",
    "أين طلبي؟ رقم الطلب 48213. ",
    "Das Abo kündigen „sofort“ \u2013 geht das? naïve café ",
    "𠜎𠮷野家 の メニュー を見せて 🍜 ",
    '<b>html & "quotes"</b> and a \\ backslash ',
)
_TEXT_VARIANTS = 48


def generate(
    traces: int = 20_000,
    seed: int = 7,
    days: float = 14,
    observations_per_trace: int = 5,
    scores_per_trace: int = 1,
    io_bytes: int = 1500,
    end: datetime = DEFAULT_END,
    project_id: str = "proj-shop",
    traces_per_session: int = 20,
    tied: float = 0.15,
) -> Dataset:
    """A data set with non-ASCII text, costs, sessions, users, and equal milliseconds.

    Args:
        traces: How many; spread over `days` before `end` (exclusive).
        observations_per_trace: On average; of four traces in a row one has one more and one has one less.
        scores_per_trace: On traces and their observations; every 20th trace's session gets one too.
        io_bytes: About how many bytes input and output of a row have together. Half of the rows have both.
        end: Aware.
        traces_per_session: About; every tenth trace has no session.
        tied: Share of traces that have the millisecond of the one before.
    """
    dataset = Dataset()
    rng = random.Random(seed)
    maker = _Maker(rng, project_id, io_bytes)
    start_ms = to_ms(end) - round(days * _DAY_MS)
    sessions = max(1, traces // max(1, traces_per_session))
    moment = start_ms
    with _collector_paused():
        for number, time_ms in enumerate(_moments(rng, traces, start_ms, to_ms(end))):
            moment = moment if number and rng.random() < tied else time_ms
            trace = maker.trace(number, moment, rng.randrange(sessions))
            observations = list(maker.observations(trace, moment, _count(observations_per_trace, number)))
            dataset.put_trace(trace)
            for row in observations:
                dataset.put_observation(row)
            for row in maker.scores(trace, observations, moment, scores_per_trace, number):
                dataset.put_score(row)
    return dataset


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Rows are no garbage; looking for some while they are made would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _moments(rng: random.Random, count: int, start_ms: int, end_ms: int) -> list[int]:
    return sorted(rng.randrange(start_ms, end_ms) for _ in range(count))


def _count(average: int, number: int) -> int:
    if average == 0:
        return 0
    return average + (0, 1, 0, -1)[number % 4]


class _Maker:
    """Makes rows from one stream of random numbers."""

    def __init__(self, rng: random.Random, project_id: str, io_bytes: int) -> None:
        self._rng = rng
        self._project_id = project_id
        self._inputs = _texts(rng, io_bytes * 3 // 5)
        self._outputs = _texts(rng, io_bytes * 2 // 5)

    def trace(self, number: int, moment: int, session: int) -> Row:
        rng = self._rng
        session_id = None if rng.random() < 0.1 else f"session-{session:05d}" if session % 7 else f"会话/{session:05d}"
        return {
            "id": f"{rng.getrandbits(128):032x}",
            "projectId": self._project_id,
            "name": rng.choice(_NAMES),
            "timestamp": iso(moment),
            "environment": rng.choice(_ENVIRONMENTS),
            "tags": sorted(rng.sample(_TAGS, rng.randrange(3))),
            "bookmarked": rng.random() < 0.01,
            "release": rng.choice(_RELEASES),
            "version": rng.choice(_VERSIONS),
            "userId": rng.choice((*_USERS, f"cust-{rng.randrange(500):04d}", None)),
            "sessionId": session_id,
            "public": rng.random() < 0.1,
            **self._contents(),
            "metadata": {
                "message_id": 17_000_000 + number,
                "channel": rng.choice(_CHANNELS),
                "nested": {"x": [1, 2.5, None], "flag": True},
            },
            **_written(moment),
        }

    def observations(self, trace: Row, moment: int, count: int) -> Iterator[Row]:
        rng = self._rng
        written = _written(moment)
        root = f"{rng.getrandbits(64):016x}"
        for step in range(count):
            kind = "SPAN" if step == 0 else _STEPS[rng.randrange(len(_STEPS))]
            start = moment + (0 if step == 0 else rng.randrange(2000))
            end = None if kind == "EVENT" else start + rng.randrange(1, 4000)
            level = rng.choice(_LEVELS)
            yield {
                "id": root if step == 0 else f"{rng.getrandbits(64):016x}",
                "traceId": trace["id"],
                "startTime": iso(start),
                "endTime": None if end is None else iso(end),
                "projectId": self._project_id,
                "parentObservationId": None if step == 0 else root,
                "type": kind,
                "environment": trace["environment"],
                "name": f"{kind.lower()}-{step}",
                "level": level,
                "statusMessage": "TimeoutError: upstream 上游超时" if level == "ERROR" else None,
                "metadata": {"step": step, "host": "w-1"},
                **self._contents(),
                **(self._usage(start) if kind in ("GENERATION", "EMBEDDING") else {}),
                **(_prompt(start) if kind == "GENERATION" else {}),
                **written,
            }

    def scores(self, trace: Row, observations: Sequence[Row], moment: int, count: int, number: int) -> Iterator[Row]:
        rng = self._rng
        for _ in range(count):
            observed = observations and rng.random() < 0.3
            yield self._score(moment) | {
                "environment": trace["environment"],
                "traceId": trace["id"],
                "observationId": rng.choice(observations)["id"] if observed else None,
            }
        if count and trace["sessionId"] and number % 20 == 0:
            yield self._score(moment) | {"name": "session-rating", "sessionId": trace["sessionId"]}

    def _score(self, moment: int) -> Row:
        rng = self._rng
        at = moment + rng.randrange(1000, 60_000)
        row: Row = {
            "id": f"{rng.getrandbits(128):032x}",
            "projectId": self._project_id,
            "source": rng.choice(("API", "API", "EVAL")),
            "comment": rng.choice((None, None, "looks good", "有点长")),
            "timestamp": iso(at),
            **_written(at),
        }
        kind = rng.randrange(8)
        if kind < 4:
            return row | {"name": "quality", "dataType": "NUMERIC", "value": round(rng.random(), 4)}
        if kind < 6:
            yes = rng.random() < 0.7
            return row | {"name": "helpful", "dataType": "BOOLEAN", "value": int(yes), "stringValue": str(yes)}
        if kind < 7:
            label = rng.choice(("billing", "其他", "shipping"))
            return row | {"name": "category", "dataType": "CATEGORICAL", "value": 0, "stringValue": label}
        return row | {"name": "reviewer-note", "dataType": "TEXT", "stringValue": "Clear, but too long. 有点长。"}

    def _contents(self) -> Row:
        """Input and output: chat messages, text, or nothing."""
        rng = self._rng
        shape = rng.randrange(4)
        if shape < 2:
            return {
                "input": [{"role": "user", "content": rng.choice(self._inputs)}],
                "output": {
                    "role": "assistant",
                    "content": rng.choice(self._outputs),
                    "confidence": round(rng.random(), 4),
                },
            }
        if shape == 2:
            return {"input": rng.choice(self._inputs), "output": rng.choice(self._outputs)}
        return {"input": None, "output": None}

    def _usage(self, start: int) -> Row:
        rng = self._rng
        name, model_id, input_price, output_price = rng.choice(_MODELS)
        tokens_in, tokens_out = rng.randrange(20, 1500), rng.randrange(1, 800)
        row: Row = {
            "model": name,
            "modelId": model_id,
            "modelParameters": {"temperature": 0.2, "max_tokens": 512},
            "completionStartTime": iso(start + 1),
            "usageDetails": {"input": tokens_in, "output": tokens_out, "total": tokens_in + tokens_out},
        }
        if input_price is None or output_price is None:
            return row
        cost_in, cost_out = round(tokens_in * input_price, 12), round(tokens_out * output_price, 12)
        return row | {
            "inputPrice": input_price,
            "outputPrice": output_price,
            "costDetails": {"input": cost_in, "output": cost_out, "total": round(cost_in + cost_out, 12)},
        }


def _prompt(start: int) -> Row:
    """One by the time of the call: a draw from the random numbers would change all rows after it."""
    prompt = _PROMPTS[start % len(_PROMPTS)]
    if prompt is None:
        return {}
    name, version = prompt
    return {"promptId": f"prompt-{name}-{version}", "promptName": name, "promptVersion": version}


def _texts(rng: random.Random, size: int) -> list[str]:
    """Texts of about `size` bytes; rows share them, so that a big data set fits in memory."""
    texts = []
    for number in range(_TEXT_VARIANTS):
        parts = [f"[{number}] "]
        length = len(parts[0])
        while length < size:
            parts.append(rng.choice(_SENTENCES))
            length += len(parts[-1].encode())
        texts.append("".join(parts))
    return texts


def _written(moment: int) -> dict[str, Any]:
    """Created in whole seconds, as the server stores it; updated when the write came through."""
    created = moment // 1000 * 1000 + 1000
    return {"createdAt": iso(created), "updatedAt": iso(created + 4000 + moment % 997)}
