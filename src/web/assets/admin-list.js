// A list of the operator's page: found as one types, drawn as far as it is looked at, and honest about its age.

import { isElsewhere, isOld, piece } from "./admin-data.js";
import { Paged } from "./paged.js";
import { Rows } from "./rows.js";
import { announce, coalesce, count, duration, fill, h, icon, set, show, text } from "./ui.js";

const REFRESH_MS = 10_000;

/** As many rows are drawn at most as browsers have room for beneath each other; the rest is found by searching. */
const ROWS_MOST = 200_000;

/** A row of `cells` {name: what is in it}; each has the class `c-name`. */
export const row = (cells, update) => ({
  el: h("tr", { role: "row" }, Object.entries(cells).map(([name, inside]) => h("td", { role: "cell", class: `c-${name}` }, inside))),
  update,
});

/** A text that anybody may have chosen: cut where it is too long, whole where one points at it, in its own direction. */
export function given(tag = "span", more = "") {
  const el = h(tag, { class: `cut ${more}`, dir: "auto" });
  el.say = (value) => {
    text(el, value ?? "");
    if (el.title !== el.textContent) el.title = el.textContent;
    return el;
  };
  return el;
}

/** A state in a word, with a colour that only repeats it. */
export function badge() {
  const el = h("span", { class: "badge" });
  el.say = (word, kind = "") => {
    text(el, word);
    const name = `badge ${kind}`.trim();
    if (el.className !== name) el.className = name;
    return el;
  };
  return el;
}

/** The newest of a list, read as one; like a `Paged` to who shows it. */
export class Newest {
  constructor({ path, none }, field, onChange) {
    Object.assign(this, { none, q: "", total: 0, isRead: false, error: null, pages: new Map() });
    this.piece = piece(path, (answer, refusal) => {
      this.error = refusal;
      if (answer) {
        this.pages.set(0, answer[field]);
        Object.assign(this, { isRead: true, total: answer[field].length, all: answer.total });
      }
      onChange();
    });
  }

  at = (index) => this.pages.get(0)?.[index];
  want = () => {};
  refresh = () => this.piece.read();
}

/**
 * A view with one list. `counts(total, all)` says how many there are, `none` that there is nothing;
 * `above` is shown between the head and the list; `also` is read whenever the list is. `others` {label: {path, none}}:
 * newest entries of another path, among which and the list (`all`: its label) one chooses.
 */
export class ListView {
  constructor({ id, title, path, field, columns, make, key, search, counts, none, missing, above, also, onRead, others }) {
    Object.assign(this, { counts, none, missing, also, onRead });
    this.readAt = null;
    this.toldOf = "";
    this.askedAt = -Infinity;
    this.pages = new Paged(path, field, () => this.came());
    this.rows = new Rows({ label: title, id: `${id}-rows`, columns, key, make: () => make() });
    this.count = h("p", { class: "muted" });
    this.aged = h("span", { class: "aged" });
    this.wrong = h("div", { class: "wrong box line", role: "alert", hidden: true });
    this.empty = h("div", { class: "empty", hidden: true });
    this.panel = h("div", { class: "panel" }, this.rows.el, this.empty);
    this.el = h("section", { class: `view stack v-${id}`, "aria-label": title, hidden: true },
      h("div", { class: "head" }, h("h1", null, title), this.count, h("div", { class: "side" }, this.aged)),
      search ? this.searching(id, search) : null, others ? this.choosing(others, field) : null, this.wrong, above ?? null, this.panel);
  }

  /** Which of several lists is shown: the first of the others to begin with. */
  choosing({ all, ...others }, field) {
    const sources = { ...Object.fromEntries(Object.entries(others).map(([label, other]) => [label, new Newest(other, field, () => this.came())])), [all]: this.pages };
    const buttons = Object.entries(sources).map(([label, pages]) => h("button", { onclick: () => choose(pages) }, label));
    const choose = (pages) => {
      Object.values(sources).forEach((it, index) => set(buttons[index], { "aria-pressed": String(it === pages) }));
      Object.assign(this, { pages, readAt: null });
      this.opened();
    };
    this.pages = Object.values(sources)[0];
    set(buttons[0], { "aria-pressed": "true" });
    set(buttons[1], { "aria-pressed": "false" });
    return h("div", null, h("div", { class: "choice", role: "group", "aria-label": "What is shown" }, buttons));
  }

  searching(id, { label, hint }) {
    const input = h("input", { type: "search", id: `${id}-search`, placeholder: hint, autocomplete: "off", spellcheck: false, maxLength: 255 });
    input.addEventListener("input", coalesce(() => this.pages.search(input.value.trim()), 200));
    return h("div", { class: "search", role: "search" }, h("label", { class: "unseen", htmlFor: input.id }, label), icon("search"), input);
  }

  /** It is looked at now. */
  opened() {
    this.changed();
    this.refresh();
  }

  /** Something of what it shows may have changed. */
  refresh() {
    this.askedAt = performance.now();
    this.pages.refresh();
    this.also?.read();
  }

  /** An answer has come, or a refusal. */
  came() {
    if (!this.pages.error) {
      this.readAt = performance.now();
      this.onRead?.(this.pages);
    }
    this.changed();
  }

  changed() {
    const { pages } = this;
    const { error, isRead, total, q } = pages;
    const isGone = isElsewhere(error);
    const isEmpty = isRead && total === 0;
    show(this.wrong, Boolean(error) && !isGone);
    if (error && !isGone && error.message !== this.refused) fill(this.wrong, h("span", { dir: "auto" }, error.message), h("button", { class: "small", onclick: () => this.refresh() }, "Try again"));
    this.refused = error?.message;
    show(this.rows.el, !isGone && !isEmpty && !(error && !isRead));
    show(this.panel, isRead || isGone || !error);
    show(this.empty, isGone || isEmpty);
    if (isGone) fill(this.empty, h("h2", null, `${this.missing} not running here`), h("p", { dir: "auto" }, error.message));
    else if (isEmpty) fill(this.empty, h("p", { dir: "auto" }, q ? `Nothing matches “${q}”.` : (pages.none ?? this.none)));
    // Told to who listens where it answers a search, and not whenever a number moves.
    if (isRead && !pages.isNew && q !== this.toldOf) announce(q ? count(total, "match", "matches") : this.counts(total), { isQuiet: true });
    if (!pages.isNew) this.toldOf = q;
    const counted = q ? count(total, "match", "matches") : this.counts(total, pages.all);
    const cut = total > ROWS_MOST ? `; the first ${count(ROWS_MOST, "row")} are shown` : "";
    text(this.count, isGone || !isRead ? "" : counted + cut);
    set(this.rows.el, { "aria-busy": String(!isRead) });
    // Before the first answer a few rows say that something comes.
    const { at, want } = pages;
    this.rows.set(isRead ? { total: Math.min(total, ROWS_MOST), at, want } : { total: 6, at: () => undefined, want });
    this.age();
  }

  age() {
    const isGone = isElsewhere(this.pages.error);
    const isStale = isOld(this.readAt) && !isGone;
    this.el.classList.toggle("is-stale", isStale);
    text(this.aged, this.readAt === null || isGone ? "" : `${isStale ? "stale: " : ""}read ${duration((performance.now() - this.readAt) / 1000)} ago`);
  }

  /** A second has passed. */
  tick() {
    if (performance.now() - this.askedAt > REFRESH_MS) this.refresh();
    this.age();
    if (this.pages.isRead) this.rows.refresh();
  }
}
