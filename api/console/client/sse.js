/**
 * An incremental parser of server-sent events, after the WHATWG's grammar:
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 *
 * Bytes in, events out. The input may be cut anywhere: in a character, in a line end, in the byte order mark.
 */
import { ProtocolError } from "./errors.js";
const MAX_LINE_CHARS = 1024 * 1024;
const MAX_EVENT_CHARS = 4 * 1024 * 1024;
export class SseParser {
    /** The last valid `retry` field, in milliseconds. */
    retryMs = null;
    /** What a reconnect sends as Last-Event-ID. */
    lastEventId = "";
    // Decodes what is whole of each piece and swallows one byte order mark at the start.
    #decoder = new TextDecoder("utf-8");
    #rest = "";
    #afterCr = false;
    #data = [];
    #size = 0;
    #event = "";
    #id = null;
    /** The events that `bytes` complete. Throws ProtocolError for a line or an event over its bound. */
    feed(bytes) {
        let text = this.#decoder.decode(bytes, { stream: true });
        if (this.#afterCr && text.length > 0) {
            this.#afterCr = false;
            if (text.startsWith("\n")) {
                text = text.slice(1);
            }
        }
        if (text.includes("\r")) {
            this.#afterCr = text.endsWith("\r");
            text = text.replace(/\r\n?/g, "\n");
        }
        const lines = text.split("\n");
        lines[0] = this.#rest + (lines[0] ?? "");
        this.#rest = lines.pop() ?? "";
        if (this.#rest.length > MAX_LINE_CHARS) {
            throw new ProtocolError(`the event stream holds a line of more than ${MAX_LINE_CHARS} characters`);
        }
        const events = [];
        for (const line of lines) {
            if (line === "") {
                this.#dispatch(events);
            }
            else {
                this.#field(line);
            }
        }
        return events;
    }
    #dispatch(events) {
        if (this.#data.length > 0) {
            events.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
            this.#data = [];
            this.#size = 0;
        }
        if (this.#id !== null) {
            this.lastEventId = this.#id;
            this.#id = null;
        }
        this.#event = "";
    }
    #field(line) {
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        const from = line[colon + 1] === " " ? colon + 2 : colon + 1;
        const value = colon < 0 ? "" : line.slice(from);
        if (name === "data") {
            this.#size += line.length;
            if (this.#size > MAX_EVENT_CHARS) {
                throw new ProtocolError(`the event stream holds an event of more than ${MAX_EVENT_CHARS} characters`);
            }
            this.#data.push(value);
        }
        else if (name === "event") {
            this.#event = value;
        }
        else if (name === "id" && !value.includes("\0")) {
            this.#id = value;
        }
        else if (name === "retry" && /^[0-9]{1,15}$/.test(value)) {
            this.retryMs = Number(value);
        }
        // A comment has the empty name; comments and unknown fields are ignored, as the grammar demands.
    }
}
