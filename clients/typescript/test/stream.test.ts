/** Streams against a server that cuts, stalls and refuses as each test says. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type IncomingMessage, type Server, type ServerResponse, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, test } from "node:test";

import {
  Client,
  DisconnectedError,
  OutOfOrderError,
  RefusedError,
  type RelayEvent,
  formatPosition,
} from "../src/index.js";

type Handler = (request: IncomingMessage, answer: ServerResponse, url: URL) => void;

const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

async function serve(handler: Handler, options = {}): Promise<Client> {
  const server = createServer((request, answer) => handler(request, answer, new URL(request.url!, "http://x")));
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return new Client(`http://127.0.0.1:${port}`, { backoffMs: 5, ...options });
}

function open(answer: ServerResponse): void {
  answer.writeHead(200, { "content-type": "text/event-stream", "relay-consumer": "c_made" });
  answer.write(": ok\n\n");
}

function frame(event: string, id: string | null, data: unknown): string {
  return `event: ${event}\n${id === null ? "" : `id: ${id}\n`}data: ${JSON.stringify(data)}\n\n`;
}

function delta(id: string, text: string): string {
  return frame("delta", id, { channel: "content", text });
}

function done(id: string, text: string): string {
  const sha256 = createHash("sha256").update(text).digest("hex");
  return frame("done", id, { finish_reason: "stop", text_bytes: Buffer.byteLength(text), sha256, usage: {} });
}

async function all(events: AsyncIterable<RelayEvent>): Promise<RelayEvent[]> {
  const found = [];
  for await (const event of events) {
    found.push(event);
  }
  return found;
}

function text(events: RelayEvent[]): string {
  return events.map((event) => (event.type === "delta" ? event.text : "")).join("");
}

async function until(isSo: () => boolean): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!isSo()) {
    assert.ok(Date.now() < deadline, "not within thirty seconds");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a cut stream goes on where it was, under the same name", async () => {
  const asked: (string | undefined)[][] = [];
  const client = await serve((request, answer, url) => {
    asked.push([request.headers["last-event-id"] as string | undefined, url.searchParams.get("consumer") ?? undefined]);
    open(answer);
    if (asked.length === 1) {
      answer.write(delta("10-1", "one ") + delta("20-1", "two ") + "event: delta\nid: 30-1\nda", () => {
        answer.destroy();
      });
    } else {
      answer.end(delta("30-1", "three") + done("60-1", "one two three"));
    }
  });
  const stream = client.stream("rs_1");
  const events = await all(stream);
  assert.equal(text(events), "one two three");
  assert.deepEqual(asked, [[undefined, undefined], ["20-1", "c_made"]]);
  assert.equal(stream.connections, 2);
  const last = events.at(-1)!;
  assert.ok(last.type === "done" && last.verified);
});

test("what was read to its end ends at once", async () => {
  const client = await serve((_request, answer) => answer.writeHead(204).end());
  assert.deepEqual(await all(client.stream("rs_1", { after: "60-1" })), []);
});

test("a node that drains is left for as long as it says", async () => {
  let connections = 0;
  const client = await serve((_request, answer) => {
    open(answer);
    answer.write(++connections === 1 ? delta("10-1", "a") + frame("reconnect", null, { retry_ms: 50 }) : delta("20-1", "b"));
    if (connections === 2) {
      answer.end(done("40-1", "ab"));
    }
  });
  const began = Date.now();
  const events = await all(client.stream("rs_1"));
  assert.deepEqual(events.map((event) => event.type), ["delta", "reconnect", "delta", "done"]);
  assert.ok(Date.now() - began >= 49);
});

test("a refusal that may pass is tried again after the time it names, another is thrown", async () => {
  let calls = 0;
  const client = await serve((_request, answer, url) => {
    const body = JSON.stringify({ error: { message: "no such response", type: "x", code: "not_found", param: null } });
    if (url.pathname.includes("rs_none")) {
      answer.writeHead(404, { "content-type": "application/json" }).end(body);
    } else if (++calls === 1) {
      answer.writeHead(503, { "retry-after": "1" }).end("busy");
    } else {
      open(answer);
      answer.end(done("40-1", ""));
    }
  });
  await assert.rejects(all(client.stream("rs_none")), (error: RefusedError) => {
    return error instanceof RefusedError && error.code === "not_found" && error.message === "no such response";
  });
  const began = Date.now();
  assert.equal((await all(client.stream("rs_1"))).length, 1);
  assert.ok(Date.now() - began >= 990);
});

test("it gives up after so many attempts without an event, and says why", async () => {
  let connections = 0;
  const client = await serve(
    (_request, answer) => {
      connections += 1;
      answer.destroy();
    },
    { retries: 3 },
  );
  await assert.rejects(all(client.stream("rs_1")), (error: DisconnectedError) => {
    return error instanceof DisconnectedError && error.message.startsWith("gave up after 3 attempts");
  });
  assert.equal(connections, 4);
});

test("a silent connection is given up", async () => {
  let connections = 0;
  const client = await serve(
    (_request, answer) => {
      open(answer);
      // On a busy machine an answer may be too late as well; then the next one is there.
      if (++connections >= 2) {
        answer.end(done("40-1", ""));
      }
    },
    { silenceMs: 100 },
  );
  assert.equal((await all(client.stream("rs_1"))).at(-1)!.type, "done");
  assert.ok(connections >= 2);
});

test("a relay that repeats text is found out", async () => {
  const client = await serve((_request, answer) => {
    open(answer);
    answer.end(delta("10-1", "a") + delta("10-1", "a"));
  });
  await assert.rejects(all(client.stream("rs_1")), OutOfOrderError);
});

test("a signal ends it, also while it waits", async () => {
  let closed = false;
  const client = await serve((request, answer) => {
    request.on("close", () => {
      closed = true;
    });
    open(answer);
    answer.write(delta("10-1", "a"));
  });
  const stop = new AbortController();
  const stream = client.stream("rs_1", { signal: stop.signal });
  assert.equal((await stream.next()).value!.type, "delta");
  const waiting = stream.next();
  stop.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
  await until(() => closed);
});

test("leaving the loop closes the connection", async () => {
  let closed = false;
  const client = await serve((request, answer) => {
    request.on("close", () => {
      closed = true;
    });
    open(answer);
    answer.write(delta("10-1", "a") + delta("20-1", "b"));
  });
  for await (const event of client.stream("rs_1")) {
    assert.equal(event.type, "delta");
    break;
  }
  await until(() => closed);
});

test("a caller that does not read holds the server: its text is not gathered here", async () => {
  let socket: { bytesWritten: number } = { bytesWritten: 0 };
  const limit = 64 * 1024 * 1024;
  const client = await serve((request, answer) => {
    socket = request.socket;
    open(answer);
    let at = 0;
    const more = (): void => {
      while (socket.bytesWritten < limit && answer.write(delta(`${(at += 1000)}-1`, "x".repeat(900)))) {
        // until the kernel takes no more
      }
      answer.once("drain", more);
    };
    more();
  });
  const stream = client.stream("rs_1");
  assert.equal((await stream.next()).value!.type, "delta");
  let [before, quiet] = [-1, 0];
  await until(() => {
    quiet = socket.bytesWritten === before ? quiet + 1 : 0;
    before = socket.bytesWritten;
    return quiet >= 20;
  });
  // What lies in the two sockets of loopback, and one read.
  assert.ok(socket.bytesWritten < 16 * 1024 * 1024, `${socket.bytesWritten} bytes were taken`);
  await stream.return();
});

function acknowledging(frames: string[]): { handler: Handler; acks: number[] } {
  const acks: number[] = [];
  return {
    acks,
    handler: (request, answer, url) => {
      if (request.method === "POST") {
        assert.equal(url.pathname, "/v1/streams/rs_1/consumers/c_made/ack");
        request.on("data", (body: Buffer) => acks.push((JSON.parse(body.toString()) as { position: number }).position));
        request.on("end", () => answer.writeHead(204).end());
      } else {
        assert.equal(url.searchParams.get("window"), "1000");
        open(answer);
        answer.write(frames.join(""));
      }
    },
  };
}

test("with a window, what the caller is done with is confirmed", async () => {
  const frames = Array.from({ length: 10 }, (_, at) => delta(`${(at + 1) * 100}-1`, "x"));
  const { handler, acks } = acknowledging(frames);
  const client = await serve(handler);
  const stream = client.stream("rs_1", { window: 1000 });
  const began = Date.now();
  for (let at = 0; at < 10; at++) {
    await stream.next();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await until(() => (acks.at(-1) ?? 0) >= 600);
  // The last one is not: nobody has asked for the one after it.
  assert.ok(acks.every((offset) => offset <= 900));
  assert.deepEqual(acks, [...acks].sort((a, b) => a - b));
  // The first at once, one for half a window, and one each 0.4 s.
  const most = 3 + Math.floor((Date.now() - began) / 400);
  assert.ok(acks.length <= most, `${acks.length} acks`);
  await stream.return();
});

test("with manual acks nothing is confirmed but what the caller says, and never what it was not handed", async () => {
  const { handler, acks } = acknowledging([delta("100-1", "x"), delta("200-1", "y"), delta("900-1", "z")]);
  const client = await serve(handler);
  const stream = client.stream("rs_1", { window: 1000, manualAck: true });
  const first = (await stream.next()).value!;
  await stream.next();
  assert.deepEqual(acks, []);
  stream.ack(first.position);
  await until(() => acks.length === 1);
  stream.ack({ offset: 5000, epoch: 1 });
  await until(() => acks.length === 2);
  assert.deepEqual(acks, [100, 200]);
  assert.equal(formatPosition(stream.position), "200-1");
  await stream.return();
});

test("a client asks for a url that is one", () => {
  assert.throws(() => new Client("localhost:8000"), /expected http/);
});
