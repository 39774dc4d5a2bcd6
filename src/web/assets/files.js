// My files: what the node tracks, brought in by name or by dropping, shown to others by one click.

import { Paged } from "./paged.js";
import { pick } from "./picker.js";
import { Rows } from "./rows.js";
import { instead, kindOf, named, nothing, open, post, problem, publish, run, save, sentence, state } from "./state.js";
import { add, list as uploads } from "./uploads.js";
import { ago, announce, bytes, coalesce, confirm, count, dialog, h, icon, instant, set, show, text } from "./ui.js";

const chooser = h("input", { type: "file", id: "choose", multiple: true, hidden: true, onchange: chosen });
const camera = h("input", { type: "file", id: "camera", accept: "image/*", capture: "environment", hidden: true, onchange: chosen });
const choose = h("button", { type: "button", id: "choose-files", onclick: () => chooser.click() }, icon("up"), "Choose files");
const photo = h("button", { type: "button", class: "touch", id: "take-photo", title: "Take a photo", onclick: () => camera.click() }, "Photo");
const find = h("input", {
  id: "find", type: "search", placeholder: "Find in my files", "aria-label": "Find in my files", autocomplete: "off", spellcheck: false, maxLength: 200,
});
const finder = h("div", { class: "search slim", hidden: true }, icon("search"), find);
const found = h("p", { class: "muted small" });
const place = h("div", { class: "panel", id: "files-list" });
const reach = h("p", { class: "hintbox", hidden: true, dir: "auto" });

/** The view. */
export const view = h("section", { id: "view-files", "aria-labelledby": "files-title" },
  h("div", { class: "head" },
    h("h1", { id: "files-title" }, "My files"),
    h("div", { class: "side" },
      h("button", { type: "button", class: "primary", id: "add", onclick: () => pick(refresh) }, icon("plus"), "Add"), choose, photo, chooser, camera)),
  reach, uploads, h("div", { class: "line between seek" }, finder, found), place,
  h("p", { class: "muted small drophint" }, "You can drop files anywhere on this page. Nobody else sees them until you publish them."));

const all = new Paged("/api/client/local-files", "files", draw);
const rows = new Rows({
  id: "local-files",
  label: "My files",
  columns: [{ name: "name", label: "Name" }, { name: "size", label: "Size" }, { name: "age", label: "Changed" }, { name: "mark", label: "State" }, { name: "acts", label: "Actions", isUnseen: true }],
  key: (it) => it.name,
  make,
});
const GONE = "The file is not where it was. Put it back, or remove it from this list.";
const errors = new Map();
let number = 0;

function make() {
  const id = `f${(number += 1)}`;
  let file = null;
  const name = named("span", "title");
  name.id = id;
  const wrong = problem(true);
  const size = h("td", { role: "cell", class: "c-size number" });
  const at = ago();
  const mark = h("span", { class: "badge" });
  const dot = h("span", { class: "dot", hidden: true });
  const sub = [h("span"), ago()];
  const below = h("span", { class: "sub small muted" }, dot, sub[0], " · ", sub[1]);
  const act = (label, className, doing) => h("button", {
    type: "button", class: `${className} small`, "aria-describedby": id, onclick(event) {
      const it = file;
      errors.delete(it.name);
      run(event.currentTarget, () => doing(it), (words) => errors.set(it.name, words)).then(() => rows.refresh());
    },
  }, label);
  const on = act("Publish", "soft", (it) => publish(it.name).then(refresh));
  const off = act("Unpublish", "", (it) => unpublish(it.name));
  const keep = act("Save", "quiet wide-only", (it) => save(it.name));
  const more = h("button", { type: "button", class: "quiet round small", "aria-label": "More", "aria-describedby": id, onclick: () => details(file) }, icon("more"));
  keep.title = "Save on this device";
  const el = h("tr", { role: "row" },
    h("td", { role: "cell", class: "c-name" }, name, below, wrong), size, h("td", { role: "cell", class: "c-age" }, at),
    h("td", { role: "cell", class: "c-mark" }, mark), h("td", { role: "cell", class: "c-acts" }, on, off, keep, more));
  return {
    el,
    update(it) {
      file = it;
      set(el, { "data-name": it.name, "data-published": String(it.is_published) });
      name.set(it.name);
      text(size, bytes(it.size));
      text(sub[0], it.missing ? "Missing" : bytes(it.size));
      at.set(it.modified);
      sub[1].set(it.modified);
      text(mark, it.missing ? "Missing" : it.is_published ? "Published" : "Only here");
      mark.className = `badge ${it.missing ? "danger" : it.is_published ? "ok" : ""}`;
      mark.title = dot.title = it.missing ? GONE : it.is_published ? `Others can fetch it${it.published_at ? `, since ${instant(it.published_at)}` : ""}` : "Nobody else sees it";
      show(dot, Boolean(it.is_published || it.missing));
      dot.classList.toggle("danger", Boolean(it.missing));
      const error = errors.get(it.name);
      wrong.set(error);
      show(below, !error);
      const had = el.contains(document.activeElement) ? document.activeElement : null;
      show(on, !it.is_published && !it.missing);
      show(off, it.is_published);
      show(keep, !it.missing);
      if (had?.offsetParent === null) (it.is_published ? off : it.missing ? more : on).focus({ preventScroll: true });
    },
  };
}

async function unpublish(fname) {
  await post("unpublish", { fname });
  announce(`Unpublished ${fname}`);
  refresh();
}

async function remove(file) {
  const words = file.is_published ? "Others can no longer fetch it. The file itself stays where it is." : "The file itself stays where it is.";
  if (!await confirm(`Remove ${file.name} from this list?`, words, "Remove", true)) return;
  await post("remove-file", { fname: file.name });
  announce(`Removed ${file.name}`);
  refresh();
}

/** All that is known of a file, and all that can be done with it. */
async function details(file) {
  const kind = file.missing ? undefined : kindOf(file.name);
  const facts = [["Size", bytes(file.size)], ["Changed", instant(file.modified)], ["Added", instant(file.added_at)],
    ["Published", file.is_published ? instant(file.published_at) || "yes" : "no"], ["Where", file.path], ["BLAKE3", file.blake3]];
  const doing = await dialog({
    title: file.name,
    build: (close) => [
      file.missing ? h("p", { class: "wrong box" }, GONE) : null,
      h("dl", { class: "facts" }, facts.filter(([, value]) => value).flatMap(([label, value]) => [h("dt", null, label), h("dd", { dir: "auto", class: label === "BLAKE3" ? "mono small" : "" }, value)])),
      h("div", { class: "line" },
        kind && h("button", { type: "button", onclick: () => close("open") }, "Open"),
        !file.missing && h("button", { type: "button", onclick: () => close("save") }, "Save"),
        h("button", { type: "button", class: "danger", onclick: () => close("remove") }, "Remove")),
    ],
  });
  const act = { open: () => open(file.name), save: () => save(file.name), remove: () => remove(file) }[doing];
  try {
    await act?.();
  } catch (error) {
    errors.set(file.name, sentence(error));
    rows.refresh();
  }
}

function draw() {
  instead(place, all, rows, () => (find.value.trim()
    ? nothing("search", "Nothing of that name", "None of your files has that in its name.")
    : nothing("files", "No files yet", "Drop files here, choose some, or add those that lie on this computer. Then publish what others may fetch.")));
  rows.set(all);
  text(found, all.isRead && all.total ? count(all.total, "file") : "");
  show(finder, all.total > 8 || Boolean(find.value) || document.activeElement === find);
}

const seek = coalesce(() => all.search(find.value.trim()), 60);
for (const it of ["input", "change"]) find.addEventListener(it, seek);

state.addEventListener("node", () => {
  const { node } = state;
  const words = node?.reachable === false
    ? `Others cannot reach this computer at ${node.address ?? `port ${node.port}`}: allow that port in its firewall or router, or say with --advertise-ip and --port how it is reached.` : "";
  text(reach, words);
  show(reach, Boolean(words));
});

/** Reads anew what is shown. */
export const refresh = coalesce(() => all.refresh());

/** The view has come into sight. */
export function shown({ q }) {
  if (q !== undefined && q !== find.value) {
    find.value = q;
    all.search(q);
  }
  draw();
}

// Bringing files in.

function chosen(event) {
  const files = [...event.target.files].map((file) => ({ file, name: event.target === camera ? photoName(file) : file.name }));
  event.target.value = "";
  bring(files);
}

/** Phones call every photograph the same. */
function photoName(file) {
  const at = new Date(file.lastModified);
  const two = (n) => String(n).padStart(2, "0");
  const ending = /\.\w+$/.exec(file.name)?.[0] ?? ".jpg";
  return `photo ${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}.${two(at.getMinutes())}.${two(at.getSeconds())}${ending}`;
}

/** Takes what was pasted. */
export const pasted = (list) => bring([...list].map((file) => ({ file, name: file.name })));

function bring(files) {
  if (!files.length) return;
  if (location.hash.split("?")[0] !== "#files") location.hash = "#files";
  add(files, (name) => {
    refresh();
    announce(`Added ${name}`, { action: { label: "Publish", run: () => publish(name).then(refresh).catch((error) => announce(sentence(error))) } });
  });
}

const FILES_MAX = 1000;

/** Takes what was dropped: files, and those in folders. */
export async function dropped(transfer) {
  const entries = [...transfer.items].filter((it) => it.kind === "file").map((it) => it.webkitGetAsEntry?.() ?? it.getAsFile());
  const files = [];
  try {
    for (const entry of entries) await walk(entry, files);
  } catch {
    announce("The browser could not read what was dropped: choose the files instead.");
    return;
  }
  if (files.length > FILES_MAX) {
    announce(`That is more than ${FILES_MAX} files: add the folder's files with Add, or drop fewer.`);
    return;
  }
  if (!files.length && entries.length) announce("There are no files in what was dropped.");
  bring(files);
}

async function walk(entry, files) {
  if (files.length > FILES_MAX || !entry) return;
  if (entry instanceof File) {
    files.push({ file: entry, name: entry.name });
  } else if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    files.push({ file, name: file.name });
  } else if (entry.isDirectory && !entry.name.startsWith(".")) {
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const it of some) if (!it.name.startsWith(".")) await walk(it, files);
    }
  }
}
