"""Grafana's dashboards as code: `boards` says what, `panels` how, the JSON beside is what they make."""

import json

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from ops.grafana.boards import BOARDS
from ops.grafana.panels import Board, build

# What the SDK writes into every variable; only an interval has them, and Grafana's types know them nowhere.
OF_INTERVALS = frozenset(("auto", "auto_min", "auto_count"))


def exported() -> dict[str, str]:
    """File names and the JSON of all dashboards."""
    return {f"{board.name}.json": _text(board) for board in BOARDS}


def _text(board: Board) -> str:
    made = json.loads(json.dumps(build(board).build(), cls=JSONEncoder))
    for variable in made["templating"]["list"]:
        for name in OF_INTERVALS & variable.keys():
            del variable[name]
    return json.dumps(made, indent=1, sort_keys=True) + "\n"
