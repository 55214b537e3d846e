/**
 * Reads LLM token streams from a relay.
 *
 *     const client = new Client("http://127.0.0.1:8000");
 *     const made = await client.create({ model: "simulated", prompt: "hello" });
 *     for await (const event of client.stream(made.id)) {
 *       if (event.type === "delta") process.stdout.write(event.text);
 *     }
 */
export { Client } from "./client.js";
export { Stream } from "./stream.js";
export { START, formatPosition, parsePosition } from "./position.js";
export { DigestMismatchError, DisconnectedError, OutOfOrderError, ProtocolError, RefusedError, RelayError, } from "./errors.js";
export { Ledger } from "./events.js";
export { SseParser } from "./sse.js";
export { Sha256 } from "./sha256.js";
