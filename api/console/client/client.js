/** Creates responses and reads them, in browsers and in Node. */
import { DisconnectedError, ProtocolError, refusal } from "./errors.js";
import { Stream } from "./stream.js";
const CALL_MS = 30_000;
export class Client {
    retries;
    backoffMs;
    silenceMs;
    #base;
    #headers;
    #fetch;
    /** `url`: where the relay is, such as `https://relay.example.com`; in a page, "" is where it came from. */
    constructor(url, options = {}) {
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
    async create(body, options = {}) {
        const headers = { "Content-Type": "application/json" };
        if (options.idempotencyKey !== undefined) {
            headers["Idempotency-Key"] = options.idempotencyKey;
        }
        const answer = await this.#call("POST", "/v1/streams", { headers, body: JSON.stringify(body) });
        const made = (await json(answer));
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
    stream(responseId, options = {}) {
        return new Stream(this, responseId, options);
    }
    /** The state of a response and its consumers, as `GET /v1/streams/{id}` gives it. */
    async status(responseId) {
        return json(await this.#call("GET", path(responseId)));
    }
    /** The content so far. */
    async text(responseId) {
        return (await this.#call("GET", path(responseId, "text"))).text();
    }
    /** Stop the generation. Idempotent. */
    async cancel(responseId) {
        await this.#call("DELETE", path(responseId));
    }
    /** Confirm everything up to a position for a consumer with explicit acks. Idempotent. */
    async ack(responseId, consumer, position, token = null) {
        const offset = typeof position === "number" ? position : position.offset;
        const query = token === null ? "" : `?${new URLSearchParams({ token })}`;
        await this.#call("POST", path(responseId, "consumers", consumer, "ack") + query, {
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ position: offset }),
        });
    }
    /** Open one event stream, its body unread: what a Stream does for each of its connections. */
    async connect(path, query, lastId, signal) {
        const headers = { ...this.#headers, Accept: "text/event-stream" };
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
    async #call(method, path, init = {}) {
        let answer;
        try {
            answer = await this.#fetch(this.#base + path, {
                ...init,
                method,
                headers: { ...this.#headers, ...init.headers },
                signal: AbortSignal.timeout(CALL_MS),
            });
        }
        catch (cause) {
            throw new DisconnectedError(`no answer from ${this.#base || "the relay"}: ${String(cause)}`, { cause });
        }
        if (!answer.ok) {
            throw await refusal(answer);
        }
        return answer;
    }
}
async function json(answer) {
    try {
        return (await answer.json());
    }
    catch (cause) {
        throw new ProtocolError(`${answer.url}: not JSON; is this a relay?`, { cause });
    }
}
function path(responseId, ...more) {
    return ["/v1/streams", ...[responseId, ...more].map(encodeURIComponent)].join("/");
}
