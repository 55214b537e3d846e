/** What can go wrong. Every error of this package is a RelayError; `retryable` says whether it may pass. */
export class RelayError extends Error {
    name = "RelayError";
    retryable = false;
}
/** The relay refused a call. `code` and `param` are its own words; see its error table. */
export class RefusedError extends RelayError {
    status;
    code;
    param;
    retryAfterMs;
    name = "RefusedError";
    retryable;
    constructor(message, status, code, param = null, retryAfterMs = null) {
        super(message);
        this.status = status;
        this.code = code;
        this.param = param;
        this.retryAfterMs = retryAfterMs;
        this.retryable = status === 429 || status >= 500;
    }
}
/** No answer, or too many attempts without an event. */
export class DisconnectedError extends RelayError {
    name = "DisconnectedError";
    retryable = true;
}
/** What came is not what a relay sends. */
export class ProtocolError extends RelayError {
    name = "ProtocolError";
}
/** A position went back, or stood still, without a rewind. */
export class OutOfOrderError extends ProtocolError {
    name = "OutOfOrderError";
}
/** The content received is not the content that was made. */
export class DigestMismatchError extends ProtocolError {
    name = "DigestMismatchError";
}
/** The error that an HTTP answer stands for; its message is the relay's, when it gave one. */
export async function refusal(answer) {
    let message = `HTTP ${answer.status}`;
    let code = "http_error";
    let param = null;
    try {
        const told = (await answer.json()).error;
        message = String(told.message);
        code = String(told.code);
        param = told.param ?? null;
    }
    catch {
        // Not the relay's own words: a proxy's page, or nothing. The status says what there is to say.
    }
    const after = answer.headers.get("retry-after") ?? "";
    const waitMs = /^[0-9]{1,6}$/.test(after) ? Number(after) * 1000 : null;
    return new RefusedError(message, answer.status, code, param, waitMs);
}
