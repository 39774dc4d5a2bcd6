// What the operator's page reads beside its lists: the server's clock, and single answers that are read again and again.

import { call } from "./api.js";

/** Milliseconds that the server's clock is ahead of this one's: ages are told by the clock that measured. */
let ahead = 0;

/** The time of the server's clock, in milliseconds. */
export const serverNow = () => Date.now() + ahead;

/** Asks the server what time it is. Its answer knows whole seconds only: on average half of one is cut off. */
export async function readClock() {
  const asked = Date.now();
  let at;
  try {
    const answer = await fetch("/api/health", { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(5_000) });
    at = Date.parse(answer.headers.get("Date"));
  } catch {
    return; // Whether the server is there is for others to say; its clock has not changed by that.
  }
  const apart = at + 500 - (asked + Date.now()) / 2;
  // Less than the answer can tell is no difference.
  if (Number.isFinite(apart)) ahead = Math.abs(apart) < 1_000 ? 0 : apart;
}

const STALE_AFTER_MS = 30_000;

/** Whether what was read then is no longer the present. */
export const isOld = (readAt) => readAt !== null && performance.now() - readAt > STALE_AFTER_MS;

/** A refusal because that service does not run in this process, and not because it fails: no fault, so no alarm. */
export const isElsewhere = (refusal) => refusal?.status === 503 && refusal.message.startsWith("there is no ");

/** One answer, read one request at a time however often it is asked for; `take(answer, refusal)` shows it. */
export function piece(path, take) {
  let isReading = false;
  let isAsked = false;
  const it = {
    readAt: null,
    async read() {
      isAsked = isReading;
      if (isReading) return;
      isReading = true;
      const [answer, refusal] = await call("GET", path).then((it) => [it, null], (error) => [null, error]);
      isReading = false;
      if (answer) it.readAt = performance.now();
      take(answer, refusal);
      if (isAsked) it.read();
    },
  };
  return it;
}
