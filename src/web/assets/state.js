// What the page knows of the node, and what it does with it, for all views.

import { ApiError, call, session } from "./api.js";
import { age, announce, bytes, dialog, fill, h, icon, seen, show, text } from "./ui.js";

const API = "/api/client";

/** Asks the client API: `get("status")`, `post("publish", {fname})`. */
export const get = (path, options) => call("GET", `${API}/${path}`, undefined, options);
export const post = (path, body = {}, options) => call("POST", `${API}/${path}`, body, options);
/** A name in a path. */
export const part = (name) => encodeURIComponent(name);

/** Who is signed in. */
export const me = () => session()?.user?.username ?? "";

/** How the node is, and the fetches by their id. Views listen: 'node', 'fetches'. */
export const state = Object.assign(new EventTarget(), { node: null, fetches: new Map() });
export const changed = (name, detail) => state.dispatchEvent(new CustomEvent(name, { detail }));

/** Runs what a button does: the button is busy meanwhile, and what goes wrong is given to `onError`. */
export async function run(button, act, onError) {
  if (button.getAttribute("aria-busy") === "true") return undefined;
  button.setAttribute("aria-busy", "true");
  try {
    return await act();
  } catch (error) {
    if (error.name !== "AbortError") onError(sentence(error));
    return undefined;
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/** What is said of an error: the API's own words. */
export function sentence(error) {
  if (!(error instanceof ApiError)) reportError(error);
  return error.message;
}

/** A name that people gave: its own direction, cut where there is no room, whole in its title. */
export function named(tag, className) {
  const el = h(tag, { class: `cut ${className ?? ""}`, dir: "auto" });
  el.set = (name) => {
    text(el, name);
    if (el.title !== el.textContent) el.title = el.textContent;
    return el;
  };
  return el;
}

/** What went wrong with a row, in two lines; the whole of it for who asks. `isTold`: read out when it comes. */
export function problem(isTold) {
  const words = h("span", { class: "two" });
  const button = h("button", {
    type: "button", class: "wrong", dir: "auto", onclick: () => dialog({ title: "What is the matter", className: "narrow", build: () => h("p", { dir: "auto" }, words.textContent) }),
  }, words);
  const el = h("span", { class: "problem", role: isTold ? "alert" : undefined, hidden: true }, button);
  el.set = (sentence) => {
    text(words, sentence ?? "");
    button.title = words.textContent;
    show(el, Boolean(sentence));
  };
  return el;
}

/** The display name, or else the name. */
export const nameOf = (host) => host.display_name || host.owner_name || host.hostname || host.owner_hostname;

/** Lists that take another look replace what is under `el` by what fits: the list, or why there is none. */
export function instead(el, { error, isRead, total }, rows, empty) {
  // What was read before is better than none: that the server is away is said elsewhere.
  const now = error && !isRead ? "error" : !isRead ? "wait" : total ? "rows" : "empty";
  if (el.now === now && (now === "wait" || now === "rows")) return;
  if (el.now === now) {
    // The same words stay as they are, and so does the focus among them.
    const other = now === "error" ? null : empty();
    if (other ? el.textContent === other.textContent : el.textContent === seen(error.message)) return;
  }
  el.now = now;
  if (now === "rows") fill(el, rows.el);
  else if (now === "wait") fill(el, h("div", { class: "waits", "aria-busy": "true" }, [60, 40, 50].map((it) => h("span", { class: `skeleton w${it}` }))));
  else if (now === "error") fill(el, h("p", { class: "wrong box", role: "alert", dir: "auto" }, sentence(error)));
  else fill(el, empty());
}

/** Says that there is nothing, and what to do about it. */
export const nothing = (name, title, words, ...more) => h("div", { class: "empty" }, icon(name), h("h2", null, title), h("p", { dir: "auto" }, words), more);

// Fetching.

/** Begins to fetch a file; asks whose it is to be where several have one of that name. */
export async function fetchFile(fname, owner) {
  try {
    return await begin(fname, owner);
  } catch (error) {
    if (isTaken(error)) return beside(fname, owner);
    const owners = error.body?.owners ?? (error.status === 404 ? await othersOf(fname, owner) : []);
    if (!owners.length) throw error;
    const chosen = await choose(fname, owners, error.message);
    return chosen ? begin(fname, chosen) : null;
  }
}

const isTaken = (error) => error.status === 409 && error.field === "save_path";

/** Fetches under another name what has the name of a file that is here, if that is wished. */
async function beside(fname, owner) {
  const both = await keepBoth(fname, numbered(fname, 2));
  for (let n = 2; both && n < NUMBERS_MAX; n += 1) {
    try {
      return await begin(fname, owner, `${state.node.repo}/${numbered(fname, n)}`);
    } catch (error) {
      if (!isTaken(error) || n + 1 === NUMBERS_MAX) throw error;
    }
  }
  return null;
}

/** Of files of one name so many are told apart. */
export const NUMBERS_MAX = 100;

/** A name without its ending, and that. */
export const split = (name) => /^(.+?)(\.[^.]*)?$/s.exec(name).slice(1);

const NAME_MAX = 255;

/** `report (2).pdf`, and no longer than a name may be. */
export function numbered(name, n) {
  const [stem, ending = ""] = split(name);
  const behind = ` (${n})${ending}`;
  const letters = [...stem];
  while (letters.length > 1 && new TextEncoder().encode(letters.join("") + behind).length > NAME_MAX) letters.pop();
  return letters.join("") + behind;
}

/** Whether there are to be two files, of which the new one has another name. */
export const keepBoth = (name, other) => dialog({
  title: "There is one of that name",
  build: () => h("p", { dir: "auto" }, `You already have a file ${name}. Keep both? The new one is then called ${other}.`),
  actions: [{ label: "Skip", value: false, class: "quiet" }, { label: "Keep both", value: true, class: "primary" }],
});

/** Who else has a file of that name. */
async function othersOf(fname, owner) {
  const { files } = await get(`network-files?q=${part(fname)}&limit=1000`);
  return files.filter((it) => it.name === fname && it.owner_hostname !== owner && it.owner_hostname !== me());
}

async function begin(fname, owner_hostname, save_path) {
  const begun = await post("fetch", { fname, owner_hostname, save_path });
  announce(`Fetching ${fname}`, { isQuiet: true });
  return begun;
}

function choose(fname, owners, message) {
  return dialog({
    title: "Whose file is it to be?",
    build: (close) => [
      h("p", { class: "muted", dir: "auto" }, message),
      h("ul", { class: "picks", "aria-label": `Owners of ${fname}` }, owners.map((it) => h("li", null,
        h("button", { type: "button", class: "pick", "data-name": it.owner_hostname, onclick: () => close(it.owner_hostname) },
          h("bdi", { class: "title" }, it.owner_hostname), h("span", { class: "muted small" }, `${bytes(it.size)} · changed ${age(it.modified)}`))))),
    ],
    actions: [{ label: "Cancel", value: null, class: "quiet" }],
  });
}

/** Publishes a file. Where others have it already, it asks first. */
export async function publish(fname, { isQuiet = false } = {}) {
  try {
    await post("publish", { fname, overwrite: false });
  } catch (error) {
    const { exact_matches: exact, partial_matches: partial } = error.body ?? {};
    if (!exact && !partial) throw error;
    const anyway = await dialog({
      title: "Others have this already",
      build: () => [
        h("p", { dir: "auto" }, exact?.length ? `The same as ${fname} is on the network:` : `Something like ${fname} is on the network:`),
        matches([...(exact ?? []), ...(partial ?? [])]),
        h("p", { class: "muted" }, "You can publish yours all the same: who fetches it has more to fetch from, or a choice."),
      ],
      actions: [{ label: "Cancel", value: false, class: "quiet" }, { label: "Publish anyway", value: true, class: "primary" }],
    });
    if (!anyway) return false;
    await post("publish", { fname, overwrite: true });
  }
  if (!isQuiet) announce(`Published ${fname}`);
  return true;
}

const matches = (list) => h("ul", { class: "picks", "aria-label": "Files like it" }, list.slice(0, 20).map((it) => h("li", { class: "pick" },
  h("bdi", { class: "title cut", title: it.name }, it.name), h("span", { class: "muted small" }, h("bdi", null, it.owner_hostname), ` · ${bytes(it.size)} · changed ${age(it.modified)}`))),
  list.length > 20 ? h("li", { class: "muted small" }, `and ${list.length - 20} more`) : null);

// What is in a file.

/** An address, good for an hour, from which the browser may read a file of one's own. */
export async function linkTo(fname) {
  const { url } = await post(`files/${part(fname)}/link`);
  return new URL(url, new URL(`${API}/`, location.href)).href;
}

/** Under which name what was fetched is among the files: another one where that was taken. */
export async function nameOfFetched({ file_name: fname, save_path: path }) {
  const { files } = await get(`local-files?q=${part(split(fname)[0])}&limit=1000`);
  return files.find((it) => it.path === path)?.name ?? fname;
}

/** Has the browser save a file on the device that it runs on. */
export async function save(fname) {
  const a = h("a", { href: await linkTo(fname), download: fname, hidden: true });
  document.body.append(a);
  a.click();
  a.remove();
  announce(`Saving ${fname}`);
}

const KINDS = [
  ["img", /\.(png|jpe?g|gif|webp|avif|bmp)$/i],
  ["video", /\.(mp4|m4v|webm|mov|ogv)$/i],
  ["audio", /\.(mp3|m4a|aac|ogg|oga|opus|flac|wav)$/i],
  ["page", /\.(pdf|txt|log|md)$/i],
];

/** How a browser can show a file, or undefined. */
export const kindOf = (fname) => KINDS.find(([, pattern]) => pattern.test(fname))?.[0];

/** Shows a picture, plays sound or film, or opens what has pages beside this one. */
export async function open(fname, name = Promise.resolve(fname)) {
  const kind = kindOf(fname);
  // A window has to be opened while the click is still going on.
  const beside = kind === "page" ? window.open("", "_blank") : null;
  try {
    const src = await linkTo(await name);
    if (kind === "page") {
      if (beside) beside.location = src;
      else location.assign(src);
      return;
    }
    const props = kind === "img" ? { src, alt: fname } : { src, controls: true, autoplay: true, "aria-label": fname };
    dialog({ title: fname, className: "viewer", build: (_, el) => h(kind, { ...props, onerror: () => fill(el.querySelector(".body"), h("p", null, "This browser cannot show it: save it instead.")) }), actions: [{ label: "Close", value: null }] });
  } catch (error) {
    beside?.close();
    throw error;
  }
}
