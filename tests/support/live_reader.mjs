// Reads one response with the TypeScript client as it is installed, slowly: what it saw, as one line of JSON.
//
//     node live_reader.mjs URL RESPONSE_ID PAUSE_MS
//
// Having confirmed HOLD_AT bytes it waits for a line on its standard input.
import { once } from "node:events";
import { Client } from "relay-client";

const HOLD_AT = 1500;
const [url, id, pauseMs] = process.argv.slice(2);
const client = new Client(url, { backoffMs: 100, retries: 30 });
const stream = client.stream(id, { window: 2048, manualAck: true });
const seen = { text: "", verified: null, notices: [], connections: 0, events: 0 };
let hasBeenHeld = false;
for await (const event of stream) {
  seen.events += 1;
  if (event.type === "delta") {
    seen.text += event.text;
    await new Promise((resolve) => setTimeout(resolve, Number(pauseMs)));
  }
  if (event.type === "notice") seen.notices.push(event.kind);
  if (event.type === "done") seen.verified = event.verified;
  stream.ack(stream.position);
  if (!hasBeenHeld && stream.position.offset > HOLD_AT) {
    hasBeenHeld = true;
    await once(process.stdin, "data");
    process.stdin.destroy();
  }
}
seen.connections = stream.connections;
console.log(JSON.stringify(seen));
