"""One page with charts, made from the database; it works without a network."""

from etl.report.charts import Chart, charts
from etl.report.collect import ProjectReport, collect
from etl.report.page import render

__all__ = ["Chart", "ProjectReport", "charts", "collect", "render"]
