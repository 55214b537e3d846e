"""The faults of the network: what happens on the lines to Redis and to the readers."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from relay import scripts
from tests.chaos.fault import Scene, fault
from tests.chaos.stage import Role
from tests.support.proxy import Proxy


def _redis_line(scene: Scene, roles: list[Role]) -> Proxy:
    line = scene.rng.choice(roles).redis_line
    assert line is not None
    return line


def _reader_line(scene: Scene) -> Proxy:
    return scene.rng.choice(scene.stage.reader_lines)


async def _held(line: Proxy, seconds: float) -> float:
    await asyncio.sleep(seconds)
    line.heal()
    return time.monotonic()


async def _cut(_: Scene, line: Proxy) -> float:
    line.cut()
    return time.monotonic()


async def _delayed(scene: Scene, line: Proxy) -> float:
    line.delay_s = scene.rng.uniform(0.03, 0.4)
    return await _held(line, scene.rng.uniform(2, 4))


async def _partitioned(scene: Scene, line: Proxy) -> float:
    line.freeze()
    return await _held(line, scene.rng.choice((1.0, 3.0, 6.0, 13.0)))


async def _half_opened(scene: Scene, line: Proxy) -> float:
    at = time.monotonic()
    line.half_open(scene.rng.choice(("client", "server")))
    await _held(line, 3.0)
    return at


async def _refused(scene: Scene, line: Proxy) -> float:
    line.turns_away = True
    line.cut()
    return await _held(line, scene.rng.uniform(1, 4))


def _on_both_lines(name: str, act: Callable[[Scene, Proxy], Awaitable[float]]) -> None:
    fault(f"redis line {name}", "single")(lambda scene: act(scene, _redis_line(scene, scene.stage.roles)))
    fault(f"readers' line {name}")(lambda scene: act(scene, _reader_line(scene)))


def _loses(name: str, lose: Callable[[Proxy, bytes], None], script: scripts.Script, seconds: float) -> None:
    async def act(scene: Scene) -> float:
        line = _redis_line(scene, scene.stage.workers)
        lose(line, script.sha.encode())
        return await _held(line, seconds)

    fault(name, "single")(act)


async def _cut_in_frame(scene: Scene) -> float:
    line = _reader_line(scene)
    for _ in range(5):
        line.cut_after(scene.rng.randrange(1, 4000))
        await asyncio.sleep(0.2)
    line.heal()
    return time.monotonic()


def enter() -> None:
    """Enter them all into the list; their place in it is part of what a seed means."""
    _on_both_lines("cut", _cut)
    _on_both_lines("delayed", _delayed)
    _on_both_lines("partitioned", _partitioned)
    _on_both_lines("half open", _half_opened)
    _on_both_lines("refuses", _refused)
    _loses("append lost before it ran", Proxy.lose_command, scripts.APPEND, 1.0)
    _loses("append's reply lost", Proxy.lose_reply, scripts.APPEND, 1.0)
    _loses("close's reply lost", Proxy.lose_reply, scripts.CLOSE, 2.0)
    fault("readers' line cut in a frame")(_cut_in_frame)
