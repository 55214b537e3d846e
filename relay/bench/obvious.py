"""The obvious stack, to be measured beside ours: FastAPI, sse-starlette and redis-py.

What a competent engineer writes in an afternoon. A worker takes requests from a list, and a task for each
reads the model's stream with httpx and XADDs each token; a reader at the API is an EventSourceResponse
around XREAD BLOCK. `python -m relay.bench.obvious api` and `... worker` run it, with REDIS_URL and
UPSTREAM_URL in the environment. It answers the calls that the benchmarks make of a relay, in the same
words, so that the same clients measure both.
"""

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import redis.asyncio as redis
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from relay import simulation

db: redis.Redis = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), decode_responses=True, max_connections=10_000
)
upstream = httpx.AsyncClient(base_url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9/v1"), timeout=120)
running: dict[str, asyncio.Task[None]] = {}


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Nothing to begin with; the connections end with the process."""
    yield
    await db.aclose()


app = FastAPI(lifespan=lifespan)


async def simulated(simulated: dict[str, Any], started_at: float) -> AsyncIterator[str]:
    """Tokens by a schedule, or as fast as they are taken at 0 tokens a second."""
    rate, seed = simulated["tokens_per_second"], simulated["seed"]
    for index in range(simulated["tokens"]):
        if rate:
            await asyncio.sleep(max(0.0, started_at + index / rate - time.time()))
        yield simulation.token(seed, index)


async def completion(model: str, prompt: str) -> AsyncIterator[str]:
    """Tokens of an OpenAI-compatible upstream."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True}
    async with upstream.stream("POST", "chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    yield choices[0]["delta"]["content"]


async def generate(stream_id: str, request: dict[str, Any]) -> None:
    """Write a response into its stream, token by token."""
    key, digest, size, started_at = f"stream:{stream_id}", hashlib.sha256(), 0, time.time()

    async def add(event: str, data: dict[str, Any]) -> None:
        await db.xadd(key, {"event": event, "data": json.dumps(data)})

    try:
        await add("start", {"id": stream_id, "started_at": started_at})
        if "simulation" in request:
            tokens = simulated(request["simulation"], started_at)
        else:
            tokens = completion(request["model"], request["prompt"])
        async for token in tokens:
            digest.update(token.encode())
            size += len(token.encode())
            await add("delta", {"channel": "content", "text": token})
        await add("done", {"finish_reason": "stop", "text_bytes": size, "sha256": digest.hexdigest()})
    except Exception as error:  # noqa: BLE001 - whatever it was, the reader must not wait for ever
        await add("error", {"message": str(error)})
    finally:
        await db.expire(key, 3600)
        running.pop(stream_id, None)


@app.post("/v1/streams", status_code=201)
async def create(request: Request) -> dict[str, str]:
    """Begin a response."""
    body = await request.json()
    stream_id = secrets.token_hex(8)
    await db.rpush("jobs", json.dumps({"id": stream_id, "request": body}))
    return {"id": stream_id}


@app.get("/v1/streams/{stream_id}/events")
async def events(stream_id: str) -> EventSourceResponse:
    """Follow a response from its beginning."""

    async def follow() -> AsyncIterator[ServerSentEvent]:
        last = "0"
        while True:
            found: Any = await db.xread({f"stream:{stream_id}": last}, count=100, block=2000)
            for entry_id, fields in found[0][1] if found else ():
                last = entry_id
                yield ServerSentEvent(fields["data"], event=fields["event"], sep="\n")
                if fields["event"] in ("done", "error"):
                    return

    return EventSourceResponse(follow(), sep="\n")


@app.delete("/v1/streams/{stream_id}", status_code=202)
async def cancel(stream_id: str) -> Response:
    """End a response."""
    await db.rpush("cancels", stream_id)
    return Response(status_code=202)


async def work() -> None:
    """Begin and end responses, as they are asked for."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        found: Any = await db.blpop(["cancels", "jobs"], timeout=2)
        if found and found[0] == "jobs":
            job = json.loads(found[1])
            running[job["id"]] = asyncio.create_task(generate(job["id"], job["request"]))
        elif found and found[1] in running:
            running[found[1]].cancel()


def serve() -> None:
    """Serve on a free port, and say on which."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    sys.stdout.write(f"ready http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        uvloop.run(work())
    else:
        serve()
