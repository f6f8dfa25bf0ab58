"""Figures as charts, in the words of plotly.js; pure.

Plotly reads tags in names and labels (`<b>`, `<a href>`), so every text of the data is escaped for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from typing import Any, NamedTuple

from etl.load.analytics import Coverage, Latencies, Spender
from etl.report.collect import ProjectReport
from etl.settings import STREAMS

_MODELS_SHOWN = 7
_LABEL_LENGTH = 28
_OTHERS = "all others"
_STATES = {"covered": "good", "partial": "doubt", "doubtful": "doubt", "failed": "bad"}
_EPOCH_MS = 1000


class Chart(NamedTuple):
    """A title, a sentence about it, and plotly's `data` and `layout`; a colour is the name of one of the page's."""

    title: str
    note: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def charts(report: ProjectReport) -> list[Chart]:
    """All charts of a project that there are figures for."""
    found = []
    if report.usage:
        found.append(_cost(report))
    if report.traces:
        found += [_latency("Latency of traces", "Seconds from the first start to the last end.", report.traces)]
    if report.calls:
        found += [
            _latency("Latency of model calls", "Seconds from start to end.", report.calls),
            *_first_token(report.calls),
        ]
    if report.traces or report.calls:
        found.append(_errors(report))
    if report.sessions:
        found.append(_spenders("Sessions that cost most", report.sessions))
    if report.users:
        found.append(_spenders("Users who cost most", report.users))
    if report.coverage:
        found.append(_coverage(report.coverage))
    return found


def label(text: str) -> str:
    """A text of the data for an axis or a legend: short, and without meaning for plotly."""
    short = text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…"
    return _plain(short) or "(empty)"


def _plain(text: str) -> str:
    # Between dollar signs it would look for mathematics.
    return escape(text, quote=False).replace("$", "&#36;")


def _cost(report: ProjectReport) -> Chart:
    by_model: dict[str, float] = defaultdict(float)
    for one in report.usage:
        by_model[one.model] += one.total_cost
    shown = sorted(by_model, key=lambda model: (-by_model[model], model))[:_MODELS_SHOWN]
    amounts: dict[str, dict[str, float]] = {model: defaultdict(float) for model in shown}
    rest: dict[str, float] = defaultdict(float)
    for one in report.usage:
        amounts.get(one.model, rest)[one.day] += one.total_cost
    bars = [(label(model), amounts[model]) for model in shown] + ([(_OTHERS, rest)] if rest else [])
    data = [
        {
            "type": "bar", "name": name, "x": list(days), "y": list(days.values()),
            "marker": {"color": f"series{number}"},
            "hovertemplate": "%{x|%Y-%m-%d}: $%{y:.4~f}<extra>%{fullData.name}</extra>",
        }
        for number, (name, days) in enumerate(bars)
    ]  # fmt: skip
    layout = {"barmode": "stack", "xaxis": _days_axis(report), "yaxis": {"tickprefix": "$", "rangemode": "tozero"}}
    return Chart("Cost per day and model", "USD, by the UTC day a call began.", data, layout)


def _days_axis(report: ProjectReport) -> dict[str, Any]:
    if report.days is None:
        return {"type": "date"}
    # Half a day of room on both sides, for the bars.
    return {
        "type": "date",
        "range": [f"{_day_before(report.days.first)} 12:00", f"{_day_before(report.days.end)} 12:00"],
    }


def _day_before(day: str) -> str:
    return datetime.fromordinal(datetime.fromisoformat(day).toordinal() - 1).date().isoformat()


def _lines(names: Sequence[tuple[str, str]], rows: Sequence[Latencies], value: Callable[[Latencies, str], Any]) -> Any:
    return [
        {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [row.day for row in rows],
            "y": [value(row, field) for row in rows], "line": {"color": f"series{number}", "width": 2},
            "marker": {"color": f"series{number}", "size": 5}, "connectgaps": False,
            "hovertemplate": "%{x|%Y-%m-%d}: %{y:.3~f} s<extra>%{fullData.name}</extra>",
        }
        for number, (field, name) in enumerate(names)
    ]  # fmt: skip


def _latency(title: str, note: str, rows: Sequence[Latencies]) -> Chart:
    data = _lines((("p50", "p50"), ("p95", "p95"), ("p99", "p99")), rows, getattr)
    return Chart(title, f"{note} Nearest-rank percentiles by UTC day.", data, _seconds())


def _first_token(rows: Sequence[Latencies]) -> list[Chart]:
    if all(row.first_token_p50 is None for row in rows):
        return []
    names = (("first_token_p50", "p50"), ("first_token_p95", "p95"), ("first_token_p99", "p99"))
    note = "Seconds from the start of a model call to its first token, where it is known."
    return [Chart("Time to first token", note, _lines(names, rows, getattr), _seconds())]


def _seconds() -> dict[str, Any]:
    return {"xaxis": {"type": "date"}, "yaxis": {"ticksuffix": " s", "rangemode": "tozero"}}


def _errors(report: ProjectReport) -> Chart:
    data = []
    for number, (name, rows) in enumerate((("traces", report.traces), ("model calls", report.calls))):
        if rows:
            data.append(
                {
                    "type": "scatter", "mode": "lines+markers", "name": name, "x": [row.day for row in rows],
                    "y": [row.errors / row.number for row in rows], "line": {"color": f"series{number}", "width": 2},
                    "marker": {"color": f"series{number}", "size": 5},
                    "hovertemplate": "%{x|%Y-%m-%d}: %{y:.2%}<extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
    layout = {"xaxis": {"type": "date"}, "yaxis": {"tickformat": ".1~%", "rangemode": "tozero"}}
    note = "Share of traces with any observation at level ERROR, and of model calls at that level."
    return Chart("Error rate", note, data, layout)


def _spenders(title: str, spenders: Sequence[Spender]) -> Chart:
    ordered = list(reversed(spenders))
    data = [
        {
            "type": "bar", "orientation": "h", "x": [one.total_cost for one in ordered],
            # Two ids may begin alike: the place on the axis is a number, the text only its label.
            "y": list(range(len(ordered))), "marker": {"color": "series0"}, "showlegend": False,
            "customdata": [[_plain(one.id), one.traces, one.total_tokens] for one in ordered],
            "hovertemplate": "%{customdata[0]}<br>$%{x:.4~f}, %{customdata[1]} traces, %{customdata[2]:,} tokens"
            "<extra></extra>",
        }
    ]  # fmt: skip
    axis = {"tickmode": "array", "tickvals": list(range(len(ordered))), "ticktext": [label(one.id) for one in ordered]}
    layout = {
        "xaxis": {"tickprefix": "$", "rangemode": "tozero", "nticks": 4, "tickangle": 0},
        "yaxis": {**axis, "automargin": True},
    }
    return Chart(title, "USD for their model calls in these days.", data, layout)


def _coverage(stretches: Sequence[Coverage]) -> Chart:
    streams = [stream for stream in reversed(STREAMS) if any(one.stream == stream for one in stretches)]
    data = []
    for state in sorted({one.state for one in stretches}, key=lambda name: list(_STATES).index(name)):
        mine = [one for one in stretches if one.state == state]
        data.append(
            {
                "type": "bar", "orientation": "h", "name": state, "y": [one.stream for one in mine],
                "base": [one.start for one in mine], "x": [_length_ms(one) for one in mine], "width": 0.5,
                "marker": {"color": _STATES[state]},
                "customdata": [[one.start, one.end] for one in mine],
                "hovertemplate": "%{y}: %{customdata[0]} to %{customdata[1]}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    layout = {
        "barmode": "overlay", "showlegend": True, "xaxis": {"type": "date"},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": streams, "automargin": True},
    }  # fmt: skip
    return Chart("Sync coverage", "Which stretches of time were read, whatever days are shown above.", data, layout)


def _length_ms(one: Coverage) -> float:
    return (datetime.fromisoformat(one.end) - datetime.fromisoformat(one.start)).total_seconds() * _EPOCH_MS
