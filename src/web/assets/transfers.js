// What is being fetched, and what was.

import { Rows } from "./rows.js";
import { changed, get, kindOf, nameOfFetched, named, nothing, open, part, post, problem, run, save, sentence, split, state } from "./state.js";
import { announce, bar, bytes, duration, fill, h, set, show, speed, text } from "./ui.js";

const place = h("div", { class: "panel", id: "transfers-list" });
const clear = h("button", { type: "button", class: "quiet", hidden: true, onclick: hideFinished }, "Clear finished");

/** The view. */
export const view = h("section", { id: "view-transfers", "aria-labelledby": "transfers-title" },
  h("div", { class: "head" }, h("h1", { id: "transfers-title" }, "Transfers"), h("div", { class: "side" }, clear)), place);

const rows = new Rows({
  id: "fetches",
  label: "Transfers",
  columns: [{ name: "name", label: "File" }, { name: "acts", label: "Actions", isUnseen: true }],
  key: (it) => it.id,
  make,
});

/** Those that go on, or would. */
export const isOpen = (it) => ["pending", "downloading", "paused"].includes(it.status);

const HIDDEN = "p2s2.hidden";
let hidden = new Set(stored());
const errors = new Map();

function stored() {
  try {
    return JSON.parse(localStorage.getItem(HIDDEN) ?? "[]");
  } catch {
    return [];
  }
}

function hideFinished() {
  for (const it of state.fetches.values()) if (!isOpen(it)) hidden.add(it.id);
  // Only what the node still knows is worth remembering.
  hidden = new Set([...hidden].filter((id) => state.fetches.has(id)));
  try {
    localStorage.setItem(HIDDEN, JSON.stringify([...hidden]));
  } catch {
    // They are then hidden for as long as the page lasts.
  }
  draw();
}

/** `12.0 MB of 40.0 MB · 1.2 MB/s · 24 s left` */
function words(it) {
  const size = it.downloaded_size > 0 && it.downloaded_size < it.total_size ? `${bytes(it.downloaded_size)} of ${bytes(it.total_size)}` : bytes(it.total_size);
  switch (it.status) {
    case "downloading":
      return [size, speed(it.speed_bps), it.eta_seconds !== null && it.eta_seconds !== undefined ? `${duration(it.eta_seconds)} left` : null];
    case "pending": return [size, "Waiting"];
    // Paused by the node itself, until who has it is back.
    case "paused": return [size, it.error ? "Waiting" : "Paused"];
    case "completed": return [bytes(it.total_size), it.verified === false ? "Fetched, not verified" : "Fetched"];
    case "cancelled": return ["Cancelled"];
    default: return [size, "Failed"];
  }
}

let number = 0;

function make() {
  const id = `t${(number += 1)}`;
  let it = null;
  const name = named("span", "title");
  name.id = id;
  const progress = bar("Progress");
  progress.setAttribute("aria-labelledby", id);
  const figures = h("span", { class: "muted small figures" });
  const from = h("bdi");
  const of = h("span", { class: "muted small" }, "from ", from);
  const wrong = problem();
  const says = h("div", { class: "says" }, figures, wrong);
  const act = (label, className, doing) => h("button", {
    type: "button", class: `${className} small`, "aria-describedby": id, onclick(event) {
      const { id: fetch } = it;
      errors.delete(fetch);
      run(event.currentTarget, doing, (words) => {
        errors.set(fetch, words);
        rows.refresh();
      });
    },
  }, label);
  const wish = (verb) => async () => put(it.id, (await post(`fetches/${part(it.id)}/${verb}`)).progress);
  const pause = act("Pause", "", wish("pause"));
  const resume = act("Resume", "", wish("resume"));
  const cancel = act("Cancel", "quiet", wish("cancel"));
  const keep = act("Save", "", async () => save(await nameOfFetched(it)));
  const see = act("Open", "quiet", () => open(it.file_name, nameOfFetched(it)));
  const where = h("a", { class: "button quiet small", "aria-describedby": id }, "Show");
  keep.title = "Save on this device";
  where.title = "Show among my files";
  const acts = [pause, resume, keep, see, where, cancel];
  const el = h("tr", { role: "row" },
    h("td", { role: "cell", class: "c-name" }, h("div", { class: "line nowrap" }, name, of), progress, says),
    h("td", { role: "cell", class: "c-acts" }, acts));

  return {
    el,
    update(now) {
      it = now;
      set(el, { "data-id": it.id, "data-name": it.file_name, "data-status": it.status });
      name.set(it.file_name);
      const sources = it.sources?.length ?? 0;
      text(from, sources > 1 ? `${it.peer_hostname} and ${sources - 1} more` : (it.peer_hostname ?? ""));
      show(of, Boolean(it.peer_hostname));
      const line = words(it).filter(Boolean).join(" · ");
      text(figures, line);
      const error = errors.get(it.id) ?? (it.status === "completed" ? null : it.error);
      wrong.set(error);
      says.classList.toggle("wrongly", Boolean(error));
      const isGoing = isOpen(it);
      show(progress, isGoing || it.status === "failed");
      progress.set(it.total_size || it.status !== "downloading" ? (it.progress_percent ?? 0) : null, line);
      progress.classList.toggle("still", it.status === "paused" || it.status === "pending");
      progress.classList.toggle("bad", it.status === "failed");
      const had = el.contains(document.activeElement) ? document.activeElement : null;
      show(pause, it.status === "downloading" || it.status === "pending");
      show(resume, it.status === "paused" || it.status === "failed");
      show(cancel, isGoing);
      const isHere = it.status === "completed";
      show(keep, isHere);
      show(see, isHere && Boolean(kindOf(it.file_name)));
      show(where, isHere);
      where.href = `#files?q=${encodeURIComponent(split(it.file_name)[0])}`;
      // Where a button goes away under the finger, the focus is on the one that takes its place.
      if (had?.offsetParent === null) acts.find((button) => button.offsetParent)?.focus({ preventScroll: true });
    },
  };
}

function draw() {
  const list = [...state.fetches.values()].filter((it) => isOpen(it) || !hidden.has(it.id));
  // Newest first, and what is over below what is not.
  const seen = list.reverse();
  const ordered = [...seen.filter(isOpen), ...seen.filter((it) => it.status === "failed"), ...seen.filter((it) => !isOpen(it) && it.status !== "failed")];
  instead(place, ordered.length);
  rows.set(ordered);
  show(clear, ordered.some((it) => !isOpen(it)));
}

function instead(el, total) {
  if (el.now === Boolean(total)) return;
  el.now = Boolean(total);
  fill(el, total ? rows.el : nothing("transfers", "No transfers", "What you fetch from others shows here how far it is, and stays here until it is done.",
    h("a", { class: "button primary", href: "#network" }, "Search the network")));
}

/** What has become of a fetch; says so where it has ended. */
export function put(id, progress) {
  toldAt.set(id, begun);
  keep(id, progress);
}

function keep(id, progress) {
  const before = state.fetches.get(id);
  state.fetches.set(id, { ...progress, id });
  const { status, file_name: fname, error } = progress;
  if (before && before.status !== status) {
    if (status === "completed") {
      announce(`Fetched ${fname}`, { action: { label: "Save", run: () => nameOfFetched(progress).then(save).catch((wrong) => announce(sentence(wrong))) } });
    } else if (status === "failed") announce(`${fname}: ${error ?? "not fetched"}`);
    else if (status === "paused" && error) announce(`${fname}: ${error}`, { isQuiet: true });
    else if (status === "cancelled" || status === "paused") announce(`${status === "paused" ? "Paused" : "Cancelled"} ${fname}`, { isQuiet: true });
  }
  soon();
}

let queued = false;

function soon() {
  if (queued) return;
  queued = true;
  const go = () => {
    queued = false;
    changed("fetches");
  };
  // A page that is not seen draws nothing, but goes on counting.
  if (document.hidden) setTimeout(go, 250);
  else requestAnimationFrame(go);
}

state.addEventListener("fetches", draw);

// How many readings had begun, of all and when each fetch was told of last; and which was taken last.
let begun = 0;
let taken = 0;
const toldAt = new Map();

/** Reads them all anew. What was told of one since that began, or read by one that began later, is newer. */
export async function refresh() {
  const mine = (begun += 1);
  try {
    const { fetches } = await get("fetches");
    if (mine < taken) return;
    taken = mine;
    const isOlder = (id) => toldAt.get(id) >= mine;
    for (const [id, progress] of Object.entries(fetches)) if (!isOlder(id)) keep(id, progress);
    for (const id of state.fetches.keys()) {
      if (id in fetches || isOlder(id)) continue;
      state.fetches.delete(id);
      toldAt.delete(id);
    }
    changed("fetches");
  } catch (error) {
    if (state.fetches.size) return;
    place.now = null;
    fill(place, h("p", { class: "wrong box", role: "alert" }, sentence(error)));
  }
}

/** The view has come into sight. */
export const shown = () => draw();
