"""The API node's process: settings in, a drained node out."""

import asyncio
import secrets

import uvicorn

from api.admission import Admission
from api.app import create_app
from api.auth import Locks
from api.crosscheck import CrossCheck
from api.metrics import Metrics
from api.node import Node
from api.protocol import RelayProtocol, listen
from api.requeue import Requeue
from api.responses import Responses
from api.rounds import Rounds
from api.server import UVICORN_GRACE_S, DrainingServer
from api.state import State
from api.watch import Watch
from relay import models, process
from relay.acks import Acks
from relay.jobs import Jobs
from relay.metrics import loop_metrics, redis_metrics, settings_metrics
from relay.settings import Settings
from relay.topology import Topology, open_topology


def run(settings: Settings, *, host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT; prints the `ready` line. Returns the exit code."""
    return process.run("api", settings, _serve(settings, host, port))


async def _serve(settings: Settings, host: str, port: int) -> None:
    settings.check_exposed(host)
    registry = models.load(
        settings.models_file,
        upstream_base_url=settings.upstream_base_url,
        upstream_api_key=settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else None,
    )
    async with open_topology(settings, name=f"relay-api-{secrets.token_hex(4)}") as topology:
        state = await _state(settings, topology, registry)
        listener = listen(host, port, settings)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(state),
            http=RelayProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=UVICORN_GRACE_S,
        )
        process.settle()
        server = DrainingServer(config, state, lambda: print(f"ready {url}", flush=True))
        async with asyncio.TaskGroup() as tasks:
            requeue = Requeue(state.node, state.responses)
            crosscheck = CrossCheck(state.node, state.metrics)
            rounds = Rounds(state.node)
            runs = rounds.run(), state.watch.run(), crosscheck.run(), requeue.run(), process.tidy()
            loops = [tasks.create_task(run) for run in runs]
            await server.serve(sockets=[listener])
            for loop in loops:
                loop.cancel()


async def _state(settings: Settings, topology: Topology, registry: models.Registry) -> State:
    metrics = Metrics()
    redis_metrics(metrics.counted, topology)
    loop_metrics(metrics.counted)
    settings_metrics(metrics.counted, settings)
    jobs = Jobs(topology)
    await jobs.prepare()
    watch = Watch(settings, topology, jobs, metrics)
    admission = Admission(settings, jobs, registry, watch, metrics)
    return State(
        settings=settings,
        topology=topology,
        registry=registry,
        locks=Locks(settings),
        admission=admission,
        responses=Responses(settings, topology, jobs, registry, admission),
        node=Node(settings, topology, metrics),
        watch=watch,
        acks=Acks(topology),
        metrics=metrics,
    )
