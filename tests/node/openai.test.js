// The official `openai` package for Node, unmodified: only its baseURL is a relay's.
// The upstream behind it does what the last message says: see tests/system/test_node_sdks.py.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const [url, other] = [process.env.RELAY_URL, process.env.RELAY_OTHER];
const sdk = (base = url) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "none-needed", maxRetries: 0 });
const client = sdk();
const ask = (what) => ({ model: what === "hang" ? "hasty" : "m", messages: [{ role: "user", content: what }] });
const simulation = { tokens: 150, tokens_per_second: 100, seed: 4 };

async function waitUntil(check) {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < deadline, `waited too long for ${check}`);
    await new Promise((go) => setTimeout(go, 50));
  }
}

test("a streamed completion holds everything", async () => {
  const stream = await client.chat.completions.create({
    ...ask("rich"),
    stream: true,
    stream_options: { include_usage: true },
  });
  let [text, reasoning, reason, usage] = ["", "", null, null];
  const calls = [];
  const logprobs = [];
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    for (const { delta, finish_reason, logprobs: found } of chunk.choices) {
      text += delta.content ?? "";
      reasoning += delta.reasoning_content ?? "";
      reason = finish_reason ?? reason;
      logprobs.push(...(found?.content ?? []));
      for (const call of delta.tool_calls ?? []) {
        calls[call.index] ??= { id: call.id, text: "" };
        calls[call.index].text += (call.function.name ?? "") + (call.function.arguments ?? "");
      }
    }
  }
  assert.equal(text, "Hello 世🌊");
  assert.equal(reasoning, "Let me think.");
  assert.equal(reason, "tool_calls");
  assert.deepEqual(calls, [
    { id: "call_a", text: 'weather{"city":"Bern"}' },
    { id: "call_b", text: 'time{"zone":"CET"}' },
  ]);
  assert.deepEqual(logprobs.map((entry) => entry.token), ["Hel"]);
  assert.equal(usage.completion_tokens_details.reasoning_tokens, 2);
});

test("the stream helper, and the whole, are the same completion", async () => {
  const streamed = await client.chat.completions.stream(ask("rich")).finalChatCompletion();
  const whole = await client.chat.completions.create(ask("rich"));
  assert.equal(streamed.choices[0].message.content, "Hello 世🌊");
  assert.equal(whole.choices[0].message.content, "Hello 世🌊");
  const plain = (calls) => calls.map(({ id, function: { name, arguments: text } }) => ({ id, name, text }));
  assert.deepEqual(
    plain(streamed.choices[0].message.tool_calls),
    plain(whole.choices[0].message.tool_calls),
  );
  assert.equal(whole.system_fingerprint, "fp_7");
});

for (const [what, kind, status, code] of [
  ["400", OpenAI.BadRequestError, 400, "too_long"],
  ["401", OpenAI.AuthenticationError, 401, "upstream_auth"],
  ["404", OpenAI.NotFoundError, 404, "upstream_model"],
  ["429", OpenAI.RateLimitError, 429, "upstream_rate_limited"],
  ["500", OpenAI.InternalServerError, 502, "upstream_error"],
  ["malformed", OpenAI.InternalServerError, 502, "upstream_malformed"],
  ["empty", OpenAI.InternalServerError, 502, "upstream_cut"],
  ["hang", OpenAI.InternalServerError, 504, "upstream_timeout"],
]) {
  for (const stream of [true, false]) {
    test(`${what} is its exception${stream ? ", streamed" : ""}`, async () => {
      await assert.rejects(client.chat.completions.create({ ...ask(what), stream }), (error) => {
        assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
        assert.equal(error.status, status);
        assert.equal(error.code, code);
        if (status === 429) assert.equal(error.headers.get("retry-after"), "7");
        return true;
      });
    });
  }
}

test("a failure after some text is thrown after the text", async () => {
  const stream = await client.chat.completions.create({ ...ask("cut"), stream: true });
  let text = "";
  await assert.rejects(
    async () => {
      for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
    },
    (error) => error instanceof OpenAI.APIError && error.code === "upstream_cut",
  );
  assert.equal(text, "Hello there");
});

test("n is refused by name", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask("rich"), n: 2 }), (error) => error.param === "n");
});

test("models are listed", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, ["hasty", "m", "simulated"]);
});

test("an aborted stream cancels the generation after the abandon time", async () => {
  const stream = await client.chat.completions.create({ ...ask("endless"), stream: true }).withResponse();
  const id = stream.response.headers.get("relay-stream");
  for await (const chunk of stream.data) if (chunk.choices[0].delta.content) break; // which aborts
  await waitUntil(async () => (await (await fetch(`${other}/v1/streams/${id}`)).json()).status === "cancelled");
});

test("a response of the Responses API, whole and by the stream helper", async () => {
  const whole = await client.responses.create({ model: "m", input: "rich" });
  assert.equal(whole.output_text, "Hello 世🌊");
  const streamed = await client.responses.stream({ model: "m", input: "rich" }).finalResponse();
  assert.equal(streamed.output_text, "Hello 世🌊");
  assert.deepEqual(
    streamed.output.map((item) => item.type),
    ["reasoning", "message", "function_call", "function_call"],
  );
});

test("a background response resumes on another node", async () => {
  const first = await client.responses.create({
    model: "simulated",
    input: "Go.",
    background: true,
    stream: true,
    simulation,
  });
  const events = [];
  for await (const event of first) if (events.push(event) > 20) break;
  const id = events[0].response.id;
  const rest = await sdk(other).responses.retrieve(id, {
    stream: true,
    starting_after: events.at(-1).sequence_number,
  });
  for await (const event of rest) events.push(event);
  const numbers = events.map((event) => event.sequence_number);
  assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b));
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  const text = deltas.map((event) => event.delta).join("");
  assert.equal(events.at(-1).type, "response.completed");
  assert.equal(text, (await client.responses.retrieve(id)).output_text);
});

test("a background response is cancelled", async () => {
  const { id } = await client.responses.create({ model: "m", input: "endless", background: true });
  await sdk(other).responses.cancel(id);
  await waitUntil(async () => (await client.responses.retrieve(id)).status === "cancelled");
});
