/** What a stream says, and the ledger that checks it. No I/O. */
import { DigestMismatchError, OutOfOrderError, ProtocolError } from "./errors.js";
import { START, formatPosition, parsePosition } from "./position.js";
import { Sha256 } from "./sha256.js";
// Places to which a rewind can be taken back without reading again. Older ones go first: a rewind further than
// that starts over, which is slower and just as exact.
const MARKS = 1024;
const encoder = new TextEncoder();
/** How far a reader is, and the digest of the content up to there; it can be taken back. */
export class Ledger {
    position;
    #began;
    #marks = [];
    #digest = new Sha256();
    #textBytes = 0;
    constructor(after = START) {
        this.position = after;
        this.#began = { position: after, digest: new Sha256(), textBytes: 0 };
    }
    /** The typed form of an event, its position checked and entered; null for kinds of a later version. */
    take(sse) {
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
    #advance(id, kind) {
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
    #make(kind, raw) {
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
    #mark() {
        this.#marks.push({ position: this.position, digest: this.#digest.copy(), textBytes: this.#textBytes });
        if (this.#marks.length > MARKS) {
            this.#marks.shift();
        }
    }
    #rewind(target) {
        while ((this.#marks.at(-1)?.position.offset ?? 0) > target) {
            this.#marks.pop();
        }
        const mark = this.#marks.at(-1) ?? this.#began;
        this.position = { offset: Math.min(mark.position.offset, target), epoch: mark.position.epoch };
        this.#digest = mark.digest.copy();
        this.#textBytes = mark.textBytes;
        return { type: "rewind", position: this.position, exact: this.position.offset === target };
    }
    #verify(textBytes, sha256) {
        if (this.#began.position.offset > 0 || sha256 === "") {
            return false;
        }
        const received = this.#digest.hex();
        if (received !== sha256) {
            throw new DigestMismatchError(`${this.#textBytes} bytes of content with SHA-256 ${received}; the relay made ${textBytes} bytes with ${sha256}`);
        }
        return true;
    }
}
const KINDS = ["start", "delta", "notice", "done", "error"];
function isKind(event) {
    return KINDS.includes(event);
}
function isObject(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}
function object(sse) {
    let raw;
    try {
        raw = JSON.parse(sse.data);
    }
    catch {
        throw new ProtocolError(`${sse.event}: not JSON: ${sse.data.slice(0, 80)}`);
    }
    if (!isObject(raw)) {
        throw new ProtocolError(`${sse.event}: not an object: ${sse.data.slice(0, 80)}`);
    }
    return raw;
}
/** `rewind` names an offset, or a position as in an id. */
function offsetOf(value) {
    return typeof value === "number" ? value : parsePosition(String(value)).offset;
}
function string(value, otherwise = "") {
    return value === undefined || value === null ? otherwise : String(value);
}
function number(value) {
    return typeof value === "number" ? value : 0;
}
