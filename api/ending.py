"""Why a consumer's stream ended."""

from enum import Enum, auto


class Ending(Enum):
    """Why a consumer's stream ended; each is a label of a metric."""

    TERMINAL = auto()  # it has the terminal event
    DISCONNECTED = auto()
    SUPERSEDED = auto()  # a newer connection has its name
    DRAINED = auto()  # the node goes away
    LOST = auto()  # the response is gone from Redis
