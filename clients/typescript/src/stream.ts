/** One reader of one response: typed events over as many connections as it takes. */

import { DisconnectedError, RefusedError, RelayError } from "./errors.js";
import { Ledger, type RelayEvent } from "./events.js";
import { type Position, START, formatPosition, parsePosition } from "./position.js";
import { type SseEvent, SseParser } from "./sse.js";

export interface StreamOptions {
  /** Read on after this position, `OFFSET-EPOCH` as in an event's id; from the start without it. */
  after?: Position | string;
  /** The name of this reader across connections; else the relay makes one. */
  consumer?: string;
  /**
   * Bytes that may be unconfirmed (256 to 1048576). The relay then counts as read what was *processed*: an event
   * is confirmed when the next one is asked for, or by `ack` where `manualAck` is set.
   */
  window?: number;
  /** Confirm nothing by itself: the caller calls `stream.ack(position)` when it is done with an event. */
  manualAck?: boolean;
  /** The short-lived token of the response, where the client has no API key. */
  token?: string;
  /** Ends the stream; the iterator then throws the signal's reason. */
  signal?: AbortSignal;
}

/** What a stream needs of its client. */
export interface Connector {
  readonly retries: number;
  readonly backoffMs: number;
  readonly silenceMs: number;
  connect(path: string, query: URLSearchParams, lastId: string | null, signal: AbortSignal): Promise<Response>;
  ack(responseId: string, consumer: string, offset: number, token: string | null): Promise<void>;
}

const LONGEST_WAIT_MS = 30_000; // of one pause between two attempts, whatever Retry-After says
const ACK_EVERY_MS = 400; // what is older than half a second counts as a queue

/**
 * An async iterable of events. It ends after `done` or `error`, or at once when everything was already read. It
 * throws DisconnectedError after too many attempts without an event, OutOfOrderError or DigestMismatchError when
 * the relay broke its promise, and RefusedError for the relay's own refusals.
 *
 * The socket is read only when the caller asks for an event that is not there yet, so that a slow caller is a
 * slow reader to the relay too; nothing is kept but the events of one read.
 */
export class Stream implements AsyncIterableIterator<RelayEvent> {
  connections = 0;
  readonly #ledger: Ledger;
  readonly #query = new URLSearchParams();
  readonly #abort = new AbortController();
  #reader: ReadableStreamDefaultReader<Uint8Array> | null = null;
  #parser = new SseParser();
  #events: SseEvent[] = [];
  #attempts = 0;
  #waitMs = 0;
  #broken: RelayError | null = null; // why the next attempt needs a new connection
  #ended = false;
  #dealtWith: number; // the offset up to which the caller is done
  #acked: number;
  #ackedAt = 0;
  #acking: Promise<void> | null = null; // one at a time: later positions go with the next one
  #ackTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly connector: Connector,
    readonly responseId: string,
    private readonly options: StreamOptions = {},
  ) {
    const { after = START, consumer, window, token, signal } = options;
    this.#ledger = new Ledger(typeof after === "string" ? parsePosition(after) : after);
    this.#dealtWith = this.#acked = this.position.offset;
    if (consumer !== undefined) this.#query.set("consumer", consumer);
    if (window !== undefined) this.#query.set("window", String(window));
    if (token !== undefined) this.#query.set("token", token);
    if (signal?.aborted) {
      this.#abort.abort(signal.reason);
    } else {
      signal?.addEventListener("abort", () => this.#abort.abort(signal.reason), {
        once: true,
        signal: this.#abort.signal,
      });
    }
  }

  /** Up to where events have been handed to the caller. */
  get position(): Position {
    return this.#ledger.position;
  }

  /** This reader's name at the relay, once connected. */
  get consumer(): string | null {
    return this.#query.get("consumer");
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Confirm that everything up to a position has been processed: where `window` and `manualAck` are set. */
  ack(position: Position): void {
    this.#dealtWith = Math.max(this.#dealtWith, Math.min(position.offset, this.position.offset));
    this.#confirm();
  }

  /** Stop reading and let go of the connection. The generation goes on; `Client.cancel` ends it. */
  async return(): Promise<IteratorResult<RelayEvent, undefined>> {
    this.#ended = true;
    clearTimeout(this.#ackTimer);
    await this.#disconnect();
    this.#abort.abort();
    return { done: true, value: undefined };
  }

  async next(): Promise<IteratorResult<RelayEvent, undefined>> {
    if (!this.options.manualAck) {
      this.#dealtWith = this.position.offset; // who asks for the next event is done with this one
    }
    this.#confirm();
    for (;;) {
      const sse = this.#events.shift();
      if (sse !== undefined) {
        const event = this.#take(sse);
        if (event !== null) {
          return { done: false, value: event };
        }
      } else if (this.#ended) {
        return this.return();
      } else {
        await this.#refill();
      }
    }
  }

  #take(sse: SseEvent): RelayEvent | null {
    const before = this.position.offset;
    let event: RelayEvent | null;
    try {
      event = this.#ledger.take(sse);
    } catch (error) {
      this.#ended = true;
      this.#events = [];
      throw error;
    }
    if (this.position.offset > before) {
      this.#attempts = 0;
    }
    if (event?.type === "done" || event?.type === "error") {
      this.#ended = true;
      this.#events = [];
    } else if (event?.type === "reconnect") {
      this.#break(new DisconnectedError("the node goes away"), event.retryMs);
    } else if (event?.type === "rewind") {
      this.#acked = Math.min(this.#acked, event.position.offset);
      this.#dealtWith = Math.min(this.#dealtWith, event.position.offset);
      if (!event.exact) {
        this.#break(new DisconnectedError(`text was lost, going back to ${formatPosition(event.position)}`), 0);
      }
    }
    return event;
  }

  /** Leave this connection when the caller next asks: what it is to see now must reach it first. */
  #break(error: RelayError, waitMs: number): void {
    this.#broken = error;
    this.#waitMs = waitMs;
    this.#events = [];
  }

  /** Connect if need be, then parse what one read of the socket brings. */
  async #refill(): Promise<void> {
    try {
      this.#abort.signal.throwIfAborted();
      if (this.#broken !== null) {
        throw this.#broken;
      }
      const reader = this.#reader ?? (await this.#connect());
      if (reader === null) {
        return;
      }
      const { done, value } = await this.#within(reader.read());
      if (done) {
        throw new DisconnectedError("the connection ended before the response did");
      }
      this.#events = this.#parser.feed(value);
    } catch (error) {
      if (this.#abort.signal.aborted || !isWorthARetry(error)) {
        this.#ended = true;
        await this.#disconnect();
        throw this.#abort.signal.aborted ? this.#abort.signal.reason : error;
      }
      await this.#backOff(error);
    }
  }

  async #connect(): Promise<ReadableStreamDefaultReader<Uint8Array> | null> {
    const waitMs = this.#waitMs;
    this.#waitMs = 0;
    await pause(Math.min(waitMs, LONGEST_WAIT_MS), this.#abort.signal);
    const lastId = this.position.offset === 0 ? null : formatPosition(this.position);
    const path = `/v1/streams/${encodeURIComponent(this.responseId)}/events`;
    const answer = await this.#within(this.connector.connect(path, this.#query, lastId, this.#abort.signal));
    this.connections += 1;
    if (answer.status === 204 || answer.body === null) {
      this.#ended = true;
      return null;
    }
    // The name must stay ours: a new one with every cut would leave consumers behind that nobody is.
    const name = answer.headers.get("relay-consumer");
    if (name !== null) {
      this.#query.set("consumer", name);
    }
    this.#parser = new SseParser();
    this.#reader = answer.body.getReader();
    return this.#reader;
  }

  /** A connection without a byte for `silenceMs` is given up; keep-alives come every 15 s. */
  async #within<T>(work: Promise<T>): Promise<T> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new DisconnectedError(`nothing came for ${this.connector.silenceMs} ms`));
      }, this.connector.silenceMs);
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
      work.catch(() => undefined); // when it was late, nobody else listens
    }
  }

  async #disconnect(): Promise<void> {
    const reader = this.#reader;
    this.#reader = null;
    this.#events = [];
    await reader?.cancel().catch(() => undefined);
  }

  /** Wait before the next attempt, or give up when there were too many without an event. */
  async #backOff(error: unknown): Promise<void> {
    const asked = Math.max(this.#waitMs, error instanceof RefusedError ? (error.retryAfterMs ?? 0) : 0);
    this.#broken = null;
    await this.#disconnect();
    this.#attempts += 1;
    if (this.#attempts > this.connector.retries) {
      this.#ended = true;
      const reason = error instanceof Error ? error.message : String(error);
      throw new DisconnectedError(`gave up after ${this.connector.retries} attempts: ${reason}`, { cause: error });
    }
    const jitter = 0.5 + Math.random() / 2;
    this.#waitMs = Math.max(asked, this.connector.backoffMs * 2 ** (this.#attempts - 1) * jitter);
  }

  /** Tell the relay what the caller is done with: by half a window, and soon in any case. */
  #confirm(): void {
    const { window } = this.options;
    const unconfirmed = this.#dealtWith - this.#acked;
    if (window === undefined || this.consumer === null || unconfirmed <= 0 || this.#acking !== null) {
      return;
    }
    const waitMs = this.#ackedAt + ACK_EVERY_MS - Date.now();
    if (waitMs > 0 && unconfirmed * 2 < window) {
      this.#ackTimer ??= setTimeout(() => this.#ackLater(), waitMs);
      return;
    }
    const offset = this.#dealtWith;
    this.#ackedAt = Date.now();
    this.#acking = this.connector
      .ack(this.responseId, this.consumer, offset, this.options.token ?? null)
      .then(() => {
        this.#acked = Math.max(this.#acked, Math.min(offset, this.position.offset));
      })
      .catch(() => undefined) // the next one says it again, and the stream itself tells what is wrong
      .finally(() => {
        this.#acking = null;
        if (!this.#ended) {
          this.#confirm();
        }
      });
  }

  #ackLater(): void {
    this.#ackTimer = undefined;
    if (!this.#ended) {
      this.#confirm();
    }
  }
}

function isWorthARetry(error: unknown): boolean {
  // What fetch throws for a network fault is a TypeError.
  return error instanceof RelayError ? error.retryable : error instanceof TypeError;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (ms <= 0) {
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}
