// The one place that talks to the API: who is signed in, what a refusal says, whether the server is there,
// and the stream of events, which all tabs of one browser share.

/** What happens to the connection: 'signed-out', 'signed-in', 'signed-off', 'away', 'back'. */
export const bus = new EventTarget();

const settings = { tokenKey: "p2s2.token", probe: "/api/client/node" };
const WAIT_MS = 60_000;
const QUIET_MS = 45_000;
const PAUSE_MAX_MS = 10_000;

/** Another key for the token, and another path that says whether the server is there. */
export function configure(changes) {
  Object.assign(settings, changes);
}

/** A refusal, in the API's own words. `status` is 0 when there was no answer; `body` is the whole answer. */
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.body = body;
    this.field = /^([a-z_]+): /.exec(message)?.[1] ?? null;
  }
}

const say = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A browser that keeps nothing (a private window of some) is signed in for as long as the page lasts.
let kept = null;

function read() {
  try {
    return JSON.parse(localStorage.getItem(settings.tokenKey) ?? "null");
  } catch {
    return kept;
  }
}

/** Who is signed in: `{token, user}` or null. */
export function session() {
  return kept ?? (kept = read());
}

// Calls that wait for a sign-in, or for the server.
let signIn = null;
let back = null;

function promised() {
  const it = {};
  it.promise = new Promise((resolve, reject) => Object.assign(it, { resolve, reject }));
  it.promise.catch(() => {});
  return it;
}

/** Somebody has signed in: what waited for it is asked again, unless it was asked by somebody else. */
export function signedIn(token, user) {
  const before = session();
  kept = { token, user };
  try {
    localStorage.setItem(settings.tokenKey, JSON.stringify(kept));
  } catch {
    // It then lasts as long as the page.
  }
  go(before);
}

function go(before) {
  const isOther = before && name(before) !== name(kept);
  if (isOther) signIn?.reject(new ApiError(401, "Somebody else has signed in."));
  else signIn?.resolve();
  signIn = null;
  say("signed-in", { session: kept, isOther });
}

const name = (it) => it?.user?.username ?? it?.user ?? "";

/** Nobody is signed in any more, by their own wish. */
export function signedOff() {
  const was = kept !== null;
  kept = null;
  try {
    localStorage.removeItem(settings.tokenKey);
  } catch {
    // Nothing was kept.
  }
  signIn?.reject(new ApiError(401, "You have signed out."));
  signIn = null;
  if (was) say("signed-off");
}

// What another tab does with the token is done here too.
addEventListener("storage", (event) => {
  if (event.key !== settings.tokenKey) return;
  const before = kept;
  const now = read();
  if (now?.token === before?.token) return;
  if (!now) {
    signedOff();
    return;
  }
  kept = now;
  go(before);
});

function wantSignIn(token) {
  // Another tab, or another call, may have signed in meanwhile.
  const now = session();
  if (now && now.token !== token) return Promise.resolve();
  if (!signIn) {
    signIn = promised();
    say("signed-out");
  }
  return signIn.promise;
}

function gone() {
  if (back) return back.promise;
  back = promised();
  say("away");
  const now = back;
  (async () => {
    for (let ms = 500; ; ms = Math.min(ms * 2, PAUSE_MAX_MS)) {
      await Promise.race([pause(ms * (0.8 + Math.random() * 0.4)), once(window, "online")]);
      try {
        await fetch(settings.probe, { cache: "no-store", signal: AbortSignal.timeout(5_000) });
        break;
      } catch {
        // Still away: the next pause is longer.
      }
    }
    back = null;
    say("back");
    now.resolve();
  })();
  return now.promise;
}

const once = (target, type) => new Promise((resolve) => target.addEventListener(type, resolve, { once: true }));

function refused(status, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // Something in between has answered, which does not speak for the server.
  }
  return new ApiError(status, body.error ?? `The server answered ${status}.`, body);
}

function headers(more, token = session()?.token) {
  const all = { Accept: "application/json", ...more };
  if (token) all.Authorization = `Bearer ${token}`;
  return all;
}

const away = () => new ApiError(0, "P2S2 does not answer. Try again when it does.");

/**
 * Asks the API and gives its answer. Refusals are thrown as ApiError. Without a good token it waits until somebody has
 * signed in, unless it is asked for nobody (`isAnonymous`) or for a `token` of its own; what only reads also waits until
 * the server is back.
 */
export async function call(method, path, body, { signal, isAnonymous = false, token: given } = {}) {
  const isOwn = isAnonymous || given !== undefined;
  for (;;) {
    signal?.throwIfAborted();
    const token = isAnonymous ? null : (given ?? session()?.token);
    if (!isOwn && !token) {
      await wantSignIn(token);
      continue;
    }
    let response, text;
    try {
      const patience = AbortSignal.timeout(WAIT_MS);
      response = await fetch(path, {
        method,
        headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }, token),
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        signal: signal && AbortSignal.any ? AbortSignal.any([signal, patience]) : (signal ?? patience),
      });
      text = await response.text();
    } catch {
      signal?.throwIfAborted();
      const isBack = gone();
      // What changes something may have been done: whether it is to be done again is for people to say.
      if (method !== "GET") throw away();
      await isBack;
      continue;
    }
    if (response.status === 401 && !isOwn) {
      await wantSignIn(token);
      continue;
    }
    if (!response.ok) throw refused(response.status, text);
    try {
      return JSON.parse(text);
    } catch {
      throw new ApiError(response.status, "The answer was not understood: is this P2S2?");
    }
  }
}

/** Sends a file as the body, which is streamed; `onProgress(sent, total)` says how far it is. */
export async function upload(path, file, { onProgress, signal } = {}) {
  for (;;) {
    signal?.throwIfAborted();
    const token = session()?.token;
    if (!token) {
      await wantSignIn(token);
      continue;
    }
    const { status, text } = await new Promise((resolve, reject) => {
      const xhr = new XMLHttpRequest();
      const stop = () => xhr.abort();
      signal?.addEventListener("abort", stop);
      xhr.open("POST", path);
      for (const [field, value] of Object.entries(headers({ "Content-Type": "application/octet-stream" })))
        xhr.setRequestHeader(field, value);
      xhr.upload.onprogress = (event) => onProgress?.(event.loaded, event.total);
      xhr.onload = () => resolve({ status: xhr.status, text: xhr.responseText });
      xhr.onabort = () => reject(signal.reason);
      xhr.onerror = () => {
        gone();
        reject(new ApiError(0, "The connection ended before all was sent. Nothing of it was kept; add it again."));
      };
      xhr.onloadend = () => signal?.removeEventListener("abort", stop);
      xhr.send(file);
    });
    if (status === 401) {
      await wantSignIn(token);
      continue;
    }
    if (status < 200 || status > 299) throw refused(status, text);
    return JSON.parse(text);
  }
}

/** Cuts a stream of bytes into events: `{id, name, data}`. */
export function parser(give) {
  const decoder = new TextDecoder();
  let rest = "";
  let event = { name: "message", data: [], id: undefined };
  return (bytes) => {
    rest += decoder.decode(bytes, { stream: true });
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) give({ ...event, data: event.data.join("\n") });
        event = { name: "message", data: [], id: undefined };
        continue;
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") event.name = value;
      else if (field === "data") event.data.push(value);
      else if (field === "id") event.id = value;
    }
  };
}

/**
 * Reads events until `close()`. `handlers[name](data)` takes each; `handlers.reset()` says that everything is to be read
 * anew: at the beginning, and whenever some may have been missed. Of all tabs one holds the stream and tells the others.
 */
export function events(path, handlers) {
  const ended = new AbortController();
  const label = `${settings.tokenKey} ${path} ${name(session())}`;
  const channel = navigator.locks && "BroadcastChannel" in window ? new BroadcastChannel(label) : null;
  let lastId = null;
  let heardAt = Date.now();

  const take = ({ id, name, data }) => {
    heardAt = Date.now();
    if (id !== undefined) lastId = id;
    try {
      handlers[name]?.(data);
    } catch (error) {
      reportError(error);
    }
  };
  const tell = (event) => {
    take(event);
    if (!ended.signal.aborted) channel?.postMessage(event);
  };
  channel?.addEventListener("message", ({ data }) => take(data));

  async function hold(stop) {
    for (let ms = 500; !stop.aborted; ) {
      const opened = Date.now();
      try {
        await stream(path, lastId, stop, tell);
      } catch (error) {
        if (stop.aborted) return;
        // What came in between is gone if it cannot go on from there.
        if (error instanceof ApiError && error.status === 0) await gone();
      }
      if (Date.now() - opened > 20_000) ms = 500;
      await pause(ms * (0.8 + Math.random() * 0.4));
      ms = Math.min(ms * 2, PAUSE_MAX_MS);
    }
  }

  if (channel) {
    let own = null;
    let waiting = null;
    const lead = async (isTaken) => {
      waiting = new AbortController();
      let held = null;
      const options = isTaken ? { steal: true } : { signal: waiting.signal };
      try {
        await navigator.locks.request(label, options, () => {
          own = held = new AbortController();
          return hold(held.signal);
        });
      } catch {
        // Another tab has taken it over, or this one waits no longer.
      }
      held?.abort();
      if (own === held) own = null;
      if (held && !ended.signal.aborted) lead(false);
    };
    lead(false);
    // Browsers slow down tabs that nobody sees: one that is looked at takes over from one that says nothing.
    const watch = setInterval(() => {
      if (own || document.hidden || Date.now() - heardAt < QUIET_MS) return;
      heardAt = Date.now();
      waiting.abort();
      lead(true);
    }, 5_000);
    ended.signal.addEventListener("abort", () => {
      clearInterval(watch);
      waiting.abort();
      own?.abort();
    });
  } else {
    // Without a way to agree on one, those that nobody sees do without.
    let own = null;
    const look = () => {
      if (document.hidden) own?.abort();
      else if (!own || own.signal.aborted) hold((own = new AbortController()).signal);
    };
    document.addEventListener("visibilitychange", look, { signal: ended.signal });
    ended.signal.addEventListener("abort", () => own?.abort());
    look();
  }
  // What there is need not wait for what comes; whoever opens the stream reads it again then, so that nothing is missed.
  queueMicrotask(() => ended.signal.aborted || take({ name: "reset" }));

  return {
    close() {
      ended.abort();
      channel?.close();
    },
  };
}

async function stream(path, lastId, stop, give) {
  const token = session()?.token;
  const quiet = new AbortController();
  const end = () => quiet.abort();
  let timer = setTimeout(end, QUIET_MS);
  stop.addEventListener("abort", end);
  try {
    const more = { Accept: "text/event-stream" };
    if (lastId !== null) more["Last-Event-ID"] = lastId;
    let response;
    try {
      response = await fetch(path, { headers: headers(more), cache: "no-store", signal: quiet.signal });
    } catch {
      throw away();
    }
    if (response.status === 401) {
      await wantSignIn(token);
      return;
    }
    if (!response.ok) throw refused(response.status, await response.text());
    if (lastId === null) give({ name: "reset" });
    let isSilent = true;
    const parse = parser((event) => {
      isSilent = false;
      let data = null;
      try {
        data = JSON.parse(event.data);
      } catch {
        // An event without a meaning, such as a `reset` that says nothing more.
      }
      give({ ...event, data });
    });
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // The server says something every 15 s: a line that is silent for longer is broken.
      clearTimeout(timer);
      timer = setTimeout(end, QUIET_MS);
      isSilent = true;
      parse(value);
      // Other tabs are to know that somebody listens.
      if (isSilent) give({ name: "alive" });
    }
  } finally {
    clearTimeout(timer);
    stop.removeEventListener("abort", end);
    quiet.abort();
  }
}
