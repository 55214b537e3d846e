"""The worker process: settings in, a drained worker out."""

import asyncio
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
from prometheus_client import start_http_server

from relay import models, process
from relay.errors import SettingsInvalid
from relay.jobs import Jobs
from relay.keys import JOBS_INTERACTIVE
from relay.metrics import Counted, loop_metrics, redis_metrics, settings_metrics
from relay.settings import Settings
from relay.topology import open_topology
from relay.wire import Options
from workers.generation import Workshop
from workers.metrics import Metrics
from workers.sources.base import Source
from workers.sources.openai import OpenAISource
from workers.sources.simulated import SimulatedSource
from workers.trace import follower
from workers.worker import Worker

log = structlog.get_logger("relay.worker")


def run(settings: Settings, *, concurrency: int, metrics_port: int) -> int:
    """Run one worker until SIGTERM or SIGINT; prints the `ready` line. Returns the exit code."""
    return process.run("worker", settings, _serve(settings, concurrency, metrics_port))


async def _serve(settings: Settings, concurrency: int, metrics_port: int) -> None:
    registry = models.load(
        settings.models_file,
        upstream_base_url=settings.upstream_base_url,
        upstream_api_key=settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else None,
    )
    worker_id = f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
    metrics = Metrics()
    async with (
        open_topology(settings, name=f"relay-worker-{worker_id}") as topology,
        topology.open_blocking(JOBS_INTERACTIVE, Options(name=f"relay-claim-{worker_id}")) as blocking,
        _open_sources() as sources,
    ):
        redis_metrics(counted := Counted(metrics.registry), topology)
        loop_metrics(counted)
        settings_metrics(counted, settings)
        jobs = Jobs(topology)
        await jobs.prepare()
        workshop = Workshop(
            worker_id, settings, topology, jobs, registry, sources, metrics, follower(settings)
        )
        worker = Worker(workshop, blocking, concurrency=concurrency)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, worker.stop.set)
        process.settle()
        with _metrics_server(settings, metrics, metrics_port) as url:
            print(f"ready worker {worker_id} metrics {url}", flush=True)
            await worker.run()
        log.info("drained", worker=worker_id)


@asynccontextmanager
async def _open_sources() -> AsyncIterator[dict[str, Source]]:
    upstreams = OpenAISource()
    try:
        yield {"simulated": SimulatedSource(), "openai": upstreams}
    finally:
        await upstreams.aclose()


@contextmanager
def _metrics_server(settings: Settings, metrics: Metrics, port: int) -> Iterator[str]:
    try:
        server, thread = start_http_server(port, settings.metrics_host, registry=metrics.registry)
    except OSError as error:
        raise SettingsInvalid(f"--metrics-port {port}: {error.strerror or error}") from error
    try:
        yield f"http://{settings.metrics_host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)
