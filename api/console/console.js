// The console: starts responses, reads them as slowly as its sliders say, and shows what the relay does about it.
// It reads with the shipped client: explicit acks from a loop that takes its time are a slow reader to the relay.

import { Client, RefusedError } from "./client/index.js";

const LEVELS = ["live", "coalesce", "pace", "pause", "shorten", "cancel"];
const POLL_MS = 500, LIST_MS = 2000, SAMPLES = 120, TEXT_MAX = 60_000, NOTICES_MAX = 50;
const $ = (id) => document.getElementById(id);

let client = connect(sessionStorage.getItem("relay-key"));
let current = null; // the response that is shown: { id, readers, ended }

function connect(key) {
  return new Client("", key ? { apiKey: key } : {});
}

function bytes(n) {
  return n < 1024 ? `${n} B` : n < 1024 * 1024 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1024 / 1024).toFixed(2)} MiB`;
}

function say(element, text, tone = "") {
  if (element.textContent !== text) element.textContent = text;
  element.className = element.className.replace(/\b(good|warn|bad)\b/g, "").trim();
  if (tone) element.classList.add(tone);
}

function problem(error) {
  const isKey = error instanceof RefusedError && error.status === 401;
  $("key-form").hidden = $("key-form").hidden && !isKey;
  $("problem").textContent = error === null ? "" : isKey ? "This relay asks for a key." : error.message;
}

async function call(path) {
  const key = sessionStorage.getItem("relay-key");
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) throw new RefusedError(`HTTP ${answer.status}`, answer.status, "refused");
  return answer.json();
}

// --- one reader

class Reader {
  constructor(response, number) {
    this.response = response;
    this.name = `console-${crypto.randomUUID().slice(0, 8)}`;
    this.root = $("reader").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.root.querySelector(`.${name}`);
    this.root.querySelector("h3").textContent = `Reader ${number}`;
    this.root.setAttribute("aria-label", `Reader ${number}`);
    this.samples = [];
    this.after = undefined;
    this.events = this.bytes = this.connections = 0;
    this.chars = 0;
    this.window = $("window").valueAsNumber || 2048;
    this.isFrozen = false;
    this.part("slider").oninput = () => this.slide();
    this.part("freeze").onclick = () => this.freeze();
    this.part("cut").onclick = () => this.cut();
    this.part("close").onclick = () => this.close();
    this.slide();
    this.read();
  }

  // Bytes a second, from 30 to as fast as it goes: logarithmic, for that is how slow and fast feel.
  get speed() {
    const at = this.part("slider").valueAsNumber;
    return at >= 100 ? Infinity : 30 * 10 ** (at / 33);
  }

  slide() {
    const speed = this.speed;
    const said = speed === Infinity ? "as fast as it comes" : `${bytes(Math.round(speed))}/s`;
    this.part("speed").textContent = said;
    this.part("slider").setAttribute("aria-valuetext", said);
    this.wake?.();
  }

  freeze() {
    this.isFrozen = !this.isFrozen;
    this.part("freeze").setAttribute("aria-pressed", String(this.isFrozen));
    this.part("freeze").textContent = this.isFrozen ? "Read on" : "Freeze";
    this.wake?.();
  }

  // What a bad network does: the client comes back by itself, from where it was.
  cut() {
    this.stop?.abort("cut");
  }

  close() {
    this.isClosed = true;
    this.stop?.abort("closed");
    this.wake?.();
    this.root.remove();
    this.response.readers.delete(this);
  }

  async read() {
    while (!this.isClosed && !this.isOver) {
      this.stop = new AbortController();
      const options = { consumer: this.name, window: this.window, signal: this.stop.signal };
      const stream = client.stream(this.response.id, this.after ? { ...options, after: this.after } : options);
      try {
        for await (const event of stream) {
          this.connections += this.isFirst(stream) ? 1 : 0;
          this.after = stream.position;
          this.show(event);
          await this.pause(event.text ? new TextEncoder().encode(event.text).length : 0);
          if (this.stop.signal.aborted) break;
        }
        this.isOver = !this.stop.signal.aborted;
      } catch (error) {
        if (!this.stop.signal.aborted) {
          this.note(error.message, "bad");
          this.isOver = true;
        }
      }
      if (this.stop.signal.reason === "cut") this.note("connection cut; resuming");
    }
  }

  isFirst(stream) {
    const isNew = this.stream !== stream;
    this.stream = stream;
    return isNew;
  }

  // The time that this reader takes for so many bytes; a change of its speed ends the wait.
  async pause(size) {
    let left = size;
    while (!this.isClosed && !this.stop.signal.aborted && (this.isFrozen || left > 0)) {
      const speed = this.speed;
      if (!this.isFrozen && speed === Infinity) return;
      const began = performance.now();
      await new Promise((resolve) => {
        this.wake = resolve;
        this.stop.signal.addEventListener("abort", resolve, { once: true });
        if (!this.isFrozen) setTimeout(resolve, (left / speed) * 1000);
      });
      this.wake = null;
      if (!this.isFrozen) left -= ((performance.now() - began) / 1000) * speed;
    }
  }

  show(event) {
    this.events += 1;
    if (event.type === "delta") {
      this.bytes += event.text.length;
      this.append(event.text);
    } else if (event.type === "notice") {
      this.note(`${event.kind}: ${event.reason}`, event.level >= 3 ? "bad" : event.level ? "warn" : "good");
    } else if (event.type === "done") {
      const digest = event.verified ? "digest verified" : "digest not compared";
      this.note(`done (${event.finishReason}), ${bytes(event.textBytes)}, ${digest}`, "good");
    } else if (event.type === "error") {
      this.note(`${event.code}: ${event.message}`, "bad");
    } else if (event.type === "rewind" || event.type === "reconnect") {
      this.note(event.type, "warn");
    }
  }

  append(text) {
    const box = this.part("text");
    const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    box.append(text);
    this.chars += text.length;
    while (this.chars > TEXT_MAX && box.firstChild !== box.lastChild) {
      this.chars -= box.firstChild.length; // the page keeps the end of a long text
      box.firstChild.remove();
    }
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  note(text, tone = "") {
    const item = document.createElement("li");
    const when = document.createElement("time");
    when.textContent = new Date().toLocaleTimeString();
    const what = document.createElement("span");
    what.textContent = text;
    if (tone) what.classList.add(tone);
    item.append(when, what);
    const list = this.part("notices");
    list.prepend(item);
    while (list.children.length > NOTICES_MAX) list.lastElementChild.remove();
  }

  // What the relay says of this reader, and what arrived here since the last look.
  look(status, seconds) {
    const found = status.consumers.find((consumer) => consumer.id === this.name);
    const lag = found ? found.lag_bytes : 0;
    const tone = { slow: "warn", stalled: "bad", live: "good" }[found?.state] ?? "";
    const cause = found?.cause ? ` (${found.cause})` : "";
    say(this.part("state"), this.isOver ? "ended" : (found ? found.state + cause : "–"), this.isOver ? "" : tone);
    say(this.part("lag"), bytes(lag), lag > this.window ? "bad" : lag > this.window / 2 ? "warn" : "");
    say(this.part("position"), String(this.after?.offset ?? 0));
    say(this.part("events"), (this.events / seconds).toFixed(1));
    say(this.part("size"), this.events ? Math.round(this.bytes / this.events).toString() : "–");
    say(this.part("connections"), String(this.connections));
    this.events = this.bytes = 0;
    this.samples = [...this.samples, lag].slice(-SAMPLES);
    const most = Math.max(1, this.window, ...this.samples);
    const gap = SAMPLES - this.samples.length; // now is at the right
    const height = (value) => 38 - (value / most) * 36;
    const points = this.samples.map((value, at) => `${((gap + at) * 240) / (SAMPLES - 1)},${height(value)}`);
    for (const end of ["y1", "y2"]) this.root.querySelector(".limit").setAttribute(end, height(this.window));
    this.root.querySelector("polyline").setAttribute("points", points.join(" "));
  }
}

// --- the response that is shown

function open(id) {
  current?.readers.forEach((reader) => reader.close());
  current = { id, readers: new Set(), opened: 0, ended: false, lookedAt: performance.now() };
  $("response").hidden = false;
  $("response-id").textContent = id;
  addReader();
}

function addReader() {
  const reader = new Reader(current, ++current.opened);
  current.readers.add(reader);
  $("readers").append(reader.root);
}

async function look() {
  const shown = current;
  if (shown === null) return;
  const status = await client.status(shown.id);
  if (shown !== current) return;
  const now = performance.now();
  const isHeld = status.level === 3, isPaced = status.level === 2;
  say($("fact-status"), status.status, status.status === "failed" ? "bad" : "");
  say($("fact-level"), `${status.level} ${LEVELS[status.level]}`, isHeld ? "bad" : status.level ? "warn" : "good");
  const isRunning = ["running", "paused"].includes(status.status);
  say($("fact-source"), !isRunning ? "–" : isHeld ? "not read" : isPaced ? "paced" : "free");
  say($("fact-position"), bytes(status.position));
  say($("fact-finish"), status.finish_reason ?? "–");
  $("cancel").disabled = !["queued", "running", "paused"].includes(status.status);
  shown.readers.forEach((reader) => reader.look(status, (now - shown.lookedAt) / 1000));
  shown.lookedAt = now;
}

// --- the deployment

async function list() {
  const [recent, pressure] = await Promise.all([call("v1/streams"), call("v1/pressure")]);
  const names = ["calm", "limits lowered", "background shed", "new work refused"];
  const memory = pressure.memory_budget_bytes ? `, Redis ${bytes(pressure.memory_bytes)} of ${bytes(pressure.memory_budget_bytes)}` : `, Redis ${bytes(pressure.memory_bytes)}`;
  const why = pressure.level ? ` (${pressure.reason})` : "";
  say($("pressure"), `pressure ${pressure.level}: ${names[pressure.level]}${why}, ${pressure.waiting} waiting, ${pressure.active} active, ${pressure.workers} ${pressure.workers === 1 ? "worker" : "workers"}${memory}`,
    ["good", "warn", "warn", "bad"][pressure.level]);
  $("empty").hidden = recent.data.length > 0;
  $("list").replaceChildren(...recent.data.map((response) => row(response)));
}

function row(response) {
  const lag = Math.max(0, ...response.consumers.map((consumer) => consumer.lag_bytes));
  const line = document.createElement("tr");
  const button = document.createElement("button");
  button.textContent = response.id;
  button.onclick = () => open(response.id);
  const first = document.createElement("td");
  first.append(button);
  line.append(first);
  const values = [response.model, response.status, `${response.level} ${LEVELS[response.level]}`,
    String(response.consumers.length), bytes(lag), bytes(response.position)];
  values.forEach((value, at) => {
    const cell = document.createElement("td");
    cell.textContent = value;
    if (at >= 4) cell.className = "n";
    line.append(cell);
  });
  return line;
}

async function models() {
  const found = await call("v1/models");
  $("model").replaceChildren(...found.data.map((model) => new Option(model.id)));
  chosen();
}

function chosen() {
  document.querySelectorAll(".simulated").forEach((label) => {
    label.hidden = $("model").value !== "simulated";
  });
}

async function start(event) {
  event.preventDefault();
  const body = { model: $("model").value, prompt: $("prompt").value, pace: $("pace").value,
    window_bytes: Math.max(1024, $("window").valueAsNumber) };
  if (body.model === "simulated") {
    body.simulation = { tokens: $("tokens").valueAsNumber, tokens_per_second: $("rate").valueAsNumber };
  }
  try {
    const made = await client.create(body);
    problem(null);
    open(made.id);
    await list();
  } catch (error) {
    problem(error);
  }
}

// Each look begins when the one before is over: a slow relay is not asked more often than it answers.
async function every(ms, work) {
  for (;;) {
    try {
      if (!document.hidden) await work();
    } catch (error) {
      if (error instanceof RefusedError && error.status === 401) problem(error);
      else say($("pressure"), "no answer from the relay", "bad");
    }
    await new Promise((resolve) => setTimeout(resolve, ms));
  }
}

$("start").onsubmit = start;
$("model").onchange = chosen;
$("add-reader").onclick = addReader;
$("cancel").onclick = () => client.cancel(current.id).catch(problem);
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("relay-key", $("key").value);
  client = connect($("key").value);
  $("key-form").hidden = true;
  problem(null);
  models().catch(problem);
};
models().catch(problem);
every(POLL_MS, look);
every(LIST_MS, list);
