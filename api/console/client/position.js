/**
 * Where a reader is: a byte offset into the response and the writer's epoch, as in an event's id.
 * Fifteen digits keep the offset exact in a JavaScript number.
 */
import { ProtocolError } from "./errors.js";
const POSITION = /^(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,8})$/;
export const START = { offset: 0, epoch: 0 };
/** Reads `OFFSET-EPOCH`. Throws ProtocolError for anything else. */
export function parsePosition(text) {
    const match = POSITION.exec(text);
    if (match === null) {
        throw new ProtocolError(`not a position: ${JSON.stringify(text.slice(0, 40))}; expected OFFSET-EPOCH`);
    }
    return { offset: Number(match[1]), epoch: Number(match[2]) };
}
export function formatPosition(position) {
    return `${position.offset}-${position.epoch}`;
}
