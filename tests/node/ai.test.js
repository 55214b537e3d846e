// The Vercel AI SDK, unmodified: its providers with our baseURL, and a chat that takes its response up again.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { AbstractChat, APICallError, generateText, streamText } from "ai";
import { RelayChatTransport } from "./relay-transport.js";

const [url, other] = [process.env.RELAY_URL, process.env.RELAY_OTHER];
const compatible = createOpenAICompatible({ name: "relay", baseURL: `${url}/v1`, includeUsage: true });
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none-needed" });
const simulated = { tokens: 600, tokens_per_second: 100, seed: 6 }; // six seconds: it is not over when the page is left
const quiet = { onError: () => {} };

test("streamText of a compatible provider: text, reasoning, tool calls, usage", async () => {
  const result = streamText({ model: compatible("m"), prompt: "rich" });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert.equal(text, "Hello 世🌊");
  assert.equal(await result.reasoningText, "Let me think.");
  assert.equal(await result.finishReason, "tool-calls");
  assert.deepEqual(
    (await result.toolCalls).map(({ toolName, input }) => [toolName, input]),
    [
      ["weather", { city: "Bern" }],
      ["time", { zone: "CET" }],
    ],
  );
  const usage = await result.usage;
  assert.deepEqual([usage.inputTokens, usage.outputTokens], [11, 7]);
});

for (const [name, model] of [
  ["chat", openai.chat("m")],
  ["responses", openai.responses("m")],
]) {
  test(`streamText and generateText of the OpenAI provider, ${name}`, async () => {
    const result = streamText({ model, prompt: "plain" });
    assert.equal(await result.text, "Hello there");
    assert.equal(await result.finishReason, "stop");
    const whole = await generateText({ model, prompt: "plain" });
    assert.equal(whole.text, "Hello there");
    assert.equal(whole.usage.inputTokens, 3);
  });
}

for (const [what, status, isRetryable] of [
  ["400", 400, false],
  ["401", 401, false],
  ["429", 429, true],
  ["500", 502, true],
]) {
  test(`${what} is an APICallError`, async () => {
    const asked = generateText({ model: compatible("m"), prompt: what, maxRetries: 0 });
    await assert.rejects(asked, (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.deepEqual([error.statusCode, error.isRetryable], [status, isRetryable]);
      return true;
    });
  });
}

test("a failure after some text is an error part of the stream", async () => {
  const result = streamText({ model: compatible("m"), prompt: "cut", maxRetries: 0, ...quiet });
  const parts = [];
  for await (const part of result.fullStream) parts.push(part);
  const text = parts.filter((part) => part.type === "text-delta").map((part) => part.text);
  assert.equal(text.join(""), "Hello there");
  assert.ok(parts.some((part) => part.type === "error"));
});

/** What `useChat` keeps in React's state. */
class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) =>
    (this.messages = this.messages.map((one, at) => (at === index ? structuredClone(message) : one)));
  snapshot = (thing) => structuredClone(thing);
}

/** What `useChat` is a hook around. */
class Chat extends AbstractChat {
  constructor(init) {
    super({ ...init, state: new State() });
  }
}

const textOf = (chat) => chat.lastMessage.parts.filter((part) => part.type === "text").map((part) => part.text).join("");

test("a chat that was left goes on in another page, from another node", async () => {
  const remembered = new Map();
  const id = "chat-1";
  const page = new Chat({ id, transport: new RelayChatTransport(url, remembered, { simulation: simulated }) });
  const sent = page.sendMessage({ text: "Go." });
  const deadline = Date.now() + 30_000;
  while (!(page.lastMessage?.role === "assistant" && textOf(page).length > 100)) {
    assert.ok(Date.now() < deadline, "no text");
    await new Promise((go) => setTimeout(go, 20));
  }
  const response = remembered.get(id);
  const question = page.messages[0];
  await page.stop(); // as a closed tab
  await sent;
  assert.equal(remembered.get(id), response, "it is not over");

  const again = new Chat({ id, transport: new RelayChatTransport(other, remembered) });
  again.messages = [question];
  await again.resumeStream();
  assert.equal(again.status, "ready");
  assert.equal(textOf(again), await (await fetch(`${url}/v1/streams/${response}/text`)).text());
  assert.equal(again.messages.length, 2);
  assert.equal(remembered.size, 0);

  await again.resumeStream(); // nothing is left to resume
  assert.equal(again.messages.length, 2);
});

test("a chat whose response fails has its error", async () => {
  const chat = new Chat({ id: "chat-2", transport: new RelayChatTransport(url, new Map(), { model: "m" }), ...quiet });
  await chat.sendMessage({ text: "cut" });
  assert.equal(chat.status, "error");
  assert.match(chat.error.message, /ended the stream without a finish/);
  assert.equal(textOf(chat), "Hello there");
});
