// The transport that gives `useChat` a relay's responses, and takes one up again where the page was left.
//
//   const { messages, sendMessage, resumeStream } = useChat({ id, transport: new RelayChatTransport(url, storage) });
//
// It remembers only which response belongs to a chat. A resumed message is replayed from its start: the relay has
// all of it, and sends what was missed in few large events.

import { Client } from "../../api/console/client/index.js";

export class RelayChatTransport {
  /** `remembered` is a Map, or anything with get, set and delete: from a chat's id to its response's. */
  constructor(url, remembered, { model = "simulated", ...body } = {}) {
    this.client = new Client(url);
    this.remembered = remembered;
    this.body = { model, ...body };
  }

  async sendMessages({ chatId, messages, abortSignal }) {
    const said = messages.map(({ role, parts }) => ({
      role,
      content: parts.filter((part) => part.type === "text").map((part) => part.text).join(""),
    }));
    const { id } = await this.client.create({ ...this.body, messages: said });
    this.remembered.set(chatId, id);
    return this.read(chatId, id, abortSignal);
  }

  async reconnectToStream({ chatId, abortSignal }) {
    const id = this.remembered.get(chatId);
    return id === undefined ? null : this.read(chatId, id, abortSignal);
  }

  read(chatId, id, signal) {
    const chunks = this.chunks(chatId, id, signal);
    return new ReadableStream({
      // Pulled: a page that does not keep up slows the generator, not its own memory.
      async pull(controller) {
        const { done, value } = await chunks.next();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: () => chunks.return(),
    });
  }

  async *chunks(chatId, id, signal) {
    yield { type: "start", messageId: id };
    const open = new Set();
    const kinds = { content: "text", reasoning: "reasoning" };
    for await (const event of this.client.stream(id, { signal })) {
      if (event.type === "delta" && kinds[event.channel]) {
        const kind = kinds[event.channel];
        if (!open.has(kind)) yield { type: `${kind}-start`, id: kind };
        open.add(kind);
        yield { type: `${kind}-delta`, id: kind, delta: event.text };
      } else if (event.type === "done") {
        this.remembered.delete(chatId);
        for (const kind of open) yield { type: `${kind}-end`, id: kind };
        yield { type: "finish" };
      } else if (event.type === "error") {
        this.remembered.delete(chatId);
        yield { type: "error", errorText: event.message };
      }
    }
  }
}
