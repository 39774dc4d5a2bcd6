// What a server shows at its door: whether it is well, and how much is shared through it.

import { bytes, duration, show, text } from "./ui.js";

const EVERY_MS = 10_000;
const PATIENCE_MS = 5_000;
const at = (id) => document.getElementById(id);

let readAt = null;
let isReading = false;

/** An answer of the API, as {status, body}; null where there was none. */
async function ask(path) {
  try {
    const answer = await fetch(path, { cache: "no-store", headers: { Accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE_MS) });
    return { status: answer.status, body: await answer.json() };
  } catch {
    return null;
  }
}

async function read() {
  if (isReading) return;
  isReading = true;
  const [health, stats] = await Promise.all([ask("/api/health"), ask("/api/stats")]);
  isReading = false;
  const isWell = health?.body.status === "healthy";
  if (health) readAt = performance.now();
  text(at("state"), isWell ? "This server is up" : health ? "This server is in trouble" : "This server does not answer");
  document.querySelector(".hello").classList.toggle("is-bad", !isWell);
  if (stats?.status === 200) {
    const { active_clients: hosts, total_files: files, total_size: size } = stats.body.stats;
    text(at("hosts"), hosts.toLocaleString("en"));
    text(at("files"), files.toLocaleString("en"));
    text(at("size"), bytes(size));
  } else if (stats) {
    text(at("none"), stats.status === 503 ? "No registry of files runs on this server." : (stats.body.error ?? `The server answered ${stats.status}.`));
  }
  if (stats) {
    show(at("counts"), stats.status === 200);
    show(at("none"), stats.status !== 200);
    show(at("part"), stats.status === 200);
  }
  say(health);
}

let last = null;

/** How old what is shown is. */
function say(health = last) {
  last = health;
  const age = readAt === null ? "" : duration((performance.now() - readAt) / 1000);
  document.querySelector(".counts").classList.toggle("is-old", !health);
  if (health?.body.success) text(at("since"), "Everything below is kept up to date.");
  else if (health) text(at("since"), health.body.error ?? `It answered ${health.status}.`);
  else text(at("since"), age ? `What is shown is ${age} old. It is asked again every ${EVERY_MS / 1000} s.` : `It is asked again every ${EVERY_MS / 1000} s.`);
}

text(at("server"), location.hostname.replace(/^\[|\]$/g, ""));
read();
setInterval(() => document.hidden || read(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || read());
