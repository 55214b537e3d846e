"""What every route needs, in one place; set on the app when it is made."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from api.admission import Admission
from api.auth import Locks
from api.metrics import Metrics
from api.node import Node
from api.responses import Responses
from api.watch import Watch
from relay.acks import Acks
from relay.models import Registry
from relay.settings import Settings
from relay.topology import Topology


@dataclass(frozen=True, slots=True)
class State:
    """The node's parts."""

    settings: Settings
    topology: Topology
    registry: Registry
    locks: Locks
    admission: Admission
    responses: Responses
    node: Node
    watch: Watch
    acks: Acks
    metrics: Metrics


def state_of(request: Request) -> State:
    """The parts, from a request."""
    return cast("State", request.app.state.relay)
