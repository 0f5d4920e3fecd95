// Talking to the server: JSON with the token of this tab, and server-sent events that come back after a break.
//
// Events are read with fetch, not EventSource, which cannot send a token.

const TOKEN = "mixer.token";
const PATIENCE_MS = 20_000; // a server that is stopped takes connections and never answers
const QUIET_MS = 90_000; // a stream that says nothing, not even a comment, for so long is taken for dead
const base = new URL(".", document.baseURI); // the page may live under a proxy's prefix

export class ApiError extends Error {
  constructor(status, code, message, hint) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

export class Api {
  constructor(run) {
    this.root = run ? new URL(`runs/${encodeURIComponent(run)}/`, base) : base;
  }

  url(path, query = {}) {
    const url = new URL(path, this.root);
    for (const [key, value] of Object.entries(query)) {
      if (value !== null && value !== undefined && value !== "") url.searchParams.set(key, value);
    }
    return url;
  }

  async request(path, { query, body, signal, patience_ms: patienceMs = PATIENCE_MS } = {}) {
    const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const ends = [signal, patienceMs === null ? null : AbortSignal.timeout(patienceMs)].filter(Boolean);
    const options = { method: body === undefined ? "GET" : "POST", headers, signal: AbortSignal.any(ends) };
    if (body !== undefined) options.body = JSON.stringify(body);
    const response = await fetch(this.url(path, query), options).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "unreachable", "The server does not answer.", "It is asked again every few seconds.");
    });
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  async get(path, query, signal) {
    return (await this.request(path, { query, signal })).json();
  }

  async post(path, body, signal) {
    return (await this.request(path, { body, signal })).json();
  }
}

async function problemOf(response) {
  const said = await response.json().catch(() => ({}));
  const error = said.error ?? {};
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(response.status, error.code ?? "http", message, error.hint ?? "");
}

// Follows the events of a run until stopped. `onEvent(type, data)`, `onState("live" | "connecting" | "lost", text)`.
export class Events {
  constructor(api, { onEvent, onState }) {
    Object.assign(this, { api, onEvent, onState, lastId: "", failures: 0, stopped: false });
    this.run();
  }

  stop() {
    this.stopped = true;
    this.abort?.abort();
    this.wake?.();
  }

  async run() {
    while (!this.stopped) {
      try {
        await this.follow();
        this.failures += 1;
      } catch (error) {
        if (this.stopped) return;
        this.failures += 1;
        if (error.status === 401 || error.status === 403) this.failures = Math.max(this.failures, 4);
      }
      if (this.stopped) return;
      await this.wait(Math.min(30, 2 ** (this.failures - 1)) * (0.75 + Math.random() / 2));
    }
  }

  // Counts the seconds down in the open; `retry` ends the wait.
  async wait(seconds) {
    const until = Date.now() + seconds * 1000;
    while (!this.stopped && Date.now() < until) {
      this.onState("lost", `Not connected, again in ${Math.ceil((until - Date.now()) / 1000)} s`);
      const rest = Math.min(1000, until - Date.now());
      const woken = await new Promise((resolve) => {
        this.wake = () => resolve(true);
        setTimeout(() => resolve(false), rest);
      });
      if (woken) return;
    }
  }

  retry() {
    this.failures = 0;
    this.wake?.();
  }

  async follow() {
    this.onState("connecting", "Connecting");
    this.abort = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (token()) headers.Authorization = `Bearer ${token()}`;
    if (this.lastId) headers["Last-Event-ID"] = this.lastId;
    let alarm = setTimeout(() => this.abort.abort(), QUIET_MS);
    try {
      const response = await fetch(this.api.url("events"), { headers, signal: this.abort.signal, cache: "no-store" });
      if (!response.ok) throw await problemOf(response);
      this.failures = 0;
      this.onState("live", "Live");
      this.onEvent("open", null);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parse = eventParser((event) => this.take(event));
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(alarm);
        alarm = setTimeout(() => this.abort.abort(), QUIET_MS);
        parse(value);
      }
    } finally {
      clearTimeout(alarm);
    }
  }

  take({ type, data, id }) {
    if (id) this.lastId = id;
    let said = null;
    try {
      said = JSON.parse(data);
    } catch {
      // an event without JSON still says that something happened
    }
    this.onEvent(type, said);
  }
}

// Takes the stream in pieces of any size; calls back with each whole event.
export function eventParser(onEvent) {
  let rest = "";
  let event = { type: "message", data: [], id: "" };
  return (piece) => {
    const lines = (rest + piece).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) onEvent({ ...event, data: event.data.join("\n") });
        event = { type: "message", data: [], id: "" };
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event.type = value;
      else if (field === "data") event.data.push(value);
      else if (field === "id") event.id = value;
    }
  };
}
