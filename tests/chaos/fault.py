"""A kind of fault, and the list of them all: who enters one says for which deployments it is.

Each is an async function of a `Scene`; it returns the moment from which the way back is counted: of the
fault itself where nobody heals it but the system (a kill), else of the end of what was done.
"""

import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.chaos.stage import Stage


class Scene(NamedTuple):
    """Where it plays, by what chance, and whom to tell that Redis loses writes until the fault is over."""

    stage: Stage
    rng: random.Random
    lost: Callable[[], None]


Act = Callable[[Scene], Awaitable[float]]


class Fault(NamedTuple):
    """A kind of fault: for which deployments, and how often beside the others."""

    name: str
    act: Act
    shapes: tuple[str, ...]


FAULTS: list[Fault] = []
EVERYWHERE = ("single", "sentinel", "cluster")


def fault(name: str, *shapes: str) -> Callable[[Act], Act]:
    """Enter a function into the list."""

    def enter(act: Act) -> Act:
        FAULTS.append(Fault(name, act, shapes or EVERYWHERE))
        return act

    return enter


def bag(shape: str, rng: random.Random, only: str = "") -> list[Fault]:
    """Every fault of a deployment once, shuffled. `only`: those whose names have one of these words."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    faults = [
        each
        for each in FAULTS
        if shape in each.shapes and (not words or any(word in each.name for word in words))
    ]
    if not faults:
        raise ValueError(f"no fault of {shape} has {only!r} in its name")
    rng.shuffle(faults)
    return faults
