/** What a stream says, and the ledger that checks it. No I/O. */

import { DigestMismatchError, OutOfOrderError, ProtocolError } from "./errors.js";
import { type Position, START, formatPosition, parsePosition } from "./position.js";
import { Sha256 } from "./sha256.js";
import type { SseEvent } from "./sse.js";

type Json = Record<string, unknown>;

/** The generation has begun. */
export interface StartEvent {
  readonly type: "start";
  readonly position: Position;
  readonly model: string;
  readonly raw: Json;
}

/** More text of a channel; `raw` is the event as it came, for tool calls and what else a channel holds. */
export interface DeltaEvent {
  readonly type: "delta";
  readonly position: Position;
  readonly channel: string;
  readonly text: string;
  readonly raw: Json;
}

/** The relay says what it does about pressure. Nothing is lost by it. */
export interface NoticeEvent {
  readonly type: "notice";
  readonly position: Position;
  readonly kind: string;
  readonly level: number | null;
  readonly reason: string;
  readonly raw: Json;
}

/** The end. `verified`: the digest was compared; a reader that began in the middle cannot. */
export interface DoneEvent {
  readonly type: "done";
  readonly position: Position;
  readonly finishReason: string;
  readonly textBytes: number;
  readonly sha256: string;
  readonly verified: boolean;
  readonly usage: Json | null;
  readonly raw: Json;
}

/** The end, without the rest. */
export interface FailedEvent {
  readonly type: "error";
  readonly position: Position;
  readonly code: string;
  readonly message: string;
  readonly retryable: boolean;
}

/**
 * Text was lost in a failover: drop all that came after `position`, other text follows. When it is not `exact`,
 * the client could only go back further than the relay said, and reconnects by itself.
 */
export interface RewindEvent {
  readonly type: "rewind";
  readonly position: Position;
  readonly exact: boolean;
}

/** This node goes away; the client connects again by itself. */
export interface ReconnectEvent {
  readonly type: "reconnect";
  readonly position: Position;
  readonly retryMs: number;
}

export type RelayEvent =
  | StartEvent
  | DeltaEvent
  | NoticeEvent
  | DoneEvent
  | FailedEvent
  | RewindEvent
  | ReconnectEvent;

interface Mark {
  readonly position: Position;
  readonly digest: Sha256;
  readonly textBytes: number;
}

// Places to which a rewind can be taken back without reading again. Older ones go first: a rewind further than
// that starts over, which is slower and just as exact.
const MARKS = 1024;

const encoder = new TextEncoder();

/** How far a reader is, and the digest of the content up to there; it can be taken back. */
export class Ledger {
  position: Position;
  readonly #began: Mark;
  #marks: Mark[] = [];
  #digest = new Sha256();
  #textBytes = 0;

  constructor(after: Position = START) {
    this.position = after;
    this.#began = { position: after, digest: new Sha256(), textBytes: 0 };
  }

  /** The typed form of an event, its position checked and entered; null for kinds of a later version. */
  take(sse: SseEvent): RelayEvent | null {
    const raw = object(sse);
    if (sse.event === "reconnect") {
      return { type: "reconnect", position: this.position, retryMs: number(raw.retry_ms) };
    }
    if (sse.event === "rewind") {
      return this.#rewind(offsetOf(raw.position));
    }
    if (!isKind(sse.event)) {
      return null;
    }
    this.#advance(sse.id, sse.event);
    const event = this.#make(sse.event, raw);
    this.#mark();
    return event;
  }

  #advance(id: string | null, kind: string): void {
    // What is about one reader alone has no place in the response.
    if (id === null && (kind === "notice" || kind === "error")) {
      return;
    }
    const there = parsePosition(id ?? "");
    const stands = there.offset === this.position.offset && kind === "notice";
    if (there.offset <= this.position.offset && !stands) {
      throw new OutOfOrderError(`${kind} at ${formatPosition(there)} after ${formatPosition(this.position)}`);
    }
    this.position = there;
  }

  #make(kind: Kind, raw: Json): RelayEvent {
    const position = this.position;
    switch (kind) {
      case "start":
        return { type: "start", position, model: string(raw.model), raw };
      case "delta": {
        const channel = string(raw.channel, "content");
        const text = string(raw.text);
        if (channel === "content") {
          const bytes = encoder.encode(text);
          this.#digest.update(bytes);
          this.#textBytes += bytes.length;
        }
        return { type: "delta", position, channel, text, raw };
      }
      case "notice": {
        const level = typeof raw.level === "number" ? raw.level : null;
        return { type: "notice", position, kind: string(raw.kind), level, reason: string(raw.reason), raw };
      }
      case "done": {
        const [textBytes, sha256] = [number(raw.text_bytes), string(raw.sha256)];
        const verified = this.#verify(textBytes, sha256);
        const usage = isObject(raw.usage) ? raw.usage : null;
        const finishReason = string(raw.finish_reason);
        return { type: "done", position, finishReason, textBytes, sha256, verified, usage, raw };
      }
      case "error": {
        const retryable = raw.retryable === true;
        return { type: "error", position, code: string(raw.code), message: string(raw.message), retryable };
      }
    }
  }

  #mark(): void {
    this.#marks.push({ position: this.position, digest: this.#digest.copy(), textBytes: this.#textBytes });
    if (this.#marks.length > MARKS) {
      this.#marks.shift();
    }
  }

  #rewind(target: number): RewindEvent {
    while ((this.#marks.at(-1)?.position.offset ?? 0) > target) {
      this.#marks.pop();
    }
    const mark = this.#marks.at(-1) ?? this.#began;
    this.position = { offset: Math.min(mark.position.offset, target), epoch: mark.position.epoch };
    this.#digest = mark.digest.copy();
    this.#textBytes = mark.textBytes;
    return { type: "rewind", position: this.position, exact: this.position.offset === target };
  }

  #verify(textBytes: number, sha256: string): boolean {
    if (this.#began.position.offset > 0 || sha256 === "") {
      return false;
    }
    const received = this.#digest.hex();
    if (received !== sha256) {
      throw new DigestMismatchError(
        `${this.#textBytes} bytes of content with SHA-256 ${received}; the relay made ${textBytes} bytes with ${sha256}`,
      );
    }
    return true;
  }
}

const KINDS = ["start", "delta", "notice", "done", "error"] as const;
type Kind = (typeof KINDS)[number];

function isKind(event: string): event is Kind {
  return (KINDS as readonly string[]).includes(event);
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function object(sse: SseEvent): Json {
  let raw: unknown;
  try {
    raw = JSON.parse(sse.data);
  } catch {
    throw new ProtocolError(`${sse.event}: not JSON: ${sse.data.slice(0, 80)}`);
  }
  if (!isObject(raw)) {
    throw new ProtocolError(`${sse.event}: not an object: ${sse.data.slice(0, 80)}`);
  }
  return raw;
}

/** `rewind` names an offset, or a position as in an id. */
function offsetOf(value: unknown): number {
  return typeof value === "number" ? value : parsePosition(String(value)).offset;
}

function string(value: unknown, otherwise = ""): string {
  return value === undefined || value === null ? otherwise : String(value);
}

function number(value: unknown): number {
  return typeof value === "number" ? value : 0;
}
