"""The demo's machinery: start everything, create one response, read it twice, watch, sum up."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from relay import simulation
from relay.cli.demo_reader import Track, read
from relay.cli.demo_scene import Scene
from relay.cli.demo_view import draw, progress, summary
from relay.cli.llm_server import model_file
from relay.cli.processes import Child, ChildEnded, log_tail
from relay.cli.supervisor import Plan, running
from relay.client import Client
from relay.embedded import EmbeddedServer, free_port
from relay.errors import Unavailable

_TOKENS, _TOKENS_PER_SECOND, _SEED = 400, 80.0, 7
_LLM_TOKENS = 220
_LLM_PROMPT = "Explain to a curious child how a river finds its way from the mountains to the sea."
_POLL_S = 0.2
_FRAME_S = 0.1
_LINE_S = 0.5
_LONGEST_S = 60.0  # a demo that hangs is worse than one that fails
_RECEIVE_BUFFER = 2048

# Small bounds show in five seconds what the real ones show on a long answer. The segment size is a network's:
# loopback's own of 64 KB would hide a slow reader for long.
_BOUNDS = {
    "RELAY_CREDIT_BYTES": "1024",
    "RELAY_CREDIT_ENTRIES": "24",
    "RELAY_NOTSENT_LOWAT_BYTES": "1024",
    "RELAY_TCP_MAXSEG": "1448",
    "RELAY_WORKER_DRAIN_S": "0",
    "RELAY_LOG_LEVEL": "warning",
}


def run(*, llm: bool) -> int:
    """Run the demo; the exit code. Raises RelayError when something cannot be started."""
    if llm:
        model_file()  # for its check, before anything starts
    # As Ctrl-C: through the blocks that stop what was started and remove its files.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    what = "Valkey, a worker, an API node" + (" and SmolLM2-135M on llama.cpp" if llm else "")
    print(f"starting {what} ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder, EmbeddedServer() as server:
        log_path = Path(folder, "relay.log")
        with log_path.open("wb") as log:
            # None of the user's own settings: keys or a models file would change what is shown.
            env = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
            env |= {**_BOUNDS, "RELAY_REDIS_URL": server.url, "RELAY_DRAIN_DELAY_S": "0"}
            plan = Plan(
                "127.0.0.1", free_port(), drain_s=2.0, worker_drain_s=0.0, env=env, cwd=Path(folder), log=log
            )
            try:
                return asyncio.run(_perform(plan, server, llm=llm))
            except ChildEnded as error:
                raise ChildEnded(f"{error}. Its log ends with: {log_tail(log_path)}") from error
            except TimeoutError:
                raise Unavailable(f"the demo did not come to its end within {_LONGEST_S:g} s") from None


async def _perform(plan: Plan, server: EmbeddedServer, *, llm: bool) -> int:
    async with _model(plan) if llm else nullcontext(), running(plan, server=server):
        return await _play(plan, llm=llm)


@asynccontextmanager
async def _model(plan: Plan) -> AsyncIterator[None]:
    """The model's server, and the file that makes it a model of the relay."""
    port = free_port()
    folder = plan.cwd or Path()
    models = folder / "models.toml"
    models.write_text(f'[models.smollm2]\nsource = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\n')
    plan.env["RELAY_MODELS_FILE"] = str(models)
    command = [sys.executable, "-m", "relay.cli.llm_server", "--port", str(port)]
    child = Child("model", command, env=plan.env, cwd=plan.cwd, log=plan.log)
    try:
        await child.start()
        yield
    finally:
        await child.stop(1.0)


def _request(*, llm: bool) -> dict[str, Any]:
    if llm:
        return {"model": "smollm2", "prompt": _LLM_PROMPT, "max_tokens": _LLM_TOKENS, "window_bytes": 4096}
    script = {"tokens": _TOKENS, "tokens_per_second": _TOKENS_PER_SECOND, "seed": _SEED}
    return {"model": "simulated", "prompt": "demo", "simulation": script, "window_bytes": 4096}


def _scene(*, llm: bool) -> Scene:
    if llm:
        source, expected = "SmolLM2-135M on llama.cpp", _LLM_TOKENS * 6
    else:
        source = f"simulated, {_TOKENS} tokens at {_TOKENS_PER_SECOND:g}/s"
        expected = len(simulation.text(_SEED, 0, _TOKENS).encode()) + _TOKENS
    fast = Track("fast", "takes all there is")
    slow = Track("slow", "a tiny buffer, tiny reads", receive_buffer=_RECEIVE_BUFFER)
    return Scene(source, expected, fast, slow)


async def _play(plan: Plan, *, llm: bool) -> int:
    async with Client(plan.url) as client:
        created = await client.create(**_request(llm=llm))
        scene = _scene(llm=llm)
        path = f"/v1/streams/{created.id}/events?consumer="
        async with asyncio.timeout(_LONGEST_S), asyncio.TaskGroup() as group:
            group.create_task(
                read(scene.fast, port=plan.port, path=path + "fast", pace=lambda: (65_536, 0.0))
            )
            group.create_task(read(scene.slow, port=plan.port, path=path + "slow", pace=scene.pace_of_slow))
            watching = group.create_task(_watch(client, created.id, scene))
            await _show(scene)
            watching.cancel()
    print("\n".join(["", *summary(scene)]))
    if scene.is_exact and sys.stdout.isatty():
        print(f"Next: {sys.argv[0]} up, and its address in a browser.")
    return 0 if scene.is_exact else 1


async def _watch(client: Client, response_id: str, scene: Scene) -> None:
    """Ask the relay where everyone is, until cancelled."""
    while True:
        scene.told(await client.status(response_id))
        await asyncio.sleep(_POLL_S)


async def _show(scene: Scene) -> None:
    """Draw until both readers are at the end and the relay has said so."""
    if not sys.stdout.isatty():
        caption = ""
        while not scene.is_over:
            if scene.caption() != caption:
                caption = scene.caption()
                print(f"-- {caption}", flush=True)
            print(progress(scene), flush=True)
            await asyncio.sleep(_LINE_S)
            scene.measure()
        return
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            scene.measure()
            scene.remember()
            live.update(draw(scene, console), refresh=True)
            if scene.is_over:
                return
            await asyncio.sleep(_FRAME_S)
