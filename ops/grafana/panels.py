"""What a dashboard is made of: panels as plain values, and their translation into Grafana's.

A panel is its question: a title, a unit, what is normal, and queries. How it looks is decided here once.
"""

import itertools
from typing import NamedTuple

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 8, 8  # of 24 columns: three in a row


class Panel(NamedTuple):
    """One question. `queries` are (PromQL, legend); `fault` ones may be 0 while all is well."""

    title: str
    unit: str
    normal: str
    queries: tuple[tuple[str, str], ...]
    fault: bool = False
    most: float | None = None


class Row(NamedTuple):
    """Panels that answer one question together."""

    title: str
    panels: tuple[Panel, ...]


class Board(NamedTuple):
    """One dashboard; its uid and its file are named after `name`."""

    name: str
    description: str
    rows: tuple[Row, ...]


def build(board: Board) -> dashboard.Dashboard:
    """The dashboard, as Grafana takes it."""
    built = (
        dashboard.Dashboard(f"relay {board.name}")
        .uid(f"relay-{board.name}")
        .description(board.description)
        .tags(["relay"])
        .editable()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(
            dashboard.DashboardLink("relay")
            .tags(["relay"])
            .type(DashboardLinkType.DASHBOARDS)
            .as_dropdown(True)
            .keep_time(True)
        )
    )
    ids = itertools.count(1)  # a link to a panel has its id
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            built = built.with_panel(_panel(panel).id(next(ids)))
    return built


def _panel(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.normal)
        .unit(panel.unit)
        .min(0)
        .datasource(SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .line_width(1)
        .fill_opacity(0 if len(panel.queries) > 1 else 10)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builder.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builder.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if panel.most is not None:
        made = made.max(panel.most)
    for index, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).range().ref_id(chr(65 + index))
        made = made.with_target(query.datasource(SOURCE))
    return made
