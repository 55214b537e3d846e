/** Creates responses and reads them, in browsers and in Node. */

import { DisconnectedError, ProtocolError, refusal } from "./errors.js";
import type { Position } from "./position.js";
import { type Connector, Stream, type StreamOptions } from "./stream.js";

export interface ClientOptions {
  /** Sent as a bearer token. Keep it out of browsers: give them a response's `token`. */
  apiKey?: string;
  /** Attempts in a row without a single event before a stream gives up. */
  retries?: number;
  /** The first pause between two attempts; doubled each time, with jitter, at most 30 s. */
  backoffMs?: number;
  /** A connection without a byte for this long is given up; keep-alives come every 15 s. */
  silenceMs?: number;
  /** Another fetch than the global one. */
  fetch?: typeof globalThis.fetch;
}

/** The body of a create; see the relay's API for every field. */
export interface CreateBody {
  model: string;
  prompt?: string;
  messages?: readonly Record<string, unknown>[];
  max_tokens?: number;
  [field: string]: unknown;
}

/** The answer to a create. `token` is short-lived and opens this response alone. */
export interface Created {
  readonly id: string;
  readonly status: string;
  readonly model: string;
  readonly createdAt: number;
  readonly eventsUrl: string;
  readonly textUrl: string;
  readonly token: string | null;
}

const CALL_MS = 30_000;

export class Client implements Connector {
  readonly retries: number;
  readonly backoffMs: number;
  readonly silenceMs: number;
  readonly #base: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof globalThis.fetch;

  /** `url`: where the relay is, such as `https://relay.example.com`; in a page, "" is where it came from. */
  constructor(url: string, options: ClientOptions = {}) {
    if (url !== "" && !/^https?:\/\//.test(url)) {
      throw new TypeError(`not a relay's address: ${JSON.stringify(url.slice(0, 100))}; expected http://HOST:PORT`);
    }
    this.#base = url.replace(/\/+$/, "");
    this.#headers = options.apiKey === undefined ? {} : { Authorization: `Bearer ${options.apiKey}` };
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.retries = options.retries ?? 10;
    this.backoffMs = options.backoffMs ?? 250;
    this.silenceMs = options.silenceMs ?? 45_000;
  }

  /** `POST /v1/streams`. Not retried; with an `idempotencyKey` you may repeat it. */
  async create(body: CreateBody, options: { idempotencyKey?: string } = {}): Promise<Created> {
    const headers: Record<string, string> = { "Content-Type": "application/json" };
    if (options.idempotencyKey !== undefined) {
      headers["Idempotency-Key"] = options.idempotencyKey;
    }
    const answer = await this.#call("POST", "/v1/streams", { headers, body: JSON.stringify(body) });
    const made = (await json(answer)) as Record<string, string> & { created_at: number; token?: string };
    if (typeof made.id !== "string") {
      throw new ProtocolError(`${answer.url}: an answer without an id; is this a relay?`);
    }
    return {
      id: made.id,
      status: made.status ?? "",
      model: made.model ?? "",
      createdAt: made.created_at,
      eventsUrl: made.events_url ?? "",
      textUrl: made.text_url ?? "",
      token: made.token ?? null,
    };
  }

  /** The events of a response; see Stream. */
  stream(responseId: string, options: StreamOptions = {}): Stream {
    return new Stream(this, responseId, options);
  }

  /** The state of a response and its consumers, as `GET /v1/streams/{id}` gives it. */
  async status(responseId: string): Promise<Record<string, unknown>> {
    return json(await this.#call("GET", path(responseId)));
  }

  /** The content so far. */
  async text(responseId: string): Promise<string> {
    return (await this.#call("GET", path(responseId, "text"))).text();
  }

  /** Stop the generation. Idempotent. */
  async cancel(responseId: string): Promise<void> {
    await this.#call("DELETE", path(responseId));
  }

  /** Confirm everything up to a position for a consumer with explicit acks. Idempotent. */
  async ack(
    responseId: string,
    consumer: string,
    position: Position | number,
    token: string | null = null,
  ): Promise<void> {
    const offset = typeof position === "number" ? position : position.offset;
    const query = token === null ? "" : `?${new URLSearchParams({ token })}`;
    await this.#call("POST", path(responseId, "consumers", consumer, "ack") + query, {
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ position: offset }),
    });
  }

  /** Open one event stream, its body unread: what a Stream does for each of its connections. */
  async connect(
    path: string,
    query: URLSearchParams,
    lastId: string | null,
    signal: AbortSignal,
  ): Promise<Response> {
    const headers: Record<string, string> = { ...this.#headers, Accept: "text/event-stream" };
    if (lastId !== null) {
      headers["Last-Event-ID"] = lastId;
    }
    const search = query.size > 0 ? `?${query}` : "";
    const answer = await this.#fetch(this.#base + path + search, { headers, signal, cache: "no-store" });
    if (!answer.ok) {
      throw await refusal(answer);
    }
    return answer;
  }

  async #call(method: string, path: string, init: RequestInit = {}): Promise<Response> {
    let answer: Response;
    try {
      answer = await this.#fetch(this.#base + path, {
        ...init,
        method,
        headers: { ...this.#headers, ...(init.headers as Record<string, string> | undefined) },
        signal: AbortSignal.timeout(CALL_MS),
      });
    } catch (cause) {
      throw new DisconnectedError(`no answer from ${this.#base || "the relay"}: ${String(cause)}`, { cause });
    }
    if (!answer.ok) {
      throw await refusal(answer);
    }
    return answer;
  }
}

async function json(answer: Response): Promise<Record<string, unknown>> {
  try {
    return (await answer.json()) as Record<string, unknown>;
  } catch (cause) {
    throw new ProtocolError(`${answer.url}: not JSON; is this a relay?`, { cause });
  }
}

function path(responseId: string, ...more: string[]): string {
  return ["/v1/streams", ...[responseId, ...more].map(encodeURIComponent)].join("/");
}
