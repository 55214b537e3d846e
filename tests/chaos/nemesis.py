"""The nemesis: what is done to processes, to Redis and (`network`) to the lines, and how it is healed."""

import asyncio
import os
import signal
import time

from tests.chaos import network
from tests.chaos.fault import Scene, fault
from tests.chaos.stage import LEASE_S, Role, Stage
from tests.support.resharding import Move
from tests.support.topologies import ManagedServer

EXIT_WITHIN_S = 30.0


# --- processes


async def _killed(scene: Scene, role: Role) -> float:
    at = time.monotonic()
    await scene.stage.kill(role)
    await scene.stage.start(role)
    return at


@fault("worker kill -9")
async def _worker_kill(scene: Scene) -> float:
    return await _killed(scene, scene.rng.choice(scene.stage.workers))


@fault("node kill -9")
async def _node_kill(scene: Scene) -> float:
    return await _killed(scene, scene.rng.choice(scene.stage.nodes))


async def _frozen(scene: Scene, role: Role, seconds: float) -> float:
    process = scene.stage.process(role)
    process.pause()
    await asyncio.sleep(seconds)
    process.resume()
    return time.monotonic()


@fault("worker stopped, within the lease")
async def _worker_pause(scene: Scene) -> float:
    return await _frozen(scene, scene.rng.choice(scene.stage.workers), scene.rng.uniform(0.5, LEASE_S / 2))


@fault("worker stopped, past the lease")
async def _worker_zombie(scene: Scene) -> float:
    role = scene.rng.choice(scene.stage.workers)
    at = time.monotonic()
    await _frozen(scene, role, LEASE_S + scene.rng.uniform(2, 4))
    return at


@fault("node stopped")
async def _node_pause(scene: Scene) -> float:
    return await _frozen(scene, scene.rng.choice(scene.stage.nodes), scene.rng.uniform(1, 5))


async def _rolled(scene: Scene, roles: list[Role]) -> float:
    """One after the other, as a deploy does; each must go by itself, and well."""
    for role in roles:
        code = await scene.stage.stop(role, EXIT_WITHIN_S)
        assert code == 0, f"{role.name} ended with code {code} after SIGTERM"
        await scene.stage.start(role)
    return time.monotonic()


@fault("workers, rolling restart")
async def _roll_workers(scene: Scene) -> float:
    return await _rolled(scene, scene.stage.workers[:2])


@fault("nodes, rolling restart")
async def _roll_nodes(scene: Scene) -> float:
    return await _rolled(scene, scene.stage.nodes)


# --- Redis


def _a_primary(scene: Scene) -> ManagedServer:
    return scene.rng.choice(scene.stage.redis.primaries())


@fault("redis kill -9 and restart", "single")
async def _redis_restart(scene: Scene) -> float:
    server = scene.stage.redis.data[0]
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(scene.rng.uniform(0, 3))
    await asyncio.to_thread(server.restart)
    return time.monotonic()


@fault("redis stopped", "single")
async def _redis_stop(scene: Scene) -> float:
    server = scene.stage.redis.data[0]
    server.pause()
    await asyncio.sleep(scene.rng.uniform(1, 4))
    server.resume()
    return time.monotonic()


async def _on_primary(scene: Scene, *command: str) -> None:
    def run() -> None:
        with _a_primary(scene).admin() as client:
            client.execute_command(*command)

    await asyncio.to_thread(run)


@fault("redis connections killed")
async def _redis_clients(scene: Scene) -> float:
    await _on_primary(scene, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await _on_primary(scene, "CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
    return time.monotonic()


@fault("redis client pause")
async def _redis_pause(scene: Scene) -> float:
    seconds = scene.rng.uniform(1, 4)
    await _on_primary(scene, "CLIENT", "PAUSE", str(int(seconds * 1000)), scene.rng.choice(("ALL", "WRITE")))
    await asyncio.sleep(seconds)
    return time.monotonic()


@fault("redis forgets the scripts")
async def _redis_scripts(scene: Scene) -> float:
    await _on_primary(scene, "SCRIPT", "FLUSH")
    return time.monotonic()


@fault("redis flushed", "single")
async def _redis_flush(scene: Scene) -> float:
    scene.lost()
    await _on_primary(scene, "FLUSHALL")
    return time.monotonic()


@fault("redis failover", "sentinel", "cluster")
async def _redis_failover(scene: Scene) -> float:
    redis = scene.stage.redis
    await asyncio.to_thread(redis.wait_replicated)  # there is somebody to take over
    scene.lost()
    at = time.monotonic()
    server = await asyncio.to_thread(_a_primary, scene)
    await asyncio.to_thread(server.kill)
    try:
        await asyncio.to_thread(redis.wait_writable)
    finally:
        await asyncio.to_thread(server.restart)
    await asyncio.to_thread(redis.wait_replicated)
    return at


@fault("redis primary stopped past its failover", "sentinel", "cluster")
async def _redis_zombie(scene: Scene) -> float:
    """It comes back and believes that it still leads, until the others tell it."""
    redis = scene.stage.redis
    await asyncio.to_thread(redis.wait_replicated)
    scene.lost()
    at = time.monotonic()
    server = await asyncio.to_thread(_a_primary, scene)
    replica = await asyncio.to_thread(redis.replica_of, server)
    server.pause()
    try:
        await asyncio.to_thread(redis.wait_for_primary, replica)
    finally:
        server.resume()
    await asyncio.to_thread(redis.wait_replicated)
    return at


@fault("slots moved", "cluster")
async def _slots_moved(scene: Scene) -> float:
    """Those of a few responses, one after the other, with time between the steps."""
    for _ in range(4):
        with _a_primary(scene).admin() as client:
            key = client.randomkey()
        if key is None:
            continue
        move = Move(scene.stage.redis, str(key))
        for step in (move.begin, move.keys, move.end):
            await asyncio.to_thread(step)
            await asyncio.sleep(scene.rng.uniform(0, 0.5))
    return time.monotonic()


network.enter()


def heal(stage: Stage) -> None:
    """Whatever is still wrong is right after this; a process that is away has to be started yet."""
    for role in stage.roles:
        for line in (role.redis_line, role.line):
            if line is not None:
                line.heal()
        if role.process is not None and role.process.code is None:
            role.process.resume()
    for server in stage.redis.servers.values():
        if server.is_running:
            os.kill(server.pid, signal.SIGCONT)
