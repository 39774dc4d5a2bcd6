// What others have published: found as one types, fetched by one click.

import { Paged } from "./paged.js";
import { Rows } from "./rows.js";
import { fetchFile, get, instead, me, named, nameOf, nothing, part, problem, run, state } from "./state.js";
import { ago, announce, bar, bytes, coalesce, count, fill, h, icon, set, show, text } from "./ui.js";

const input = h("input", {
  id: "search", type: "search", name: "q", placeholder: "Search", autocomplete: "off", spellcheck: false, "aria-label": "Search", enterkeyhint: "search", maxLength: 200,
});
const found = h("p", { class: "muted small", id: "found" });
const whose = h("div", { class: "line", hidden: true });
const place = h("div", { class: "panel", id: "network-list" });

/** The view. */
export const view = h("section", { id: "view-network", "aria-labelledby": "network-title" },
  h("h1", { id: "network-title", class: "unseen" }, "Network"),
  h("div", { class: "seek", role: "search" }, h("div", { class: "search" }, icon("search"), input), h("div", { class: "line between" }, whose, found)),
  place);

const all = new Paged("/api/client/network-files", "files", () => draw());
// The files of one host alone, which are told at once.
let one = null;
const errors = new Map();

const keyOf = (file) => `${file.owner_hostname}/${file.name}`;

const rows = new Rows({
  id: "network-files",
  label: "Files on the network",
  columns: [{ name: "name", label: "Name" }, { name: "size", label: "Size" }, { name: "owner", label: "Owner" }, { name: "age", label: "Published" }, { name: "acts", label: "Fetch", isUnseen: true }],
  key: keyOf,
  make,
});

let number = 0;

function make() {
  const id = `n${(number += 1)}`;
  let file = null;
  const name = named("span", "title");
  name.id = id;
  const copies = h("span", { class: "badge", hidden: true });
  const wrong = problem(true);
  const size = h("td", { role: "cell", class: "c-size number" });
  const owner = h("bdi", { class: "cut" });
  const at = ago();
  const below = [h("span"), h("bdi"), ago(), h("span", { hidden: true })];
  const sub = h("span", { class: "sub small muted" }, below[0], " · ", below[1], " · ", below[2], below[3]);
  const button = h("button", { type: "button", class: "soft small", "aria-describedby": id, onclick: start }, "Fetch");
  const yours = h("span", { class: "badge" }, "Yours");
  const going = h("a", { class: "going", href: "#transfers" }, bar("Fetching"), h("span", { class: "small number" }));
  const el = h("tr", { role: "row" },
    h("td", { role: "cell", class: "c-name" }, h("div", { class: "line nowrap" }, name, copies), sub, wrong),
    size, h("td", { role: "cell", class: "c-owner cut" }, owner), h("td", { role: "cell", class: "c-age" }, at),
    h("td", { role: "cell", class: "c-acts" }, button, yours, going));

  async function start() {
    const it = file;
    errors.delete(keyOf(it));
    await run(button, async () => {
      const begun = await fetchFile(it.name, it.owner_hostname);
      if (begun) waiting.set(keyOf(it), begun.fetch_id);
    }, (sentence) => errors.set(keyOf(it), sentence));
    rows.refresh();
  }

  return {
    el,
    update(it) {
      file = it;
      set(el, { "data-name": it.name, "data-owner": it.owner_hostname });
      name.set(it.name);
      text(size, bytes(it.size));
      text(below[0], bytes(it.size));
      for (const bdi of [owner, below[1]]) text(bdi, nameOf(it));
      owner.title = it.owner_hostname;
      const since = it.published_at ?? it.modified;
      at.set(since);
      below[2].set(since);
      show(copies, it.copies > 1);
      show(below[3], it.copies > 1);
      if (it.copies > 1) {
        text(copies, `${it.copies} have it`);
        text(below[3], ` · ${copies.textContent}`);
        copies.title = `${it.copies} devices have the same content; it is fetched from several at once`;
      }
      const error = errors.get(keyOf(it));
      wrong.set(error);
      show(sub, !error);
      const isMine = it.owner_hostname === me();
      const progress = ongoing(it);
      // What has the focus is not taken away beneath it.
      const had = el.contains(document.activeElement) ? document.activeElement : null;
      show(yours, isMine);
      show(button, !isMine && !progress);
      show(going, Boolean(progress));
      if (progress) {
        const percent = progress.total_size ? progress.progress_percent : null;
        going.firstChild.set(percent);
        text(going.lastChild, progress.status === "downloading" ? `${Math.floor(progress.progress_percent ?? 0)} %` : words[progress.error ? "pending" : progress.status]);
      } else {
        const isHere = done(it);
        text(button, isHere ? "Fetch again" : "Fetch");
        button.classList.toggle("soft", !isHere);
        button.classList.toggle("quiet", isHere);
      }
      if (had?.offsetParent === null) (progress ? going : button).focus({ preventScroll: true });
    },
  };
}

const words = { pending: "Waiting", paused: "Paused" };
// Which fetch began from which row: a name alone does not tell whose it is.
const waiting = new Map();

function ongoing(file) {
  const it = latest(file);
  return it && ["pending", "downloading", "paused"].includes(it.status) ? it : null;
}

const done = (file) => latest(file)?.status === "completed";

function latest(file) {
  const own = state.fetches.get(waiting.get(keyOf(file)));
  if (own) return own;
  let best = null;
  for (const it of byName.get(file.name) ?? []) {
    if (it.total_size === file.size && (it.peer_hostname === file.owner_hostname || file.copies > 1)) best = it;
  }
  return best;
}

let byName = new Map();

state.addEventListener("fetches", () => {
  byName = new Map();
  for (const it of state.fetches.values()) {
    if (!byName.has(it.file_name)) byName.set(it.file_name, []);
    byName.get(it.file_name).push(it);
  }
  rows.refresh();
});

function draw() {
  const source = one ?? all;
  instead(place, source, rows, empty);
  rows.set(source);
  const isRead = source.isRead && !source.error;
  const words = isRead && source.total ? count(source.total, "file") : "";
  text(found, words);
  // Who does not see what is found is told once it is.
  if (isAsked && isRead && !source.isNew) {
    isAsked = false;
    announce(words || "Nothing found", { isQuiet: true });
  }
}

function empty() {
  if (input.value.trim()) return nothing("search", "Nothing of that name", `Nobody has published a file with “${input.value.trim()}” in its name. It appears here as soon as somebody does.`);
  if (one) return nothing("file", "No files", "Nothing is published there at the moment.");
  return nothing("search", "Nothing here yet", "Files that others publish appear here by themselves. Be the first: add a file, and publish it.",
    h("a", { class: "button primary", href: "#files" }, "My files"));
}

let isAsked = false;

const seek = coalesce(() => {
  isAsked = true;
  if (one) one.search(input.value.trim());
  else all.search(input.value.trim());
}, 60);
for (const it of ["input", "change"]) input.addEventListener(it, seek);
input.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && rows.el.isConnected) {
    event.preventDefault();
    rows.focus(0);
  } else if (event.key === "Escape" && input.value) {
    event.preventDefault();
    input.value = "";
    seek();
  }
});

/** The files of one host, among which is searched as among all. */
class OfOne {
  constructor(hostname, title) {
    Object.assign(this, { hostname, title, files: [], list: [], total: 0, isRead: false, error: null, q: input.value.trim() });
  }

  at = (index) => this.list[index];

  search(q) {
    this.q = q;
    const wanted = q.toLowerCase();
    this.list = wanted ? this.files.filter((it) => it.name.toLowerCase().includes(wanted)) : this.files;
    this.total = this.list.length;
    if (one === this) draw();
  }

  async refresh() {
    try {
      const { files, addr } = await get(`discover/${part(this.hostname)}`);
      this.files = Object.entries(files).map(([name, entry]) => ({
        ...entry, name, owner_hostname: this.hostname, owner_name: this.title, owner_ip: addr[0], owner_port: addr[1],
      })).sort((a, b) => a.name.localeCompare(b.name));
      this.error = null;
      this.isRead = true;
    } catch (error) {
      this.error = error;
    }
    this.search(this.q);
  }
}

/** Shows the files of one host, or with nothing those of all. */
export function filter(hostname, title) {
  if ((one?.hostname ?? null) === (hostname ?? null)) return;
  // What was sought among all is not what is sought among theirs.
  if (hostname) input.value = "";
  one = hostname ? new OfOne(hostname, title ?? hostname) : null;
  show(whose, Boolean(one));
  if (one) {
    fill(whose, h("span", { class: "badge accent" }, "Files of ", h("bdi", null, one.title)),
      h("a", { class: "button quiet small", href: "#network" }, "Show all"));
    draw();
    one.refresh();
  } else {
    all.search(input.value.trim());
    all.refresh();
    draw();
  }
}

/** Reads anew what is shown. */
export const refresh = coalesce(() => (one ?? all).refresh());

/** The view has come into sight. */
export function shown(options) {
  const { of } = options;
  filter(of ?? null, options.title);
  rows.refresh();
  if (options.isByHand && matchMedia("(hover: hover)").matches) input.focus({ preventScroll: true });
}
