"""The report as one page of HTML: figures, charts, tables, and the script that draws; nothing is loaded from anywhere.

Pure. Everything that comes from the data is escaped: for HTML in the page, for the script in its JSON, and for plotly
in the charts (`etl.report.charts.label`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from html import escape

from etl import __version__
from etl.load.analytics import Spender
from etl.report.charts import charts
from etl.report.collect import ProjectReport
from etl.transform.jsontext import dumps

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --quiet: #5b6675; --line: #dfe3e8;
  --good: #2f8f5b; --doubt: #d98a00; --bad: #c8372d; --series0: #2f6fde; --series1: #e0782b; --series2: #2f9e77;
  --series3: #b4459b; --series4: #8a6d1f; --series5: #6b5bd2; --series6: #0f8fa8; --series7: #8b95a3; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --card: #1d232b; --text: #e6e9ed; --quiet: #98a3b0;
  --line: #333c47; --good: #3fa66d; --doubt: #e0a030; --bad: #e5604f; --series0: #6aa0ff; --series1: #f4a261;
  --series2: #56c596; --series3: #e07bc8; --series4: #d3b457; --series5: #a498ff; --series6: #4fc3d9;
  --series7: #8b95a3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.25rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.15rem; margin: 1.5rem 0 .25rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0; } p { margin: .2rem 0; }
.quiet, footer { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: .75rem 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .75rem; }
.charts section { display: flex; flex-direction: column; } .charts section.wide { grid-column: 1 / -1; }
.chart { height: 300px; margin-top: auto; padding-top: .35rem; }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--quiet); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
.number { text-align: right; white-space: nowrap; }
footer { padding: 1rem 1rem 2rem; font-size: .85rem; }
@media (max-width: 720px) { .charts { grid-template-columns: minmax(0, 1fr); } .chart { height: 270px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

# Colours are the page's own, so that charts follow its light and dark.
_SCRIPT = """
const style = () => getComputedStyle(document.documentElement);
const colour = name => style().getPropertyValue('--' + name).trim() || name;
const painted = value => {
  if (Array.isArray(value)) return value.map(painted);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(
    ([key, part]) => [key, key === 'color' && typeof part === 'string' ? colour(part) : painted(part)]));
};
const axis = own => Object.assign(
  {gridcolor: colour('line'), linecolor: colour('line'), zerolinecolor: colour('line'), automargin: true}, own);
const draw = () => {
  for (const [id, chart] of Object.entries(JSON.parse(document.getElementById('figures').textContent))) {
    const own = chart.layout;
    Plotly.react(id, painted(chart.data), Object.assign({}, own, {
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', margin: {l: 48, r: 12, t: 8, b: 36},
      font: {color: colour('text'), family: getComputedStyle(document.body).fontFamily, size: 12},
      legend: {orientation: 'h', y: -0.18, x: 0, traceorder: 'normal'},
      hoverlabel: {font: {family: 'inherit'}, namelength: -1},
      hovermode: 'closest', xaxis: axis(own.xaxis), yaxis: axis(own.yaxis), dragmode: false,
    }), {responsive: true, displayModeBar: false});
  }
};
draw();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
"""
# Not even a script that got in could send anything anywhere.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_LAST_MOMENT = timedelta(days=1)


def render(reports: Sequence[ProjectReport], *, now: datetime) -> str:
    """The whole page.

    Args:
        reports: One for each project that is shown.
        now: When the database was read; aware.
    """
    from plotly.offline import get_plotlyjs  # it weighs 5 MB, in every other command for nothing

    drawn = {
        f"chart-{place}-{number}": chart
        for place, report in enumerate(reports)
        for number, chart in enumerate(charts(report))
    }
    figures = dumps({id_: {"data": chart.data, "layout": chart.layout} for id_, chart in drawn.items()})
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>Langfuse report</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>Langfuse report</h1><p class='quiet'>Made {now:%Y-%m-%d %H:%M} UTC by langfuse-etl",
            f" {escape(__version__)}; all days are UTC.</p></header><main>",
            *(part for place, report in enumerate(reports) for part in _project(place, report)),
            "<noscript><p>The charts are drawn by a script; the tables below them are there without it.</p></noscript>",
            "</main><footer><p>This file holds names, ids and figures, no inputs or outputs. It loads nothing.</p>",
            f'</footer><script type="application/json" id="figures">{_for_script(figures)}</script>',
            f"<script>{get_plotlyjs()}</script><script>{_SCRIPT}</script></body></html>\n",
        )
    )


def _for_script(json: str) -> str:
    """JSON that no text in it can end the script element."""
    return json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _project(place: int, report: ProjectReport) -> Iterator[str]:
    yield f"<h2>{escape(report.name)}</h2>"
    if report.days is None:
        yield "<p>Nothing is stored of this project yet.</p>"
    else:
        last = datetime.fromisoformat(report.days.end) - _LAST_MOMENT
        yield f"<p class='quiet'>{report.days.first} to {last:%Y-%m-%d}</p>"
        if not report.traces and not report.calls:
            yield "<p>No traces and no model calls in these days.</p>"
        yield from _tiles(report)
    yield '<div class="charts">'
    for number, chart in enumerate(charts(report)):
        wide = ' class="wide"' if number == 0 or chart.title == "Sync coverage" else ""
        yield f"<section{wide}><h3>{escape(chart.title)}</h3><p class='quiet'>{escape(chart.note)}</p>"
        yield f'<div class="chart" id="chart-{place}-{number}" role="img" aria-label="{escape(chart.title)}"></div>'
        rows = {"Sessions that cost most": report.sessions, "Users who cost most": report.users}.get(chart.title)
        if rows:
            yield from _table(rows)
        yield "</section>"
    yield "</div>"


def _tiles(report: ProjectReport) -> Iterator[str]:
    traces, failed = sum(day.number for day in report.traces), sum(day.errors for day in report.traces)
    tiles = (
        (f"${sum(one.total_cost for one in report.usage):,.2f}", "cost"),
        (f"{traces:,}", "traces"),
        (f"{failed / traces:.1%}" if traces else "-", "traces with errors"),
        (f"{sum(one.calls for one in report.usage):,}", "model calls"),
        (f"{sum(one.total_tokens for one in report.usage):,}", "tokens"),
    )
    yield '<div class="tiles">'
    yield from (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    yield "</div>"


def _table(rows: Sequence[Spender]) -> Iterator[str]:
    yield '<details><summary>As a table</summary><div class="scroll"><table><thead><tr><th>id</th>'
    yield "".join(f'<th class="number">{name}</th>' for name in ("cost", "traces", "calls", "tokens"))
    yield "</tr></thead><tbody>"
    for one in rows:
        figures = (f"${one.total_cost:,.4f}", f"{one.traces:,}", f"{one.calls:,}", f"{one.total_tokens:,}")
        cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
        yield f"<tr><td>{escape(one.id)}</td>{cells}</tr>"
    yield "</tbody></table></div></details>"
