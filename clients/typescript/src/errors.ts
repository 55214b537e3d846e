/** What can go wrong. Every error of this package is a RelayError; `retryable` says whether it may pass. */

export class RelayError extends Error {
  override name = "RelayError";
  readonly retryable: boolean = false;
}

/** The relay refused a call. `code` and `param` are its own words; see its error table. */
export class RefusedError extends RelayError {
  override name = "RefusedError";
  override readonly retryable: boolean;

  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly param: string | null = null,
    readonly retryAfterMs: number | null = null,
  ) {
    super(message);
    this.retryable = status === 429 || status >= 500;
  }
}

/** No answer, or too many attempts without an event. */
export class DisconnectedError extends RelayError {
  override name = "DisconnectedError";
  override readonly retryable: boolean = true;
}

/** What came is not what a relay sends. */
export class ProtocolError extends RelayError {
  override name = "ProtocolError";
}

/** A position went back, or stood still, without a rewind. */
export class OutOfOrderError extends ProtocolError {
  override name = "OutOfOrderError";
}

/** The content received is not the content that was made. */
export class DigestMismatchError extends ProtocolError {
  override name = "DigestMismatchError";
}

/** The error that an HTTP answer stands for; its message is the relay's, when it gave one. */
export async function refusal(answer: Response): Promise<RefusedError> {
  let message = `HTTP ${answer.status}`;
  let code = "http_error";
  let param: string | null = null;
  try {
    const told = ((await answer.json()) as { error: { message: string; code: string; param?: string } }).error;
    message = String(told.message);
    code = String(told.code);
    param = told.param ?? null;
  } catch {
    // Not the relay's own words: a proxy's page, or nothing. The status says what there is to say.
  }
  const after = answer.headers.get("retry-after") ?? "";
  const waitMs = /^[0-9]{1,6}$/.test(after) ? Number(after) * 1000 : null;
  return new RefusedError(message, answer.status, code, param, waitMs);
}
