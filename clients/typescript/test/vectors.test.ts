/** The vectors that hold the two clients together, on this one. The Python client's tests read the same. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  DigestMismatchError,
  Ledger,
  OutOfOrderError,
  ProtocolError,
  Sha256,
  SseParser,
  type SseEvent,
  formatPosition,
  parsePosition,
} from "../src/index.js";

const ERRORS = {
  out_of_order: OutOfOrderError,
  digest_mismatch: DigestMismatchError,
  protocol: ProtocolError,
} as const;

function load<T>(name: string): T {
  const file = new URL(`../../../../tests/vectors/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")) as T;
}

interface SseCase {
  name: string;
  bytes: string;
  events: SseEvent[];
  last_event_id: string;
  retry_ms: number | null;
}

for (const example of load<SseCase[]>("sse")) {
  test(`an event stream cut anywhere: ${example.name}`, () => {
    const stream = Uint8Array.from(example.bytes, (char) => char.charCodeAt(0));
    const cuts = [[stream], Array.from(stream, (byte) => Uint8Array.of(byte))];
    for (let at = 1; at < stream.length; at++) {
      cuts.push([stream.subarray(0, at), stream.subarray(at)]);
    }
    for (const pieces of cuts) {
      const parser = new SseParser();
      assert.deepEqual(pieces.flatMap((piece) => parser.feed(piece)), example.events);
      assert.equal(parser.lastEventId, example.last_event_id);
      assert.equal(parser.retryMs, example.retry_ms);
    }
  });
}

test("positions", () => {
  const found = load<{ valid: [string, number, number][]; invalid: string[] }>("positions");
  for (const [text, offset, epoch] of found.valid) {
    assert.deepEqual(parsePosition(text), { offset, epoch });
    assert.equal(formatPosition({ offset, epoch }), text);
  }
  for (const text of found.invalid) {
    assert.throws(() => parsePosition(text), ProtocolError, text);
  }
});

interface LedgerCase {
  name: string;
  after: string;
  events: SseEvent[];
  expect: (
    | null
    | { error: keyof typeof ERRORS }
    | { type: string; position: string; verified?: boolean; exact?: boolean; retryable?: boolean }
  )[];
}

for (const example of load<LedgerCase[]>("ledger")) {
  test(`a reader's ledger: ${example.name}`, () => {
    const ledger = new Ledger(parsePosition(example.after));
    assert.equal(example.events.length, example.expect.length);
    example.events.forEach((sse, at) => {
      const expected = example.expect[at]!;
      if (expected !== null && "error" in expected) {
        assert.throws(() => ledger.take(sse), ERRORS[expected.error]);
        return;
      }
      const event = ledger.take(sse);
      if (expected === null) {
        assert.equal(event, null);
        return;
      }
      assert.ok(event);
      const { position, ...rest } = expected;
      assert.equal(formatPosition(event.position), position);
      for (const [name, value] of Object.entries(rest)) {
        assert.equal((event as unknown as Record<string, unknown>)[name], value, name);
      }
    });
  });
}

test("SHA-256 of every length over three blocks, in pieces", () => {
  const bytes = Uint8Array.from({ length: 200 }, (_, at) => (at * 31 + 7) % 256);
  for (let length = 0; length <= bytes.length; length++) {
    const message = bytes.subarray(0, length);
    const digest = new Sha256();
    for (let at = 0; at < length; at += 13) {
      digest.update(message.subarray(at, Math.min(at + 13, length)));
    }
    assert.equal(digest.hex(), createHash("sha256").update(message).digest("hex"));
    assert.equal(digest.copy().update(bytes).hex(), createHash("sha256").update(message).update(bytes).digest("hex"));
  }
});
