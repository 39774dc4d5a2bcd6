// A look around the node's own folders, to say which files it is to track.

import { get, post, publish, run, sentence } from "./state.js";
import { age, announce, bytes, count, dialog, fill, h, icon, set, show, text } from "./ui.js";

const SHOWN = 500;
// The folders gone through, the last one the deepest: it is opened there again.
let trail = [];

/** Opens it; `onAdded()` once files were added. */
export function pick(onAdded) {
  const chosen = new Map();
  const path = h("bdi");
  const where = h("p", { class: "muted small cut where" }, path);
  const up = h("button", { type: "button", class: "quiet round", "aria-label": "Up" }, icon("back"));
  const filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter", autocomplete: "off", spellcheck: false });
  const list = h("ul", { class: "entries", "aria-label": "Folders and files" });
  const wrong = h("p", { class: "wrong box", role: "alert", hidden: true, dir: "auto" });
  const also = h("input", { type: "checkbox", id: "also-publish" });
  const done = h("button", { type: "button", class: "primary", disabled: true }, "Add");
  let here = null;
  let shown = SHOWN;
  let round = 0;

  async function go(path) {
    const mine = (round += 1);
    list.setAttribute("aria-busy", "true");
    try {
      const answer = await get(`browse${path ? `?path=${encodeURIComponent(path)}` : ""}`);
      if (mine !== round) return;
      here = answer;
      shown = SHOWN;
      filter.value = "";
      show(wrong, false);
      draw();
      list.scrollTop = 0;
      (list.querySelector("button, input") ?? up).focus({ preventScroll: true });
    } catch (error) {
      if (mine !== round) return;
      // A folder that was looked at last time may be gone.
      if (path && !here) {
        trail = [];
        go();
        return;
      }
      if (path === trail.at(-1)) trail.pop();
      text(wrong, sentence(error));
      show(wrong, true);
    } finally {
      if (mine === round) list.removeAttribute("aria-busy");
    }
  }

  function draw() {
    const at = trail.at(-1);
    text(path, at ?? "Folders");
    set(where, { title: at ?? "" });
    up.disabled = !at;
    const wanted = filter.value.trim().toLowerCase();
    const entries = here.entries.filter((it) => !wanted || it.name.toLowerCase().includes(wanted))
      .sort((a, b) => (a.kind === b.kind ? a.name.localeCompare(b.name, undefined, { numeric: true }) : a.kind === "folder" ? -1 : 1));
    fill(list, entries.slice(0, shown).map(entryOf),
      entries.length > shown ? h("li", null, h("button", { type: "button", class: "quiet", onclick: () => { shown += SHOWN; draw(); } }, `Show ${count(entries.length - shown, "more", "more")}`)) : null,
      here.truncated || here.total > here.entries.length ? h("li", { class: "muted none" }, "There is more in this folder than is shown.") : null,
      entries.length ? null : h("li", { class: "muted none" }, wanted ? "Nothing of that name here." : "This folder is empty."));
  }

  function entryOf(it) {
    if (it.kind === "folder") {
      return h("li", { "data-name": it.name }, h("button", { type: "button", class: "entry", onclick: () => { trail.push(it.path); go(it.path); } }, icon("files"), h("bdi", { class: "cut" }, it.name)));
    }
    const box = h("input", {
      type: "checkbox", checked: chosen.has(it.path), onchange() {
        if (box.checked) chosen.set(it.path, it);
        else chosen.delete(it.path);
        tell();
      },
    });
    return h("li", { "data-name": it.name }, h("label", { class: "entry" }, box, h("bdi", { class: "cut" }, it.name), h("span", { class: "muted small figures" }, `${bytes(it.size)} · ${age(it.modified)}`)));
  }

  function tell() {
    done.disabled = chosen.size === 0;
    text(done, chosen.size > 1 ? `Add ${count(chosen.size, "file")}` : "Add");
  }

  up.addEventListener("click", () => {
    trail.pop();
    go(trail.at(-1));
  });
  filter.addEventListener("input", () => {
    shown = SHOWN;
    draw();
  });

  return dialog({
    title: "Add files",
    className: "picker",
    build(close) {
      done.addEventListener("click", () => run(done, async () => {
        const failed = [];
        let added = 0;
        const all = [...chosen];
        for (const [path, it] of all) {
          if (all.length > 1) text(done, `${added + failed.length + 1} of ${all.length}`);
          try {
            const { file } = await post("add-file", { filepath: path });
            added += 1;
            chosen.delete(path);
            if (also.checked && !await publish(file.name, { isQuiet: all.length > 1 })) failed.push(`${it.name}: added, not published`);
          } catch (error) {
            failed.push(`${it.name}: ${sentence(error)}`);
          }
        }
        if (added) {
          onAdded();
          if (all.length > 1 || !also.checked) announce(`${also.checked ? "Published" : "Added"} ${all.length > 1 ? count(added, "file") : all[0][1].name}`);
        }
        if (!failed.length) {
          close(added);
          return;
        }
        draw();
        tell();
        text(wrong, failed.slice(0, 5).join("\n"));
        show(wrong, true);
      }, (words) => { text(wrong, words); show(wrong, true); }));
      return [h("p", { class: "muted small" }, "Files stay where they lie; nothing is copied."), h("div", { class: "line nowrap" }, up, where, filter), list, wrong,
        h("div", { class: "line between" }, h("label", { class: "line" }, also, "Publish them at once"), done)];
    },
    onOpen: () => go(trail.at(-1)),
  });
}
